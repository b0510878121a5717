"""Evolution strategies: hypergradients from runs with moved hyperparameters, where derivatives are no use."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad.core import tree
from hypergrad.core.checks import check_whole, is_whole
from hypergrad.core.methods import Method
from hypergrad.core.scans import largest_divisor
from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.estimators.base import Estimate, Estimator, check_real
from hypergrad.estimators.evolution.moves import Perturbation, gaussian
from hypergrad.estimators.evolution.pairs import (
    Pairs,
    Target,
    Window,
    begin_pairs,
    both_sides,
    final_objective,
    pair_mean_and_error,
    run_window,
)
from hypergrad.problem import Problem, check_problem
from hypergrad.train import earliest, split_key


class EvolutionInfo(NamedTuple):
    """Diagnostics of a hypergradient by evolution; `advice` says in words what they mean.

    Attributes:
        direct: what is left of the hypergradient when the response is taken out, a pytree like `hparams`.
        response: the same estimate with the objective read at the unmoved hparams, a pytree like `hparams`.
        horizon: number of steps of a whole run, int32 `[]`.
        growth: 1, `[]`: nothing is differentiated that could grow.
        first_nonfinite: first step at which a run of this estimate was not finite (the number of steps made
            if only its objective was not), -1 if none; int32 `[]`.
        std_error: standard error of the hypergradient from the spread of the pairs, a pytree like `hparams`.
        value_std_error: standard error of the value, `[]`; infinite where it is the value of one pair.
        num_pairs: how many antithetic pairs ran, int32 `[]`.
        num_nonfinite: how many of them are left out of all means, int32 `[]`.
    """

    direct: HParams
    response: HParams
    horizon: Array
    growth: Array
    first_nonfinite: Array
    std_error: HParams
    value_std_error: Array
    num_pairs: Array
    num_nonfinite: Array

    def advice(self, estimate: Estimate) -> list[str]:
        """Say in words what is wrong with the estimate, and what to do."""
        said = []
        if self.num_nonfinite > 0:
            rest = "the mean is over those that survived"
            if self.num_nonfinite == self.num_pairs:
                rest = "there is no estimate"
            said.append(
                f"{self.num_nonfinite} of {self.num_pairs} pairs were not finite (the first at step "
                f"{self.first_nonfinite}) and are left out: {rest}; lower sigma or the learning rate"
            )
        size, noise = float(tree.norm(estimate.hypergrad)), float(tree.norm(self.std_error))
        if size < 1.5 * noise:
            said.append(
                f"the hypergradient's norm is {size:.1e}, its standard error {noise:.1e}: mostly noise; "
                "raise num_pairs or sigma, or move fewer hparams"
            )
        errors = zip(tree.leaf_names(self.std_error), jax.tree.leaves(self.std_error), strict=True)
        for name, error in errors:
            if not np.any(error):
                said.append(
                    f"moving hparams[{name!r}] changed nothing: it is at a bound of the space, or the "
                    "objective does not depend on it"
                )
        return said


Rule = Callable[[Array, PyTree, PyTree], tuple[PyTree, PyTree]]
"""(whether the run starts, fresh noise, noise of the state) -> noise to move by, noise to credit."""


def es(
    problem: Problem,
    horizon: int,
    *,
    sigma: float | PyTree | None = None,
    space: PyTree | None = None,
    num_pairs: int = 16,
) -> Estimator:
    """Differentiate the smoothed objective by whole runs at hparams moved to both sides.

    ∇_λ E[F(λ + ε)] = E[ε (F(λ + ε) − F(λ − ε))] / 2σ²,   ε ~ N(0, σ²),   F(λ) = f(w_T(λ), λ)

    The two runs of a pair share initial weights and minibatches; each pair has its own.

    **Cost:** 2 `num_pairs` trainings side by side, memory of as many states; independent of the horizon.

    **Limits:** unbiased for the gradient of the smoothed objective, which is that of F where F is quadratic
    and off by O(σ²) elsewhere; chaos finer than σ is averaged away, and so are signs, roundings and other
    steps. The noise grows with √(number of hparams). Pairs that are not finite are left out of the means
    and counted (`info.num_nonfinite`): the estimate is then that of the region where training survives. The
    slopes of pairs are skewed, so that with few of them the standard error misleads: on a quadratic of three
    hparams 4 % of estimates are more than 4 of it off with 8 pairs, 1 % with 32 (it would be 1 in 16,000 for a
    normal error).

    Args:
        problem: the training loop; nothing in it needs a derivative but the training loss.
        horizon: number of inner steps.
        sigma: standard deviation of the moves, in unconstrained coordinates of `space` if one is given
            (0.1 where None), else added to the hparams; a number, or a pytree like hparams.
        space: real dimensions, so that no move leaves their bounds (`perturb.gaussian`).
        num_pairs: at least 2.

    Returns:
        A stateless estimator; `info` is an `EvolutionInfo`.

    Raises:
        ValueError: for settings out of range and, when traced, for a leaf that is not real.

    Reference:
        Salimans, Ho, Chen, Sidor, Sutskever, 2017, arXiv:1703.03864; for chaotic training: Metz, Freeman,
        Schoenholz, Kachman, 2021, arXiv:2111.05803.
    """
    check_problem(problem)
    check_whole("horizon", horizon)
    _check_pairs(num_pairs)
    moves = gaussian(sigma, space)

    def init(key, hparams):
        return ()

    def estimate(key, state, hparams):
        check_real(problem, hparams)

        def pair(run_key, valid_key):
            draw_key, start_key = jax.random.split(run_key)
            unit = moves.draw(draw_key, hparams)
            moved = both_sides(moves, hparams, unit)
            train = begin_pairs(problem, start_key, moved)
            batch = problem.valid_batch(valid_key)
            return unit, run_window(problem, hparams, moved, train, batch, horizon)

        units, found = jax.vmap(pair)(*_keys(key, num_pairs))
        reported = jnp.ones(num_pairs, bool)
        return state, _summarize(moves, hparams, units, found.gaps, found, reported, horizon)

    return Estimator(init, estimate)


def pes(
    problem: Problem,
    horizon: int,
    window: int,
    *,
    sigma: float | PyTree | None = None,
    space: PyTree | None = None,
    num_pairs: int = 16,
    target: Target = final_objective,
) -> Estimator:
    """Persistent evolution strategies: a hypergradient for every window of training, without truncation bias.

    Each pair goes on where it is for one window, with noise ε_k of its own, and the change of the
    objective is credited to all noise since its run began:

    ξ_k = ξ_{k−1} + ε_k,   hypergrad = E[ξ_k (p₊ − p₋)] / 2σ²,   p = K (f_k − f_{k−1}) or f_k (`target`)

    At the end of its run a pair starts anew with ξ = 0. The pairs are spread evenly over the windows of
    a run (from `init` on), so that each estimate has parts of all of them.

    **Cost:** 2 `num_pairs` windows an estimate, memory of as many states; `init` trains the pairs to where
    they start, up to 2 `num_pairs` trainings, once.

    **Limits:** unbiased, over the keys of `init` and `estimate` and while hparams stand still, for the
    gradient of E[target(λ + ε_1, …, λ + ε_K)], smoothed by independent noise for each of the K windows.
    Hparams that change within a run bring a lag of the order of their change. The variance grows with K:
    see `nres`. Successive estimates share noise, so they are not independent. The standard
    error takes the pairs for independent draws: it counts the differences between windows too and errs
    upwards. Non-finite pairs are left out and counted until their run ends, as in `es`.

    Args:
        problem: the training loop; nothing in it needs a derivative but the training loss.
        horizon: number of inner steps of a whole run.
        window: number of steps of one estimate; divides the horizon.
        sigma: as in `es`.
        space: as in `es`.
        num_pairs: at least 2; a multiple of horizon / window spreads them exactly.
        target: `final_objective`, `mean_objective` or a `Target` of your own.

    Returns:
        An estimator with state `Pairs`; `info` is an `EvolutionInfo`.

    Raises:
        ValueError: for settings out of range, a window that does not divide the horizon and, when traced,
            for a leaf that is not real.

    Reference:
        Vicol, Metz, Sohl-Dickstein, 2021, arXiv:2112.13835, Algorithm 2.
    """

    def accumulate(starts, fresh, noise):
        total = jax.tree.map(lambda e, x: jnp.where(starts, e, x + e), fresh, noise)
        return fresh, total

    return _online(problem, horizon, window, gaussian(sigma, space), num_pairs, target, accumulate)


def nres(
    problem: Problem,
    horizon: int,
    window: int,
    *,
    sigma: float | PyTree | None = None,
    space: PyTree | None = None,
    num_pairs: int = 16,
    target: Target = final_objective,
) -> Estimator:
    """Noise-reuse evolution strategies: as `pes`, with one noise for the whole of a run.

    hypergrad = E[ε (p₊ − p₋)] / 2σ²,   ε drawn when the pair starts,   p as in `pes`

    Over a run the parts of `final_objective` add up to ε (F₊ − F₋) / 2σ²: those of `es`, cut into windows.
    ES-Single is the same without antithetic pairs and with all of them in step.

    **Cost:** that of `pes`.

    **Limits:** unbiased for the gradient that `es` has, over the keys of `init` and `estimate`, while hparams
    stand still. Of all ways to share noise between windows this one has the least variance, which does
    not grow with their number; but noise is drawn once a run, so that successive estimates
    are more alike than those of `pes`. With few pairs its standard error misleads more than that of `es`: there
    6 % of estimates are more than 4 of it off with 8 pairs, 1 % with 32. Else the limits of `pes`.

    Args:
        problem: the training loop; nothing in it needs a derivative but the training loss.
        horizon: number of inner steps of a whole run.
        window: number of steps of one estimate; divides the horizon.
        sigma: as in `es`.
        space: as in `es`.
        num_pairs: at least 2; a multiple of horizon / window spreads them exactly.
        target: `final_objective`, `mean_objective` or a `Target` of your own.

    Returns:
        An estimator with state `Pairs`; `info` is an `EvolutionInfo`.

    Raises:
        ValueError: as `pes`.

    Reference:
        Li, Harrison, Sohl-Dickstein, Smith, Metz, 2023, arXiv:2304.12180, Algorithm 1; ES-Single: Vicol,
        Kolter, Swersky, 2023, arXiv:2304.11153.
    """

    def reuse(starts, fresh, noise):
        kept = tree.choose(starts, fresh, noise)
        return kept, kept

    return _online(problem, horizon, window, gaussian(sigma, space), num_pairs, target, reuse)


ES = Method(
    "es",
    "evolution strategies: from whole runs at moved hyperparameters, where derivatives explode",
    (),
    lambda problem, horizon, space: es(problem, horizon, space=space),
)

PES = Method(
    "pes",
    "persistent evolution strategies: four estimates a run, with new noise for each",
    (),
    lambda problem, horizon, space: pes(problem, horizon, quarter(horizon), space=space),
)

NRES = Method(
    "nres",
    "noise-reuse evolution strategies: four estimates a run, with one noise for all of them",
    (),
    lambda problem, horizon, space: nres(problem, horizon, quarter(horizon), space=space),
)


def quarter(horizon: int) -> int:
    """Return the largest divisor of the horizon that is at most a quarter of it, or 1."""
    return largest_divisor(horizon, horizon // 4)


def _online(
    problem: Problem,
    horizon: int,
    window: int,
    moves: Perturbation,
    num_pairs: int,
    target: Target,
    rule: Rule,
) -> Estimator:
    """Build an estimator that moves every pair by one window; `rule` says which noise it gets."""
    num_windows = _check_window(problem, horizon, window, num_pairs, target)

    def advance(run_key, valid_key, pair, hparams):
        """Make one window of one pair; return it and what the window found."""
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

    def init(key, hparams):
        check_real(problem, hparams)
        start_key, phase_key, run_key = jax.random.split(key, 3)
        pairs = jax.vmap(lambda k: _blank(problem, moves, k, hparams))(
            jax.random.split(start_key, num_pairs)
        )
        # spread evenly from a random one on, so that a pair is at every window with the same probability
        offset = jax.random.randint(phase_key, (), 0, num_windows)
        windows = (offset + jnp.arange(num_pairs) * num_windows // num_pairs) % num_windows

        def turn(pairs, inputs):
            index, key = inputs
            keys = _keys(key, num_pairs)
            moved, _ = jax.vmap(advance, in_axes=(0, 0, 0, None))(*keys, pairs, hparams)
            return jax.vmap(tree.choose)(index < windows, moved, pairs), None

        turns = (jnp.arange(num_windows - 1), jax.random.split(run_key, num_windows - 1))
        return jax.lax.scan(turn, pairs, turns)[0]

    def estimate(key, state, hparams):
        check_real(problem, hparams)
        across = jax.vmap(advance, in_axes=(0, 0, 0, None))
        after, found = across(*_keys(key, num_pairs), state, hparams)
        starts = after.train.step[:, :1] == window
        before = jnp.where(starts, 0, state.gaps)
        changes = target.part(before, found.gaps, num_windows)
        steps = jnp.where(found.first_nonfinite < 0, after.train.step[:, 0], -1)
        reported = target.reported(steps)
        return after, _summarize(moves, hparams, after.noise, changes, found, reported, horizon)

    return Estimator(init, estimate)


def _keys(key: Key, num_pairs: int) -> tuple[Key, Key]:
    """Split a key into those of the runs and of the validation batches, one for each pair.

    Batches of their own let the standard error see their noise, and the mean over the pairs lower it.
    """
    run_key, valid_key = split_key(key)
    return jax.random.split(run_key, num_pairs), jax.random.split(valid_key, num_pairs)


def _blank(problem: Problem, moves: Perturbation, key: Key, hparams: HParams) -> Pairs:
    """Make a pair that has not begun."""
    batch = problem.valid_batch(key)
    train = begin_pairs(problem, key, jax.tree.map(lambda h: jnp.stack([h, h]), hparams))
    noise = jax.tree.map(jnp.zeros_like, moves.draw(key, hparams))
    params = jax.tree.map(lambda x: x[0], train.params)
    value = jax.eval_shape(problem.objective, params, hparams, batch)
    zero = jnp.zeros((), jnp.int32)
    return Pairs(train, noise, jnp.zeros(2, value.dtype), zero - 1, zero)


def _summarize(
    moves: Perturbation,
    hparams: HParams,
    units: PyTree,
    changes: Array,
    found: Window,
    reported: Array,
    horizon: int,
) -> Estimate:
    """Average the slopes of the pairs that are finite.

    Args:
        moves: what moved them.
        hparams: the unmoved ones.
        units: unit noise that each change is credited to, leading axis `[num_pairs]`.
        changes: of the target `[num_pairs, 2]`: at the moved hparams, and at the unmoved ones.
        found: what each pair found, leading axis `[num_pairs]`.
        reported: pairs whose objective is the value `[num_pairs]`.
        horizon: of a whole run.
    """
    alive = (found.first_nonfinite < 0) & jnp.all(jnp.isfinite(changes), -1)
    slopes = jax.vmap(lambda unit, change: moves.slope(hparams, unit, change))
    hypergrad, std_error = pair_mean_and_error(slopes(units, changes[:, 0]), alive)
    response, _ = pair_mean_and_error(slopes(units, changes[:, 1]), alive)
    value, value_error = pair_mean_and_error(found.value, alive & reported)
    info = EvolutionInfo(
        direct=jax.tree.map(jnp.subtract, hypergrad, response),
        response=response,
        horizon=jnp.asarray(horizon, jnp.int32),
        growth=jnp.ones((), jnp.float32),
        first_nonfinite=earliest(found.first_nonfinite),
        std_error=std_error,
        value_std_error=value_error,
        num_pairs=jnp.asarray(len(alive), jnp.int32),
        num_nonfinite=jnp.sum(~alive, dtype=jnp.int32),
    )
    return Estimate(value, hypergrad, info)


def _check_window(
    problem: Problem, horizon: int, window: int, num_pairs: int, target: Target
) -> int:
    """Return the number of windows in a run, or raise a `ValueError`."""
    check_problem(problem)
    check_whole("horizon", horizon)
    check_whole("window", window)
    if horizon % window:
        nearest = largest_divisor(horizon, min(window, horizon))
        raise ValueError(
            f"window is {window}, expected a divisor of horizon = {horizon}; pass e.g. window={nearest}"
        )
    _check_pairs(num_pairs)
    if not isinstance(target, Target):
        raise ValueError(
            f"target is {target!r}, expected a Target; pass final_objective or mean_objective"
        )
    return horizon // window


def _check_pairs(num_pairs: Any) -> None:
    if not is_whole(num_pairs) or num_pairs < 2:
        raise ValueError(
            f"num_pairs is {num_pairs!r}, expected a whole number of at least 2, because the standard error "
            "comes from their spread; pass e.g. 16"
        )
