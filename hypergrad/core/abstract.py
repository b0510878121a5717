"""Evaluate a user's function abstractly, and say in words what it returned."""

from collections.abc import Callable
from typing import Any

import jax
from jax import core

from hypergrad.core.types import PyTree


def traced(tree: PyTree) -> bool:
    """Tell whether a tree holds tracers: whether it is being compiled, not computed."""
    return any(isinstance(x, core.Tracer) for x in jax.tree.leaves(tree))


def abstract(name: str, function: Callable, *args) -> Any:
    """Evaluate a user's function abstractly; put its name before what it raises."""
    try:
        return jax.eval_shape(function, *args)
    except Exception as error:
        text = str(error).strip().splitlines()
        reason = text[0] if text else type(error).__name__
        if isinstance(error, ValueError) and reason.startswith("problem."):
            raise
        if isinstance(error, KeyError):
            reason = f"hparams or batch has no entry {reason}"
        raise ValueError(
            f"{name} failed on the given hparams: {reason} ({type(error).__name__}); "
            "expected a traceable function of its documented arguments; run it once by itself to see where"
        ) from error


def describe(value: Any) -> str:
    """Say what a value is, in a few words."""
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"an array of shape {tuple(shape)} and dtype {value.dtype}"
    if value is None:
        return "None"
    return f"{type(value).__name__} {str(value)[:60]!r}"
