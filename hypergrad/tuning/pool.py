"""Random search as a pool of trials: what the best of as many is worth in expectation, over its luck."""

from typing import NamedTuple

import numpy as np

from hypergrad.core.types import HParams

LEAST_WEIGHT = 0.005
"""Probability below which a finalist is not judged."""


class Mixture(NamedTuple):
    """Hparams of which one is what a method ends with.

    Attributes:
        hparams: The candidates, the likeliest first.
        weights: Probability of each, `[N]`.
    """

    hparams: list[HParams]
    weights: np.ndarray


def alone(hparams: HParams) -> Mixture:
    """Return what a method ends with for certain."""
    return Mixture([hparams], np.ones(1))


def best_of_draws(num: int, num_ranked: int) -> np.ndarray:
    """Return the probability of each of the best that it is the best of `num` draws from a pool of `num`.

    w_i = (1 − (i − 1)/N)^N − (1 − i/N)^N

    With replacement the best of the pool is drawn in 63 % of the searches, the second best is the best of 23 %,
    and so on; those below half a percent are left out, and the rest sums to one.

    Args:
        num: Number N of trials of the pool, and of a search.
        num_ranked: Number of trials whose rank is known.
    """
    i = np.arange(1, min(num, num_ranked) + 1)
    weights = (1 - (i - 1) / num) ** num - (1 - i / num) ** num
    kept = weights[weights >= LEAST_WEIGHT]
    return kept / kept.sum()


def over_draws(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return Σ_i w_i x_i of values `[N, ...]`; infinite and missing ones stay so."""
    return np.sum(weights.reshape((-1,) + (1,) * (values.ndim - 1)) * values, axis=0)


def spread_of(weights: np.ndarray, means: np.ndarray) -> float:
    """Return the standard deviation from draw to draw of means `[N]`."""
    return float(np.sqrt(over_draws(weights, (means - over_draws(weights, means)) ** 2)))
