"""The contract of every tuner: one durable step of progress, whatever the method."""

from collections.abc import Callable
from typing import NamedTuple

from hypergrad.core.types import Key, PyTree
from hypergrad.searchers import Trials


class Tuner(NamedTuple):
    """A method as a whole: all that a study knows of it.

    Attributes:
        init: (key) -> state, a pytree of arrays, numbers and PRNG keys. A study writes it to disk between
            steps, so its structure, shapes and dtypes must not change.
        step: (key, state) -> (state, trials). The same arguments must give the same bits, because a study is
            resumed by repeating steps. The trials are journalled. Where `trials.info["done"]` exists and
            is true, the study ends.
    """

    init: Callable[[Key], PyTree]
    step: Callable[[Key, PyTree], tuple[PyTree, Trials]]
