"""How far the indices of a traced program reach, and which of them lie past the array that they index."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import core
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from hypergrad.core.autodiff import programs
from hypergrad.core.intervals import (
    SOURCES,
    Columns,
    Numbers,
    Span,
    add_spans,
    bounded_span,
    divide_span,
    drawn_span,
    every,
    exact,
    how_many,
    is_random,
    multiply_spans,
    negate_span,
    remainder_span,
    span_of_data,
    without_order,
)

MAX_TABLE_READ = 10**7
"""Most whole numbers of a closed-over array that are read for their smallest and largest."""


class Past(NamedTuple):
    """An index past the end of an array.

    Attributes:
        index: Its largest value.
        size: Size of the array along that axis.
        shape: Shape of the array.
        kinds: What the index depends on, such as "step" or "data".
        read: Identity of the equation that reads the array.
    """

    index: int
    size: int
    shape: tuple[int, ...]
    kinds: set[str]
    read: int


class Notes(NamedTuple):
    """What is seen on the way.

    Attributes:
        past: Indices past an array.
        guards: Numbers that spans are compared with, which may mask what is past.
        kept: Identities of the scatters that drop nothing.
    """

    past: list[Past]
    guards: set[int]
    kept: set[int]


def follow_spans(closed: ClosedJaxpr, ins: Sequence[Span | None], notes: Notes) -> list[Numbers]:
    """Follow spans of whole numbers through a program, and find the indices that lie past an array.

    jax takes the last row for an index that is too large, and says nothing. Found are gathers of the form
    `array[index]` and dynamic slices, not those whose mode the user gave. Only what is met for certain is
    noted: a span of which that is not known is dropped; see `core.masks.unmasked`.

    **Cost:** one visit an equation; nothing is compiled or run. **Limits:** blind within loops and branches,
    and to indices of other arithmetic than sums, products and remainders of steps, ranges and draws.

    Args:
        closed: Program.
        ins: Spans of its inputs.
        notes: What is seen in it joins them.

    Returns:
        The spans of its results.
    """
    return _follow(closed.jaxpr, list(map(_of_array, closed.consts)), list(ins), notes)


def _of_array(x: Any) -> Numbers:
    """Return the span of a concrete array of whole numbers."""
    if (
        isinstance(x, core.Tracer)
        or not hasattr(x, "dtype")
        or not 0 < np.size(x) <= MAX_TABLE_READ
    ):
        return None
    if not jnp.issubdtype(x.dtype, jnp.integer) and x.dtype != bool:
        return None
    if not getattr(x, "is_fully_addressable", True):
        return None
    return span_of_data(np.asarray(x))


def _follow(jaxpr: Jaxpr, consts: list[Numbers], ins: list[Numbers], notes: Notes) -> list[Numbers]:
    state: dict[Any, Numbers] = dict(zip(jaxpr.constvars, consts, strict=True))
    state.update(zip(jaxpr.invars, ins, strict=True))

    def of(v: Any) -> Numbers:
        return _of_array(np.asarray(v.val)) if isinstance(v, Literal) else state.get(v)

    for eqn in jaxpr.eqns:
        given = [of(v) for v in eqn.invars]
        state.update(zip(eqn.outvars, _through(eqn, given, notes), strict=True))
    return [of(v) for v in jaxpr.outvars]


def _through(eqn: JaxprEqn, given: list[Numbers], notes: Notes) -> list[Numbers]:
    """Return the spans of the results of one equation."""
    name, inner = eqn.primitive.name, [p.jaxpr for p in programs(eqn)]
    if len(inner) == 1 and len(inner[0].invars) == len(given) and name not in ("scan", "while"):
        closed = eqn.params.get("jaxpr") or eqn.params.get("call_jaxpr")
        consts = list(map(_of_array, getattr(closed, "consts", [])))
        if len(inner[0].constvars) == len(consts):
            outs = _follow(inner[0], consts, given, notes)
            if len(outs) == len(eqn.outvars):
                return outs
    if name == "sort":
        random = is_random(given[0])
        return [
            every(x.low, x.high, "shuffled", next(SOURCES))._replace(met=x.met)
            if random and isinstance(x, Span)
            else None
            for x in given
        ]
    if len(eqn.outvars) != 1 or name not in RULES:
        return [None] * len(eqn.outvars)
    out = RULES[name](eqn, given, notes)
    return [_within(out, eqn) if isinstance(out, Span) else out]


def _within(span: Span, eqn: JaxprEqn) -> Span | None:
    """Return a span that its dtype holds; None where it overflows."""
    dtype = jnp.result_type(eqn.outvars[0].aval)
    if not jnp.issubdtype(dtype, jnp.integer):
        return span if jnp.issubdtype(dtype, jnp.bool_) else None
    least, most = _ends(dtype)
    if least <= span.low and span.high <= most:
        return span
    if span.low == span.high and least == 0:
        return Span(span.low % (most + 1), span.low % (most + 1))
    return drawn_span(0, most) if is_random(span) and least == 0 else None


def _ends(dtype: Any) -> tuple[int, int]:
    """Return the smallest and largest number of a dtype."""
    about = np.iinfo(np.dtype(dtype))
    return int(about.min), int(about.max)


def _shape(v: Any) -> tuple[int, ...]:
    return tuple(v.aval.shape)


def _compared(name: str) -> Callable[[JaxprEqn, list[Numbers], "Notes"], Span | None]:
    def compared(eqn: JaxprEqn, given: list[Numbers], notes: Notes) -> Span | None:
        """Return what a comparison gives where it gives the same for all numbers."""
        a, b = given
        if not isinstance(a, Span) or not isinstance(b, Span):
            return None
        less, most = a.high < b.low, a.high <= b.low
        more, least = a.low > b.high, a.low >= b.high
        same = a.low == a.high == b.low == b.high
        yes, no = {
            "lt": (less, least), "le": (most, more), "gt": (more, most), "ge": (least, less),
            "eq": (same, less or more), "ne": (less or more, same),
        }[name]  # fmt: skip
        if yes or no:
            return Span(1, 1) if yes else Span(0, 0)
        notes.guards.update(x for x in (exact(a), exact(b)) if x is not None)
        return None

    return compared


def _and(a: Numbers, b: Numbers) -> Span | None:
    parts = [x for x in (a, b) if isinstance(x, Span) and x.low == x.high]
    if any(x.low == 0 for x in parts):
        return Span(0, 0)
    return Span(1, 1) if len(parts) == 2 and all(x.low == 1 for x in parts) else None


def _selected(eqn: JaxprEqn, given: list[Numbers], notes: Notes) -> Numbers:
    which = exact(given[0])
    return None if which is None else given[1 + which]


def _ranged(eqn: JaxprEqn, given: list[Numbers], notes: Notes) -> Numbers:
    size = eqn.params["shape"][eqn.params["dimension"]]
    return every(0, size - 1, "place", next(SOURCES))


def _bits(eqn: JaxprEqn, given: list[Numbers], notes: Notes) -> Numbers:
    return drawn_span(0, _ends(jnp.result_type(eqn.outvars[0].aval))[1])


def _joined(eqn: JaxprEqn, given: list[Numbers], notes: Notes) -> Numbers:
    """Return the columns of an array of indices."""
    last = eqn.params["dimension"] == len(_shape(eqn.outvars[0])) - 1
    single = all(_shape(v)[-1:] == (1,) for v in eqn.invars)
    spans = tuple(x if isinstance(x, Span) else None for x in given)
    return Columns(spans) if last and single else None


def _sliced(eqn: JaxprEqn, given: list[Numbers], notes: Notes) -> Numbers:
    x = given[0]
    whole = _shape(eqn.invars[0]) == _shape(eqn.outvars[0])
    if whole or not isinstance(x, Span):
        return x if whole else None
    if x.array is not None:  # a part of the data
        ends = eqn.params["limit_indices"]
        parts = zip(eqn.params["start_indices"], ends, eqn.params["strides"] or ends, strict=True)
        stride = eqn.params["strides"] is not None
        return span_of_data(x.array[tuple(slice(a, b, c if stride else 1) for a, b, c in parts)])
    return x if exact(x) is not None or is_random(x) else None


def _taken(eqn: JaxprEqn, given: list[Numbers], notes: Notes) -> Numbers:
    """Check a gather, and return the span of what it takes."""
    how, mode, fill = (eqn.params.get(n) for n in ("dimension_numbers", "mode", "fill_value"))
    columns = given[1].spans if isinstance(given[1], Columns) else (given[1],)
    if how is None or len(columns) != len(how.start_index_map):
        return None
    modes = jax.lax.GatherScatterMode
    filled = mode == modes.FILL_OR_DROP and fill is not None and math.isnan(fill)
    silent = filled or mode == modes.PROMISE_IN_BOUNDS
    sizes, shape = eqn.params["slice_sizes"], _shape(eqn.invars[0])
    if silent:
        _check(eqn, columns, how.start_index_map, sizes, notes)
    return _looked_up(given[0], columns, how.start_index_map, shape, sizes)


def _cut(eqn: JaxprEqn, given: list[Numbers], notes: Notes) -> Numbers:
    """Check a dynamic slice, and return the span of what it takes."""
    shape, sizes = _shape(eqn.invars[0]), eqn.params["slice_sizes"]
    _check(eqn, given[1:], range(len(shape)), sizes, notes)
    return _looked_up(given[0], given[1:], range(len(shape)), shape, sizes)


def _scattered(eqn: JaxprEqn, given: list[Numbers], notes: Notes) -> Numbers:
    """Note a scatter that drops nothing, as far as is known."""
    axes = eqn.params["dimension_numbers"].scatter_dims_to_operand_dims
    sizes = [_shape(eqn.invars[0])[axis] for axis in axes]
    columns = given[1].spans if isinstance(given[1], Columns) else (given[1],)
    if len(columns) == len(axes) and all(
        isinstance(column, Span) and column.high < size
        for column, size in zip(columns, sizes, strict=True)
    ):
        notes.kept.add(id(eqn))
    return None


def _check(
    eqn: JaxprEqn,
    columns: Sequence[Numbers],
    axes: Sequence[int],
    sizes: Sequence[int],
    notes: Notes,
) -> None:
    """Note the indices that lie past an array."""
    shape = _shape(eqn.invars[0])
    for column, axis in zip(columns, axes, strict=True):
        if isinstance(column, Span) and column.high > shape[axis] - sizes[axis]:
            index, kinds = column.high + sizes[axis] - 1, {kind for kind, _ in column.up}
            notes.past.append(Past(index, shape[axis], shape, kinds, id(eqn)))


def _looked_up(
    values: Numbers,
    columns: Sequence[Numbers],
    axes: Sequence[int],
    shape: tuple[int, ...],
    sizes: Sequence[int],
) -> Numbers:
    """Return the span of what is taken of an array."""
    if not isinstance(values, Span):
        return None
    met = [
        _starts(column, shape[axis] - sizes[axis])
        for column, axis in zip(columns, axes, strict=True)
    ]
    if values.array is not None and len(met) == 1 and met[0] is not None and len(met[0]):
        rows = _rows(values.array, met[0], axes[0], sizes[axes[0]])
        return span_of_data(rows)._replace(array=None)
    every_one = all(
        shape[axis] == sizes[axis]
        or (starts is not None and len(starts) == shape[axis] - sizes[axis] + 1)
        for starts, axis in zip(met, axes, strict=True)
    )
    ends = np.array([values.low, values.high])
    return span_of_data(ends)._replace(met=None, array=None) if every_one else None


def _starts(column: Numbers, last: int) -> np.ndarray | None:
    """Return the distinct indices up to the last one that a column of indices takes for certain."""
    if not isinstance(column, Span) or column.met is None or how_many(column.met) > MAX_TABLE_READ:
        return None
    return np.unique(np.clip(column.met, 0, last))


def _rows(array: np.ndarray, starts: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Return what slices of a size take of an array along an axis."""
    rows = np.unique(starts[:, None] + np.arange(size)) if size > 1 else starts
    return np.take(array, rows, axis)


