"""Aliases that the whole package shares."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax

Array: TypeAlias = jax.Array

PyTree: TypeAlias = Any

Key: TypeAlias = jax.Array
"""A PRNG key, as `jax.random.key(seed)` makes it (old-style uint32 keys work too)."""

Params: TypeAlias = Any
"""What the inner loop trains: a pytree of floating-point arrays, or `hypergrad.Variables`."""

HParams: TypeAlias = Any
"""Hyperparameters: any pytree of arrays."""

Batch: TypeAlias = Any
"""What one step consumes: examples and, where a model draws noise, the key of its dropout."""

InitFn: TypeAlias = Callable[[Key, HParams], Params]

LossFn: TypeAlias = Callable[[Params, HParams, Batch], Any]

ObjectiveFn: TypeAlias = Callable[[Params, HParams, Batch], Array]

OptimizerFn: TypeAlias = Callable[[HParams], Any]

TrainBatchFn: TypeAlias = Callable[[Key, Array], Batch]

ValidBatchFn: TypeAlias = Callable[[Key], Batch]


class Variables(NamedTuple):
    """Params that carry untrained state along: BatchNorm statistics, averaged weights, counters.

    A problem without such state never meets this class. One with it returns `Variables` from `init`;
    `loss` then receives the whole and returns `(value, new_state)`: the state is updated by the one
    forward pass that training makes anyway, and every estimator differentiates through it.

    Attributes:
        params: Trained; the only part the optimizer sees. Floating-point leaves.
        state: Carried; whatever the loss returns beside its value, of the same structure.
    """

    params: PyTree
    state: PyTree
