"""Products of curvature matrices with vectors, and the matrices themselves for small networks.

Each product is (loss, params, batch, vector) -> vector, linear in `vector`. Measures that need nothing else
(`trace_estimate`, `top_eigenvalues`, ...) take any of them as `product`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from hypergrad.core.abstract import abstract
from hypergrad.core.autodiff import gauss_newton_product, hessian_product
from hypergrad.core.checks import check_bytes, check_whole, describe
from hypergrad.core.types import Array, Batch, Params, PyTree
from hypergrad.curvature.columns import group_leaves
from hypergrad.curvature.memory import (
    MEMORY,
    bytes_of_one,
    check_memory,
    fitting,
    itemsize,
    size_of,
    sum_chunks,
)
from hypergrad.curvature.models import (
    Layered,
    Model,
    check_model,
    check_params,
    check_positive_or_traced,
    composed_of,
    loss_of,
    precise,
    widen,
)

Product: TypeAlias = Callable[[Model, Params, Batch, PyTree], PyTree]
"""(loss, params, batch, vector) -> A vector, for a symmetric matrix A of the params."""

Linear: TypeAlias = Callable[[PyTree], PyTree]
"""(vector) -> A vector."""

INDEX = 4
"""Bytes of a weight's index."""


def hvp(loss: Model, params: Params, batch: Batch, vector: PyTree) -> PyTree:
    """Return H v = (d/dε) ∇L(w + ε v), forward over reverse.

    **Cost:** two to three gradients. **Limits:** the rules of a `jax.custom_vjp` in the loss must themselves
    have forward derivatives. The result has the dtype of the params.

    Args:
        loss: (params, batch) -> [], `Composed` or `Layered`.
        params: Weights w.
        batch: Batch of the loss.
        vector: Vector v, a pytree like the params.

    Raises:
        ValueError: where loss, params, batch and vector do not fit.

    Reference:
        Pearlmutter, 1994, "Fast exact multiplication by the Hessian".
    """
    check_product(hvp, loss, params, batch)
    check_vector(params, vector)
    return _hessian_at(loss, params, batch)(vector)


def _hessian_at(loss: Model, params: Params, batch: Batch) -> Linear:
    function = loss_of(loss)
    return hessian_product(lambda w: function(w, batch), params)


def ggn_vp(loss: Model, params: Params, batch: Batch, vector: PyTree) -> PyTree:
    """Return G v = Jᵀ (∂²c/∂z²) J v of a loss c(z(w)): the Hessian without the curvature of the network.

    G is positive semidefinite where c is convex. For softmax cross-entropy and squared error it is the Fisher
    matrix, with labels drawn from the model.

    **Cost:** two to three gradients. **Limits:** no `jax.custom_vjp` in the function of the outputs.

    Args:
        loss: `Composed` or `Layered`.
        params: Weights w.
        batch: Batch of the loss.
        vector: Vector v, a pytree like the params.

    Raises:
        ValueError: for a plain function, and where loss, params, batch and vector do not fit.

    Reference:
        Schraudolph, 2002, "Fast curvature matrix-vector products"; Martens, 2014, arXiv:1412.1193.
    """
    check_product(ggn_vp, loss, params, batch)
    check_vector(params, vector)
    return _gauss_newton_at(loss, params, batch)(vector)


def _gauss_newton_at(loss: Model, params: Params, batch: Batch) -> Linear:
    composed = composed_of(loss)
    return gauss_newton_product(
        lambda w: composed.outputs(w, batch), lambda z: composed.convex(z, batch), params
    )


def fisher_vp(loss: Model, params: Params, batch: Batch, vector: PyTree) -> PyTree:
    """Return F v of the empirical Fisher matrix F = (1/m) Σ_i g_i g_iᵀ, g_i the gradient on sample i.

    **Cost:** two to three gradients: J of the losses of all samples, forwards, then backwards.

    **Limits:** neither the Hessian nor the Fisher matrix, whose labels are drawn from the model: draw such
    labels and put them into the batch, or take `ggn_vp`. A penalty does not enter.

    Args:
        loss: (params, batch) -> losses of the samples `[m]`, or `Layered`.
        params: Weights w.
        batch: Batch of the loss.
        vector: Vector v, a pytree like the params.

    Raises:
        ValueError: where the loss does not return one number a sample.

    Reference:
        Kunstner, Balles, Hennig, 2019, arXiv:1905.12558.
    """
    check_product(fisher_vp, loss, params, batch)
    check_vector(params, vector)
    return _fisher_at(loss, params, batch)(vector)


def _fisher_at(loss: Model, params: Params, batch: Batch) -> Linear:
    each = each_of(loss)
    losses, push = jax.linearize(lambda w: each(w, batch), params)
    pull = jax.linear_transpose(push, params)
    return lambda v: jax.tree.map(lambda x: x / losses.shape[0], pull(push(v))[0])


