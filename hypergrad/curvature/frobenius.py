"""The exact Frobenius norm of a Hessian, by the cheapest path for the model."""

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hypergrad.core.checks import check_bytes
from hypergrad.core.types import Array, Batch, Params
from hypergrad.curvature.blocks import LayerNorms, layer_norms
from hypergrad.curvature.columns import (
    Frobenius,
    LeafGroup,
    assemble,
    choose_layers,
    column_norms,
    group_leaves,
)
from hypergrad.curvature.layers import Layer, Link, Unservable, links_of, rows_of, trained_layers
from hypergrad.curvature.memory import MEMORY, NotEnoughMemory, fitting, itemsize
from hypergrad.curvature.models import (
    Layered,
    Model,
    check_layered,
    check_model,
    num_samples,
    one_of,
    spread,
    widen,
)

ENTRY = 4.0
"""Cost of one entry of an array that is made and read once, in multiply-adds of a matrix product."""

CACHE = 2**25
"""Bytes of a chunk beyond which a larger one gains nothing."""

LIVE = 6
"""Number of arrays of the size of a layer's rows that a linearized network has at one time."""

PAIR = 5
"""Number of arrays `[m, m]` that a block of sample pairs has at one time; measured for blocks side by side."""

KEPT = 3
"""Number of arrays `[m, m]` of a block of another layer where all go into one matrix; measured, too."""


class FallbackWarning(UserWarning):
    """A model cannot take the fast path; the message gives the reason, and the path taken."""


def layer_names(loss: Model, params: Params, batch: Batch) -> list[str]:
    """Name the layers in the order of the blocks of `frobenius`: that of their first weights in the params.

    A layer is a call of `dense` where the model is `Layered` and takes the fast path. Elsewhere, and always in
    `frobenius_columns`, it is everything in one dict or tuple below the params.
    """
    return [group.name for group in block_leaves(loss, params, batch)]


def block_leaves(loss: Model, params: Params, batch: Batch) -> list[LeafGroup]:
    """List which leaves of the params make each row of `Frobenius.blocks`."""
    if isinstance(loss, Layered):
        try:
            layers = trained_layers(loss, params, batch)
        except Unservable:
            return group_leaves(params)
        ordered = (layers[i] for i in _order(layers))
        return [
            LeafGroup(at.name, [i for i in (at.kernel, at.bias) if i is not None]) for at in ordered
        ]
    return group_leaves(params)


def frobenius(
    loss: Model,
    params: Params,
    batch: Batch,
    *,
    layers: Sequence[str] | None = None,
    gauss_newton: bool = False,
    memory: int = MEMORY,
) -> Frobenius:
    """Return ‖H‖_F and the norms of all its blocks, exactly, choosing the path by a model of the cost.

    A `Layered` model takes, block by block, the cheaper of sample pairs and dense tiles
    (`curvature.blocks` has the equations); any other model goes column by column (`frobenius_columns`).

    **Cost:** for L layers of w units and m samples, m L² w³ for the rows and the smaller of 4 m² w² and
    2 m w⁴ for a block, where columns take 12 m n² for n parameters. Memory within `memory`. A gradient of
    the result works (at about five times the cost), and so does `jax.vmap` over a population, with that
    memory for each member.

    **Limits:** each weight of a `Layered` model is used in one affine layer, once per sample, and outside
    of `jax.vmap`, `lax.scan` and other transformations. Shared weights (as in convolutions), a
    `jax.custom_vjp` in the forward pass, and rows that do not fit into memory fall back to columns, with a
    `FallbackWarning`. Samples must not see each other (BatchNorm in training mode).

    Args:
        loss: (params, batch) -> [], `Composed` or `Layered`.
        params: Any pytree of float arrays of one dtype; the computation is in at least float32.
        batch: Batch of the loss; for `Layered`, arrays with the samples along their first axis.
        layers: Names of the layers (`layer_names`) whose blocks are wanted; all where None.
        gauss_newton: Whether to take the Gauss-Newton matrix instead of the Hessian.
        memory: Bytes to use.

    Returns:
        `Frobenius(value, blocks)`.

    Raises:
        ValueError: where loss, params and batch do not fit, or the memory is too small.
    """
    check_model(loss, params, batch)
    check_bytes(memory)
    return cheapest_norm(loss, params, batch, layers, gauss_newton, memory)


