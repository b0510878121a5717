"""Eigenvalues of a curvature matrix at the ends of its spectrum, and the density of all of them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hypergrad.core.checks import check_whole
from hypergrad.core.types import Array, Batch, Key, Params, PyTree
from hypergrad.curvature.memory import VECTORS, check_vectors, size_of
from hypergrad.curvature.models import Model, check_positive_or_traced
from hypergrad.curvature.products import Operator, Product, check_product, hvp, operator


class Eigenpairs(NamedTuple):
    """Eigenvalues with their vectors and residuals.

    Attributes:
        values: Eigenvalues λ `[num]`, the largest first.
        vectors: Eigenvectors of unit norm, a pytree like the params with a leading axis `[num]`.
        residuals: Residuals ‖H v − λ v‖ `[num]`: an eigenvalue lies within that distance of λ, except for
            rounding of at most about √n ε ‖H‖.
    """

    values: Array
    vectors: PyTree
    residuals: Array


class SpectralDensity(NamedTuple):
    """Density of the eigenvalues of H.

    Attributes:
        nodes: Eigenvalues of T for each probe `[probes, k]`.
        weights: Share of the spectrum of each node `[probes, k]`; each row adds up to one. Nodes beyond the
            reach of the probe (see `top_eigenvalues`) have weight 0.
        grid: Places λ `[points]`.
        density: Density of the eigenvalues at these places, smoothed by a Gaussian of width σ, `[points]`;
            its integral is one.
    """

    nodes: Array
    weights: Array
    grid: Array
    density: Array


def top_eigenvalues(
    loss: Model,
    params: Params,
    batch: Batch,
    key: Key,
    *,
    num: int = 5,
    num_steps: int | None = None,
    smallest: bool = False,
    product: Product = hvp,
    memory: int = VECTORS,
) -> Eigenpairs:
    """Return the largest eigenvalues of H, or the smallest, by Lanczos' method.

    H V_k = V_k T_k + β_k v_{k+1} e_kᵀ;   the eigenvalues of T_k at the ends of the spectrum come first

    Every new vector is made orthogonal to all earlier ones, twice, so that no eigenvalue appears again
    as a ghost. Where H v_k adds no new direction, the method continues from a random vector orthogonal to all
    earlier ones.

    **Cost:** `num_steps` products, memory of `num_steps` vectors, and time num_steps² n besides the products.

    **Limits:** an eigenvalue of multiplicity two is found once, and a second time only after all that one
    vector reaches; the residuals say which eigenvalues have converged.

    Args:
        loss: Any model that `product` takes.
        params: Weights w, n numbers.
        batch: Batch of the loss.
        key: Key of the random vectors.
        num: Number of eigenvalues.
        num_steps: Number of products; 4 num + 20 where None, n at most.
        smallest: Whether to find the smallest instead, the most negative first.
        product: `hvp`, `ggn_vp` or `fisher_vp`.
        memory: Bytes for the vectors.

    Raises:
        ValueError: where there are fewer steps or weights than eigenvalues wanted, or the vectors do not fit
            into memory.

    Reference:
        Golub, Van Loan, "Matrix Computations", 4th ed., 10.1-10.3.
    """
    check_product(product, loss, params, batch)
    check_whole("num", num)
    num_steps = 4 * num + 20 if num_steps is None else num_steps
    check_whole("num_steps", num_steps)
    num_steps = min(num_steps, size_of(params))
    if num > num_steps:
        raise ValueError(
            f"num is {num}, expected at most {num_steps}, the steps (n at most); raise num_steps or lower num"
        )
    advice = "lower num_steps, pass more memory, or use power_iteration, which keeps two"
    check_vectors(num_steps, params, memory, advice)
    linear = operator(product, loss, params, batch)
    found = lanczos(linear, key, num_steps)
    values, weights = jnp.linalg.eigh(tridiagonal(found))
    chosen = jnp.arange(num) if smallest else num_steps - 1 - jnp.arange(num)
    values, weights = values[chosen], weights[:, chosen]
    vectors = weights.T @ found.basis
    residuals = jnp.abs(found.beta[-1] * weights[-1])
    return Eigenpairs(values, jax.vmap(linear.unravel)(vectors), residuals)


def power_iteration(
    loss: Model,
    params: Params,
    batch: Batch,
    key: Key,
    *,
    num_steps: int = 100,
    tolerance: float = 1e-4,
    product: Product = hvp,
) -> Eigenpairs:
    """Return the eigenvalue of largest absolute value, with its sign, by the power method.

    v ← H v / ‖H v‖,   λ = vᵀ H v, until ‖H v − λ v‖ ≤ tolerance |λ|

    Use it where n is so large that the basis of Lanczos' method does not fit.

    **Cost:** `num_steps` products at most, memory of two vectors. The error shrinks by |λ₂/λ₁| per step.

    Args:
        loss: Any model that `product` takes.
        params: Weights w, n numbers.
        batch: Batch of the loss.
        key: Key of the first vector.
        num_steps: Largest number of products.
        tolerance: Relative residual at which the iteration ends.
        product: `hvp`, `ggn_vp` or `fisher_vp`.
    """
    check_product(product, loss, params, batch)
    check_whole("num_steps", num_steps)
    linear = operator(product, loss, params, batch)
    start = jax.random.normal(key, (linear.size,), linear.dtype)

    def measure(vector: Array) -> tuple[Array, Array, Array]:
        image = linear.matvec(vector)
        value = jnp.vdot(vector, image)
        return image, value, jnp.linalg.norm(image - value * vector)

    def unfinished(carry: tuple[Array, ...]) -> Array:
        count, _, _, value, residual = carry
        return (count < num_steps) & (residual > tolerance * jnp.abs(value))

    def step(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        count, _, image, _, _ = carry
        norm = jnp.linalg.norm(image)
        vector = image / jnp.where(norm > 0, norm, 1)
        return count + 1, vector, *measure(vector)

    first = start / jnp.linalg.norm(start)
    carry = (jnp.ones((), jnp.int32), first, *measure(first))
    _, vector, _, value, residual = jax.lax.while_loop(unfinished, step, carry)
    return Eigenpairs(value[None], jax.vmap(linear.unravel)(vector[None]), residual[None])


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
        loss: Any model that `product` takes.
        params: Weights w, n numbers.
        batch: Batch of the loss.
        key: Key of the probes, Gaussian vectors.
        num_probes: Number of probes.
        num_steps: Steps k of Lanczos' method; n at most.
        num_points: Number of points of the grid, which spans all nodes that have a weight, and 5 σ on both
            sides.
        width: Width σ; where None a hundredth of that span, or of |λ| where there is only one eigenvalue.
        product: `hvp`, `ggn_vp` or `fisher_vp`.
        memory: Bytes for the vectors.

    Raises:
        ValueError: where the vectors do not fit into memory.

    Reference:
        Ubaru, Chen, Saad, 2017; Ghorbani, Krishnan, Xiao, 2019, arXiv:1901.10159.
    """
    check_product(product, loss, params, batch)
    for name, value in (("num_probes", num_probes), ("num_steps", num_steps)):
        check_whole(name, value)
    check_whole("num_points", num_points, 2)
    if width is not None:
        check_positive_or_traced("width", width)
    steps = min(num_steps, size_of(params))
    check_vectors(steps, params, memory, "lower num_steps, or pass more memory")
    linear = operator(product, loss, params, batch)

    def probe(key: Key) -> tuple[Array, Array]:
        found = lanczos(linear, key, steps)
        nodes, vectors = jnp.linalg.eigh(tridiagonal(found))
        return nodes, jnp.square(vectors[0])

    nodes, weights = jax.lax.map(probe, jax.random.split(key, num_probes))
    eps = jnp.finfo(linear.dtype).eps
    seen = weights > jnp.square(10 * eps)
    low = jnp.min(nodes, where=seen, initial=jnp.inf)
    high = jnp.max(nodes, where=seen, initial=-jnp.inf)
    size = jnp.maximum(jnp.abs(low), jnp.abs(high))
    span = jnp.where(high - low > 100 * eps * size, high - low, jnp.maximum(size, 1))
    sigma = span / 100 if width is None else jnp.asarray(width, linear.dtype)
    grid = jnp.linspace(low - 5 * sigma, high + 5 * sigma, num_points)
    bumps = jnp.exp(-0.5 * jnp.square((grid[:, None, None] - nodes[None]) / sigma))
    density = jnp.sum(bumps * weights[None], (1, 2)) / (num_probes * sigma * jnp.sqrt(2 * jnp.pi))
    return SpectralDensity(nodes, weights, grid, density)


