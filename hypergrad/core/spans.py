"""How far the indices of a traced program reach, and which of them lie past the array that they index."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import core
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from hypergrad.core.autodiff import programs

MAX_TABLE_READ = 10**7
"""Most whole numbers of a closed-over array that are read for their smallest and largest."""


class Span(NamedTuple):
    """Whole numbers from `low` to `high`, of which both are met.

    Attributes:
        low, high: Smallest and largest number.
        up: What the numbers grow with: the step, the place in a range, a draw, an array of data.
        down: What they fall with; nothing is in both.
    """

    low: int
    high: int
    up: frozenset = frozenset()
    down: frozenset = frozenset()


class Past(NamedTuple):
    """An index past the end of an array, its largest value, and the array's size along that axis."""

    index: int
    size: int
    shape: tuple[int, ...]


class Notes(NamedTuple):
    """What is past an array, and the numbers that spans are compared with, which may mask it."""

    past: list[Past]
    guards: set[int]


class Columns(NamedTuple):
    """The spans of the columns of an array of indices; None where one is not known."""

    spans: tuple[Span | None, ...]


_Known: TypeAlias = Span | Columns | None

_SOURCES = itertools.count()


def follow_spans(
    closed: ClosedJaxpr, ins: Sequence[Span | None]
) -> tuple[list[_Known], list[Past]]:
    """Follow spans of whole numbers through a program, and find the indices that lie past an array.

    jax takes the last row for an index that is too large, and says nothing. Found are gathers of the form
    `array[index]` and dynamic slices, not those whose mode the user gave. Only what is met for certain is
    reported: a span of which that is not known is dropped. An index that the program compares with the size of
    the array is taken to be masked.

    **Cost:** one visit an equation; nothing is compiled or run. **Limits:** blind within loops and branches,
    and to indices of other arithmetic than sums, products and remainders of steps, ranges and draws.

    Args:
        closed: Program.
        ins: Spans of its inputs.

    Returns:
        The spans of its results, and what lies past an array.
    """
    notes = Notes([], set())
    outs = _follow(closed.jaxpr, list(map(_of_array, closed.consts)), list(ins), notes)
    masked = {size + d for size in notes.guards for d in (0, 1)}
    return outs, [one for one in notes.past if one.size not in masked]


def _of_array(x: Any) -> _Known:
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
    numbers = np.asarray(x)
    low, high = int(numbers.min()), int(numbers.max())
    return Span(low, high) if low == high else _fresh(low, high, "data")


def _fresh(low: int, high: int, kind: str) -> Span:
    return Span(low, high, frozenset([(kind, next(_SOURCES))]))


def _follow(jaxpr: Jaxpr, consts: list[_Known], ins: list[_Known], notes: Notes) -> list[_Known]:
    state: dict[Any, _Known] = dict(zip(jaxpr.constvars, consts, strict=True))
    state.update(zip(jaxpr.invars, ins, strict=True))

    def of(v: Any) -> _Known:
        return _of_array(np.asarray(v.val)) if isinstance(v, Literal) else state.get(v)

    for eqn in jaxpr.eqns:
        given = [of(v) for v in eqn.invars]
        state.update(zip(eqn.outvars, _through(eqn, given, notes), strict=True))
    return [of(v) for v in jaxpr.outvars]


