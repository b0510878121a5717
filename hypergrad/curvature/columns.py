"""Exact Hessian norms of any model by its columns; half of them are enough, because H is symmetric."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hypergrad.core.abstract import abstract
from hypergrad.core.checks import check_bytes, check_whole
from hypergrad.core.types import Array, Batch, Params, PyTree
from hypergrad.curvature.memory import MEMORY, bytes_of_one, fitting, sum_chunks
from hypergrad.curvature.models import Model, check_model, composed_of, loss_of, names, widen


class Frobenius(NamedTuple):
    """A Frobenius norm, and the norms of its blocks.

    Attributes:
        value: Norm ‖H‖_F `[]`.
        blocks: Squares ‖H_lk‖_F² of all pairs of layers, symmetric `[layers, layers]`, in the order of
            `layer_names`; their sum is the square of `value`.
    """

    value: Array
    blocks: Array


def assemble(squares: list[list[Array]], order: list[int] | None = None) -> Frobenius:
    """Put the squared norms ‖H_lk‖², k ≥ l, into a symmetric matrix, layers in `order`."""
    count = len(squares)
    rows = [[squares[min(i, k)][abs(i - k)] for k in range(count)] for i in range(count)]
    blocks = jnp.stack([jnp.stack(row) for row in rows])
    if order is not None:
        blocks = blocks[jnp.asarray(order)][:, jnp.asarray(order)]
    return Frobenius(root(jnp.sum(blocks)), blocks)


def root(square: Array) -> Array:
    """Return √x; at 0 its gradient is 0, a subgradient of a norm, and not infinite."""
    return jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))


class LeafGroup(NamedTuple):
    """The leaves of one layer: those whose paths differ only in the last part.

    Attributes:
        name: Name of the layer.
        leaves: Places of its leaves among those of the params.
    """

    name: str
    leaves: list[int]


def group_leaves(params: Params) -> list[LeafGroup]:
    """Group the leaves of the params into layers: everything in one dict or tuple below the params."""
    groups: dict[str, list[int]] = {}
    for index, name in enumerate(names(params)):
        groups.setdefault(name.rpartition(".")[0] or name, []).append(index)
    return [LeafGroup(name, leaves) for name, leaves in groups.items()]


def choose_layers(known: list[str], wanted: Sequence[str] | None) -> list[int]:
    """Return the places of the wanted layers, in their known order; all where None."""
    if wanted is None:
        return list(range(len(known)))
    if isinstance(wanted, str) or len(wanted) == 0:
        raise ValueError(
            f"layers is {wanted!r}, expected a list of names among {known}; pass e.g. layers=[{known[-1]!r}]"
        )
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(
            f"layers has {unknown[0]!r}, expected names among {known}; see layer_names(loss, params, batch)"
        )
    return [index for index, name in enumerate(known) if name in wanted]


def frobenius_columns(
    loss: Model,
    params: Params,
    batch: Batch,
    *,
    layers: Sequence[str] | None = None,
    gauss_newton: bool = False,
    memory: int = MEMORY,
    chunk: int | None = None,
) -> Frobenius:
    """Return ‖H‖_F of any twice differentiable loss, column by column.

    ‖H‖² = Σ_l ‖H_ll‖² + 2 Σ_{l<k} ‖H_lk‖²;   column j of layer l is H e_j, rows of layers k ≥ l only

    The tangent is nonzero only in layer l, and only gradients of layers k ≥ l are made. So each product sees
    only the part of the network that it needs: about half the work of full columns.

    **Cost:** one product with the Hessian a parameter, about four evaluations of the loss each; memory
    `chunk` of them. A gradient of the result works, and costs several times that.

    **Limits:** the gradient of the loss must have forward derivatives, which the rules of a `jax.custom_vjp`
    may lack; for Gauss-Newton, the function of the outputs must not contain one.

    Args:
        loss: (params, batch) -> [], `Composed` or `Layered`.
        params: Any pytree of float arrays.
        batch: Batch of the loss.
        layers: Names of the layers whose blocks are wanted; the others count as frozen; all where None.
            A layer is everything in one dict or tuple below the params, and has the name of their path; a leaf
            of the params themselves is a layer by itself.
        gauss_newton: Whether to take the Gauss-Newton matrix instead; the loss must then be `Composed` or
            `Layered`.
        memory: Bytes to use; they decide the chunk where `chunk` is None.
        chunk: Number of columns at a time, whatever their memory.

    Returns:
        The norm and the squared norms of all blocks of layers, in the order of their first weights.

    Raises:
        ValueError: where loss, params and batch do not fit, or a column does not fit into memory.
    """
    check_model(loss, params, batch)
    check_bytes(memory)
    if chunk is not None:
        check_whole("chunk", chunk)
    groups = group_leaves(params)
    groups = [groups[i] for i in choose_layers([group.name for group in groups], layers)]
    return column_norms(loss, params, batch, groups, gauss_newton, memory, chunk)


def column_norms(
    loss: Model,
    params: Params,
    batch: Batch,
    groups: list[LeafGroup],
    gauss_newton: bool,
    memory: int,
    chunk: int | None = None,
) -> Frobenius:
    """Return the norm on these groups of leaves; the other leaves count as frozen."""
    params = widen(params)
    squares = [
        _group_norms(loss, params, batch, groups, index, gauss_newton, memory, chunk)
        for index in range(len(groups))
    ]
    return assemble(squares)


def _group_norms(
    loss: Model,
    params: Params,
    batch: Batch,
    groups: list[LeafGroup],
    index: int,
    gauss_newton: bool,
    memory: int,
    chunk: int | None,
) -> list[Array]:
    """Return ‖H_lk‖² for k ≥ l = `index`."""
    leaves, treedef = jax.tree.flatten(params)
    own = [leaves[i] for i in groups[index].leaves]
    above = [[leaves[i] for i in group.leaves] for group in groups[index:]]

    def put(own: list[Array], above: list[list[Array]]) -> Params:
        """Return the params with the leaves of layer l and of those above it in their places."""
        new = list(leaves)
        for group, values in zip(groups[index:], [own, *above[1:]], strict=True):
            for i, value in zip(group.leaves, values, strict=True):
                new[i] = value
        return jax.tree.unflatten(treedef, new)

    linearized = _bent if gauss_newton else _curved
    if chunk is None:
        one = _column_bytes(lambda own: linearized(loss, batch, put, own, above), own)
        advice = (
            "a smaller batch" if gauss_newton else "a smaller batch, or chunked_loss(loss, size)"
        )
        chunk = fitting("one column of the Hessian", one, memory, advice, most=256)
    push = linearized(loss, batch, put, own, above)
    shapes = [leaf.shape for leaf in own]
    ends = [0]
    for shape in shapes:
        ends.append(ends[-1] + math.prod(shape))
    dtype = own[0].dtype

    def column(index: Array) -> list[Array]:
        flat = jax.nn.one_hot(index, ends[-1], dtype=dtype)
        tangent = [
            flat[a:b].reshape(shape)
            for a, b, shape in zip(ends[:-1], ends[1:], shapes, strict=True)
        ]
        return [jnp.sum(jnp.stack([jnp.sum(jnp.square(x)) for x in g])) for g in push(tangent)]

    def body(indices: Array) -> tuple[list[Array], tuple[()]]:
        return [jnp.sum(s) for s in jax.vmap(column)(indices)], ()

    return sum_chunks(body, ends[-1], chunk)[0]


def _curved(loss: Model, batch: Batch, put: Callable, own: PyTree, above: PyTree) -> Callable:
    """Return the product with columns of H: a tangent of layer l -> rows of layer l and those above."""
    function = loss_of(loss)

    def gradient(own: list[Array]) -> list[list[Array]]:
        return jax.grad(lambda upper: function(put(upper[0], upper), batch))([own, *above[1:]])

    return jax.linearize(gradient, own)[1]


def _bent(loss: Model, batch: Batch, put: Callable, own: PyTree, above: PyTree) -> Callable:
    """Return the product with columns of G = Jᵀ (∂²c/∂z²) J, likewise."""
    composed = composed_of(loss)
    made, push = jax.linearize(lambda own: composed.outputs(put(own, above), batch), own)
    pull = jax.vjp(lambda upper: composed.outputs(put(upper[0], upper), batch), above)[1]
    bend = jax.linearize(jax.grad(lambda z: composed.convex(z, batch)), made)[1]
    return lambda tangent: pull(bend(push(tangent)))[0]


def _column_bytes(linearized: Callable, own: PyTree) -> int:
    """Bound the memory of one product; run nothing."""
    sizes = []

    def trace(own: PyTree) -> None:
        sizes.append(bytes_of_one(linearized(own), own))

    abstract("loss", trace, own, given="params")
    return sizes[0]