class Tridiagonal(NamedTuple):
    """Result of k steps of Lanczos' method.

    Attributes:
        alpha: Diagonal of T `[k]`.
        beta: Off-diagonal entries `[k]`, 0 where a new vector was drawn; the last is the norm of the remainder.
        basis: Orthonormal rows `[k, n]`.
    """

    alpha: Array
    beta: Array
    basis: Array


def lanczos(linear: Operator, key: Key, num_steps: int) -> Tridiagonal:
    """Run Lanczos' method from a random vector, with full reorthogonalization, n steps at most.

    The remainder of H v_k counts as zero below 10 ε of the largest ‖H v‖ met. Then β is zero, and the next
    vector is a random one orthogonal to all earlier ones. So T falls apart into blocks: the first belongs to
    the first vector alone, and an eigenvalue of several vectors is found in several blocks.
    """
    start_key, restart_key = jax.random.split(key)
    tiny = 10 * jnp.finfo(linear.dtype).eps

    def draw(key: Key) -> Array:
        return jax.random.normal(key, (linear.size,), linear.dtype)

    def unit(vector: Array) -> Array:
        return vector / jnp.linalg.norm(vector)

    def step(index: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        alpha, beta, basis, vector, scale = carry
        basis = basis.at[index].set(vector)
        image = linear.matvec(vector)
        alpha = alpha.at[index].set(jnp.vdot(vector, image))
        rest = outside(basis, image)
        norm = jnp.linalg.norm(rest)
        scale = jnp.maximum(scale, jnp.linalg.norm(image))
        alive = norm > tiny * scale
        beta = beta.at[index].set(jnp.where(alive, norm, 0))
        following = jax.lax.cond(
            alive,
            lambda: rest / norm,
            lambda: unit(outside(basis, draw(jax.random.fold_in(restart_key, index)))),
        )
        return alpha, beta, basis, following, scale

    zeros = jnp.zeros(num_steps, linear.dtype)
    basis = jnp.zeros((num_steps, linear.size), linear.dtype)
    carry = (zeros, zeros, basis, unit(draw(start_key)), jnp.zeros((), linear.dtype))
    alpha, beta, basis, _, _ = jax.lax.fori_loop(0, num_steps, step, carry)
    return Tridiagonal(alpha, beta, basis)


def outside(basis: Array, vector: Array) -> Array:
    """Return the part of a vector `[n]` orthogonal to the rows of a basis `[k, n]`, made twice for rounding."""
    for _ in range(2):
        vector = vector - basis.T @ (basis @ vector)
    return vector


def tridiagonal(found: Tridiagonal) -> Array:
    """Return T `[k, k]`."""
    off = found.beta[:-1]
    return jnp.diag(found.alpha) + jnp.diag(off, 1) + jnp.diag(off, -1)
