"""What a Gaussian process is fitted to: (scores `[n]`, filled `[n]`) -> targets of mean 0 and variance 1.

Scores of failed trials are infinite; they become the worst of the others. So do those of trials that broke
a constraint, unless all did: then the least violation is the best. Empty rows get 0.

A score that is huge, but finite, is a failure too where the size of scores matters (`standardize`, `power`):
beside 1e12 all others would be alike.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri

from hypergrad.core.types import Array

BROKEN = 1e30
"""Least score of a trial that broke a constraint."""


FENCES = ((0.75, 1e3), (0.5, 1e5), (0.25, 1e7))
"""Quantiles of the scores above the best, and the multiples of them beyond which a score is huge.

The first is for a few such trials; the others for many, which are then most of the quantiles, too. No
score of a smooth objective is beyond them, until most trials are within 1e-5 of the best.
"""


def behind(scores: Array, violation: Array) -> Array:
    """Put trials that broke a constraint behind all others, and before those that failed.

    BROKEN (1 + g / (1 + g)) for a violation g > 0; the scores as they are where g is 0 or NaN.
    """
    violation = jnp.asarray(violation, scores.dtype)
    share = jnp.where(jnp.isinf(violation), 1, violation / (1 + violation))
    return jnp.where(violation > 0, BROKEN * (1 + share), scores)


def without_huge(scores: Array, filled: Array) -> Array:
    """Make the scores `[n]` infinite that lie beyond any of `FENCES`."""
    usual = filled & (scores < BROKEN)
    above = jnp.sort(jnp.where(usual, scores, jnp.inf))
    best, num = above[0], jnp.sum(usual)
    above = above - best
    least = jnp.min(jnp.where(above > 0, above, jnp.inf))  # many may be as good as the best
    fence = jnp.asarray(jnp.inf, scores.dtype)
    for share, multiple in FENCES:
        quantile = above[jnp.maximum(jnp.ceil(share * num).astype(jnp.int32) - 1, 0)]
        fence = jnp.minimum(fence, multiple * jnp.maximum(quantile, least))
    return jnp.where(usual & (scores - best > fence), jnp.inf, scores)


def standardize(scores: Array, filled: Array) -> Array:
    """Subtract the mean, and divide by the standard deviation."""
    return _standard(_without_failures(without_huge(scores, filled), filled), filled)


def normal_scores(scores: Array, filled: Array) -> Array:
    """Replace scores by the normal quantiles of their ranks, so that only the order counts; ties share one."""
    values = jnp.where(filled, _without_failures(scores, filled), jnp.inf)
    below = jnp.sum(values[:, None] > values, -1)
    ties = jnp.sum((values[:, None] == values) & filled, -1)
    share = (below + ties / 2) / jnp.maximum(jnp.sum(filled), 1)
    return _standard(ndtri(jnp.clip(share, 1e-6, 1 - 1e-6)), filled)


def power(scores: Array, filled: Array) -> Array:
    """Apply the Yeo-Johnson transform with the exponent in [−2, 2] under which scores look most normal.

    Reference:
        Yeo, Johnson, "A new family of power transformations", Biometrika 87, 2000; Cowen-Rivers et al.,
        "HEBO", JAIR 74, 2022.
    """
    x = jnp.clip(standardize(scores, filled), -50, 50)

    def transform(exponent: Array) -> Array:
        positive = jnp.expm1(exponent * jnp.log1p(jnp.maximum(x, 0)))
        positive = jnp.where(
            jnp.abs(exponent) < 1e-6, jnp.log1p(jnp.maximum(x, 0)), positive / exponent
        )
        other = 2 - exponent
        negative = -jnp.expm1(other * jnp.log1p(jnp.maximum(-x, 0)))
        negative = jnp.where(
            jnp.abs(other) < 1e-6, -jnp.log1p(jnp.maximum(-x, 0)), negative / other
        )
        return jnp.where(x >= 0, positive, negative)

    def likelihood(exponent: Array) -> Array:
        y = transform(exponent)
        num = jnp.maximum(jnp.sum(filled), 1)
        mean = jnp.sum(jnp.where(filled, y, 0)) / num
        variance = jnp.sum(jnp.where(filled, (y - mean) ** 2, 0)) / num
        slope = jnp.sum(jnp.where(filled, jnp.sign(x) * jnp.log1p(jnp.abs(x)), 0))
        return -num / 2 * jnp.log(variance + 1e-12) + (exponent - 1) * slope

    exponents = jnp.asarray(np.linspace(-2, 2, 41) + 1e-4, x.dtype)
    best = exponents[jnp.argmax(jax.vmap(likelihood)(exponents))]
    return _standard(transform(best), filled)


def _without_failures(scores: Array, filled: Array) -> Array:
    # where no trial keeps the constraint, how much they break it is what there is to model
    some = jnp.any(filled & (scores < BROKEN))
    scores = jnp.where(some, jnp.where(scores < BROKEN, scores, jnp.inf), scores / BROKEN - 1)
    finite = filled & jnp.isfinite(scores)
    worst = jnp.max(jnp.where(finite, scores, -jnp.inf))
    return jnp.where(finite, scores, jnp.where(jnp.isfinite(worst), worst, 0))


def _standard(values: Array, filled: Array) -> Array:
    top = jnp.max(jnp.where(filled, jnp.abs(values), 0))
    values = values / jnp.where(top > 1e15, top, 1)  # whose squares would overflow
    num = jnp.maximum(jnp.sum(filled), 1)
    mean = jnp.sum(jnp.where(filled, values, 0)) / num
    away = jnp.where(filled, values - mean, 0)
    size = jnp.sqrt(jnp.sum(away**2) / num)
    # values that are all alike carry nothing
    rounding = 4 * jnp.finfo(values.dtype).eps * jnp.abs(mean)
    return jnp.where(size > rounding, away / jnp.maximum(size, 1e-30), 0)
