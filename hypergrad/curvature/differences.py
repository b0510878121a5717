"""The Hessian by finite differences, for losses that cannot be differentiated twice."""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from hypergrad.checks import check_whole
from hypergrad.curvature.base import (
    MEMORY,
    Model,
    bytes_of_one,
    check,
    check_memory,
    check_positive_or_traced,
    itemsize,
    loss_of,
    size_of,
    widen,
)
from hypergrad.types import Array, Batch, Params

INDEX = 4
"""Bytes of the place of a weight."""


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

    **Cost:** four losses a pair of weights (forward: one, beside n + 1), `chunk` pairs side by side.

    **Limits:** rounding adds an error of about (machine epsilon) |L| / ε²: in float32 two digits are left.
    At a kink (a ReLU, a hinge) it is the bend over a distance ε, not a derivative.

    Args:
        loss: any model; it need not be differentiable.
        params: w, n numbers.
        batch: what the loss takes.
        epsilon: ε; eps^¼ of the dtype where None (forward: eps^⅓).
        central: which form.
        chunk: pairs side by side.
        memory: bytes to use.

    Raises:
        ValueError: where the matrix, its pairs and the losses of a chunk do not fit into memory.

    Reference:
        Nocedal, Wright, 2006, "Numerical Optimization", 2nd ed., equations 8.20-8.21.
    """
    check(loss, params, batch)
    check_whole("chunk", chunk)
    function, size, width = loss_of(loss), size_of(params), itemsize(params)
    flat, unravel = ravel_pytree(widen(params))
    one = bytes_of_one(lambda w: function(unravel(w), batch), flat)
    count = size * (size + 1) // 2
    chunk = min(chunk, count)
    # the pairs and their entries, all and again in whole chunks, and the matrix with its transpose
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

    def at(i, j, a, b):
        move = jnp.zeros_like(flat).at[i].add(a * step).at[j].add(b * step)
        return function(unravel(flat + move), batch)

    def second(pair):
        i, j = pair
        return (at(i, j, 1, 1) - at(i, j, 1, -1) - at(i, j, -1, 1) + at(i, j, -1, -1)) / (
            4 * step**2
        )

    def forward(pair):
        i, j = pair
        return (at(i, j, 1, 1) - single[i] - single[j] + here) / step**2

    if not size:
        return jnp.zeros((0, 0), flat.dtype)
    rows, columns = jnp.triu_indices(size)
    pairs = (rows.astype(jnp.int32), columns.astype(jnp.int32))
    if not central:
        here = function(unravel(flat), batch)
        alone = jnp.arange(size, dtype=jnp.int32)
        single = jax.lax.map(lambda i: at(i, i, 1, 0), alone, batch_size=min(chunk, size))
    entry = second if central else forward
    entries = jax.lax.map(entry, pairs, batch_size=chunk)
    upper = jnp.zeros((size, size), flat.dtype).at[pairs].set(entries)
    return upper + jnp.triu(upper, 1).T
