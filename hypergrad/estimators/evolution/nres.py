"""Noise-reuse evolution strategies: like persistent ones, but with one noise for a whole run."""

from hypergrad.core import tree
from hypergrad.core.methods import Method
from hypergrad.core.types import Array, PyTree
from hypergrad.estimators.base import Estimator
from hypergrad.estimators.evolution.moves import gaussian
from hypergrad.estimators.evolution.pairs import NUM_PAIRS, Target, final_objective
from hypergrad.estimators.evolution.windows import by_windows, quarter
from hypergrad.problem import Problem


def nres(
    problem: Problem,
    horizon: int,
    window: int,
    *,
    sigma: float | PyTree | None = None,
    space: PyTree | None = None,
    num_pairs: int = NUM_PAIRS,
    target: Target = final_objective,
) -> Estimator:
    """Build noise-reuse evolution strategies: like `pes`, but with one noise for a whole run.

    hypergrad = E[ε (p₊ − p₋)] / 2σ²,   ε drawn when the pair starts,   p as in `pes`

    Over a run the parts of `final_objective` add up to ε (F₊ − F₋) / 2σ²: those of `es`, cut into windows.
    ES-Single is the same without antithetic pairs, and with all runs in step.

    **Cost:** that of `pes`.

    **Limits:** unbiased for the gradient that `es` has, over the keys of `init` and `estimate`, while hparams
    stand still. Of all ways to share noise between windows this way has the least variance, which does not grow
    with their number. But noise is drawn once a run, so successive estimates are more alike than those of
    `pes`. The standard error of few pairs misleads more than that of `es`: on the same quadratic, 6 %
    of estimates are off by more than 4 standard errors with 8 pairs, 1 % with 32. Otherwise the limits of `pes`
    hold.

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
        ValueError: as in `pes`.

    Reference:
        Li, Harrison, Sohl-Dickstein, Smith, Metz, 2023, arXiv:2304.12180, Algorithm 1; ES-Single: Vicol,
        Kolter, Swersky, 2023, arXiv:2304.11153.
    """

    def reuse(starts: Array, fresh: PyTree, noise: PyTree) -> tuple[PyTree, PyTree]:
        kept = tree.choose(starts, fresh, noise)
        return kept, kept

    return by_windows(problem, horizon, window, gaussian(sigma, space), num_pairs, target, reuse)


NRES = Method(
    "nres",
    "noise-reuse evolution strategies: four estimates a run, with one noise for all of them",
    (),
    lambda problem, horizon, space: nres(problem, horizon, quarter(horizon), space=space),
    cost=lambda problem, horizon, space: 2 * NUM_PAIRS * quarter(horizon) / horizon,
)
