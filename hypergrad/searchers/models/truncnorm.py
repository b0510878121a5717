"""The normal distribution cut to [0, 1]: moments, the fit to moments, quantiles, density. All elementwise."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr, ndtri

from hypergrad.core.types import Array

WIDEST = 10.0
"""Largest scale: a normal as wide as that is uniform on [0, 1] to a thousandth."""

FARTHEST = 12.0
"""Farthest location outside [0, 1], in scales: the tail is exponential there, and Φ still fits float32."""

_GAUSS, _WEIGHTS = np.polynomial.legendre.leggauss(32)

_NODES = (_GAUSS + 1) / 2


def moments(loc: Array, scale: Array) -> tuple[Array, Array]:
    """Return mean and standard deviation of a normal N(loc, scale²) cut to [0, 1].

    The method is Gauss-Legendre quadrature over the part of [0, 1] within e^−32 of the mode's density.
    """
    mode = jnp.clip(loc, 0, 1)
    first, second = _mean_square(loc - mode, scale, -mode, 1 - mode)[:2]
    return mode + first, jnp.sqrt(jnp.maximum(second - first**2, 0))


def _mean_square(centre: Array, width: Array, low: Array, high: Array) -> tuple[Array, ...]:
    """Return E z, E z², Var z, Cov(z, z²), Var z² of N(centre, width²) cut to [low, high]."""
    mode = jnp.clip(centre, low, high)
    outside = jnp.abs(centre - mode)
    # where (t + outside)² − outside² = 64 width², without the cancellation
    reach = 64 * width**2 / (jnp.sqrt(outside**2 + 64 * width**2) + outside)
    left, right = jnp.maximum(low, mode - reach), jnp.minimum(high, mode + reach)
    nodes = jnp.asarray(_NODES, jnp.result_type(centre))
    z = left[..., None] + (right - left)[..., None] * nodes
    away = z - mode[..., None]
    # −(z − centre)²/2 width², less its value at the mode
    exponent = -away * (away / 2 + (mode - centre)[..., None]) / (width**2)[..., None]
    density = jnp.exp(exponent) * jnp.asarray(_WEIGHTS, nodes.dtype)
    share = density / jnp.sum(density, -1, keepdims=True)
    first = jnp.sum(share * z, -1)
    second = jnp.sum(share * z**2, -1)
    from_first, from_second = z - first[..., None], z**2 - second[..., None]
    return (
        first,
        second,
        jnp.sum(share * from_first**2, -1),
        jnp.sum(share * from_first * from_second, -1),
        jnp.sum(share * from_second**2, -1),
    )


def fit(mean: Array, std: Array, num_steps: int = 24) -> tuple[Array, Array]:
    """Return (loc, scale) of the cut normal with this mean and standard deviation.

    The cut normals are an exponential family, so this is the maximum of the likelihood of a sample with
    these moments, and the minimum of the Kullback-Leibler divergence from it. With z = (x − mean)/std the
    density is ∝ exp(a z + b z²), and its log-likelihood −A(a, b) + b is concave: damped Newton steps,
    (a, b) += H⁻¹ g / (1 + √(gᵀH⁻¹g)), g = (0, 1) − E(z, z²), H = Cov(z, z²).

    **Limits:** scale ≤ 10, and at most 12 scales outside [0, 1]; moments beyond (wider than uniform, or
    than an exponential at a bound) get the nearest on that edge.
    """
    dtype = jnp.result_type(float)
    mean, std = jnp.asarray(mean, dtype), jnp.asarray(std, dtype)
    std = jnp.maximum(std, jnp.sqrt(jnp.finfo(dtype).tiny) * 1e6)
    low, high = -mean / std, (1 - mean) / std

    def most(a: Array, b: Array) -> Array:
        """Return the largest b (the widest scale) that is allowed, for the slope that a has at the mode."""
        slope = jnp.maximum(jnp.maximum(-(a + 2 * b * low), a + 2 * b * high), 0)
        return -jnp.maximum((std / WIDEST) ** 2 / 2, (slope / FARTHEST) ** 2 / 2)

    def newton(_: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        a, b = state
        width = 1 / jnp.sqrt(-2 * b)
        first, second, h_aa, h_ab, h_bb = _mean_square(a * width**2, width, low, high)
        g_a, g_b = -first, 1 - second
        determinant = jnp.maximum(h_aa * h_bb - h_ab**2, 1e-6 * h_aa * h_bb + 1e-30)
        d_a = (h_bb * g_a - h_ab * g_b) / determinant
        d_b = (h_aa * g_b - h_ab * g_a) / determinant
        step = 1 / (1 + jnp.sqrt(jnp.maximum(g_a * d_a + g_b * d_b, 0)))
        new_a, new_b = a + step * d_a, jnp.minimum(b + step * d_b, b / 16)
        # on the edge only the mean is matched
        over = new_b > most(new_a, new_b)
        along = g_a / jnp.maximum(h_aa, 1e-30)
        along = a + along / (1 + jnp.sqrt(jnp.maximum(g_a * along, 0)))
        return jnp.where(over, along, new_a), jnp.where(over, most(along, b), new_b)

    start = (jnp.zeros_like(low), jnp.full_like(low, -0.5))
    a, b = jax.lax.fori_loop(0, num_steps, newton, start)
    width = 1 / jnp.sqrt(-2 * b)
    centre = jnp.clip(a * width**2, low - FARTHEST * width, high + FARTHEST * width)
    return mean + std * centre, std * width


def _mirrored(loc: Array, scale: Array) -> tuple[Array, Array, Array, Array]:
    """Return the sign that puts the interval into the lower tail of Φ, and Φ at its ends.

    In the upper tail Φ rounds to 1; near 0 there are enough numbers.
    """
    sign = jnp.where(loc < 0.5, -1.0, 1.0).astype(jnp.result_type(loc))
    ends = (-loc / scale, (1 - loc) / scale)
    low = jnp.where(sign > 0, ends[0], -ends[1])
    high = jnp.where(sign > 0, ends[1], -ends[0])
    below, above = ndtr(low), ndtr(high)
    return sign, below, above, above - below


def quantile(uniform: Array, loc: Array, scale: Array) -> Array:
    """Return x with P(X ≤ x) = uniform, which lies in [0, 1]."""
    sign, below, _, mass = _mirrored(loc, scale)
    share = jnp.where(sign > 0, uniform, 1 - uniform)
    return jnp.clip(loc + scale * sign * ndtri(below + share * mass), 0, 1)


def cdf(x: Array, loc: Array, scale: Array) -> Array:
    """Return P(X ≤ x) for x in [0, 1]; inverts `quantile`."""
    sign, below, _, mass = _mirrored(loc, scale)
    share = (ndtr(sign * (x - loc) / scale) - below) / mass
    return jnp.clip(jnp.where(sign > 0, share, 1 - share), 0, 1)


def log_density(x: Array, loc: Array, scale: Array) -> Array:
    """Return the logarithm of the density at x in [0, 1]."""
    mass = _mirrored(loc, scale)[3]
    z = (x - loc) / scale
    return -(z**2) / 2 - jnp.log(scale * mass) - 0.5 * np.log(2 * np.pi)
