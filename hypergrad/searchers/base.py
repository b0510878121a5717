"""The contract of every searcher: what to try next."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from hypergrad.types import Array, HParams, Key, PyTree


class Outcome(NamedTuple):
    """What came of N trials; every array has the leading axis `[N]`.

    Attributes:
        hparams: what was tried.
        values: last objective of each; NaN where it diverged.
        steps: training steps each was given, int32.
        parent: index of the member each descends from, int32 (its own where nothing was copied).
        info: a dict of further arrays, for people.
    """

    hparams: HParams
    values: Array
    steps: Array
    parent: Array
    info: dict[str, Any]


class Searcher(NamedTuple):
    """What to try, as a value.

    Attributes:
        init: (key) -> state.
        ask: (key, state, num) -> hparams `[num]`.
        tell: (state, outcome) -> state.
    """

    init: Callable[[Key], PyTree]
    ask: Callable[[Key, PyTree, int], HParams]
    tell: Callable[[PyTree, Outcome], PyTree]


def final_values(outcome: Outcome) -> np.ndarray:
    """Return the objectives that may be the best of an outcome, `[N]`; infinity for the others.

    Those are the finite ones of the trials that were trained longest: one that a scheduler stopped early
    may be low only because its training was short.
    """
    values, steps = np.asarray(outcome.values), np.asarray(outcome.steps)
    finite = np.isfinite(values)
    if not finite.any():
        return np.full_like(values, np.inf)
    return np.where(finite & (steps == steps[finite].max()), values, np.inf)
