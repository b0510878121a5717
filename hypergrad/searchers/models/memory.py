"""The trials that a searcher remembers: a table of fixed size, as a checkpoint and a compiled program need."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hypergrad.core.checks import check_whole
from hypergrad.core.types import Array


class Memory(NamedTuple):
    """Trials in the order they were told.

    Attributes:
        units: unit coordinates, `[C, D]`; rows from `count` on are empty.
        scores: what is minimised, `[C]`; infinite for trials that failed, and for empty rows.
        count: trials remembered, int32.
    """

    units: Array
    scores: Array
    count: Array

    @property
    def filled(self) -> Array:
        """Which rows hold a trial, `[C]`."""
        return jnp.arange(self.scores.shape[0]) < self.count


def empty(capacity: int, num_coordinates: int) -> Memory:
    """Return a history without trials."""
    dtype = jnp.result_type(float)
    return Memory(
        jnp.full((capacity, num_coordinates), 0.5, dtype),
        jnp.full(capacity, jnp.inf, dtype),
        jnp.zeros((), jnp.int32),
    )


def remember(history: Memory, units: Array, scores: Array) -> Memory:
    """Add trials; where there is no room, keep the better half of the table and the newest of the others."""
    capacity, num = history.scores.shape[0], scores.shape[0]
    units = jnp.concatenate([history.units, units])
    scores = jnp.concatenate([history.scores, scores])
    filled = jnp.concatenate([history.filled, jnp.ones(num, bool)])
    index = jnp.arange(capacity + num)
    rank = jnp.argsort(jnp.argsort(jnp.where(filled, scores, jnp.inf)))
    # a trial's place in time is its worth, unless it is among the best
    worth = jnp.where(rank < capacity // 2, index + capacity + num, index)
    chosen = jax.lax.top_k(jnp.where(filled, worth, -1 - index), capacity)[1]
    chosen = jnp.sort(jnp.where(filled[chosen], chosen, chosen + capacity + num)) % (capacity + num)
    return Memory(
        units[chosen],
        jnp.where(filled[chosen], scores[chosen], jnp.inf),
        jnp.minimum(history.count + num, capacity).astype(jnp.int32),
    )


def check_capacity(capacity: int) -> int:
    """Return `capacity` if it is a whole number of at least 4 trials, or raise a `ValueError`."""
    check_whole("capacity", capacity)
    if capacity < 4:
        raise ValueError(f"capacity is {capacity}, expected at least 4 trials; pass e.g. 1024")
    return capacity
