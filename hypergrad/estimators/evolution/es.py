"""Evolution strategies: hypergradients from whole runs at moved hyperparameters, without derivatives."""

import jax
import jax.numpy as jnp

from hypergrad.core.checks import check_whole
from hypergrad.core.methods import Method
from hypergrad.core.types import HParams, Key, PyTree
from hypergrad.estimators.base import Estimate, Estimator, no_state
from hypergrad.estimators.evolution.info import summarize
from hypergrad.estimators.evolution.moves import gaussian
from hypergrad.estimators.evolution.pairs import (
    NUM_PAIRS,
    Window,
    begin_pairs,
    both_sides,
    pair_keys,
    run_window,
)
from hypergrad.problem import Problem, check_problem
from hypergrad.validation import check_step


def es(
    problem: Problem,
    horizon: int,
    *,
    sigma: float | PyTree | None = None,
    space: PyTree | None = None,
    num_pairs: int = NUM_PAIRS,
) -> Estimator:
    """Differentiate the smoothed objective by whole runs at hparams moved to both sides.

    ∇_λ E[F(λ + ε)] = E[ε (F(λ + ε) − F(λ − ε))] / 2σ²,   ε ~ N(0, σ²),   F(λ) = f(w_T(λ), λ)

    The two runs of a pair share initial weights and minibatches; each pair has its own.

    **Cost:** 2 `num_pairs` trainings side by side, memory of as many states; independent of the horizon.

    **Limits:** unbiased for the gradient of the smoothed objective, which is that of F where F is quadratic and
    differs by O(σ²) elsewhere; chaos finer than σ is averaged away, and so are signs, roundings and other
    jumps. The noise grows with √(number of hparams). Pairs that are not finite are left out of the means
    and counted (`info.num_nonfinite`): the estimate is then that of the region where training survives. The
    slopes of pairs are skewed, so the standard error of few pairs misleads: on a quadratic of three hparams,
    4 % of estimates are off by more than 4 standard errors with 8 pairs, 1 % with 32 (a normal error: 1 in
    16,000).

    Args:
        problem: Training loop; only the training loss needs a derivative.
        horizon: Number of inner steps.
        sigma: Standard deviation of the moves, a number or a pytree like hparams; in the unconstrained
            coordinates of `space` if one is given (0.1 where None), else in those of the hparams.
        space: Real dimensions, so that no move leaves their bounds (`moves.gaussian`).
        num_pairs: Number of antithetic pairs, at least 2.

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
    check_whole("num_pairs", num_pairs, 2, example=16)
    moves = gaussian(sigma, space)

    def estimate(key: Key, state: tuple[()], hparams: HParams) -> tuple[tuple[()], Estimate]:
        check_step(problem, hparams, real=True, pathwise=False)

        def pair(run_key: Key, valid_key: Key) -> tuple[PyTree, Window]:
            draw_key, start_key = jax.random.split(run_key)
            unit = moves.draw(draw_key, hparams)
            moved = both_sides(moves, hparams, unit)
            train = begin_pairs(problem, start_key, moved)
            batch = problem.valid_batch(valid_key)
            return unit, run_window(problem, hparams, moved, train, batch, horizon)

        units, found = jax.vmap(pair)(*pair_keys(key, num_pairs))
        reported = jnp.ones(num_pairs, bool)
        return state, summarize(moves, hparams, units, found.gaps, found, reported, horizon)

    return Estimator(no_state, estimate)


ES = Method(
    "es",
    "evolution strategies: from whole runs at moved hyperparameters, where derivatives explode",
    (),
    lambda problem, horizon, space: es(problem, horizon, space=space),
    cost=lambda problem, horizon, space: 2 * NUM_PAIRS,
)