def _through(eqn: JaxprEqn, given: list[_Known], notes: Notes) -> list[_Known]:
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
        random = _random(given[0])
        return [
            _fresh(x.low, x.high, "random") if random and isinstance(x, Span) else None
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
    return _fresh(0, most, "random") if _random(span) and least == 0 else None


def _ends(dtype: Any) -> tuple[int, int]:
    """Return the smallest and largest number of a dtype."""
    about = np.iinfo(np.dtype(dtype))
    return int(about.min), int(about.max)


def _shape(v: Any) -> tuple[int, ...]:
    return tuple(v.aval.shape)


def _exact(x: _Known) -> int | None:
    """Return the number that a span of one number holds."""
    return x.low if isinstance(x, Span) and x.low == x.high else None


def _random(span: _Known) -> bool:
    """Tell whether numbers are drawn, each by itself or in a random order."""
    if not isinstance(span, Span) or span.down:
        return False
    return bool(span.up) and all(kind == "random" for kind, _ in span.up)


def _plus(a: _Known, b: _Known) -> Span | None:
    if not isinstance(a, Span) or not isinstance(b, Span):
        return None
    up, down = a.up | b.up, a.down | b.down
    return None if up & down else Span(a.low + b.low, a.high + b.high, up, down)


def _minus(a: _Known) -> Span | None:
    return Span(-a.high, -a.low, a.down, a.up) if isinstance(a, Span) else None


def _times(a: _Known, b: _Known) -> Span | None:
    if not isinstance(a, Span) or not isinstance(b, Span):
        return None
    if _exact(a) is not None:
        a, b = b, a
    if _exact(b) is not None and b.low < 0:
        a, b = Span(-a.high, -a.low, a.down, a.up), Span(-b.low, -b.low)
    positive = b.low >= 0 and (a.low >= 0 or _exact(b) is not None)
    if not positive or (a.up | b.up) & (a.down | b.down):
        return None
    return Span(a.low * b.low, a.high * b.high, a.up | b.up, a.down | b.down)


def _divided(a: _Known, b: _Known) -> Span | None:
    by = _exact(b) or 0
    if not isinstance(a, Span) or by <= 0 or a.low < 0:
        return None
    return a._replace(low=a.low // by, high=a.high // by)


def _rest(a: _Known, b: _Known) -> Span | None:
    by = _exact(b) or 0
    if not isinstance(a, Span) or by <= 0 or a.low < 0:
        return None
    if _exact(a) is not None:
        return Span(a.low % by, a.low % by)
    if a.high < by:
        return a
    return _fresh(0, by - 1, "random") if _random(a) else None


def _bounded(pick: Callable[[int, int], int]) -> Callable[[_Known, _Known], Span | None]:
    def bounded(a: _Known, b: _Known) -> Span | None:
        if not isinstance(a, Span) or not isinstance(b, Span):
            return None
        if _exact(a) is None and _exact(b) is None:
            return None
        low, high = pick(a.low, b.low), pick(a.high, b.high)
        return Span(low, high, *((a.up | b.up, a.down | b.down) if low < high else ()))

    return bounded


def _compared(name: str) -> Callable[[JaxprEqn, list[_Known], "Notes"], Span | None]:
    def compared(eqn: JaxprEqn, given: list[_Known], notes: Notes) -> Span | None:
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
        notes.guards.update(x for x in (_exact(a), _exact(b)) if x is not None)
        return None

    return compared


def _and(a: _Known, b: _Known) -> Span | None:
    parts = [x for x in (a, b) if isinstance(x, Span) and x.low == x.high]
    if any(x.low == 0 for x in parts):
        return Span(0, 0)
    return Span(1, 1) if len(parts) == 2 and all(x.low == 1 for x in parts) else None


def _selected(eqn: JaxprEqn, given: list[_Known], notes: Notes) -> _Known:
    which = _exact(given[0])
    return None if which is None else given[1 + which]


def _ranged(eqn: JaxprEqn, given: list[_Known], notes: Notes) -> _Known:
    size = eqn.params["shape"][eqn.params["dimension"]]
    return _fresh(0, size - 1, "place") if size > 1 else Span(0, 0)


def _bits(eqn: JaxprEqn, given: list[_Known], notes: Notes) -> _Known:
    return _fresh(0, _ends(jnp.result_type(eqn.outvars[0].aval))[1], "random")


def _joined(eqn: JaxprEqn, given: list[_Known], notes: Notes) -> _Known:
    """Return the columns of an array of indices."""
    last = eqn.params["dimension"] == len(_shape(eqn.outvars[0])) - 1
    single = all(_shape(v)[-1:] == (1,) for v in eqn.invars)
    spans = tuple(x if isinstance(x, Span) else None for x in given)
    return Columns(spans) if last and single else None


def _sliced(eqn: JaxprEqn, given: list[_Known], notes: Notes) -> _Known:
    whole = _shape(eqn.invars[0]) == _shape(eqn.outvars[0])
    return given[0] if whole or _exact(given[0]) is not None or _random(given[0]) else None


def _taken(eqn: JaxprEqn, given: list[_Known], notes: Notes) -> _Known:
    """Check a gather, and return the span of what it takes."""
    how, mode, fill = (eqn.params.get(n) for n in ("dimension_numbers", "mode", "fill_value"))
    columns = given[1].spans if isinstance(given[1], Columns) else (given[1],)
    if how is None or len(columns) != len(how.start_index_map):
        return None
    modes = jax.lax.GatherScatterMode
    filled = mode == modes.FILL_OR_DROP and fill is not None and math.isnan(fill)
    silent = filled or mode == modes.PROMISE_IN_BOUNDS
    sizes, shape = eqn.params["slice_sizes"], _shape(eqn.invars[0])
    return _looked_up(
        given[0], columns, how.start_index_map, shape, sizes, notes if silent else None
    )


def _cut(eqn: JaxprEqn, given: list[_Known], notes: Notes) -> _Known:
    """Check a dynamic slice, and return the span of what it takes."""
    shape, sizes = _shape(eqn.invars[0]), eqn.params["slice_sizes"]
    return _looked_up(given[0], given[1:], range(len(shape)), shape, sizes, notes)


def _looked_up(
    values: _Known,
    columns: Sequence[_Known],
    axes: Sequence[int],
    shape: tuple[int, ...],
    sizes: Sequence[int],
    notes: Notes | None,
) -> _Known:
    whole = True
    for column, axis in zip(columns, axes, strict=True):
        last = shape[axis] - sizes[axis]
        if notes is not None and isinstance(column, Span) and column.high > last:
            notes.past.append(Past(column.high + sizes[axis] - 1, shape[axis], shape))
        met = isinstance(column, Span) and column.low <= 0 and column.high >= last
        whole = whole and (met or last == 0)
    return _fresh(values.low, values.high, "data") if whole and isinstance(values, Span) else None


def _pair(rule: Callable[[_Known, _Known], _Known]) -> Callable[..., _Known]:
    return lambda eqn, given, notes: rule(given[0], given[1])


def _same(eqn: JaxprEqn, given: list[_Known], notes: Notes) -> _Known:
    return given[0]


_SHAPES = "broadcast_in_dim reshape squeeze expand_dims copy stop_gradient transpose rev"

RULES: dict[str, Callable[..., _Known]] = {
    **dict.fromkeys([*_SHAPES.split(), "convert_element_type"], _same),
    **{name: _compared(name) for name in ("lt", "le", "gt", "ge", "eq", "ne")},
    "add": _pair(_plus),
    "sub": _pair(lambda a, b: _plus(a, _minus(b))),
    "mul": _pair(_times),
    "div": _pair(_divided),
    "rem": _pair(_rest),
    "max": _pair(_bounded(max)),
    "min": _pair(_bounded(min)),
    "and": _pair(_and),
    "select_n": _selected,
    "iota": _ranged,
    "random_bits": _bits,
    "concatenate": _joined,
    "slice": _sliced,
    "gather": _taken,
    "dynamic_slice": _cut,
}
"""(equation, spans of its operands, list of what lies past an array) -> span of its result."""
