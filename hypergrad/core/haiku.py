"""Haiku functions as init and apply: `from_haiku`. haiku loads when it is first used."""

from collections.abc import Callable
from typing import Any

from hypergrad.core.checks import check_function, library
from hypergrad.core.network import PureModel, training_switch
from hypergrad.core.types import Key, Params, PyTree, Variables


def from_haiku(function: Callable[..., Any], *, train_argument: str | None = None) -> PureModel:
    """Adapt a function that `haiku.transform` takes.

    A dropout rate may be a hyperparameter: build the model within the loss, with a function that reads the
    rate. What derivative it then has is for `estimators.evolved` to say, or `policies.concrete`; others name
    it by a `DrawnLeafWarning`.

    Args:
        function: Function of the inputs that calls modules of haiku, not transformed.
        train_argument: Name of the function's own training switch (`"is_training"`), if it has one, with
            `"not "` before it where it has the opposite meaning.

    Returns:
        The model. The state of haiku (BatchNorm statistics) travels as carried state; it starts with that of
        the inputs that `init` is given, as haiku has it.

    Raises:
        ValueError: for what is not a function, or without haiku, which the extra `haiku` installs.
    """
    haiku = library("haiku", "haiku", "adapter")
    check_function("function", function, "lambda x: haiku.Linear(10)(x), without haiku.transform")
    transformed = haiku.transform_with_state(function)
    switch = training_switch(train_argument)

    def init(key: Key, inputs: PyTree) -> Params:
        params, state = transformed.init(key, inputs, **switch(True))
        return Variables(params, state) if state else params

    def apply(
        params: Params, inputs: PyTree, *, train: bool = False, key: Key | None = None
    ) -> tuple[Any, PyTree]:
        weights, state = params if isinstance(params, Variables) else (params, {})
        outputs, new = transformed.apply(weights, state, key, inputs, **switch(train))
        if not isinstance(params, Variables):
            return outputs, None
        return outputs, new if train else state

    return PureModel(init, apply)
