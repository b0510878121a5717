"""How much the loss rises within a ball or box around the weights: worst-case sharpness."""

import math

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from hypergrad.core import tree
from hypergrad.core.abstract import traced
from hypergrad.core.checks import check_whole
from hypergrad.core.solve import box_minimum
from hypergrad.core.types import Array, Batch, Params, PyTree
from hypergrad.curvature.models import (
    BatchLoss,
    Model,
    check_model,
    check_positive_or_traced,
    loss_of,
    num_samples,
    widen,
)


def keskar(
    loss: Model,
    params: Params,
    batch: Batch,
    *,
    epsilon: float = 1e-3,
    max_iterations: int = 10,
    percent: bool = False,
) -> Array:
    """Return Keskar's ζ, the relative rise of the loss within a box around the weights.

    ζ = (max_{|v_i| ≤ ε (|w_i| + 1)} L(w + v) − L(w)) / (1 + L(w))

    The maximum is searched by L-BFGS-B, from the corner to which the gradient points: at w itself the
    gradient of a trained network is nearly zero, and the search would stay there.

    **Cost:** a few gradients an iteration, memory of some twenty vectors.

    **Limits:** a lower bound: a local maximum, after few iterations. Not scale-invariant (see `adaptive`). Its
    derivative takes the move that was found, in units of the box, for a constant: exact at a maximum, near
    it where the search ended before.

    Args:
        loss: any model.
        params: w.
        batch: what the loss takes.
        epsilon: ε.
        max_iterations: of L-BFGS-B; ten, as in the paper.
        percent: times 100, as Keskar et al. print it.

    Reference:
        Keskar, Mudigere, Nocedal, Smelyanskiy, Tang, 2017, arXiv:1609.04836, Metric 2.1.
    """
    check_model(loss, params, batch)
    check_positive_or_traced("epsilon", epsilon)
    check_whole("max_iterations", max_iterations)
    function = loss_of(loss)
    flat, unravel = ravel_pytree(widen(params))
    radius = epsilon * (jnp.abs(flat) + 1)

    def height(move):
        return function(unravel(flat + move), batch)

    here, slope = jax.value_and_grad(height)(jnp.zeros_like(flat))
    corner = radius * jnp.where(slope < 0, -1, 1)
    # in units of the box, so that all coordinates count alike
    one = jnp.ones_like(flat)
    found = box_minimum(lambda x: -height(radius * x), corner / radius, -one, one, max_iterations)
    found = jax.lax.stop_gradient(
        found
    )  # Danskin: at a maximum its own derivative counts for nothing
    best = jnp.maximum(height(radius * found), jnp.maximum(height(corner), here))
    zeta = (best - here) / (1 + here)
    return 100 * zeta if percent else zeta


def sam(
    loss: Model,
    params: Params,
    batch: Batch,
    *,
    radius: float = 0.05,
    num_steps: int = 1,
) -> Array:
    """Return the rise of the loss that sharpness-aware minimization sees.

    max_{‖v‖ ≤ ρ} L(w + v) − L(w),   v ← ρ ∇L(w + v) / ‖∇L(w + v)‖, `num_steps` times

    **Cost:** `num_steps` gradients and a loss. Differentiable. **Limits:** one step is SAM's linear guess,
    below the maximum, and may be negative; more steps come nearer.

    Args:
        loss: any model.
        params: w.
        batch: what the loss takes.
        radius: ρ.
        num_steps: of ascent.

    Reference:
        Foret, Kleiner, Mobahi, Neyshabur, 2021, arXiv:2010.01412, equation 2.
    """
    return _ascend(loss, params, batch, radius, num_steps, adaptive_ball=False)


def adaptive(
    loss: Model,
    params: Params,
    batch: Batch,
    *,
    radius: float = 0.5,
    num_steps: int = 1,
) -> Array:
    """Return the rise of the loss within a ball that scales with the weights: invariant to rescaling.

    max_{‖v / |w|‖ ≤ ρ} L(w + v) − L(w),   v ← ρ w² ⊙ g / ‖|w| ⊙ g‖,  g = ∇L(w + v)

    Multiplying the weights of one ReLU layer by a number and dividing those of the next by it changes
    nothing; it changes `sam` and `keskar` at will.

    **Cost:** as `sam`. **Limits:** weights that are zero do not move.

    Args:
        loss: any model.
        params: w.
        batch: what the loss takes.
        radius: ρ.
        num_steps: of ascent.

    Reference:
        Kwon, Kim, Park, Choi, 2021, arXiv:2102.11600, equation 8.
    """
    return _ascend(loss, params, batch, radius, num_steps, adaptive_ball=True)


