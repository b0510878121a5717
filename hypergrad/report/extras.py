"""What a task adds to its report: test scores, a code snippet, a diagram of its architecture, notes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr

from hypergrad.core.abstract import abstract, program_of
from hypergrad.core.checks import describe
from hypergrad.core.mistakes import place_of
from hypergrad.core.types import HParams
from hypergrad.problem import Task
from hypergrad.report.diagrams import MAX_NODES, is_graph
from hypergrad.report.notes import is_notes


def check_extras(task: Task, hparams: HParams) -> ClosedJaxpr | None:
    """Check a task's `test`, `snippet`, `diagram` and `notes`, otherwise first called after tuning.

    **Cost:** `test` is evaluated abstractly; `snippet` and `diagram` run once.

    Args:
        task: Task whose problem has been checked.
        hparams: Value of its space, to call the functions with.

    Returns:
        The program of `test`, None without a test set.

    Raises:
        ValueError: If a function fails, or returns something other than documented.
    """
    for name in ("test", "snippet", "diagram"):
        function = getattr(task, name)
        if function is not None and not callable(function):
            got = describe(function)
            raise ValueError(f"task.{name} is {got}, expected a function or None; see help(Task)")
    program = None
    if task.test is not None:
        key = jax.eval_shape(jax.random.key, 0)
        params = abstract("problem.init", task.problem.init, key, hparams)
        program, scores = abstract("task.test", task.test, params, hparams, trace=program_of)
        if not _is_real_vector(scores):
            raise ValueError(
                f"task.test returned {describe(scores)}, expected one real score an example, of shape "
                "(num_test,); return e.g. jnp.square(predictions - labels), without its mean"
            )
    if task.snippet is not None:
        check_snippet(task.snippet, hparams)
    if task.diagram is not None:
        check_diagram(task.diagram, hparams)
    if task.notes is not None and not is_notes(task.notes):
        raise ValueError(
            f"task.notes is {describe(task.notes)}, expected tables by their titles; return e.g. "
            "{'Columns': [{'name': 'x', 'missing': 0}]}"
        )
    return program


def _is_real_vector(scores: Any) -> bool:
    if not hasattr(scores, "dtype") or len(scores.shape) != 1 or not scores.shape[0]:
        return False
    return any(jnp.issubdtype(scores.dtype, kind) for kind in (jnp.floating, jnp.integer, bool))


def check_snippet(snippet: Callable[[HParams], str], hparams: HParams) -> str:
    """Return the text of a task's `snippet`.

    Raises:
        ValueError: If the function fails, or returns something other than a text.
    """
    text = _called("task.snippet", snippet, hparams, "a text")
    if not isinstance(text, str):
        raise ValueError(f"task.snippet returned {describe(text)}, expected a text; return one")
    return text


def check_diagram(diagram: Callable[[HParams], dict[str, Any]], hparams: HParams) -> dict[str, Any]:
    """Return the graph of a task's `diagram`.

    Raises:
        ValueError: If the function fails, or returns something other than a graph.
    """
    wanted = '{"nodes": [[text, ...], ...], "edges": [[0, 1], ...]}'
    graph = _called("task.diagram", lambda h: _graph(diagram(h)), hparams, wanted)
    if not is_graph(**graph):
        found = f"{len(graph['nodes'])} nodes and the edges {str(graph['edges'])[:80]}"
        raise ValueError(
            f"task.diagram returned {found}, expected 1 to {MAX_NODES} nodes and edges between them by their "
            "number from 0; leave out what is not there"
        )
    return graph


def _graph(found: dict[str, Any]) -> dict[str, Any]:
    """Return nodes as lines of text, and edges as pairs of whole numbers."""
    nodes = [[str(line) for line in node] for node in found["nodes"]]
    return {"nodes": nodes, "edges": [[int(start), int(end)] for start, end in found["edges"]]}


def _called(name: str, function: Callable, hparams: HParams, wanted: str) -> Any:
    """Call a function of a task, and put its name before the error that it raises."""
    try:
        return function(hparams)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        place = place_of(error)
        at = f" in {place.text}" if place else ""
        raise ValueError(
            f"{name} failed on the given hparams: {reason} ({type(error).__name__}){at}, expected {wanted}; "
            "mend that line"
        ) from error
