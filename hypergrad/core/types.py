"""Aliases that the whole package shares."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax

Array: TypeAlias = jax.Array

PyTree: TypeAlias = Any

Key: TypeAlias = jax.Array
"""A PRNG key, as `jax.random.key(seed)` makes it (old-style uint32 keys work too)."""

Params: TypeAlias = Any
"""Params that the inner loop trains: a pytree of floating-point arrays, or `hypergrad.Variables`."""

HParams: TypeAlias = Any
"""Hyperparameters: any pytree of arrays."""

Batch: TypeAlias = Any
"""Batch of one step: examples and, where a model draws noise, the key of its dropout."""

InitFn: TypeAlias = Callable[[Key, HParams], Params]

LossFn: TypeAlias = Callable[[Params, HParams, Batch], Any]

ObjectiveFn: TypeAlias = Callable[[Params, HParams, Batch], Array]

OptimizerFn: TypeAlias = Callable[[HParams], Any]

TrainBatchFn: TypeAlias = Callable[[Key, Array], Batch]

ValidBatchFn: TypeAlias = Callable[[Key], Batch]


class Variables(NamedTuple):
    """Params that carry untrained state along: BatchNorm statistics, averaged weights, counters.

    A problem without such state never needs this class. A problem with state returns `Variables` from `init`;
    `loss` then receives both parts and returns `(value, new_state)`. The forward pass of training updates the
    state, and every estimator differentiates through it.

    Attributes:
        params: Trained part, the only one that the optimizer sees; floating-point leaves.
        state: Carried part, which the loss returns beside its value, of the same structure.
    """

    params: PyTree
    state: PyTree
