"""A task's own code snippet and diagram for the report, and their checks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from hypergrad.core.abstract import abstract
from hypergrad.core.checks import describe
from hypergrad.core.types import HParams
from hypergrad.problem import Task


def check_extras(task: Task, hparams: HParams) -> None:
    """Check a task's `test`, `snippet` and `diagram`, which are otherwise first called when all is tuned.

    **Cost:** `test` is evaluated abstractly; `snippet` and `diagram` run once.

    Args:
        task: what to check; its problem fits together.
        hparams: a value of its space, to call them with.

    Raises:
        ValueError: in one line, where one of them fails or returns something else than is documented.
    """
    for name in ("test", "snippet", "diagram"):
        function = getattr(task, name)
        if function is not None and not callable(function):
            raise ValueError(
                f"task.{name} is {describe(function)}, expected a function or None; see help(Task)"
            )
    if task.test is not None:
        key = jax.eval_shape(jax.random.key, 0)
        params = abstract("problem.init", task.problem.init, key, hparams)
        scores = abstract("task.test", task.test, params, hparams)
        shape = getattr(scores, "shape", None)
        real = (jnp.floating, jnp.integer, jnp.bool_)
        if (
            shape is None
            or len(shape) != 1
            or not shape[0]
            or not any(jnp.issubdtype(scores.dtype, kind) for kind in real)
        ):
            raise ValueError(
                f"task.test returned {describe(scores)}, expected one real score an example, of shape "
                "(num_test,); return e.g. jnp.square(predictions - labels), without its mean"
            )
    if task.snippet is not None:
        check_snippet(task.snippet, hparams)
    if task.diagram is not None:
        check_diagram(task.diagram, hparams)


def check_snippet(snippet: Callable[[HParams], str], hparams: HParams) -> str:
    """Return the text of a task's `snippet`, or raise a `ValueError` in one line."""
    try:
        text = snippet(hparams)
    except Exception as error:
        lines = str(error).strip().splitlines()
        raise ValueError(
            f"task.snippet failed on the given hparams: {lines[0] if lines else ''} ({type(error).__name__}); "
            "expected a text; run it once by itself to see where"
        ) from error
    if not isinstance(text, str):
        raise ValueError(f"task.snippet returned {describe(text)}, expected a text; return one")
    return text


def check_diagram(diagram: Callable[[HParams], dict[str, Any]], hparams: HParams) -> dict[str, Any]:
    """Return the graph of a task's `diagram`, or raise a `ValueError` in one line."""
    try:
        graph = diagram(hparams)
        nodes = [[str(line) for line in node] for node in graph["nodes"]]
        edges = [[int(a), int(b)] for a, b in graph["edges"]]
    except Exception as error:
        lines = str(error).strip().splitlines()
        raise ValueError(
            f"task.diagram failed on the given hparams: {lines[0] if lines else ''} ({type(error).__name__}); "
            'expected {"nodes": [[text, ...], ...], "edges": [[0, 1], ...]}; run it once by itself to see where'
        ) from error
    if not 1 <= len(nodes) <= MAX_NODES or any(not 0 <= i < len(nodes) for e in edges for i in e):
        raise ValueError(
            f"task.diagram returned {len(nodes)} nodes and the edges {str(edges)[:80]}, expected 1 to "
            f"{MAX_NODES} nodes and edges between them by their number from 0; leave out what is not there"
        )
    return {"nodes": nodes, "edges": edges}


MAX_NODES = 40
"""Most nodes of a task's diagram."""