_LINEAR: dict[Product, Callable[[Model, Params, Batch], Linear]] = {
    hvp: _hessian_at,
    ggn_vp: _gauss_newton_at,
    fisher_vp: _fisher_at,
}
"""The same products, of arguments that were checked before, linearized once at the params."""


def each_of(loss: Model) -> Callable[[Params, Batch], Array]:
    """Return (params, batch) -> the losses of the samples `[m]`, computed precisely."""
    if not isinstance(loss, Layered):
        return loss_of(loss)
    composed = composed_of(loss)

    def each(params: Params, batch: Batch) -> Array:
        return jax.vmap(loss.loss)(composed.outputs(params, batch)[0], batch)

    return precise(each)


def check_product(product: Product, loss: Model, params: Params, batch: Batch) -> None:
    """Raise a `ValueError` unless a product can be taken of this loss at these params."""
    if product is not fisher_vp:
        return check_model(loss, params, batch)
    check_params(params)
    losses = abstract("loss", each_of(loss), params, batch, given="params")
    if getattr(losses, "ndim", None) != 1:
        raise ValueError(
            f"loss returned {describe(losses)}, expected the losses of the samples, of shape (m,), because "
            "the Fisher matrix is made from their gradients; leave out the mean"
        )


def check_vector(params: Params, vector: PyTree) -> None:
    """Raise a `ValueError` unless a vector has the structure, shapes and dtype of the params."""
    wanted, got = (
        jax.tree.map(lambda x: (jnp.shape(x), str(jnp.result_type(x))), x) for x in (params, vector)
    )
    if wanted != got:
        raise ValueError(
            "vector is unlike the params, expected a pytree of the same structure, shapes and dtype; make it "
            "with jax.tree.map over the params, or with the unravel of jax.flatten_util.ravel_pytree"
        )


class Operator(NamedTuple):
    """A curvature matrix as a linear function of flat vectors.

    Attributes:
        matvec: (x `[n]`) -> A x `[n]`.
        size: Number n of weights.
        unravel: (x `[n]`) -> a pytree like the params.
        dtype: Dtype of the vectors.
    """

    matvec: Callable[[Array], Array]
    size: int
    unravel: Callable[[Array], PyTree]
    dtype: jnp.dtype


def operator(product: Product, loss: Model, params: Params, batch: Batch) -> Operator:
    """Return a product as a function of flat vectors, which shares what is the same for all vectors."""
    wide = widen(params)
    flat, unravel = ravel_pytree(wide)
    if product in _LINEAR:
        linear = _LINEAR[product](loss, wide, batch)
    else:
        zeros = jax.tree.map(jnp.zeros_like, wide)
        linear = jax.linearize(lambda v: product(loss, wide, batch, v), zeros)[1]
    return Operator(lambda x: ravel_pytree(linear(unravel(x)))[0], flat.size, unravel, flat.dtype)


def bytes_of_product(product: Product, loss: Model, params: Params, batch: Batch) -> int:
    """Bound the memory of one of many products side by side; run nothing."""
    sizes = []

    def trace(params: Params) -> None:
        linear = operator(product, loss, params, batch)
        sizes.append(bytes_of_one(linear.matvec, jnp.zeros(linear.size, linear.dtype)))

    jax.eval_shape(trace, params)
    return sizes[0]


def hessian(
    loss: Model, params: Params, batch: Batch, *, product: Product = hvp, memory: int = MEMORY
) -> Array:
    """Return the whole matrix `[n, n]` of a small network, in the order of `jax.flatten_util.ravel_pytree`.

    **Cost:** n products, as many at a time as fit into memory beside 2 n² numbers (64 at most).

    Args:
        loss: Any model that `product` takes.
        params: Weights w, n numbers.
        batch: Batch of the loss.
        product: `hvp`, `ggn_vp` or `fisher_vp`.
        memory: Bytes to use.

    Raises:
        ValueError: where the matrix and one product do not fit into memory.
    """
    check_product(product, loss, params, batch)
    check_bytes(memory)
    size = size_of(params)
    chunk = fitting(
        f"a matrix of {size} x {size} and one product",
        bytes_of_product(product, loss, params, batch),
        memory,
        "or use frobenius, top_eigenvalues or hvp, which form no matrix",
        most=64,
        beside=2 * itemsize(params) * size * size,
    )
    linear = operator(product, loss, params, batch)

    def rows(indices: Array) -> tuple[tuple[()], Array]:
        return (), jax.vmap(linear.matvec)(jax.nn.one_hot(indices, size, dtype=linear.dtype))

    return sum_chunks(rows, size, chunk)[1]


