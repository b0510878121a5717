"""A network as two pure functions, from whichever library it comes."""

from collections.abc import Callable
from typing import Any, NamedTuple

from hypergrad.core.types import Key, Params, PyTree


class PureModel(NamedTuple):
    """A network as two pure functions; the libraries of networks look alike from here.

    Attributes:
        init: (key, inputs) -> params, or `Variables` where the network has state of its own
            (BatchNorm statistics).
        apply: (params, inputs, *, train=False, key=None) -> (outputs, new_state). `train` switches
            dropout and BatchNorm; `key` is needed for dropout. Where `init` returned `Variables`, the loss
            returns `(value, new_state)`; for a network without state `new_state` is None, and the loss
            returns its value alone.
    """

    init: Callable[[Key, PyTree], Params]
    apply: Callable[..., tuple[Any, PyTree]]


def training_switch(argument: str | None) -> Callable[[bool], dict[str, Any]]:
    """Return train -> the keywords that say so, for a switch by its name, or `"not "` and its name."""

    def keywords(train: bool) -> dict[str, Any]:
        if argument is None:
            return {}
        if argument.startswith("not "):
            return {argument.removeprefix("not "): not train}
        return {argument: train}

    return keywords
