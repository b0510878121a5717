"""Baselines of the score function, with which values are compared."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from hypergrad.core.checks import check_share
from hypergrad.core.types import Array, PyTree


class Baseline(NamedTuple):
    """A baseline, subtracted from values before they weigh scores: no bias, less variance.

    Attributes:
        init: () -> state.
        advantages: (state, values `[S]`) -> (state, advantages `[S]`). The number subtracted from a value must
            come from other values.
    """

    init: Callable[[], PyTree]
    advantages: Callable[[PyTree, Array], tuple[PyTree, Array]]


def no_baseline() -> Baseline:
    """Subtract nothing."""
    return Baseline(lambda: (), lambda state, values: (state, values))


def leave_one_out() -> Baseline:
    """Subtract from each value the mean of the other ones; the value of a single sample stays.

    A_s = f_s − Σ_{r≠s} f_r / (S − 1)
    """
    return Baseline(lambda: (), lambda state, values: (state, values - mean_of_others(values)))


def running_mean(decay: float = 0.9) -> Baseline:
    """Subtract the running mean of the values of earlier estimates; nothing in the first one.

    m ← decay m + (1 − decay) mean(f),   A_s = f_s − m / (1 − decayⁿ)   with m before the update
    """
    check_share("decay", decay, "[0, 1)", what="a number", example=0.9)

    def init() -> PyTree:
        return jnp.zeros(()), jnp.zeros(())

    def advantages(state: PyTree, values: Array) -> tuple[PyTree, Array]:
        mean, weight = state
        learned = mean / jnp.where(weight > 0, weight, 1)
        now = jnp.mean(values)
        # the mean leaves out a run that diverged
        seen = jnp.isfinite(now)
        mean = jnp.where(seen, decay * mean + (1 - decay) * now, mean).astype(mean.dtype)
        weight = jnp.where(seen, decay * weight + (1 - decay), weight)
        return (mean, weight), values - learned.astype(values.dtype)

    return Baseline(init, advantages)


def mean_of_others(values: Array) -> Array:
    """Return for each of `[S, ...]` the mean of the others; zeros where there are none."""
    num = values.shape[0]
    total = jnp.sum(values, 0, keepdims=True)
    return (total - values) / (num - 1) if num > 1 else jnp.zeros_like(values)
