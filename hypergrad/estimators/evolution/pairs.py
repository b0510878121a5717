"""Antithetic pairs of training runs: their keys, their state, and one window of one pair."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hypergrad.core.types import Array, Batch, HParams, Key, PyTree
from hypergrad.estimators.evolution.moves import Perturbation
from hypergrad.problem import Problem
from hypergrad.train import TrainState, init_state, split_key, unroll_losses

NUM_PAIRS = 16
"""Number of antithetic pairs where none is given."""


class Target(NamedTuple):
    """The target of a truncated estimator: the mean over a run's windows of `part`.

    Attributes:
        part: (before, after, num_windows) -> the window's part, linear in the objectives at the ends of the
            window before (0 for the first) and of this one.
        reported: (steps made by each pair `[num_pairs]`) -> whether `value` counts a pair `[num_pairs]`.
    """

    part: Callable[[Array, Array, int], Array]
    reported: Callable[[Array], Array]


final_objective = Target(
    part=lambda before, after, num_windows: num_windows * (after - before),
    reported=lambda steps: steps == jnp.max(steps),
)
"""f(w_T, λ), telescoped: Σ_k (f_k − f_{k−1}) = f_K. The value is that of the pairs furthest along."""

mean_objective = Target(
    part=lambda before, after, num_windows: after,
    reported=lambda steps: jnp.ones_like(steps, bool),
)
"""(1/K) Σ_k f_k, the mean over the ends of the K windows, so that fast training counts too."""


class Pairs(NamedTuple):
    """Antithetic pairs in mid-run; every array has the leading axis `[num_pairs]`.

    Attributes:
        train: Two runs, on a second axis `[2]`: at +ε and at −ε.
        noise: Unit noise that got the credit for the last gap (PES: the sum since the start of the run).
        gaps: Differences f₊ − f₋ at the end of the last window `[2]`: at the moved hparams, and at the unmoved
            ones.
        first_nonfinite: First step of the run that was not finite, -1 if none; int32.
        num_windows: Number of windows since `init`, int32; because of it, a key used twice still draws anew.
    """

    train: TrainState
    noise: PyTree
    gaps: Array
    first_nonfinite: Array
    num_windows: Array


class Window(NamedTuple):
    """One window of one pair.

    Attributes:
        train: Two runs at its end `[2]`.
        gaps: Differences f₊ − f₋ at its end `[2]`: at the moved hparams, and at the unmoved ones.
        value: (f₊ + f₋) / 2 at its end `[]`.
        first_nonfinite: First step with a loss that was not finite, the number of steps made if only an
            objective was not, -1 if none; int32 `[]`.
    """

    train: TrainState
    gaps: Array
    value: Array
    first_nonfinite: Array


def both_sides(moves: Perturbation, hparams: HParams, unit: PyTree) -> HParams:
    """Return the hparams moved to either side, on a new axis `[2]`."""
    opposite = jax.tree.map(jnp.negative, unit)
    sides = [moves.move(hparams, u) for u in (unit, opposite)]
    return jax.tree.map(lambda a, b: jnp.stack([a, b]), *sides)


def begin_pairs(problem: Problem, key: Key, moved: HParams) -> TrainState:
    """Start the two runs of a pair, from the same key."""
    return jax.vmap(lambda h: init_state(problem, key, h))(moved)


def run_window(
    problem: Problem,
    hparams: HParams,
    moved: HParams,
    start: TrainState,
    batch: Batch,
    num_steps: int,
) -> Window:
    """Train the two runs of a pair at the moved hparams, and compare their objectives."""
    train, losses = jax.vmap(lambda h, s: unroll_losses(problem, h, s, num_steps))(moved, start)

    def objective(h: HParams, state: TrainState) -> Array:
        return problem.objective(state.params, h, batch)

    values = jax.vmap(objective)(moved, train)
    unmoved = jax.vmap(objective, in_axes=(None, 0))(hparams, train)
    gaps = jnp.stack([values[0] - values[1], unmoved[0] - unmoved[1]])
    bad = ~jnp.all(jnp.isfinite(losses), 0)
    first = jnp.where(jnp.any(bad), jnp.argmax(bad), num_steps)
    finite = jnp.all(jnp.isfinite(values)) & ~jnp.any(bad)
    first = jnp.where(finite, -1, start.step[0] + first).astype(jnp.int32)
    return Window(train, gaps, jnp.mean(values), first)


def pair_keys(key: Key, num_pairs: int) -> tuple[Key, Key]:
    """Split a key into those of the runs and of the validation batches, one for each pair.

    Each pair has its own batch, so that the standard error sees the noise of batches, and the mean over the
    pairs lowers it.
    """
    run_key, valid_key = split_key(key)
    return jax.random.split(run_key, num_pairs), jax.random.split(valid_key, num_pairs)
