"""The trials that a searcher remembers: a table of fixed size, for checkpoints and compiled programs."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from hypergrad.core.types import Array


class Memory(NamedTuple):
    """Trials in the order in which they were told.

    Attributes:
        units: Unit coordinates, `[C, D]`; rows from `count` on are empty.
        scores: Scores to be minimised, `[C]`; infinite for trials that failed, and for empty rows.
        count: Number of trials remembered, int32.
    """

    units: Array
    scores: Array
    count: Array

    @property
    def filled(self) -> Array:
        """Tell which rows hold a trial, `[C]`."""
        return jnp.arange(self.scores.shape[0]) < self.count


def empty(capacity: int, num_coordinates: int) -> Memory:
    """Return a memory without trials."""
    dtype = jnp.result_type(float)
    return Memory(
        jnp.full((capacity, num_coordinates), 0.5, dtype),
        jnp.full(capacity, jnp.inf, dtype),
        jnp.zeros((), jnp.int32),
    )


def remember(memory: Memory, units: Array, scores: Array) -> Memory:
    """Add trials; where there is no room, keep the better half of the table and the newest of the others."""
    capacity, num = memory.scores.shape[0], scores.shape[0]
    chex.assert_shape(units, (num, memory.units.shape[1]))
    units = jnp.concatenate([memory.units, units])
    scores = jnp.concatenate([memory.scores, scores])
    filled = jnp.concatenate([memory.filled, jnp.ones(num, bool)])
    index = jnp.arange(capacity + num)
    rank = jnp.argsort(jnp.argsort(jnp.where(filled, scores, jnp.inf)))
    # the newest trials are worth most, except for the best ones
    worth = jnp.where(rank < capacity // 2, index + capacity + num, index)
    chosen = jax.lax.top_k(jnp.where(filled, worth, -1 - index), capacity)[1]
    chosen = jnp.sort(jnp.where(filled[chosen], chosen, chosen + capacity + num)) % (capacity + num)
    return Memory(
        units[chosen],
        jnp.where(filled[chosen], scores[chosen], jnp.inf),
        jnp.minimum(memory.count + num, capacity).astype(jnp.int32),
    )
