"""Acquisitions: what a point is worth to a search, from the mean and spread of a model there."""

from collections.abc import Callable
from typing import TypeAlias

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr
from jax.scipy.stats import norm

from hypergrad.core.checks import check_least
from hypergrad.core.types import Array

Acquisition: TypeAlias = Callable[[Array, Array, Array], Array]
"""(mean, standard deviation, best value so far) of the objective at points -> scores, to be maximised."""


def expected_improvement(mean: Array, std: Array, best: Array) -> Array:
    """Return E max(best − f, 0) = std (φ(z) + z Φ(z)), z = (best − mean) / std."""
    z = (best - mean) / std
    return std * (norm.pdf(z) + z * norm.cdf(z))


def log_expected_improvement(mean: Array, std: Array, best: Array) -> Array:
    """Return log E max(best − f, 0), which still has a slope where the improvement itself rounds to 0.

    log(φ(z) + z Φ(z)) for z > −1, φ taken out for z ≤ −1, and φ(z) / z² (1 − 3/z² + 15/z⁴) below −8.

    Reference:
        Ament et al., "Unexpected Improvements to Expected Improvement for Bayesian Optimization",
        NeurIPS 2023.
    """
    z = (best - mean) / std
    near = jnp.maximum(z, -1)
    middle = jnp.clip(z, -8, -1)
    far = jnp.minimum(z, -8)
    log_pdf = -(middle**2) / 2 - 0.5 * np.log(2 * np.pi)
    below = log_pdf + jnp.log1p(middle * jnp.exp(log_ndtr(middle) - log_pdf))
    tail = -(far**2) / 2 - 0.5 * np.log(2 * np.pi) - 2 * jnp.log(-far)
    tail = tail + jnp.log1p(-3 / far**2 + 15 / far**4)
    above = jnp.log(norm.pdf(near) + near * norm.cdf(near))
    return jnp.log(std) + jnp.where(z > -1, above, jnp.where(z > -8, below, tail))


def probability_of_improvement(mean: Array, std: Array, best: Array) -> Array:
    """Return log P(f < best) = log Φ((best − mean) / std)."""
    return log_ndtr((best - mean) / std)


def confidence_bound(kappa: float = 2.0) -> Acquisition:
    """Return the score −(mean − κ std): the lower confidence bound of an objective to be minimised.

    Args:
        kappa: Number κ of standard deviations, at least 0.

    Raises:
        ValueError: for an invalid κ.
    """
    kappa = check_least("kappa", kappa, example=2.0)

    def bound(mean: Array, std: Array, best: Array) -> Array:
        return kappa * std - mean

    return bound
