"""Abstract evaluation of a user's function: shapes and dtypes only, nothing is computed."""

from collections.abc import Callable
from typing import Any

import jax
from jax import core
from jax.extend.core import ClosedJaxpr

from hypergrad.core.types import PyTree


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
) -> Any:
    """Evaluate a user's function abstractly, and put its name before the error that it raises.

    Args:
        name: Name of the function, as the user knows it.
        function: Function to evaluate.
        *args: Arguments of the function, arrays or their shapes.
        given: Arguments that the message names, "hparams" or "params".
        trace: (function, *args) -> the shapes of the function's results.

    Raises:
        ValueError: where the function fails. An error that already says what was expected stays as it is.
    """
    try:
        return trace(function, *args)
    except Exception as error:
        text = str(error).strip().splitlines()
        reason = text[0] if text else type(error).__name__
        if isinstance(error, ValueError) and ", expected " in reason:
            raise
        if isinstance(error, KeyError):
            reason = f"{given} or batch has no entry {reason}"
        raise ValueError(
            f"{name} failed on the given {given}: {reason} ({type(error).__name__}), expected a "
            "traceable function of its documented arguments; run it once by itself to see where"
        ) from error
