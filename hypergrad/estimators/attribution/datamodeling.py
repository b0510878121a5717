"""The linear datamodeling score: predicted against true changes over random subsets."""

from typing import NamedTuple

import numpy as np

from hypergrad.core.checks import check_kind, describe
from hypergrad.core.types import Array
from hypergrad.estimators.attribution.base import Attribution


class DatamodelingScore(NamedTuple):
    """How well scores predict what training on subsets does.

    Attributes:
        mean: Mean of `each`, those that are NaN left out.
        low: Lower end of its 95 % interval over the predictions, by Student's t; NaN for one prediction.
        high: Upper end.
        each: Spearman's rank correlation between predicted and true values for each prediction `[M]`; NaN
            where one of the two is the same for all subsets.
    """

    mean: float
    low: float
    high: float
    each: np.ndarray

    def __str__(self) -> str:
        return f"{self.mean:.3f} (95 % interval {self.low:.3f} to {self.high:.3f})"


def linear_datamodeling_score(
    attribution: Attribution, weights: Array, values: Array
) -> DatamodelingScore:
    """Correlate predicted with true values over subsets, and average over the predictions.

    LDS = mean_j ρ(f_j(ω_s), value_j + Σ_i (ω_si − 1) score_ji) over subsets s, ρ Spearman's rank correlation

    A host function.

    Args:
        attribution: Scores by example.
        weights: Weights of the examples in each subset, `[S, N]` (`random_subsets`).
        values: What training gave with them (`retrained`), `[S]` or `[S, M]`.

    Raises:
        ValueError: for values of another shape than the predictions', and for fewer than three subsets.

    Reference:
        Park, Georgiev, Ilyas, Leclerc, Madry, 2023, arXiv:2303.14186 (TRAK), equation 9.
    """
    check_kind("attribution", attribution, Attribution, "hg.attribution(...)")
    if attribution.indices is not None:
        raise ValueError(
            "attribution has scores by step, expected scores by example; pass per_step=False"
        )
    predicted = np.asarray(attribution.predicted(weights), np.float64)
    if np.shape(values) != predicted.shape or len(predicted) < 3:
        raise ValueError(
            f"values is {describe(np.asarray(values))}, expected the shape {predicted.shape} of at least 3 "
            "subsets; pass what retrained(...) returned for these weights"
        )
    true = np.asarray(values, np.float64).reshape(len(predicted), -1)
    pairs = zip(true.T, predicted.reshape(true.shape).T, strict=True)
    each = np.array([_spearman(a, b) for a, b in pairs])
    known = each[np.isfinite(each)]
    mean, half = (float(np.mean(known)) if known.size else np.nan), np.nan
    if known.size > 1:
        from scipy.special import stdtrit  # which takes a while to import

        error = np.std(known, ddof=1) / np.sqrt(known.size)
        half = float(stdtrit(known.size - 1, 0.975) * error)
    return DatamodelingScore(mean, mean - half, mean + half, each)


def _spearman(left: np.ndarray, right: np.ndarray) -> float:
    flat = not np.all(np.isfinite([left, right])) or min(np.ptp(left), np.ptp(right)) == 0
    return np.nan if flat else float(np.corrcoef(_ranks(left), _ranks(right))[0, 1])


def _ranks(x: np.ndarray) -> np.ndarray:
    """Return ranks, the mean rank where numbers are equal."""
    _, places, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]
