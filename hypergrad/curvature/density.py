"""The density of all eigenvalues of a curvature matrix, by stochastic Lanczos quadrature."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hypergrad.checks import check_whole
from hypergrad.curvature.base import (
    VECTORS,
    Model,
    check_positive_or_traced,
    check_vectors,
    size_of,
)
from hypergrad.curvature.eigen import lanczos, tridiagonal
from hypergrad.curvature.products import Product, hvp, operator
from hypergrad.types import Array, Batch, Key, Params


class SpectralDensity(NamedTuple):
    """Where the eigenvalues of H lie.

    Attributes:
        nodes: eigenvalues of T for each probe `[probes, k]`.
        weights: share of the spectrum that each stands for `[probes, k]`; each row adds to one. Nodes that
            come after all that the probe reaches (see `top_eigenvalues`) have weight 0.
        grid: λ `[points]`.
        density: of the eigenvalues, smoothed by a Gaussian of width σ, `[points]`; its integral is one.
    """

    nodes: Array
    weights: Array
    grid: Array
    density: Array


def spectral_density(
    loss: Model,
    params: Params,
    batch: Batch,
    key: Key,
    *,
    num_probes: int = 10,
    num_steps: int = 40,
    num_points: int = 400,
    width: float | None = None,
    product: Product = hvp,
    memory: int = VECTORS,
) -> SpectralDensity:
    """Estimate the density of the eigenvalues of H by stochastic Lanczos quadrature.

    φ(λ) = (1/n) Σ_j N(λ; λ_j, σ²) = E vᵀ N(λ; H, σ²) v / n ≈ mean over v of Σ_i (e_1ᵀ u_i)² N(λ; θ_i, σ²)

    with (θ_i, u_i) the eigenpairs of the T of Lanczos' method begun at v: Gauss quadrature, exact for
    polynomials of degree 2k − 1. Sums of f over the spectrum are n · mean(Σ weights f(nodes)).

    **Cost:** `num_probes` x `num_steps` products one after another, memory `num_steps` vectors.

    **Limits:** details narrower than σ do not show.

    Args:
        loss: any model that `product` takes.
        params: n weights.
        batch: what the loss takes.
        key: of the probes, Gaussian vectors.
        num_probes: how many.
        num_steps: k, of Lanczos' method; n at most.
        num_points: of the grid, which spans all nodes that have a weight and 5 σ on both sides.
        width: σ; where None a hundredth of that span, or of |λ| where there is but one eigenvalue.
        product: `hvp`, `ggn_vp` or `fisher_vp`.
        memory: bytes for the vectors.

    Raises:
        ValueError: where the vectors do not fit into memory.

    Reference:
        Ubaru, Chen, Saad, 2017; Ghorbani, Krishnan, Xiao, 2019, arXiv:1901.10159.
    """
    for name, value in (("num_probes", num_probes), ("num_steps", num_steps)):
        check_whole(name, value)
    check_whole("num_points", num_points, 2)
    if width is not None:
        check_positive_or_traced("width", width)
    steps = min(num_steps, size_of(params))
    check_vectors(steps, params, memory, "lower num_steps, or pass more memory")
    linear = operator(product, loss, params, batch)

    def probe(key):
        found = lanczos(linear, key, steps)
        nodes, vectors = jnp.linalg.eigh(tridiagonal(found))
        return nodes, jnp.square(vectors[0])

    nodes, weights = jax.lax.map(probe, jax.random.split(key, num_probes))
    eps = jnp.finfo(linear.dtype).eps
    seen = weights > jnp.square(10 * eps)
    low, high = (
        jnp.min(nodes, where=seen, initial=jnp.inf),
        jnp.max(nodes, where=seen, initial=-jnp.inf),
    )
    size = jnp.maximum(jnp.abs(low), jnp.abs(high))
    span = jnp.where(high - low > 100 * eps * size, high - low, jnp.maximum(size, 1))
    sigma = span / 100 if width is None else jnp.asarray(width, linear.dtype)
    grid = jnp.linspace(low - 5 * sigma, high + 5 * sigma, num_points)
    bumps = jnp.exp(-0.5 * jnp.square((grid[:, None, None] - nodes) / sigma))
    density = jnp.sum(bumps * weights, (1, 2)) / (num_probes * sigma * jnp.sqrt(2 * jnp.pi))
    return SpectralDensity(nodes, weights, grid, density)
