"""Worst-case sharpness: how much the loss rises at most within a ball or a box around the weights."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from hypergrad.core import tree
from hypergrad.core.abstract import traced
from hypergrad.core.checks import check_whole
from hypergrad.core.jaxopt import box_minimum
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
    num_starts: int = 16,
    percent: bool = False,
) -> Array:
    """Return Keskar's ζ, the relative rise of the loss within a box around the weights.

    ζ = (max_{|v_i| ≤ ε (|w_i| + 1)} L(w + v) − L(w)) / (1 + L(w))

    From w, and from points drawn uniformly within the box, ten steps go to the corner to which the gradient
    points, v_i ← ± ε (|w_i| + 1). L-BFGS-B goes on from the best point met.

    **Cost:** ten gradients a start, one after another, and a few an iteration; memory of about twenty vectors.

    **Limits:** a lower bound: the search finds a local maximum, and ends after few iterations. Of the best of
    20 random starts of SciPy's L-BFGS-B, on three small networks of 165 weights with ε = 1e-2, one start found
    0.75, 1.00 and 0.70, four found 0.93, 1.00 and 0.99, sixteen 0.99, 1.00 and 1.00; with ε = 1e-3 one start
    found 4.9 to 9.2 times that best, and sixteen 2 to 5 % more than one. The measure is not scale-invariant
    (see `adaptive`). Its derivative takes the move that was found, in units of the box, as constant: this is
    exact at a maximum, and near it where the search ended before.

    Args:
        loss: Any model.
        params: Weights w.
        batch: Batch of the loss.
        epsilon: Size ε of the box.
        max_iterations: Largest number of iterations of L-BFGS-B; ten in the paper.
        num_starts: Number of starts, w and random points of a fixed key.
        percent: Whether to return 100 ζ, as Keskar et al. print it.

    Reference:
        Keskar, Mudigere, Nocedal, Smelyanskiy, Tang, 2017, arXiv:1609.04836, Metric 2.1.
    """
    check_model(loss, params, batch)
    check_positive_or_traced("epsilon", epsilon)
    check_whole("max_iterations", max_iterations)
    check_whole("num_starts", num_starts)
    function = loss_of(loss)
    flat, unravel = ravel_pytree(widen(params))
    radius = epsilon * (jnp.abs(flat) + 1)

    def height(move: Array) -> Array:  # in units of the box, so that all coordinates count alike
        return function(unravel(flat + radius * move), batch)

    move = jax.lax.stop_gradient(_highest(height, flat, max_iterations, num_starts))
    here = height(jnp.zeros_like(flat))
    # Danskin: at a maximum the derivative of the move itself counts for nothing
    zeta = (height(move) - here) / (1 + here)
    return 100 * zeta if percent else zeta


def _highest(
    height: Callable[[Array], Array], like: Array, max_iterations: int, num_starts: int
) -> Array:
    """Return the point of the box [-1, 1]^D where `height` is highest, of all that were met."""
    slope = jax.grad(height)

    def climb(start: tuple[Array, Array]) -> tuple[Array, Array]:
        key, origin = start
        x = jax.random.uniform(key, like.shape, like.dtype, -1, 1)
        x = jnp.where(origin, 0, x)

        def again(_: int, carry: tuple) -> tuple:
            x, best, top = carry
            x = jnp.where(slope(x) < 0, -1, 1).astype(like.dtype)
            value = height(x)
            return x, jnp.where(value > top, x, best), jnp.maximum(value, top)

        _, best, top = jax.lax.fori_loop(0, 10, again, (x, x, height(x)))
        return best, top

    keys = jax.random.split(jax.random.key(0), num_starts)
    points, tops = jax.lax.map(climb, (keys, jnp.arange(num_starts) == 0))
    best = points[jnp.argmax(tops)]
    steep = jnp.linalg.norm(slope(best))
    scale = jnp.where(steep > 0, steep, 1)  # L-BFGS-B ends at an absolute slope
    one = jnp.ones_like(like)
    found = box_minimum(lambda x: -height(x) / scale, best, -one, one, max_iterations)
    return jnp.where(height(found) > jnp.max(tops), found, best)


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
    which lies below the maximum and may be negative; more steps come nearer.

    Args:
        loss: Any model.
        params: Weights w.
        batch: Batch of the loss.
        radius: Radius ρ of the ball.
        num_steps: Number of steps of ascent.

    Reference:
        Foret, Kleiner, Mobahi, Neyshabur, 2021, arXiv:2010.01412, equation 2.
    """
    _check_ball(loss, params, batch, radius, num_steps)
    return _ascend(loss_of(loss), params, batch, radius, num_steps)


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
        loss: Any model.
        params: Weights w.
        batch: Batch of the loss.
        radius: Radius ρ of the ball.
        num_steps: Number of steps of ascent.

    Reference:
        Kwon, Kim, Park, Choi, 2021, arXiv:2102.11600, equation 8.
    """
    _check_ball(loss, params, batch, radius, num_steps)
    return _ascend(loss_of(loss), params, batch, radius, num_steps, scaled=True)


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
    """Return the mean of `sam` over parts of the batch, each with a move of its own.

    **Cost:** as `sam` on each part, memory of `chunk` of them.

    **Limits:** samples beyond the last whole part are left out.

    Args:
        loss: Any model whose batch has the samples along its first axes.
        params: Weights w.
        batch: Batch of at least `size` samples.
        size: Number m of samples in a part.
        radius: Radius ρ of the ball.
        num_steps: Number of steps of ascent.
        chunk: Number of parts side by side.

    Raises:
        ValueError: where the parts have no common size, or the loss is not a mean over samples.

    Reference:
        Foret et al., 2021, arXiv:2010.01412, section 4.1; Andriushchenko, Flammarion, 2022,
        arXiv:2206.06232.
    """
    _check_ball(loss, params, batch, radius, num_steps)
    check_whole("size", size)
    check_whole("chunk", chunk)
    num, function = num_samples(batch), loss_of(loss)
    if size > num:
        raise ValueError(f"size is {size}, expected at most the {num} samples of batch; lower it")
    check_mean(function, params, batch)
    parts = jax.tree.map(lambda x: x[: num // size * size].reshape(-1, size, *x.shape[1:]), batch)

    def rise(part: Batch) -> Array:
        return _ascend(function, params, part, radius, num_steps)

    return jnp.mean(jax.lax.map(rise, parts, batch_size=min(chunk, num // size)))


def check_mean(function: BatchLoss, params: Params, batch: Batch, *, finite: bool = True) -> None:
    """Raise a `ValueError` unless a loss on a batch is finite, and the mean of those on its two halves.

    **Limits:** under `jit` and `vmap`, where there are no numbers yet, nothing is compared.

    Args:
        function: Loss to judge.
        params: Weights w.
        batch: Batch of the loss.
        finite: Whether the loss must be finite; where it need not and is not, nothing is compared.
    """
    found = _whole_and_halves(function, params, batch)
    if found is None:
        return
    whole, halves, allowed = found
    if finite and not math.isfinite(whole):
        raise ValueError(
            f"loss is {whole} on this batch, expected a finite number; look for missing values among the "
            "inputs, or for weights that have grown too large"
        )
    if math.isfinite(whole) and not abs(whole - halves) <= allowed:
        raise ValueError(
            f"loss is {whole:.6g} on {num_samples(batch)} samples and {halves:.6g} as the mean of its halves, "
            "expected a mean over samples that do not see each other; divide a sum by the number of samples, "
            "and use running statistics in BatchNorm"
        )


def _whole_and_halves(
    function: BatchLoss, params: Params, batch: Batch
) -> tuple[float, float, float] | None:
    """Evaluate a loss on a batch, and as the mean of its two halves; tell how much these may differ.

    Returns:
        The loss, the mean, and a thousandth of the loss beside rounding; None for fewer than two samples, and
        for numbers that are not known yet.
    """
    # within a derivative outside of a trace, the numbers are there once its tangents are dropped
    params = jax.lax.stop_gradient(params)
    samples = num_samples(batch)
    if samples < 2 or traced((params, batch)):
        return None
    half, wide = samples // 2, widen(params)
    parts = (slice(None), slice(half), slice(half, None))
    values = [function(wide, jax.tree.map(lambda x, p=p: x[p], batch)) for p in parts]
    if traced(values):  # of hyperparameters that are closed over
        return None
    whole, first, rest = map(float, values)
    eps = 10 * float(jnp.finfo(jnp.result_type(values[0])).eps)
    mean = (half * first + (samples - half) * rest) / samples
    return whole, mean, max(1e-3, eps) * abs(whole) + eps


def _check_ball(loss: Model, params: Params, batch: Batch, radius: float, num_steps: int) -> None:
    """Raise a `ValueError` where the arguments that `sam` and its kin share do not fit."""
    check_model(loss, params, batch)
    check_positive_or_traced("radius", radius)
    check_whole("num_steps", num_steps)


def _ascend(
    function: BatchLoss,
    params: Params,
    batch: Batch,
    radius: float,
    num_steps: int,
    scaled: bool = False,
) -> Array:
    """Return L(w + v) − L(w) after some steps of normalized ascent, in units of |w| where `scaled`."""
    wide = widen(params)
    scale = jax.tree.map(jnp.abs if scaled else jnp.ones_like, wide)
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
