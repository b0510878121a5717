"""Find labels `[N]` and predictions `[N, 1]`, or the other way round, that broadcast to every pair `[N, N]`."""

import math
from collections.abc import Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr, JaxprEqn

from hypergrad.core.autodiff import programs
from hypergrad.core.flow import ELEMENTWISE, NOTHING, Marks, flow

FROM_WEIGHTS, FROM_BATCH = frozenset(["weights"]), frozenset(["examples"])
"""Marks of what depends on weights, and of a batch."""

_MEANT, _ROW, _PAIRS = frozenset(["meant"]), frozenset(["row"]), frozenset(["pairs"])
_SHAPED = _MEANT | _ROW | _PAIRS

_RESHAPES = {"broadcast_in_dim", "reshape", "expand_dims"}


def averages_all_pairs(closed: ClosedJaxpr, ins: Sequence[Marks], sizes: set[int]) -> int | None:
    """Return N where a program averages or sums an `[N, N]` that it made of `[N, 1]` and `[N]` by accident.

    Told from what is meant (kernels, rankings, attention): one of the two comes from the batch alone and the
    other from the batch and the weights, the `[N, 1]` is no vector that was given an axis, and all of the
    `[N, N]` is reduced to one number at once.

    **Cost:** one visit an equation. **Limits:** conservative: pairs that are reduced an axis at a time, or
    mixed with others on the way, are not found.

    Args:
        closed: Program of a loss or an objective.
        ins: Marks of its inputs.
        sizes: Numbers of examples of its batch.
    """
    found: list[int] = []

    def visit(eqn: JaxprEqn, marks: list[Marks]) -> list[Marks] | None:
        if not eqn.outvars:  # a print has no result
            return []
        shapes, out = [_shape(v) for v in eqn.invars], _shape(eqn.outvars[0])
        name, met = eqn.primitive.name, NOTHING.union(*marks) - _SHAPED
        num = out[0] if len(out) == 2 and out[0] == out[1] else 0
        if name in _RESHAPES and len(shapes[0]) == 1 and len(out) == 2 and 1 in out:
            return [met | (_ROW if out[0] == 1 else _MEANT)]
        if name == "reduce_sum" and not out and marks[0] >= _PAIRS:
            found.append(shapes[0][0])
        elif name in ELEMENTWISE and len(eqn.outvars) == 1:
            pairs = any(m >= _PAIRS for m in marks) or _meet(num, shapes, marks)
            if num in sizes and pairs:
                return [met | _PAIRS]
            same = [m & _SHAPED for m, shape in zip(marks, shapes, strict=True) if shape == out]
            return [met | (NOTHING.union(*same) - _PAIRS)]
        elif programs(eqn):
            return None
        return [met] * len(eqn.outvars)

    flow(closed.jaxpr, ins, visit)
    return max(found, default=None)


def _meet(num: int, shapes: list[tuple[int, ...]], marks: list[Marks]) -> bool:
    """Tell whether a column and a row meet of which one is of labels and the other of predictions."""
    pairs = list(zip(marks, shapes, strict=True))
    columns = [m - _SHAPED for m, shape in pairs if shape == (num, 1) and not m >= _MEANT]
    rows = [m - _SHAPED for m, shape in pairs if shape == (1, num) and m >= _ROW]
    wanted = {FROM_BATCH, FROM_BATCH | FROM_WEIGHTS}
    return num > 1 and any({a, b} == wanted for a in columns for b in rows)


def _shape(v: Any) -> tuple[int, ...]:
    return tuple(v.aval.shape)


def num_examples(shapes: Sequence[tuple[int, ...]]) -> set[int]:
    """Return the lengths of the leading axes of a batch, but for those of one number."""
    return {shape[0] for shape in shapes if shape and math.prod(shape) > 1}
