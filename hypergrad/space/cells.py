"""The cells of counted unit coordinates: equal ones, or those of whole numbers on a logarithmic scale.

A coordinate with K levels is cut into K cells. Those of the numbers first, ..., last = first + K − 1 on a
logarithmic scale lie between their halves: number n from log((n − ½) / (first − ½)) to
log((n + ½) / (first − ½)), in units of log((last + ½) / (first − ½)). `first` is 0 where cells are equal.
"""

import jax.numpy as jnp
import numpy as np

from hypergrad.core.types import Array

Counts = int | np.ndarray
"""A number for one coordinate, or one for each, `[D]`."""


def cell_at(levels: Counts, first: Counts, units: Array) -> Array:
    """Return the index in [0, levels) of the cell that each unit coordinate lies in, int32."""
    most = jnp.maximum(jnp.asarray(levels, jnp.int32) - 1, 0)
    index = jnp.floor(units * levels)
    if np.any(np.asarray(first) > 0):
        low, high, span = _halves(levels, first)
        # from the nearer end, where the exponent is small
        up, down = low * jnp.exp(units * span), high * jnp.exp((units - 1) * span)
        number = jnp.floor(jnp.where(units < 0.5, up, down) + 0.5)
        index = jnp.where(np.asarray(first) > 0, number - first, index)
    return jnp.clip(index.astype(jnp.int32), 0, most)


def cell_middle(levels: Counts, first: Counts, index: Array | np.ndarray | int) -> Array:
    """Return the unit coordinate of the middle of the cells with these indices."""
    middle = (jnp.asarray(index) + 0.5) / np.maximum(levels, 1)
    if np.any(np.asarray(first) > 0):
        below, above = _ends(levels, first, index)
        middle = jnp.where(np.asarray(first) > 0, (below + above) / 2, middle)
    return middle


def cell_width(levels: Counts, first: Counts, index: Array | np.ndarray | int) -> Array:
    """Return the width of the cells with these indices; 1 where a coordinate is continuous."""
    width = jnp.broadcast_to(1 / np.maximum(levels, 1), jnp.shape(index))
    if np.any(np.asarray(first) > 0):
        below, above = _ends(levels, first, index)
        width = jnp.where(np.asarray(first) > 0, above - below, width)
    return width


def _halves(levels: Counts, first: Counts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return first − ½, last + ½ and the logarithm of their ratio; anything finite where cells are equal."""
    start = np.maximum(np.asarray(first), 1)
    low, high = start - 0.5, start + np.maximum(np.asarray(levels), 1) - 0.5
    return low, high, np.log(high / low)


def _ends(levels: Counts, first: Counts, index: Array | np.ndarray | int) -> tuple[Array, Array]:
    """Return where the cells begin and end on a logarithmic scale."""
    low, _, span = _halves(levels, first)
    number = index + jnp.asarray(np.maximum(np.asarray(first), 1), jnp.result_type(float))
    below, above = (jnp.log((number + side) / low) / span for side in (-0.5, 0.5))
    return below, above
