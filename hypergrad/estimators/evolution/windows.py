"""Estimators that move antithetic pairs of runs by one window an estimate."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from hypergrad.core import tree
from hypergrad.core.checks import check_kind, check_whole
from hypergrad.core.scans import largest_divisor
from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.estimators.base import Estimate, Estimator
from hypergrad.estimators.evolution.info import summarize
from hypergrad.estimators.evolution.moves import Perturbation
from hypergrad.estimators.evolution.pairs import (
    Pairs,
    Target,
    Window,
    begin_pairs,
    both_sides,
    pair_keys,
    run_window,
)
from hypergrad.problem import Problem, check_problem
from hypergrad.validation import check_step

Rule: TypeAlias = Callable[[Array, PyTree, PyTree], tuple[PyTree, PyTree]]
"""(whether the run starts, fresh noise, noise of the state) -> (noise of the move, noise that gets credit)."""


def quarter(horizon: int) -> int:
    """Return the largest divisor of the horizon that is at most a quarter of it, or 1."""
    return largest_divisor(horizon, horizon // 4)


def by_windows(
    problem: Problem,
    horizon: int,
    window: int,
    moves: Perturbation,
    num_pairs: int,
    target: Target,
    rule: Rule,
) -> Estimator:
    """Build an estimator that moves every pair by one window, with the noise that `rule` gives it."""
    check_problem(problem)
    check_whole("horizon", horizon)
    check_whole("window", window)
    if horizon % window:
        nearest = largest_divisor(horizon, min(window, horizon))
        raise ValueError(
            f"window is {window}, expected a divisor of horizon = {horizon}; pass e.g. window={nearest}"
        )
    check_whole("num_pairs", num_pairs, 2, example=16)
    check_kind("target", target, Target, "final_objective or mean_objective")
    num_windows = horizon // window

    def advance(
        run_key: Key, valid_key: Key, pair: Pairs, hparams: HParams
    ) -> tuple[Pairs, Window]:
        """Move one pair by one window; return the pair and the window."""
        draw_key, start_key = jax.random.split(run_key)
        step = pair.train.step[0]
        starts = (step == 0) | (step == horizon)
        fresh = moves.draw(jax.random.fold_in(draw_key, pair.num_windows), hparams)
        unit, credited = rule(starts, fresh, pair.noise)
        moved = both_sides(moves, hparams, unit)
        train = tree.choose(starts, begin_pairs(problem, start_key, moved), pair.train)
        batch = problem.valid_batch(valid_key)
        found = run_window(problem, hparams, moved, train, batch, window)
        # a run that was not finite once stays out of the means, from its first such step on
        before = jnp.where(starts, -1, pair.first_nonfinite)
        found = found._replace(first_nonfinite=jnp.where(before < 0, found.first_nonfinite, before))
        count = pair.num_windows + 1
        return Pairs(found.train, credited, found.gaps, found.first_nonfinite, count), found

    def init(key: Key, hparams: HParams) -> Pairs:
        check_step(problem, hparams, real=True, pathwise=False)
        start_key, phase_key, run_key = jax.random.split(key, 3)
        pairs = jax.vmap(lambda k: _blank(problem, moves, k, hparams))(
            jax.random.split(start_key, num_pairs)
        )
        windows = _spread_pairs(phase_key, num_pairs, num_windows)

        def turn(pairs: Pairs, inputs: tuple[Array, Key]) -> tuple[Pairs, None]:
            index, key = inputs
            keys = pair_keys(key, num_pairs)
            moved, _ = jax.vmap(advance, in_axes=(0, 0, 0, None))(*keys, pairs, hparams)
            return jax.vmap(tree.choose)(index < windows, moved, pairs), None

        turns = (jnp.arange(num_windows - 1), jax.random.split(run_key, num_windows - 1))
        return jax.lax.scan(turn, pairs, turns)[0]

    def estimate(key: Key, state: Pairs, hparams: HParams) -> tuple[Pairs, Estimate]:
        check_step(problem, hparams, real=True, pathwise=False)
        across = jax.vmap(advance, in_axes=(0, 0, 0, None))
        after, found = across(*pair_keys(key, num_pairs), state, hparams)
        starts = after.train.step[:, :1] == window
        before = jnp.where(starts, 0, state.gaps)
        changes = target.part(before, found.gaps, num_windows)
        steps = jnp.where(found.first_nonfinite < 0, after.train.step[:, 0], -1)
        reported = target.reported(steps)
        return after, summarize(moves, hparams, after.noise, changes, found, reported, horizon)

    return Estimator(init, estimate)


def _spread_pairs(key: Key, num_pairs: int, num_windows: int) -> Array:
    """Return the window at which each pair starts `[num_pairs]`.

    The pairs are spread evenly, beginning at a random window, so that each is at every window equally often.
    """
    offset = jax.random.randint(key, (), 0, num_windows)
    return (offset + jnp.arange(num_pairs) * num_windows // num_pairs) % num_windows


def _blank(problem: Problem, moves: Perturbation, key: Key, hparams: HParams) -> Pairs:
    """Make a pair that has not begun."""
    batch = problem.valid_batch(key)
    train = begin_pairs(problem, key, jax.tree.map(lambda h: jnp.stack([h, h]), hparams))
    noise = jax.tree.map(jnp.zeros_like, moves.draw(key, hparams))
    params = jax.tree.map(lambda x: x[0], train.params)
    value = jax.eval_shape(problem.objective, params, hparams, batch)
    zero = jnp.zeros((), jnp.int32)
    return Pairs(train, noise, jnp.zeros(2, value.dtype), zero - 1, zero)