def cheapest_norm(
    loss: Model,
    params: Params,
    batch: Batch,
    layers: Sequence[str] | None = None,
    gauss_newton: bool = False,
    memory: int = MEMORY,
) -> Frobenius:
    """Return `frobenius` of arguments that were checked before; a fallback warns the caller's caller."""
    reason = ""
    if isinstance(loss, Layered):
        try:
            return _layered(loss, params, batch, layers, gauss_newton, memory, None)[0]
        except (Unservable, NotEnoughMemory) as error:
            reason = error.reason
    groups = block_leaves(loss, params, batch)
    groups = [groups[i] for i in choose_layers([group.name for group in groups], layers)]
    norms = column_norms(loss, params, batch, groups, gauss_newton, memory)
    if reason:
        warnings.warn(f"{reason}: taking frobenius_columns", FallbackWarning, stacklevel=3)
    return norms


def frobenius_pairs(
    loss: Layered,
    params: Params,
    batch: Batch,
    *,
    layers: Sequence[str] | None = None,
    gauss_newton: bool = False,
    memory: int = MEMORY,
) -> Frobenius:
    """Return ‖H‖_F by sample pairs alone; arguments as in `frobenius`.

    **Cost:** about 4 m² Σ_{l≤k} units_l (in_k + units_k), whatever the number of parameters.
    """
    check_layered("loss", loss, params, batch, "the norm is made from the inputs of")
    check_bytes(memory)
    return _layered(loss, params, batch, layers, gauss_newton, memory, True)[0]


def frobenius_dense(
    loss: Layered,
    params: Params,
    batch: Batch,
    *,
    layers: Sequence[str] | None = None,
    gauss_newton: bool = False,
    memory: int = MEMORY,
) -> Frobenius:
    """Return ‖H‖_F by tiles of the dense blocks alone; arguments as in `frobenius`.

    **Cost:** m n² multiply-adds for n parameters, in matrix products; no tile outlives its square.
    """
    check_layered("loss", loss, params, batch, "the norm is made from the inputs of")
    check_bytes(memory)
    return _layered(loss, params, batch, layers, gauss_newton, memory, False)[0]


def sample_pairs(
    loss: Layered, params: Params, batch: Batch, *, gauss_newton: bool = False, memory: int = MEMORY
) -> Array:
    """Return Q `[m, m]`, whose sum over a part S of the batch is the squared norm on S: 1_SᵀQ1_S / |S|².

    So the supremum over minibatches of flatness-guided search costs no more than the whole batch.

    **Limits:** Q is that of the loss without its penalty; `l2` does not enter.

    Args:
        loss: Layered model.
        params: Weights of the model.
        batch: Batch of m samples.
        gauss_newton: Whether to take the Gauss-Newton matrix instead.
        memory: Bytes to use.
    """
    check_layered("loss", loss, params, batch, "the products are of the inputs of")
    check_bytes(memory)
    return _layered(loss, params, batch, None, gauss_newton, memory, True, of_samples=True)[1]


class LayerPlan(NamedTuple):
    """Plan of the blocks of a layer l.

    Attributes:
        by_pairs: Whether sample pairs (rather than tiles) make the block H_lk, for each k ≥ l.
        chunk: Number of units of the layer at a time.
        num_bytes: Largest number of bytes at one time.
    """

    by_pairs: list[bool]
    chunk: int
    num_bytes: int


def plan_layer(
    layers: list[Layer],
    index: int,
    links: list[Link],
    samples: int,
    width: int,
    memory: int,
    by_pairs: bool | None,
    kept: int = 0,
) -> LayerPlan:
    """Choose pairs or tiles for every block of a layer, and how many units fit into memory.

    Where both are allowed, the cheaper is taken, or tiles where that does not fit.

    Args:
        layers: Layers that are trained.
        index: Place l of the layer among them.
        links: Dependence of the inputs of each layer k ≥ l on z_l.
        samples: Number m of samples.
        width: Bytes of a number.
        memory: Bytes to use.
        by_pairs: True for pairs alone, false for tiles alone, None for the choice between them.
        kept: Bytes that other layers hold at the same time.
    """
    above = layers[index:]
    tiles = [False] * len(above)
    plans = [tiles if by_pairs is False else [True] * len(above)]
    if by_pairs is None:
        linked = zip(above, links, strict=True)
        plans = [[_cheaper_by_pairs(layers[index], k, link, samples) for k, link in linked], tiles]
    needs = [_needed_bytes(above, samples, width, pairs, kept) for pairs in plans]
    best = next((i for i, need in enumerate(needs) if sum(need) <= memory), len(plans) - 1)
    pairs, (fixed, unit) = plans[best], needs[best]
    units = layers[index].num_units
    chunk = fitting(
        f"{samples} samples through {len(above)} layers",
        unit,
        memory,
        "a smaller batch, or use frobenius_estimate",
        most=min(units, math.ceil(CACHE / unit)),
        beside=fixed,
    )
    even = math.ceil(units / math.ceil(units / chunk))
    return LayerPlan(pairs, even, fixed + even * unit)


