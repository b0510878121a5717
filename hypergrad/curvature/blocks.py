"""Exact norms of the Hessian blocks of a layered network, two ways: sample pairs, and dense tiles.

For one sample, with ã the inputs that meet trained weights, δ = ∂ℓ/∂z, B = ∂²ℓ/∂z_l∂z_k and
P = ∂ã_k/∂z_l, the gradient of layer k is δ_k ⊗ ã_k. Its derivative in z_l[p] is

    G_p = B[p] ⊗ ã_k + δ_k ⊗ P[p]          (P = 0 where k does not come after l)

and z_l[p] depends on the weights W̃_l[q, p] through ã_l[q], so the block is

    H_lk[(q, p), ·] = (1/m) Σ_i ã_l^i[q] G_p^i

**Sample pairs.** Squaring that sum brings the samples together in pairs:

    ‖H_lk‖² = (1/m²) Σ_ij Q_lk[i, j],     Q_lk[i, j] = ⟨ã_l^i, ã_l^j⟩ Σ_p ⟨G_p^i, G_p^j⟩

and the inner product of two sums of outer products falls apart into products of Gram matrices:

    ⟨G_p^i, G_p^j⟩ = ⟨B^i, B^j⟩⟨ã_k^i, ã_k^j⟩ + ⟨δ_k^i, δ_k^j⟩⟨P^i, P^j⟩ + C_ij + C_ji,
    C_ij = ⟨B^i[p], δ_k^j⟩ ⟨ã_k^i, P^j[p]⟩

No array is larger than m x m or m x units, whatever the number of parameters; only rows p of B and P
are ever made, a few at a time, by forward-over-reverse products in z_l (never in the weights).

**Dense tiles.** Where samples are many and layers small, the tiles of the block itself are cheaper:
H_lk[(·, p), (·, r)] = (1/m) ã_lᵀ diag(B[p, r]) ã_k + (1/m) ã_lᵀ diag(δ_k[r]) P[p].
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hypergrad.curvature.base import Layered, num_samples, sum_chunks
from hypergrad.curvature.layers import Layer, rows_of
from hypergrad.types import Array, Batch, Params


class LayerNorms(NamedTuple):
    """What one pass over the units of a layer l gives.

    Attributes:
        squares: ‖H_lk‖² for k ≥ l, each `[]`.
        pairs: Q_lk for k ≥ l, `[m, m]` each; None for a block that was made of tiles.
        diagonal: of H_ll, `[in, units]`.
    """

    squares: list[Array]
    pairs: list[Array | None]
    diagonal: Array


def layer_norms(
    model: Layered,
    params: Params,
    layers: list[Layer],
    batch: Batch,
    index: int,
    by_pairs: list[bool],
    chunk: int,
    gauss_newton: bool,
) -> LayerNorms:
    """Return the norms of all blocks H_lk, k ≥ l = `index`.

    Args:
        model: the network.
        params: of at least float32.
        layers: its trained layers.
        batch: of m samples.
        index: l.
        by_pairs: for each k ≥ l, whether by sample pairs or by tiles.
        chunk: how many units of layer l at a time.
        gauss_newton: the Gauss-Newton matrix instead of the Hessian.
    """
    rows = rows_of(model, params, layers, batch, index, gauss_newton)
    size, units = num_samples(batch), layers[index].num_units
    below = rows.inputs[0]

    def body(chosen):
        bends, moved = rows.push(chosen)
        moves = [None, *moved] if moved else [None] * len(bends)
        terms = [
            pair_terms(bend, move, rows.inputs[k], rows.deltas[k])
            if pairs
            else tile_terms(bend, move, rows.inputs[k], rows.deltas[k], below)
            for k, (bend, move, pairs) in enumerate(zip(bends, moves, by_pairs, strict=True))
        ]
        own = jnp.take_along_axis(bends[0], chosen[:, None, None], axis=2, mode="fill", fill_value=0)
        return terms, own[:, :, 0]

    terms, own = sum_chunks(body, units, chunk)
    gram = below @ below.T
    pairs = [gram * term if by else None for term, by in zip(terms, by_pairs, strict=True)]
    squares = [
        (term if pair is None else jnp.sum(pair)) / size**2
        for term, pair in zip(terms, pairs, strict=True)
    ]
    return LayerNorms(squares, pairs, jnp.square(below).T @ own[:units].T / size)


def pair_terms(bend: Array, move: Array | None, inputs: Array, deltas: Array) -> Array:
    """Return Σ_p ⟨G_p^i, G_p^j⟩ over the units of a chunk, `[m, m]`.

    Args:
        bend: rows of B `[chunk, m, units]`.
        move: rows of P `[chunk, m, in]`, or None where it is zero.
        inputs: ã_k `[m, in]`.
        deltas: δ_k `[m, units]`.
    """
    total = _gram(bend) * (inputs @ inputs.T)
    if move is None:
        return total
    cross = jnp.einsum("pij,pij->ij", bend @ deltas.T, inputs @ move.transpose(0, 2, 1))
    return total + _gram(move) * (deltas @ deltas.T) + cross + cross.T


def tile_terms(
    bend: Array, move: Array | None, inputs: Array, deltas: Array, below: Array
) -> Array:
    """Return m² ‖H_lk‖² of the units of a chunk, `[]`, one unit of layer k at a time.

    Args:
        bend: rows of B `[chunk, m, units]`.
        move: rows of P `[chunk, m, in]`, or None where it is zero.
        inputs: ã_k `[m, in]`.
        deltas: δ_k `[m, units]`.
        below: ã_l `[m, in]`.
    """

    def tile(total, of_unit):
        bent, delta = of_unit
        gradient = bent[:, :, None] * inputs
        if move is not None:
            gradient = gradient + delta[:, None] * move
        block = jnp.einsum("iq,pis->pqs", below, gradient)
        return total + jnp.sum(jnp.square(block)), None

    units = (bend.transpose(2, 0, 1), deltas.T)
    return jax.lax.scan(jax.checkpoint(tile), jnp.zeros((), bend.dtype), units)[0]


def _gram(rows: Array) -> Array:
    """Return Σ_p ⟨row_p^i, row_p^j⟩ `[m, m]` of rows `[chunk, m, D]`."""
    flat = rows.transpose(1, 0, 2).reshape(rows.shape[1], -1)
    return flat @ flat.T
