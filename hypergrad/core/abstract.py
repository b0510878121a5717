"""Abstract evaluation of a user's function: shapes and dtypes only, nothing is computed."""

from collections.abc import Callable
from typing import Any

import jax
from jax import core
from jax.extend.core import ClosedJaxpr

from hypergrad.core.mistakes import in_words
from hypergrad.core.types import HParams, PyTree


def traced(tree: PyTree) -> bool:
    """Tell whether a tree holds tracers, and so is being compiled rather than computed."""
    return any(isinstance(x, core.Tracer) for x in jax.tree.leaves(tree))


def program_of(function: Callable, *args) -> tuple[ClosedJaxpr, PyTree]:
    """Trace a function; return its program, and the shapes of its results."""
    return jax.make_jaxpr(function, return_shape=True)(*args)


def abstract(
    name: str,
    function: Callable,
    *args,
    given: str = "hparams",
    trace: Callable[..., Any] = jax.eval_shape,
    hparams: HParams = None,
    of: Callable | None = None,
) -> Any:
    """Evaluate a user's function abstractly, and say its error in words (`core.mistakes`).

    Args:
        name: Name of the function, as the user knows it.
        function: Function to evaluate.
        *args: Arguments of the function, arrays or their shapes.
        given: Arguments that the message names, "hparams" or "params".
        trace: (function, *args) -> the shapes of the function's results.
        hparams: Hyperparameters among the arguments, which the error may name.
        of: The user's own function, where `function` calls it.

    Raises:
        ValueError: where the function fails. An error that already says what was expected stays as it is.
    """
    try:
        return trace(function, *args)
    except Exception as error:
        if isinstance(error, ValueError) and ", expected " in str(error).partition("\n")[0]:
            raise
        raise ValueError(in_words(name, error, given, hparams, of or function)) from error