def _cheaper_by_pairs(below: Layer, layer: Layer, link: Link, samples: int) -> bool:
    """Compare the multiply-adds of `blocks.pair_terms` and `blocks.tile_terms`, for a unit of layer l, over m.

    Pairs: m units_k for ⟨B, B⟩. A diagonal link doubles that, and adds m for ⟨P, P⟩. A full one takes
    2 m (units_k + in_k), in products `[m, m]` of which two must be multiplied entry by entry. Tiles:
    in_l in_k units_k, from m in_k units_k entries, to in_l in_k units_k. Entries made between the products
    count as ENTRY. Measured on one core: rarely more than a tenth above the better of the two.
    """
    units = layer.num_units
    by_pairs = {
        Link.NONE: units,
        Link.DIAGONAL: 2 * units + 1,
        Link.FULL: 2 * (units + layer.num_inputs + ENTRY),
    }[link]
    by_tiles = layer.size * (below.num_inputs + ENTRY * (1 + below.num_inputs / samples))
    return samples * by_pairs <= by_tiles


def _needed_bytes(
    above: list[Layer], samples: int, width: int, pairs: list[bool], kept: int
) -> tuple[int, int]:
    """Return the bytes that a layer needs whatever the chunk, and those that each unit of a chunk needs."""
    below = above[0].num_inputs
    sides = sum(layer.num_inputs + layer.num_units for layer in above)
    tile = max((below + samples) * layer.num_inputs for layer in above)
    rows = LIVE * samples * sides
    fixed = rows + (samples**2 * (2 + PAIR * sum(pairs)) if any(pairs) else 0)
    unit = rows + (0 if all(pairs) else tile)
    return width * fixed + kept, width * unit


def _layered(
    model: Layered,
    params: Params,
    batch: Batch,
    wanted: Sequence[str] | None,
    gauss_newton: bool,
    memory: int,
    by_pairs: bool | None,
    of_samples: bool = False,
) -> tuple[Frobenius, Array]:
    """Go through the layers; return the norm, and the sum of Q over the blocks made of pairs."""
    params = widen(params)
    known = trained_layers(model, params, batch)
    layers = [known[i] for i in choose_layers([layer.name for layer in known], wanted)]
    samples, width = num_samples(batch), itemsize(params)
    squares, total = [], jnp.zeros(())
    with jax.default_matmul_precision("highest"):
        for index in range(len(layers)):
            links = [Link.NONE] * (len(layers) - index)  # Gauss-Newton leaves P out
            if not gauss_newton:
                links = links_of(model, params, layers, one_of(batch), index)
            blocks = len(layers) * (len(layers) + 1) // 2 - (len(layers) - index)
            kept = KEPT * blocks * width * samples**2 if of_samples else 0
            plan = plan_layer(layers, index, links, samples, width, memory, by_pairs, kept)
            rows = rows_of(model, params, layers, batch, index, links, gauss_newton)
            norms = layer_norms(rows, plan.by_pairs, plan.chunk)
            norms = _add_penalty(model, params, layers[index], norms)
            squares.append(norms.squares)
            total = total + norms.pairs
    return assemble(squares, _order(layers)), total


def _order(layers: list[Layer]) -> list[int]:
    """Sort layers by the place of their first weight in the params."""
    first = [min(i for i in (at.kernel, at.bias) if i is not None) for at in layers]
    return sorted(range(len(layers)), key=first.__getitem__)


def _add_penalty(model: Layered, params: Params, layer: Layer, norms: LayerNorms) -> LayerNorms:
    """Add the diagonal D of a penalty to H_ll: ‖H + D‖² = ‖H‖² + 2⟨H, D⟩ + ‖D‖²."""
    strengths = jax.tree.leaves(spread(model.l2, params))
    if all(isinstance(s, (int, float)) and s == 0 for s in strengths):
        return norms
    num_kernel = layer.num_inputs - (layer.bias is not None)
    column = [jnp.full((num_kernel,), strengths[layer.kernel])] if layer.kernel is not None else []
    column += [jnp.full((1,), strengths[layer.bias])] if layer.bias is not None else []
    added = jnp.concatenate(column)[:, None].astype(norms.diagonal.dtype)
    square = norms.squares[0] + jnp.sum(2 * added * norms.diagonal)
    square = square + layer.num_units * jnp.sum(jnp.square(added))
    return norms._replace(squares=[square, *norms.squares[1:]], diagonal=norms.diagonal + added)
