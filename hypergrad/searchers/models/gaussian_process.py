"""A Gaussian process over unit coordinates, for tables that are padded to a fixed number of rows.

In the order of use: the kernel and its covariance (`matern`), the fit of the kernel to trials
(`fit_covariance`), and the process conditioned on them (`condition`, `predict`, `believe`), for an objective
that is minimised.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hypergrad.core.types import Array, PyTree


class Kernel(NamedTuple):
    """Logarithms of the positive numbers of a kernel.

    Attributes:
        scale: Length scales, `[D]`.
        amplitude: Variance of the process.
        noise: Variance of an observation.
        warp: Exponents a and b of the input warping, `[2, D]`; zeros where inputs are not warped.
    """

    scale: Array
    amplitude: Array
    noise: Array
    warp: Array


Covariance: TypeAlias = Callable[[Kernel, Array, Array], Array]
"""(kernel, units `[N, D]`, units `[M, D]`) -> k between them `[N, M]`, k(x, x) = amplitude."""


class Posterior(NamedTuple):
    """A process conditioned on n rows, of which some are empty.

    Attributes:
        kernel: Kernel of the process.
        units: Trials in unit coordinates, `[n, D]`.
        mask: Whether each row holds a trial, `[n]`.
        root: Root R = L⁻¹ with L Lᵀ = K + noise I; rows of the identity where empty, `[n, n]`.
        white: Whitened targets R y, `[n]`.
    """

    kernel: Kernel
    units: Array
    mask: Array
    root: Array
    white: Array


def prior_kernel(num_coordinates: int) -> Kernel:
    """Return the mode of the prior of kernels: length scales grow with √D."""
    dtype = jnp.result_type(float)
    scale = jnp.full(num_coordinates, 0.35 * np.sqrt(num_coordinates) + 0.15, dtype)
    number = jnp.zeros((), dtype)
    return Kernel(jnp.log(scale), number, number - 6.0, jnp.zeros((2, num_coordinates), dtype))


_SPREAD = Kernel(0.8, 0.7, 2.5, 0.4)  # type: ignore[arg-type]
"""Standard deviations of the prior of kernels: of their logarithms, around `prior_kernel`."""


def noise_floor() -> float:
    """Return the smallest variance of the noise by precision: with less, few Cholesky factors succeed."""
    return 1e-6 if jnp.finfo(jnp.result_type(float)).bits == 32 else 1e-9


def matern(ordered: np.ndarray) -> Covariance:
    """Return the Matérn-5/2 kernel with one length scale per coordinate, and a step between options.

    k(x, x') = amplitude · M(r) · exp(−Σ_c 1{x_c ≠ x'_c} / scale_c),   M(r) = (1 + s + s²/3) e^−s,  s = √5 r,
    r² = Σ_d ((w_d(x_d) − w_d(x'_d)) / scale_d)²,   w_d(x) = 1 − (1 − x^a_d)^b_d,

    over options c and all other coordinates d.

    Args:
        ordered: Whether each coordinate has an order, `[D]`; false for options.
    """
    numbers = np.flatnonzero(ordered)

    def covariance(kernel: Kernel, left: Array, right: Array) -> Array:
        result = jnp.exp(kernel.amplitude)
        if len(numbers):
            apart = _warp(kernel, left)[:, None, numbers] - _warp(kernel, right)[:, numbers]
            square = jnp.sum((apart * jnp.exp(-kernel.scale)[numbers]) ** 2, -1)
            # the root has no derivative at 0; M(r) has
            s = jnp.sqrt(5 * jnp.maximum(square, 1e-12))
            result = result * (1 + s + s**2 / 3) * jnp.exp(-s)
        result = result * agreement(ordered, kernel, left, right)
        return jnp.broadcast_to(result, (left.shape[0], right.shape[0]))

    return covariance


def agreement(ordered: np.ndarray, kernel: Kernel, left: Array, right: Array) -> Array:
    """Return exp(−Σ_c 1{x_c ≠ x'_c} / scale_c) over the options, `[N, M]`; 1 where there are none."""
    options = np.flatnonzero(~ordered)
    if not len(options):
        return jnp.ones((), left.dtype)
    differ = jnp.abs(left[:, None, options] - right[:, options]) > 1e-4
    return jnp.exp(-jnp.sum(jnp.where(differ, jnp.exp(-kernel.scale)[options], 0), -1))


def _warp(kernel: Kernel, units: Array) -> Array:
    """Return the Kumaraswamy distribution function 1 − (1 − x^a)^b; x itself at a = b = 1."""
    a, b = jnp.exp(kernel.warp)
    inside = jnp.clip(units, 1e-6, 1 - 1e-6)
    return 1 - (1 - inside**a) ** b


def _gram(kernel: Kernel, covariance: Covariance, units: Array, mask: Array) -> Array:
    """Return K + noise I over the rows that are not empty, the identity over the others, `[n, n]`."""
    present = mask.astype(units.dtype)
    k = covariance(kernel, units, units) * present[:, None] * present
    noise = jnp.exp(kernel.noise) + noise_floor()
    return k + jnp.diag(jnp.where(mask, noise, 1))


def _penalty(kernel: Kernel) -> Array:
    """Return −log p(kernel) up to a constant."""
    centre = prior_kernel(kernel.scale.shape[0])
    pulls = [jnp.sum(((a - b) / s) ** 2) for a, b, s in zip(kernel, centre, _SPREAD, strict=True)]
    return sum(pulls[1:], pulls[0]) / 2


def loss_and_grads(
    kernel: Kernel, covariance: Covariance, units: Array, targets: Array, mask: Array
) -> tuple[Array, Kernel]:
    """Return −log p(y) − log p(kernel) up to a constant, and its gradient.

    −log p(y) = ½ yᵀ(K + noise I)⁻¹ y + ½ log det(K + noise I) + …,
    whose derivative by K is ½ ((K + noise I)⁻¹ − α αᵀ), α = (K + noise I)⁻¹ y: it is pulled back through the
    kernel alone, never through the Cholesky factor.
    """
    k, pull = jax.vjp(lambda kernel: _gram(kernel, covariance, units, mask), kernel)
    root = jnp.linalg.cholesky(k)
    inverse = jax.scipy.linalg.cho_solve((root, True), jnp.eye(len(units), dtype=units.dtype))
    alpha = inverse @ targets
    prior, slope = jax.value_and_grad(_penalty)(kernel)
    loss = targets @ alpha / 2 + jnp.sum(jnp.log(jnp.diagonal(root))) + prior
    grads = pull((inverse - alpha[:, None] * alpha) / 2)[0]
    return loss, jax.tree.map(jnp.add, grads, slope)


def fit_covariance(
    start: Kernel,
    covariance: Covariance,
    units: Array,
    targets: Array,
    mask: Array,
    *,
    warp: bool = False,
    num_steps: int = 60,
) -> Kernel:
    """Maximise the marginal likelihood times the prior, from the given kernel and from a noisy kernel.

    One start may explain by noise what the other explains by short length scales: the likelier of the two
    ends is returned.

    **Cost:** 2 · num_steps factors and inverses, O(n³) each.

    Args:
        start: Kernel of the last fit.
        covariance: Covariance of the process, e.g. `matern(ordered)`.
        units: Trials in unit coordinates, `[n, D]`.
        targets: Standardized scores, `[n]`; zero where rows are empty.
        mask: Whether each row holds a trial, `[n]`.
        warp: Whether the input warping is fitted too.
        num_steps: Steps of Adam from each of the two starts.
    """
    optimizer = optax.adam(0.15)
    centre = prior_kernel(units.shape[1])

    def step(carry: PyTree, _: None) -> tuple[PyTree, tuple[Kernel, Array]]:
        kernel, moments = carry
        loss, grads = loss_and_grads(kernel, covariance, units, targets, mask)
        if not warp:
            grads = grads._replace(warp=jnp.zeros_like(grads.warp))
        # where the factor fails, the prior leads back
        fine = jnp.isfinite(loss)
        away = jax.tree.map(jnp.subtract, kernel, centre)
        grads = jax.tree.map(lambda g, a: jnp.where(fine & jnp.isfinite(g), g, a), grads, away)
        updates, moments = optimizer.update(grads, moments)
        return (optax.apply_updates(kernel, updates), moments), (
            kernel,
            jnp.where(fine, loss, jnp.inf),
        )

    def descend(kernel: Kernel) -> tuple[Kernel, Array]:
        kernels, losses = jax.lax.scan(step, (kernel, optimizer.init(kernel)), None, num_steps)[1]
        best = jnp.argmin(losses)
        return jax.tree.map(lambda x: x[best], kernels), losses[best]

    noisy = centre._replace(noise=centre.noise + 2 * _SPREAD.noise)
    starts = jax.tree.map(lambda *x: jnp.stack(x), start, noisy)
    kernels, losses = jax.lax.map(descend, starts)
    return jax.tree.map(lambda x: x[jnp.argmin(losses)], kernels)


def condition(
    kernel: Kernel, covariance: Covariance, units: Array, targets: Array, mask: Array
) -> Posterior:
    """Condition a process on the rows that are not empty.

    Where rounding leaves K + noise I without a Cholesky factor, the noise is multiplied by 10 until there is
    one, and once more: the first factor that exists is of the size of its rounding errors.

    **Cost:** O(n³), and as much again each time that the noise is multiplied.
    """

    def factor(kernel: Kernel) -> tuple[Kernel, Array, Array]:
        lower = jnp.linalg.cholesky(_gram(kernel, covariance, units, mask))
        return kernel, lower, ~jnp.all(jnp.isfinite(lower))

    def fails(carry: PyTree) -> Array:
        (kernel, _, failed), failed_before = carry
        return (failed | failed_before) & (kernel.noise < kernel.amplitude)

    def louder(carry: PyTree) -> PyTree:
        kernel, _, failed = carry[0]
        noise = jnp.maximum(kernel.noise, np.log(noise_floor())) + np.log(10.0)
        return factor(kernel._replace(noise=noise.astype(kernel.noise.dtype))), failed

    start = factor(kernel), jnp.zeros((), bool)
    (kernel, lower, _), _ = jax.lax.while_loop(fails, louder, start)
    eye = jnp.eye(len(units), dtype=units.dtype)
    root = jax.scipy.linalg.solve_triangular(lower, eye, lower=True)
    return Posterior(kernel, units, mask, root, root @ jnp.where(mask, targets, 0))


def predict(posterior: Posterior, covariance: Covariance, units: Array) -> tuple[Array, Array]:
    """Return mean and standard deviation of the process at units `[M, D]`, without the noise.

    **Cost:** O(M n²).
    """
    k = covariance(posterior.kernel, units, posterior.units) * posterior.mask
    v = k @ posterior.root.T
    variance = jnp.exp(posterior.kernel.amplitude) - jnp.sum(v**2, -1)
    return v @ posterior.white, jnp.sqrt(jnp.maximum(variance, 1e-8))


def believe(posterior: Posterior, covariance: Covariance, unit: Array, row: Array) -> Posterior:
    """Put a trial into an empty row, with the predicted mean as its target ("kriging believer").

    **Cost:** O(n²): only that row of R changes, to (e − vᵀR) / d, with v = R k and d² = k + noise − |v|².
    """
    kernel = posterior.kernel
    k = covariance(kernel, unit[None], posterior.units)[0] * posterior.mask
    v = posterior.root @ k
    noise = jnp.exp(kernel.noise) + noise_floor()
    d = jnp.sqrt(jnp.maximum(jnp.exp(kernel.amplitude) + noise - v @ v, noise))
    unit_row = jax.nn.one_hot(row, len(k), dtype=k.dtype)
    # the target is the mean v · white, so that the whitened target, (target − v · white) / d, is 0
    return posterior._replace(
        units=posterior.units.at[row].set(unit),
        mask=posterior.mask.at[row].set(True),
        root=posterior.root.at[row].set((unit_row - v @ posterior.root) / d),
        white=posterior.white.at[row].set(0),
    )
