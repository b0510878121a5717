"""The contract of every tuner: one durable step of progress, whatever the method."""

from collections.abc import Callable
from typing import NamedTuple

from hypergrad.searchers.base import Outcome
from hypergrad.types import Key, PyTree


class Tuner(NamedTuple):
    """A method, whole; all that a study knows.

    Attributes:
        init: (key) -> state, a pytree of arrays.
        step: (key, state) -> (state, outcome). The outcome is journalled; `outcome.info["done"]`, where
            there is one, ends the study when true.
    """

    init: Callable[[Key], PyTree]
    step: Callable[[Key, PyTree], tuple[PyTree, Outcome]]
