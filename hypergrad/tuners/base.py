"""The contract of every tuner: one durable step of progress, whatever the method."""

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple

from hypergrad.core.abstract import traced
from hypergrad.core.hoist import Compiled
from hypergrad.core.types import HParams, Key, PyTree
from hypergrad.searchers import Trials


class Tuner(NamedTuple):
    """A method as a whole: all that a study knows of it.

    Attributes:
        init: (key) -> state, a pytree of arrays, numbers and PRNG keys. A study writes it to disk between
            steps, so its structure, shapes and dtypes must not change.
        step: (key, state) -> (state, trials). The same arguments must give the same bits, because a study is
            resumed by repeating steps. The trials are journalled. Where `trials.info["done"]` exists and
            is true, the study ends.
        begin: (key, state) -> (state, found): a step that runs on the device while the host does something
            else. It may take the memory of the old state. None where a step works on the host.
        finish: (found) -> trials, what is left to do on the host. `step` is both, one after the other.
        init_at: (key, hparams `[R, ...]`) -> state, `init` with other starts. None where a method has no start.
    """

    init: Callable[[Key], PyTree]
    step: Callable[[Key, PyTree], tuple[PyTree, Trials]]
    begin: Callable[[Key, PyTree], tuple[PyTree, Any]] | None = None
    finish: Callable[[Any], Trials] = lambda found: found
    init_at: Callable[[Key, HParams], PyTree] | None = None


def on_device(
    init: Callable[[Key], PyTree],
    begin: Callable[[Key, PyTree], tuple[PyTree, Any]],
    finish: Callable[[Any], Trials] = lambda found: found,
    shown: Callable[[Any], Trials] = lambda found: found,
) -> Tuner:
    """Build a tuner whose step is one compiled program.

    Args:
        init: (key) -> state.
        begin: (key, state) -> (state, found), traceable.
        finish: (found) -> trials, on the host.
        shown: (found) -> trials within a trace.
    """
    compiled = Compiled(begin)

    @wraps(compiled)
    def step(key: Key, state: PyTree) -> tuple[PyTree, Trials]:
        after, found = compiled(key, state)
        return after, shown(found) if traced(found) else finish(found)

    return Tuner(Compiled(init), step, Compiled(begin, donate=(1,)), finish)
