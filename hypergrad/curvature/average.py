"""Average sharpness: the expected rise of the loss, its PAC-Bayes width, and the volume below a level."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from hypergrad.core.checks import check_whole
from hypergrad.core.types import Array, Batch, Key, Params
from hypergrad.curvature.models import (
    BatchLoss,
    Model,
    check_model,
    check_positive_or_traced,
    loss_of,
    widen,
)


class Expected(NamedTuple):
    """A mean over random moves.

    Attributes:
        value: Mean `[]`.
        std_error: Standard error of the mean `[]`.
    """

    value: Array
    std_error: Array


class Volume(NamedTuple):
    """The volume of the weights around w at which the loss is below a level.

    Attributes:
        log_volume: Natural logarithm, `[]`.
        radii: Distance to the level along each direction `[directions]`; `largest` where the level was not met.
        met: Share of the directions along which the level was met, `[]`.
    """

    log_volume: Array
    radii: Array
    met: Array


def expected_sharpness(
    loss: Model,
    params: Params,
    batch: Batch,
    key: Key,
    *,
    sigma: float | Array = 0.05,
    num_pairs: int = 20,
    relative: bool = False,
) -> Expected:
    """Return the mean rise of the loss under Gaussian moves of the weights, in opposite pairs.

    E_{v∼N(0, σ²)} L(w + v) − L(w) ≈ ½ σ² tr H;   with `relative`, v_i ∼ N(0, σ² w_i²)

    The pair ±v cancels the gradient, whose noise would be larger than the curvature.

    **Cost:** 2 `num_pairs` losses, one pair after another. Differentiable.

    Args:
        loss: Any model.
        params: Weights w.
        batch: Batch of the loss.
        key: Key of the moves.
        sigma: Standard deviation σ of the moves.
        num_pairs: Number of pairs.
        relative: Whether the moves scale with the weights (magnitude-aware).

    Reference:
        Neyshabur et al., 2017, arXiv:1706.08947; Jiang et al., 2020, arXiv:1912.02178, equations 53-57.
    """
    check_model(loss, params, batch)
    if not isinstance(sigma, jax.Array):
        check_positive_or_traced("sigma", sigma)
    check_whole("num_pairs", num_pairs, 2)
    return _expected_rise(loss_of(loss), params, batch, key, sigma, num_pairs, relative)


def _expected_rise(
    function: BatchLoss,
    params: Params,
    batch: Batch,
    key: Key,
    sigma: float | Array,
    num_pairs: int,
    relative: bool,
) -> Expected:
    flat, unravel = ravel_pytree(widen(params))
    scale = jnp.abs(flat) if relative else jnp.ones_like(flat)
    here = function(unravel(flat), batch)

    def rise(key: Key) -> Array:
        move = sigma * scale * jax.random.normal(key, flat.shape, flat.dtype)
        ahead, back = (function(unravel(flat + sign * move), batch) for sign in (1, -1))
        return (ahead + back) / 2 - here

    rises = jax.lax.map(jax.checkpoint(rise), jax.random.split(jax.random.clone(key), num_pairs))
    return Expected(jnp.mean(rises), jnp.std(rises, ddof=1) / math.sqrt(num_pairs))


def pac_bayes(
    loss: Model,
    params: Params,
    batch: Batch,
    key: Key,
    *,
    rise: float = 0.1,
    largest: float = 10.0,
    num_pairs: int = 20,
    num_bisections: int = 20,
    relative: bool = False,
) -> Array:
    """Return 1/σ² for the largest σ at which the expected rise of the loss stays below `rise`.

    Sharper minima bear only smaller moves, so a larger value means a sharper minimum. It is found by bisection
    of log σ, with the same random directions at every σ.

    **Cost:** 2 `num_pairs` x `num_bisections` losses. **Limits:** σ within [1e-6, 1] x `largest`.

    Args:
        loss: Any model.
        params: Weights w.
        batch: Batch of the loss.
        key: Key of the moves.
        rise: Largest allowed rise of the loss; Jiang et al. take a fall of 0.1 in accuracy.
        largest: Largest σ to try.
        num_pairs: Number of pairs of moves.
        num_bisections: Number of bisections.
        relative: Whether the moves scale with the weights, as in `expected_sharpness`.

    Reference:
        Jiang et al., 2020, arXiv:1912.02178, section C.3 and Algorithm 1.
    """
    check_model(loss, params, batch)
    check_positive_or_traced("rise", rise)
    check_positive_or_traced("largest", largest)
    check_whole("num_pairs", num_pairs, 2)
    check_whole("num_bisections", num_bisections)
    function = loss_of(loss)

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) / 2
        sigma = jnp.exp(middle)
        found = _expected_rise(function, params, batch, key, sigma, num_pairs, relative)
        below = found.value <= rise  # false where the loss is not finite
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    ends = jnp.log(jnp.asarray([1e-6 * largest, largest]))
    low, _ = jax.lax.fori_loop(0, num_bisections, halve, (ends[0], ends[1]))
    return jnp.exp(-2 * low)


def flat_volume(
    loss: Model,
    params: Params,
    batch: Batch,
    key: Key,
    *,
    epsilon: float = 0.1,
    largest: float = 100.0,
    num_directions: int = 100,
    num_points: int = 64,
) -> Volume:
    """Estimate the volume of the weights that w sees along straight lines of loss at most L(w) + ε.

    V = ω_n E_u r(u)^n,   r(u) = the first r at which L(w + r u) > L(w) + ε, u uniform on the sphere

    ω_n = π^{n/2} / Γ(n/2 + 1) is the volume of the unit ball.

    **Cost:** `num_points` + 30 losses a direction, one direction after another.

    **Limits:** the largest term dominates a mean of n-th powers: in high dimensions the estimate is a lower
    bound, for comparing networks of one shape. Rescaling the layers changes it (Dinh et al., 2017). The first
    crossing is searched on a logarithmic grid of `num_points` from 1e-5 `largest` on, then bisected.

    Args:
        loss: Any model.
        params: Weights w, n numbers.
        batch: Batch of the loss.
        key: Key of the directions.
        epsilon: Largest allowed rise ε of the loss.
        largest: Largest distance r to try.
        num_directions: Number of directions.
        num_points: Number of points of the grid.

    Reference:
        Hochreiter, Schmidhuber, 1997, "Flat minima"; Dinh et al., 2017, arXiv:1703.04933, definition 1;
        Huang et al., 2020, arXiv:1906.03291 (the estimate).
    """
    check_model(loss, params, batch)
    for name, value in (("epsilon", epsilon), ("largest", largest)):
        check_positive_or_traced(name, value)
    check_whole("num_directions", num_directions)
    check_whole("num_points", num_points, 2)
    function = loss_of(loss)
    flat, unravel = ravel_pytree(widen(params))
    size, level = flat.size, function(unravel(flat), batch) + epsilon
    grid = largest * jnp.logspace(-5, 0, num_points, dtype=flat.dtype)

    def radius(key: Key) -> tuple[Array, Array]:
        direction = jax.random.normal(key, flat.shape, flat.dtype)
        direction = direction / jnp.linalg.norm(direction)

        def below(r: Array) -> Array:
            return function(unravel(flat + r * direction), batch) <= level

        inside = jax.lax.map(below, grid)
        first = jnp.argmin(inside)  # the first point that is not inside
        met = ~jnp.all(inside)
        low = jnp.where(first > 0, grid[first - 1], 0)

        def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bounds
            middle = (low + high) / 2
            ok = below(middle)
            return jnp.where(ok, middle, low), jnp.where(ok, high, middle)

        low, _ = jax.lax.fori_loop(0, 30, halve, (low, grid[first]))
        return jnp.where(met, low, largest), met

    radii, met = jax.lax.map(radius, jax.random.split(key, num_directions))
    ball = 0.5 * size * math.log(math.pi) - math.lgamma(0.5 * size + 1)
    powers = jax.nn.logsumexp(size * jnp.log(radii)) - math.log(num_directions)
    return Volume(ball + powers, radii, jnp.mean(met))