def _pair(rule: Callable[[Numbers, Numbers], Numbers]) -> Callable[..., Numbers]:
    return lambda eqn, given, notes: rule(given[0], given[1])


def _same(eqn: JaxprEqn, given: list[Numbers], notes: Notes) -> Numbers:
    """Return the numbers of the operand, which have another form now."""
    alike = eqn.primitive.name in ("convert_element_type", "copy", "stop_gradient")
    x = given[0]
    if alike or not isinstance(x, Span):
        return x
    return (without_order(x) if eqn.primitive.name == "rev" else x)._replace(array=None)


_SHAPES = "broadcast_in_dim reshape squeeze expand_dims copy stop_gradient transpose rev"

RULES: dict[str, Callable[..., Numbers]] = {
    **dict.fromkeys([*_SHAPES.split(), "convert_element_type"], _same),
    **{name: _compared(name) for name in ("lt", "le", "gt", "ge", "eq", "ne")},
    "add": _pair(add_spans),
    "sub": _pair(lambda a, b: add_spans(a, negate_span(b))),
    "mul": _pair(multiply_spans),
    "div": _pair(divide_span),
    "rem": _pair(remainder_span),
    "max": _pair(bounded_span(max)),
    "min": _pair(bounded_span(min)),
    "and": _pair(_and),
    "select_n": _selected,
    "iota": _ranged,
    "random_bits": _bits,
    "concatenate": _joined,
    "slice": _sliced,
    "gather": _taken,
    "dynamic_slice": _cut,
    "scatter": _scattered,
    "scatter-add": _scattered,
}
"""(equation, spans of its operands, list of what lies past an array) -> span of its result."""