def hessian_blocks(
    loss: Model, params: Params, batch: Batch, *, product: Product = hvp, memory: int = MEMORY
) -> dict[tuple[str, str], Array]:
    """Return the blocks {(layer, layer): matrix} of `hessian`; arguments and cost are the same.

    A layer is everything in one dict or tuple below the params; a leaf of the params themselves is a layer by
    itself.
    """
    whole = hessian(loss, params, batch, product=product, memory=memory)
    ends = [0]
    for leaf in jax.tree.leaves(params):
        ends.append(ends[-1] + math.prod(jnp.shape(leaf)))
    rows = {
        group.name: jnp.concatenate([jnp.arange(ends[i], ends[i + 1]) for i in group.leaves])
        for group in group_leaves(params)
    }
    return {(a, b): whole[rows[a]][:, rows[b]] for a in rows for b in rows}


def difference_hessian(
    loss: Model,
    params: Params,
    batch: Batch,
    *,
    epsilon: float | None = None,
    central: bool = True,
    chunk: int = 64,
    memory: int = MEMORY,
) -> Array:
    """Return H `[n, n]` from values of the loss alone, in the order of `ravel_pytree`.

    central:  H_ij = (L(+ε_i +ε_j) − L(+ε_i −ε_j) − L(−ε_i +ε_j) + L(−ε_i −ε_j)) / 4ε²,  error O(ε²)
    forward:  H_ij = (L(+ε_i +ε_j) − L(+ε_i) − L(+ε_j) + L(w)) / ε²,                      error O(ε)

    The diagonal of the central form is (L(+2ε_i) − 2 L(w) + L(−2ε_i)) / 4ε², the same expression.

    **Cost:** four losses per pair of weights (forward: one, and n + 1 more in all), `chunk` pairs side by side.

    **Limits:** rounding adds an error of about (machine epsilon) |L| / ε²: in float32 two digits are left.
    At a kink (a ReLU, a hinge) the result is the bend over a distance ε, not a derivative.

    Args:
        loss: Any model; it need not be differentiable.
        params: Weights w, n numbers.
        batch: Batch of the loss.
        epsilon: Distance ε; eps^¼ of the dtype where None (forward: eps^⅓).
        central: Whether to take the central form.
        chunk: Number of pairs side by side.
        memory: Bytes to use.

    Raises:
        ValueError: where the matrix, its pairs and the losses of a chunk do not fit into memory.

    Reference:
        Nocedal, Wright, 2006, "Numerical Optimization", 2nd ed., equations 8.20-8.21.
    """
    check_model(loss, params, batch)
    check_whole("chunk", chunk)
    function, size, width = loss_of(loss), size_of(params), itemsize(params)
    flat, unravel = ravel_pytree(widen(params))
    one = bytes_of_one(lambda w: function(unravel(w), batch), flat)
    count = size * (size + 1) // 2
    chunk = min(chunk, count)
    # all pairs and entries, those again in whole chunks, and the matrix with its transpose
    needed = 2 * count * (2 * INDEX + width) + 2 * width * size * size
    needed += chunk * 4 * (one + width * size)
    check_memory(
        f"a matrix of {size} x {size} from {count} pairs",
        needed,
        memory,
        f"pass memory={needed}, a smaller chunk, or close over some of the params",
    )
    default = float(jnp.finfo(flat.dtype).eps) ** (1 / 4 if central else 1 / 3)
    step = default if epsilon is None else epsilon
    check_positive_or_traced("epsilon", step)
    if not size:
        return jnp.zeros((0, 0), flat.dtype)

    def at(i: Array, j: Array, a: int, b: int) -> Array:
        move = jnp.zeros_like(flat).at[i].add(a * step).at[j].add(b * step)
        return function(unravel(flat + move), batch)

    def second(pair: tuple[Array, Array]) -> Array:
        i, j = pair
        bend = at(i, j, 1, 1) - at(i, j, 1, -1) - at(i, j, -1, 1) + at(i, j, -1, -1)
        return bend / (4 * step**2)

    if central:
        entry = second
    else:
        here = function(unravel(flat), batch)
        alone = jnp.arange(size, dtype=jnp.int32)
        single = jax.lax.map(lambda i: at(i, i, 1, 0), alone, batch_size=min(chunk, size))

        def entry(pair: tuple[Array, Array]) -> Array:
            i, j = pair
            return (at(i, j, 1, 1) - single[i] - single[j] + here) / step**2

    rows, columns = jnp.triu_indices(size)
    pairs = (rows.astype(jnp.int32), columns.astype(jnp.int32))
    entries = jax.lax.map(entry, pairs, batch_size=chunk)
    upper = jnp.zeros((size, size), flat.dtype).at[pairs].set(entries)
    return upper + jnp.triu(upper, 1).T
