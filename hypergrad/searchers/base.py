"""The contract of every searcher: what to try next."""

from collections.abc import Callable
from typing import Any, NamedTuple

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
