"""Run any tuner: budget, callbacks, failures."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from hypergrad.problem import check_horizon
from hypergrad.searchers.base import Outcome
from hypergrad.tuners.base import Tuner
from hypergrad.types import HParams, Key


class Study(NamedTuple):
    """What a tuner found.

    Attributes:
        best: the hparams with the lowest finite objective, as numpy arrays; None if there was none.
        best_value: that objective; infinity if there was none.
        outcomes: every outcome, as numpy arrays, in order.
        interrupted: whether Ctrl-C ended it.
        seconds: wall-clock time, compilation included.
    """

    best: HParams | None
    best_value: float
    outcomes: list[Outcome]
    interrupted: bool
    seconds: float


OnStep = Callable[[int, Outcome, float], Any]
"""(step, outcome, best value so far) -> anything; called after every step on the host."""


def run(tuner: Tuner, key: Key, num_steps: int, on_step: OnStep | None = None) -> Study:
    """Take `num_steps` steps of a tuner.

    Ctrl-C ends the study after the step in flight and keeps the best so far. A trial that is not finite
    is kept among the outcomes and never becomes the best.

    Args:
        tuner: any method.
        key: of the whole study; step i draws from `fold_in(key, i)`.
        num_steps: budget; a tuner that says it is done ends earlier.
        on_step: called after every step.
    """
    check_horizon(num_steps, "budget")
    if not isinstance(tuner, Tuner):
        raise ValueError(
            f"tuner is {type(tuner).__name__}, expected a Tuner; pass e.g. tuners.descent(...)"
        )
    if not hasattr(key, "dtype"):
        raise ValueError(f"key is {key!r}, expected a PRNG key; pass e.g. jax.random.key(0)")
    began = time.perf_counter()
    best, best_value = None, float("inf")
    outcomes: list[Outcome] = []
    interrupted = False
    try:
        init_key, run_key = jax.random.split(key)
        state = tuner.init(init_key)
        for index in range(num_steps):
            state, outcome = tuner.step(jax.random.fold_in(run_key, index), state)
            outcome = jax.tree.map(np.asarray, jax.device_get(outcome))
            outcomes.append(outcome)
            values = np.where(np.isfinite(outcome.values), outcome.values, np.inf)
            member = int(np.argmin(values))
            if values[member] < best_value:
                best_value = float(values[member])
                best = jax.tree.map(lambda x, m=member: x[m], outcome.hparams)
            if on_step is not None:
                on_step(index, outcome, best_value)
            if np.any(outcome.info.get("done", False)):
                break
    except KeyboardInterrupt:
        interrupted = True
    return Study(best, best_value, outcomes, interrupted, time.perf_counter() - began)
