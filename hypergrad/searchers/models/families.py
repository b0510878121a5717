"""Families of distributions over unit coordinates, to draw trials from and to fit to the best of them.

Continuous coordinates have truncated normals, counted ones have tables, and a mixed space has the product
of both; `models.chains` has Markov tables for sequences that never rise.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jax.scipy.stats import norm

from hypergrad.core.types import Array, PyTree
from hypergrad.searchers.models import truncnorm

SMALL = 1e-30
"""Smallest probability, a float32 number whose logarithm is finite."""


class Family(NamedTuple):
    """A family of distributions over d unit coordinates; `params` is a pytree that names one of them.

    Attributes:
        start: Params of the first distribution.
        transform: (params, uniforms `[N, d]` in (0, 1)) -> units `[N, d]`, the draws.
        log_density: (params, units `[N, d]`) -> log-density `[N]` of the draws of `transform`.
        fit: (params, units `[N, d]`, weights `[N]`) -> params that minimise the Kullback-Leibler
            divergence from the weighted units; the old params where these tell nothing.
        blend: (old params, new params, step) -> params, smoothing; steps count from 1.
        settled: (params, sigma, epsilon) -> whether every standard deviation is below `sigma` and every
            table gives one value at least 1 − `epsilon`.
        info: (params) -> {name: number}, for people.
    """

    start: PyTree
    transform: Callable[[PyTree, Array], Array]
    log_density: Callable[[PyTree, Array], Array]
    fit: Callable[[PyTree, Array, Array], PyTree]
    blend: Callable[[PyTree, PyTree, Array], PyTree]
    settled: Callable[[PyTree, float, float], Array]
    info: Callable[[PyTree], dict[str, Array]]


class Smoothing(NamedTuple):
    """Smoothing of the update of a distribution towards the elites of one generation.

    Attributes:
        c: Share of the fit in means and correlations: new = c · fitted + (1 − c) · old.
        beta: Share β of the fit in standard deviations at first; β_t = β − β (1 − 1/t)^q in generation t.
        q: Rate of the fall of β_t; a distribution whose β_t falls cannot collapse early.
        tables: Share of the fit in probabilities; less, because a table has no width that could fall late.

    The defaults are for generations of 16 with four elites: a c near 1 did best in docs/cehpo.md, and q was
    chosen on the functions and tests at hand. Tables that follow the elites by more than a fifth put all
    weight on one value before they have seen the others.
    """

    c: float = 0.9
    beta: float = 0.9
    q: float = 6.0
    tables: float = 0.2

    def share(self, step: Array) -> Array:
        """Return β_t of generation `step`, which counts from 1."""
        return self.beta - self.beta * (1 - 1 / step) ** self.q


def _mix(share: Any, new: Array, old: Array) -> Array:
    return share * new + (1 - share) * old


class Normals(NamedTuple):
    """Means and standard deviations on [0, 1], `[d]`, and the correlation of their scores, `[d, d]`.

    The correlation is empty, `[0, 0]`, where coordinates are independent.
    """

    mean: Array
    std: Array
    correlation: Array


def normals(mean: np.ndarray, std: np.ndarray, smoothing: Smoothing, correlated: bool) -> Family:
    """Build truncated normals on [0, 1]: x = quantile(Φ(g)), with g ~ N(0, I) or, `correlated`, N(0, R).

    The marginals have the mean and standard deviation of the elites (`truncnorm.fit`), which minimises the
    Kullback-Leibler divergence among independent truncated normals. Correlated ones are joined by a Gaussian
    copula: R is the correlation of the elites' normal scores g = Φ⁻¹(cdf(x)). Far from the bounds this
    is the normal with full covariance.

    **Limits:** R is the usual approximation of the copula's maximum of likelihood, shrunk towards I by
    d / (d + elites), because few elites cannot tell d² numbers.
    """
    dim = len(mean)
    dtype = jnp.result_type(float)
    eye = jnp.eye(dim if correlated else 0, dtype=dtype)
    start = Normals(jnp.asarray(mean, dtype), jnp.asarray(std, dtype), eye)

    def scores(params: Normals, units: Array) -> tuple[Array, Array]:
        loc, scale = truncnorm.fit(params.mean, params.std)
        inside = jnp.clip(truncnorm.cdf(units, loc, scale), 1e-6, 1 - 1e-6)
        return ndtri(inside), jnp.sum(truncnorm.log_density(units, loc, scale), -1)

    def transform(params: Normals, uniforms: Array) -> Array:
        if correlated:
            root = jnp.linalg.cholesky(params.correlation)
            uniforms = norm.cdf(ndtri(uniforms) @ root.T)
        return truncnorm.quantile(uniforms, *truncnorm.fit(params.mean, params.std))

    def log_density(params: Normals, units: Array) -> Array:
        g, marginal = scores(params, units)
        if not correlated:
            return marginal
        root = jnp.linalg.cholesky(params.correlation)
        white = jax.scipy.linalg.solve_triangular(root, g.T, lower=True).T
        volume = jnp.sum(jnp.log(jnp.diagonal(root)))
        return marginal + jnp.sum(g**2 - white**2, -1) / 2 - volume

    def fit(params: Normals, units: Array, weights: Array) -> Normals:
        total = jnp.maximum(jnp.sum(weights), 1)
        mean = weights @ units / total
        std = jnp.sqrt(weights @ (units - mean) ** 2 / total)
        # a single elite has a place, but no width
        std = jnp.where(jnp.sum(weights > 0) > 1, std, params.std)
        if not correlated:
            return Normals(mean, std, params.correlation)
        g = scores(Normals(mean, jnp.maximum(std, 1e-6), params.correlation), units)[0]
        centred = (g - weights @ g / total) * jnp.sqrt(weights / total)[:, None]
        covariance = centred.T @ centred
        size = jnp.sqrt(jnp.maximum(jnp.diagonal(covariance), SMALL))
        keep = total / (total + dim)
        correlation = jnp.where(eye > 0, 1, keep * covariance / (size[:, None] * size))
        return Normals(mean, std, correlation)

    def blend(old: Normals, new: Normals, step: Array) -> Normals:
        return Normals(
            _mix(smoothing.c, new.mean, old.mean),
            _mix(smoothing.share(step), new.std, old.std),
            _mix(smoothing.c, new.correlation, old.correlation),
        )

    def settled(params: Normals, sigma: float, epsilon: float) -> Array:
        return jnp.all(params.std < sigma)

    def info(params: Normals) -> dict[str, Array]:
        return {"largest_std": jnp.max(params.std)}

    return Family(start, transform, log_density, fit, blend, settled, info)


def tables(
    first: list[np.ndarray], names: list[str], ends: np.ndarray, smoothing: Smoothing, floor: float
) -> Family:
    """Build tables of probabilities, one for each coordinate: P_{d,k}, drawn as (1 − floor) P + floor P_0.

    Q_{d,k} = Σ_m w_m 1{x_{m,d} = k} / Σ_m w_m is the elites' share of value k, the minimiser of the
    Kullback-Leibler divergence. The table itself is kept without the floor: with it, no table would settle.

    Args:
        first: Table P_0 of each coordinate, `[K_d]`.
        names: Name of each coordinate.
        ends: Places of the K values of each coordinate, `[d]`; true: at k / (K − 1), on the bounds of a range
            cut into atoms; false: at the middles (k + ½) / K of counted values.
        smoothing: Smoothing of P.
        floor: Share of P_0 in the draws.
    """
    dtype = jnp.result_type(float)
    sizes = np.array([len(table) for table in first])
    widest = int(sizes.max())
    start = jnp.asarray(np.stack([np.pad(t, (0, widest - len(t))) for t in first]), dtype)
    scale, offset = np.where(ends, sizes - 1, sizes), np.where(ends, 0.0, 0.5)

    def drawn(params: Array) -> Array:
        return _mix(1 - floor, params, start)

    def index(units: Array) -> Array:
        return jnp.clip(jnp.floor(units * scale + (0.5 - offset)).astype(jnp.int32), 0, sizes - 1)

    def transform(params: Array, uniforms: Array) -> Array:
        return ((draw(drawn(params), uniforms) + offset) / scale).astype(dtype)

    def log_density(params: Array, units: Array) -> Array:
        chosen = jnp.take_along_axis(drawn(params)[None], index(units)[..., None], -1)[..., 0]
        return jnp.sum(jnp.log(jnp.maximum(chosen, SMALL)), -1)

    def fit(params: Array, units: Array, weights: Array) -> Array:
        counts = jnp.einsum("n,ndk->dk", weights, jax.nn.one_hot(index(units), widest, dtype=dtype))
        return counts / jnp.maximum(jnp.sum(weights), 1)

    def settled(params: Array, sigma: float, epsilon: float) -> Array:
        return jnp.all(jnp.max(params, -1) >= 1 - epsilon)

    def info(params: Array) -> dict[str, Array]:
        return {f"entropy.{n}": e for n, e in zip(names, entropy(params), strict=True)}

    def blend(old: Array, new: Array, step: Array) -> Array:
        return _mix(smoothing.tables, new, old)

    return Family(start, transform, log_density, fit, blend, settled, info)


def draw(table: Array, uniforms: Array) -> Array:
    """Return the index in a table `[..., K]` on which a uniform in (0, 1) falls, int32."""
    heaps = jnp.cumsum(table, -1)
    # divided by the last, the cumulative sums end in an exact 1 where the table is padded with zeros
    return jnp.sum(uniforms[..., None] >= heaps / heaps[..., -1:], -1).astype(jnp.int32)


def entropy(table: Array) -> Array:
    """Return −Σ P log P over the last axis, in nats."""
    return -jnp.sum(table * jnp.log(jnp.maximum(table, SMALL)), -1)


def product(parts: list[tuple[np.ndarray, Family]], num: int) -> Family:
    """Join families, each over the coordinates at its indices, into one over all `num` coordinates."""
    order = np.argsort(np.concatenate([where for where, _ in parts]))

    def each(method: str, *args: Any) -> tuple:
        return tuple(getattr(f, method)(*(a[i] for a in args)) for i, (_, f) in enumerate(parts))

    def slices(units: Array) -> tuple[Array, ...]:
        return tuple(units[:, where] for where, _ in parts)

    def transform(params: PyTree, uniforms: Array) -> Array:
        return jnp.concatenate(each("transform", params, slices(uniforms)), -1)[:, order]

    def log_density(params: PyTree, units: Array) -> Array:
        return sum(each("log_density", params, slices(units)), jnp.zeros(units.shape[0]))

    def fit(params: PyTree, units: Array, weights: Array) -> PyTree:
        return each("fit", params, slices(units), (weights,) * len(parts))

    def blend(old: PyTree, new: PyTree, step: Array) -> PyTree:
        return each("blend", old, new, (step,) * len(parts))

    def settled(params: PyTree, sigma: float, epsilon: float) -> Array:
        pairs = ((sigma,) * len(parts), (epsilon,) * len(parts))
        return jnp.all(jnp.stack(each("settled", params, *pairs)))

    def info(params: PyTree) -> dict[str, Array]:
        return {name: x for part in each("info", params) for name, x in part.items()}

    start = tuple(family.start for _, family in parts)
    return Family(start, transform, log_density, fit, blend, settled, info)