def m_sharpness(
    loss: Model,
    params: Params,
    batch: Batch,
    *,
    size: int,
    radius: float = 0.05,
    num_steps: int = 1,
    chunk: int = 32,
) -> Array:
    """Return the mean of `sam` over parts of `size` samples, each with a move of its own.

    **Cost:** as `sam` on each part, memory of `chunk` of them.

    **Limits:** samples beyond the last whole part are left out.

    Args:
        loss: any model whose batch has the samples along its first axes.
        params: w.
        batch: of at least `size` samples.
        size: m, samples in a part.
        radius: ρ.
        num_steps: of ascent.
        chunk: parts side by side.

    Raises:
        ValueError: where the parts have no common size, or the loss is not a mean over samples.

    Reference:
        Foret et al., 2021, arXiv:2010.01412, section 4.1; Andriushchenko, Flammarion, 2022,
        arXiv:2206.06232.
    """
    check_whole("size", size)
    check_whole("chunk", chunk)
    samples = num_samples(batch)
    if size > samples:
        raise ValueError(
            f"size is {size}, expected at most the {samples} samples of the batch; lower it"
        )
    check_mean(loss, params, batch)
    parts = jax.tree.map(
        lambda x: x[: samples // size * size].reshape(-1, size, *x.shape[1:]), batch
    )

    def rise(part):
        return sam(loss, params, part, radius=radius, num_steps=num_steps)

    return jnp.mean(jax.lax.map(rise, parts, batch_size=min(chunk, samples // size)))


def check_mean(loss: Model, params: Params, batch: Batch) -> None:
    """Raise a `ValueError` unless the loss on a batch is finite, and the mean of those on its samples.

    **Cost:** three evaluations of the loss. **Limits:** under `jit` and `vmap`, where there are no numbers yet,
    nothing is compared.
    """
    check_model(loss, params, batch)
    whole = check_halves(loss_of(loss), params, batch)
    if whole is not None and not math.isfinite(whole):
        raise ValueError(
            f"loss is {whole} on this batch, expected a finite number; look for missing values among the "
            "inputs, or for weights that have grown too large"
        )


def check_halves(function: BatchLoss, params: Params, batch: Batch) -> float | None:
    """Raise a `ValueError` unless the loss on a batch is the mean of those on its two halves, to a thousandth.

    **Limits:** as `check_mean`; where the loss is not finite, nothing is compared.

    Returns:
        The loss, None where nothing was evaluated: fewer than two samples, or numbers not known yet.
    """
    # within a derivative outside of a trace, the numbers are there once its tangents are dropped
    params = jax.lax.stop_gradient(params)
    samples = num_samples(batch)
    if samples < 2 or any(traced(x) for x in jax.tree.leaves((params, batch))):
        return None
    half, wide = samples // 2, widen(params)
    parts = (slice(None), slice(half), slice(half, None))
    values = [function(wide, jax.tree.map(lambda x, p=p: x[p], batch)) for p in parts]
    if any(traced(value) for value in values):  # of hyperparameters that are closed over
        return None
    whole, first, rest = map(float, values)
    means = (half * first + (samples - half) * rest) / samples
    eps = 10 * float(jnp.finfo(jnp.result_type(values[0])).eps)
    if math.isfinite(whole) and not abs(whole - means) <= max(1e-3, eps) * abs(whole) + eps:
        raise ValueError(
            f"loss is {whole:.6g} on {samples} samples and {means:.6g} as the mean of its halves, expected a "
            "mean over samples that do not see each other; divide a sum by the number of samples, and use "
            "running statistics in BatchNorm"
        )
    return whole


def _ascend(
    loss: Model, params: Params, batch: Batch, radius: float, num_steps: int, adaptive_ball: bool
) -> Array:
    """Return L(w + v) − L(w) after some steps of normalized ascent."""
    check_model(loss, params, batch)
    check_positive_or_traced("radius", radius)
    check_whole("num_steps", num_steps)
    function: BatchLoss = loss_of(loss)
    wide = widen(params)
    scale = jax.tree.map(jnp.abs, wide) if adaptive_ball else jax.tree.map(jnp.ones_like, wide)
    move = jax.tree.map(jnp.zeros_like, wide)
    for _ in range(num_steps):
        gradient = jax.grad(function)(tree.add(wide, move), batch)
        move = _on_sphere(jax.tree.map(jnp.multiply, scale, gradient), scale, radius)
    return function(tree.add(wide, move), batch) - function(wide, batch)


def _on_sphere(direction: PyTree, scale: PyTree, radius: float) -> PyTree:
    """Return ρ scale ⊙ direction / ‖direction‖, zero where the direction is."""
    square = sum((jnp.sum(jnp.square(x)) for x in jax.tree.leaves(direction)), jnp.zeros(()))
    norm = jnp.sqrt(jnp.where(square > 0, square, 1))
    return jax.tree.map(lambda d, s: radius * s * d / norm, direction, scale)
