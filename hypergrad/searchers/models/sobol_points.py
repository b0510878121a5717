"""Scrambled Sobol points on the device, from scipy's direction numbers, which are read on the host."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad.core.types import Array, Key

BITS = 23
"""Bits of a coordinate: the middles (i + ½) / 2^23 are float32 numbers, and never 0 or 1."""

LOG_POINTS = 20
"""The sequence has 2^20 points, and begins again after them."""

MAX_COORDINATES = 21201
"""Largest number of dimensions for which scipy has direction numbers."""


@functools.cache
def directions(num: int) -> np.ndarray:
    """Return the direction numbers of `num` dimensions, uint32 `[num, LOG_POINTS]` with BITS bits each.

    Point 2^k of the sequence in Gray-code order is v_k xor v_{k−1}, which is how they are read off.

    Raises:
        ValueError: for more dimensions than there are direction numbers for.
    """
    from scipy.stats import qmc  # comes with jax; half a second to import

    if num > MAX_COORDINATES:
        raise ValueError(
            f"space has {num} coordinates, expected at most {MAX_COORDINATES} for Sobol points; "
            "use knots or 'random'"
        )
    engine = qmc.Sobol(num, scramble=False)
    found, before, position = [], np.zeros(num, np.uint32), 0
    for k in range(LOG_POINTS):
        engine.fast_forward(2**k - position)
        point = (engine.random(1)[0] * 2**BITS).astype(np.uint32)
        position = 2**k + 1
        before = point ^ before
        found.append(before)
    return np.stack(found, axis=1)


def scramble(key: Key, vectors: np.ndarray) -> tuple[Array, Array]:
    """Draw a linear matrix scramble and a digital shift: new direction numbers, and the shift `[D]`.

    Every point is then uniform on the cells of size 2^−23, and any 2^m points in a row that start at a
    multiple of 2^m keep their equidistribution.

    Reference:
        Matoušek, "On the L2-discrepancy for anchored boxes", J. Complexity 14, 1998.
    """
    num = vectors.shape[0]
    matrix_key, shift_key = jax.random.split(key)
    places = jnp.arange(BITS, dtype=jnp.uint32)
    # row i of the lower triangle makes bit i (from the top) of the new numbers from bits 0 to i of the old
    draws = jax.random.bernoulli(matrix_key, 0.5, (num, BITS, BITS))
    lower = jnp.tril(draws, -1) | jnp.eye(BITS, dtype=bool)
    weights = jnp.uint32(1) << (BITS - 1 - places)
    rows = jnp.sum(jnp.where(lower, weights, 0), -1, dtype=jnp.uint32)
    overlap = rows[:, :, None] & jnp.asarray(vectors)[:, None, :]
    bits = jax.lax.population_count(overlap) & 1
    scrambled = jnp.sum(bits << (BITS - 1 - places)[:, None], 1, dtype=jnp.uint32)
    shift = jax.random.bits(shift_key, (num,), jnp.uint32) >> (32 - BITS)
    return scrambled, shift


def points(vectors: Array, shift: Array, start: Array | int, num: int) -> Array:
    """Return the points `start` to `start + num` of a sequence, in (0, 1)^D, `[num, D]`."""
    index = jnp.asarray(start, jnp.uint32) + jnp.arange(num, dtype=jnp.uint32)
    gray = index ^ (index >> 1)

    def add(k: Array, state: Array) -> Array:
        one = (gray >> jnp.asarray(k, jnp.uint32)) & 1
        return state ^ (one[:, None] * vectors[:, k])

    start_of_all = jnp.broadcast_to(shift, (num, *shift.shape))
    state = jax.lax.fori_loop(0, LOG_POINTS, add, start_of_all)
    half = jnp.asarray(0.5, jnp.result_type(float))
    return (state.astype(half.dtype) + half) / 2**BITS


def uniforms(key: Key, num: int, dim: int) -> Array:
    """Return the first `num` points of a freshly scrambled sequence, `[num, dim]`; each alone is uniform."""
    return points(*scramble(key, directions(dim)), 0, num)
