"""Measures of flatness and capacity at the weights alone: gradients, paths, relative flatness."""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from hypergrad.core.checks import check_whole
from hypergrad.core.types import Array, Batch, Params, PyTree
from hypergrad.curvature.memory import sum_chunks
from hypergrad.curvature.models import (
    Layered,
    Model,
    check_layered,
    check_model,
    dense,
    loss_of,
    names,
    num_samples,
    widen,
)
from hypergrad.curvature.products import Product, check_product, hvp, operator
from hypergrad.curvature.sharpness import check_mean


def gradient_variance(loss: Model, params: Params, batch: Batch, *, chunk: int = 32) -> Array:
    """Return (1/m) Σ_i ‖g_i − ḡ‖², the variance of the gradients of single samples.

    **Cost:** a gradient a sample, `chunk` at a time, and memory of as many. A second pass over the samples
    avoids cancellation in the differences to the mean.

    Args:
        loss: Any model whose batch has the samples along its first axes.
        params: Weights w.
        batch: Batch of m samples.
        chunk: Number of samples side by side.

    Raises:
        ValueError: where the loss is not a mean over samples.

    Reference:
        Jiang et al., 2020, arXiv:1912.02178, equation 60.
    """
    check_model(loss, params, batch)
    check_whole("chunk", chunk)
    function, wide, samples = loss_of(loss), widen(params), num_samples(batch)
    check_mean(function, params, batch)
    mean = jax.grad(function)(wide, batch)

    def square(index: Array) -> Array:
        inside = index < samples
        at = jnp.minimum(index, samples - 1)
        sample = jax.tree.map(lambda x: jnp.asarray(x)[at][None], batch)
        gradient = jax.grad(function)(wide, sample)
        gaps = jax.tree.map(lambda g, m: jnp.sum(jnp.square(g - m)), gradient, mean)
        return jnp.where(inside, sum(jax.tree.leaves(gaps)), 0)

    def body(index: Array) -> tuple[Array, tuple[()]]:
        return jnp.sum(jax.vmap(square)(index)), ()

    return sum_chunks(body, samples, chunk)[0] / samples


def path_norm(model: Layered, params: Params, batch: Batch) -> Array:
    """Return the norm over all paths from inputs to outputs, √(Σ_paths Π w²) of a ReLU network.

    One forward pass with squared weights on inputs of ones gives the sum, frozen layers included. A bias
    counts as the weight of a path that begins at a 1.

    **Limits:** the network's activations must leave positive numbers as they are (ReLU, the identity, max
    pooling); with others it is the same expression, but not a norm of paths. Weights used outside `dense` are
    not squared.

    Args:
        model: Layered network.
        params: Weights w.
        batch: Batch, of whose samples only the shapes and dtypes matter.

    Reference:
        Neyshabur, Salakhutdinov, Srebro, 2015, arXiv:1506.02617; Jiang et al., 2020, equation 44.
    """
    check_layered("model", model, params, batch, "paths go through")

    def squared(layer: PyTree, inputs: Array) -> Array:
        return dense(jax.tree.map(jnp.square, widen(layer)), inputs)

    ones = jax.tree.map(lambda x: jnp.ones_like(jnp.asarray(x)[0]), batch)
    outputs = model.forward(squared, widen(params), ones)
    return jnp.sqrt(sum(jnp.sum(x) for x in jax.tree.leaves(outputs)))


def relative_flatness(
    loss: Model,
    params: Params,
    batch: Batch,
    layer: str,
    *,
    product: Product = hvp,
    chunk: int = 32,
) -> Array:
    """Return the relative flatness of a layer, invariant to rescaling and tied to generalization.

    κ = Σ_{s,s'} ⟨w_s, w_s'⟩ tr H_{s,s'}

    with w_s the weights of unit s and H_{s,s'} the block of H between those of units s and s'. With W
    `[in, units]` this is the sum of V_qrᵀ H V_qr over pairs (q, r) of inputs, where V_qr holds row r of W in
    row q and zeros elsewhere.

    **Cost:** in² products, `chunk` at a time.

    Args:
        loss: Any model that `product` takes.
        params: Weights w.
        batch: Batch of the loss.
        layer: Path of the matrix `[in, units]` in the params, such as `"out.kernel"`.
        product: `hvp` or `ggn_vp`.
        chunk: Number of products side by side.

    Raises:
        ValueError: where there is no such matrix.

    Reference:
        Petzka, Kamp, Adilova, Sminchisescu, Boley, 2021, arXiv:2001.00939, definition 3.
    """
    check_product(product, loss, params, batch)
    check_whole("chunk", chunk)
    known = names(params)
    leaves, treedef = jax.tree.flatten(widen(params))
    matrices = [n for n, leaf in zip(known, leaves, strict=True) if leaf.ndim == 2]
    if layer not in matrices:
        raise ValueError(f"layer is {layer!r}, expected the path of a matrix, among {matrices}")
    place = known.index(layer)
    kernel = leaves[place]
    linear = operator(product, loss, params, batch)
    inputs = kernel.shape[0]

    def term(index: Array) -> Array:
        row = jax.nn.one_hot(index // inputs, inputs, dtype=kernel.dtype)
        value = jnp.outer(row, kernel[index % inputs])
        filled = [jnp.zeros_like(leaf) for leaf in leaves]
        filled[place] = value
        vector = ravel_pytree(jax.tree.unflatten(treedef, filled))[0]
        return jnp.vdot(vector, linear.matvec(vector))

    def body(index: Array) -> tuple[Array, tuple[()]]:
        return jnp.sum(jax.vmap(term)(index)), ()

    return sum_chunks(body, inputs * inputs, chunk)[0]
