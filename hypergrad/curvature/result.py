"""What every exact path returns."""

from typing import NamedTuple

import jax.numpy as jnp

from hypergrad.types import Array


class Frobenius(NamedTuple):
    """A Frobenius norm and where it sits.

    Attributes:
        value: ‖H‖_F `[]`.
        blocks: ‖H_lk‖_F² of all pairs of layers, symmetric `[layers, layers]`, in the order of
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
