"""Persistent evolution strategies: unbiased hypergradients for every window of a run."""

import jax
import jax.numpy as jnp

from hypergrad.core.methods import Method
from hypergrad.core.types import Array, PyTree
from hypergrad.estimators.base import Estimator
from hypergrad.estimators.evolution.moves import gaussian
from hypergrad.estimators.evolution.pairs import NUM_PAIRS, Target, final_objective
from hypergrad.estimators.evolution.windows import by_windows, quarter
from hypergrad.problem import Problem


def pes(
    problem: Problem,
    horizon: int,
    window: int,
    *,
    sigma: float | PyTree | None = None,
    space: PyTree | None = None,
    num_pairs: int = NUM_PAIRS,
    target: Target = final_objective,
) -> Estimator:
    """Build persistent evolution strategies: a hypergradient for every window, without truncation bias.

    Each pair continues for one window with fresh noise ε_k. All noise since its run began gets the credit for
    the change of the objective:

    ξ_k = ξ_{k−1} + ε_k,   hypergrad = E[ξ_k (p₊ − p₋)] / 2σ²,   p = K (f_k − f_{k−1}) or f_k (`target`)

    At the end of its run a pair starts anew with ξ = 0. The pairs are spread evenly over the windows of
    a run (from `init` on), so that each estimate has parts of all of them.

    **Cost:** 2 `num_pairs` windows an estimate, memory of as many states; `init` trains the pairs to their
    starts once, at most 2 `num_pairs` trainings.

    **Limits:** unbiased, over the keys of `init` and `estimate` and while hparams stand still, for the
    gradient of E[target(λ + ε_1, …, λ + ε_K)], smoothed by independent noise for each of the K windows.
    Hparams that change within a run cause a lag of the order of their change. The variance grows with K:
    see `nres`. Successive estimates share noise, so they are not independent. The standard error treats the
    pairs as independent draws: it counts the differences between windows too, and errs upwards. Non-finite
    pairs are left out and counted until their run ends, as in `es`.

    Args:
        problem: Training loop; only the training loss needs a derivative.
        horizon: Number of inner steps of a whole run.
        window: Number of steps of one estimate; divides the horizon.
        sigma: Standard deviation of the moves, as in `es`.
        space: Space of the moves, as in `es`.
        num_pairs: Number of antithetic pairs, at least 2; a multiple of horizon / window spreads them exactly.
        target: Objective of a run: `final_objective`, `mean_objective` or a `Target` of your own.

    Returns:
        An estimator with state `Pairs`; `info` is an `EvolutionInfo`.

    Raises:
        ValueError: for settings out of range, a window that does not divide the horizon and, when traced,
            for a leaf that is not real.

    Reference:
        Vicol, Metz, Sohl-Dickstein, 2021, arXiv:2112.13835, Algorithm 2.
    """

    def accumulate(starts: Array, fresh: PyTree, noise: PyTree) -> tuple[PyTree, PyTree]:
        total = jax.tree.map(lambda e, x: jnp.where(starts, e, x + e), fresh, noise)
        return fresh, total

    return by_windows(
        problem, horizon, window, gaussian(sigma, space), num_pairs, target, accumulate
    )


PES = Method(
    "pes",
    "persistent evolution strategies: four estimates a run, with new noise for each",
    (),
    lambda problem, horizon, space: pes(problem, horizon, quarter(horizon), space=space),
    cost=lambda problem, horizon, space: 2 * NUM_PAIRS * quarter(horizon) / horizon,
)
