"""The contract of every tuner: one durable step of progress, whatever the method."""

from collections.abc import Callable
from typing import NamedTuple

from hypergrad.core.types import Key, PyTree
from hypergrad.searchers import Trials


class Tuner(NamedTuple):
    """A method, whole; all that a study knows.

    Attributes:
        init: (key) -> state, a pytree of arrays, numbers and PRNG keys. It is written to disk between
            steps, so its structure, shapes and dtypes stay those of the first.
        step: (key, state) -> (state, outcome), the same bits for the same arguments: a study is resumed by
            making steps again. The outcome is journalled; `outcome.info["done"]`, where
            there is one, ends the study when true.
    """

    init: Callable[[Key], PyTree]
    step: Callable[[Key, PyTree], tuple[PyTree, Trials]]
