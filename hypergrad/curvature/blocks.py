"""Exact norms of the Hessian blocks of a layered network, two ways: sample pairs, and dense tiles.

For one sample, with ã the inputs that meet trained weights, δ = ∂ℓ/∂z, B = ∂²ℓ/∂z_l∂z_k and
P = ∂ã_k/∂z_l, the gradient of layer k is δ_k ⊗ ã_k. Its derivative in z_l[p] is

    G_p = B[p] ⊗ ã_k + δ_k ⊗ P[p]          (P = 0 where k does not come after l)

and z_l[p] depends on the weights W̃_l[q, p] through ã_l[q], so the block is

    H_lk[(q, p), ·] = (1/m) Σ_i ã_l^i[q] G_p^i

**Sample pairs.** Squaring that sum brings the samples together in pairs:

    ‖H_lk‖² = (1/m²) Σ_ij Q_lk[i, j],     Q_lk[i, j] = ⟨ã_l^i, ã_l^j⟩ Σ_p ⟨G_p^i, G_p^j⟩

and the inner product of two sums of outer products becomes a sum of products of Gram matrices:

    ⟨G_p^i, G_p^j⟩ = ⟨B^i, B^j⟩⟨ã_k^i, ã_k^j⟩ + ⟨δ_k^i, δ_k^j⟩⟨P^i, P^j⟩ + C_ij + C_ji,
    C_ij = ⟨B^i[p], δ_k^j⟩ ⟨ã_k^i, P^j[p]⟩

No array is larger than m x m or m x units, whatever the number of parameters. Only rows p of B and P
are made, a few at a time, by forward-over-reverse products in z_l (never in the weights).

**Dense tiles.** Where samples are many and layers small, the tiles of the block itself are cheaper:
H_lk[(·, p), (·, r)] = (1/m) ã_lᵀ diag(B[p, r]) ã_k + (1/m) ã_lᵀ diag(δ_k[r]) P[p].
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hypergrad.core.types import Array
from hypergrad.curvature.layers import Link, Rows
from hypergrad.curvature.memory import sum_chunks


class LayerNorms(NamedTuple):
    """Result of one pass over the units of a layer l.

    Attributes:
        squares: Squared norms ‖H_lk‖² for k ≥ l, each `[]`.
        pairs: Sum Σ_k Q_lk + Q_kl `[m, m]` over k ≥ l (Q_ll once), of the blocks made of pairs.
        diagonal: Diagonal of H_ll, `[in, units]`.
    """

    squares: list[Array]
    pairs: Array
    diagonal: Array


def layer_norms(rows: Rows, by_pairs: list[bool], chunk: int) -> LayerNorms:
    """Return the norms of all blocks H_lk, k ≥ l.

    Args:
        rows: Rows of the layer l.
        by_pairs: Whether sample pairs (rather than tiles) make the block, for each k ≥ l.
        chunk: Number of units of layer l at a time.
    """
    below, (size, units) = rows.inputs[0], rows.deltas[0].shape

    def body(chosen: Array) -> tuple[list[Array], Array]:
        bends, moved = rows.push(chosen)
        moved, slopes, terms = iter(moved), iter(rows.slopes), []
        for k, link in enumerate(rows.links):
            full = next(moved) if link is Link.FULL else None
            single = _take(next(slopes), chosen) if link is Link.DIAGONAL else None
            signal = Signals(bends[k], full, single, rows.inputs[k], rows.deltas[k], chosen)
            terms.append(pair_terms(signal) if by_pairs[k] else tile_terms(signal, below))
        diagonal = jnp.take_along_axis(bends[0], chosen[None, :, None], axis=2, mode="clip")
        return terms, diagonal[:, :, 0].T

    terms, own = sum_chunks(body, units, chunk)
    gram = below @ below.T if any(by_pairs) else jnp.zeros(())
    squares = [
        (jnp.sum(gram * term) if by else term) / size**2
        for term, by in zip(terms, by_pairs, strict=True)
    ]
    both = [term * (1 if k == 0 else 2) for k, term in enumerate(terms) if by_pairs[k]]
    pairs = gram * sum(both, jnp.zeros(()))
    return LayerNorms(squares, pairs, (own @ jnp.square(below) / size).T)


class Signals(NamedTuple):
    """The parts of G_p for a chunk of units p, and all samples.

    Attributes:
        bend: Rows of B `[m, chunk, units]`.
        move: Rows of P `[m, chunk, in]`; None where P is zero or diagonal.
        slope: Diagonal of P, `[m, chunk]`; None where it is zero or full.
        inputs: Inputs ã_k `[m, in]`.
        deltas: Derivatives δ_k `[m, units]`.
        chosen: Units p `[chunk]`.
    """

    bend: Array
    move: Array | None
    slope: Array | None
    inputs: Array
    deltas: Array
    chosen: Array


def pair_terms(of: Signals) -> Array:
    """Return Σ_p ⟨G_p^i, G_p^j⟩ over the units of a chunk, `[m, m]`."""
    total = _gram(of.bend) * (of.inputs @ of.inputs.T)
    if of.slope is not None:
        # P[p] has one entry: C is a product of two matrices [m, chunk · units]
        inputs = _take(of.inputs, of.chosen)
        left, right = of.bend * inputs[:, :, None], of.slope[:, :, None] * of.deltas[:, None]
        cross = _flat(left) @ _flat(right).T
        return total + _gram(of.slope) * (of.deltas @ of.deltas.T) + cross + cross.T
    if of.move is not None:
        cross = jax.lax.scan(
            _add_cross(of), jnp.zeros_like(total), (_first(of.bend), _first(of.move))
        )[0]
        return total + _gram(of.move) * (of.deltas @ of.deltas.T) + cross + cross.T
    return total


def _add_cross(of: Signals) -> Callable:
    """Return the step that adds ⟨B^i[p], δ^j⟩ ⟨ã^i, P^j[p]⟩ of one unit, to stay in cache."""

    def add(total: Array, of_unit: tuple[Array, Array]) -> tuple[Array, None]:
        bend, move = of_unit
        return total + (bend @ of.deltas.T) * (of.inputs @ move.T), None

    return jax.checkpoint(add)


def tile_terms(of: Signals, below: Array) -> Array:
    """Return m² ‖H_lk‖² of the units of a chunk, `[]`, one unit of layer k at a time.

    Args:
        of: Parts of G.
        below: Inputs ã_l `[m, in]`.
    """
    move = of.move
    if of.slope is not None:
        places = jax.nn.one_hot(of.chosen, of.inputs.shape[1], dtype=of.slope.dtype)
        move = of.slope[:, :, None] * places[None]

    def tile(total: Array, of_unit: tuple[Array, Array]) -> tuple[Array, None]:
        bend, delta = of_unit
        gradient = bend[:, :, None] * of.inputs[:, None]
        if move is not None:
            gradient = gradient + delta[:, None, None] * move
        return total + jnp.sum(jnp.square(below.T @ _flat(gradient))), None

    units = (of.bend.transpose(2, 0, 1), of.deltas.T)
    return jax.lax.scan(jax.checkpoint(tile), jnp.zeros((), below.dtype), units)[0]


def _take(columns: Array, chosen: Array) -> Array:
    """Return columns `[m, chunk]` of a matrix, zeros past the last."""
    return jnp.take(columns, chosen, axis=1, mode="fill", fill_value=0)


def _first(rows: Array) -> Array:
    """Put the units of `[m, chunk, D]` first."""
    return rows.transpose(1, 0, 2)


def _flat(rows: Array) -> Array:
    """Join all but the samples: `[m, ...]` -> `[m, D]`."""
    return rows.reshape(rows.shape[0], -1)


def _gram(rows: Array) -> Array:
    """Return ⟨row^i, row^j⟩ `[m, m]` of rows `[m, ...]`."""
    return _flat(rows) @ _flat(rows).T
