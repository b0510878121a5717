"""Follow values through a traced program: what reaches what, and whether two programs are the same."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import core
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from hypergrad.core.autodiff import programs, scan_counts
from hypergrad.core.types import Array

Marks: TypeAlias = frozenset
"""What a value depends on."""

Visit: TypeAlias = Callable[[JaxprEqn, list[Marks]], list[Marks] | None]
"""(equation, marks of its operands) -> marks of its results, or None for the union of those of its operands."""

NOTHING: Marks = frozenset()

ALIGNED, MIXED = frozenset(["aligned"]), frozenset(["mixed"])
"""Marks of what depends on an array element by element, and in another way."""

_POINTWISE = """
abs add add_any and clamp convert_element_type copy cos cosh div eq erf erfc erf_inv exp exp2 expm1 ge gt
integer_pow is_finite le log log1p logistic lt max min mul ne neg not or pow rsqrt select_n sign sin sinh
sqrt square stop_gradient sub tan tanh
"""

ELEMENTWISE = frozenset(_POINTWISE.split())
"""Primitives that work element by element, where all their operands have one shape."""

TABLE_SIZE = 1024
"""Most numbers of a constant that counts as a table of settings rather than data."""


def flow(jaxpr: Jaxpr, ins: Sequence[Marks], visit: Visit, consts: Marks = NOTHING) -> list[Marks]:
    """Carry marks from the inputs of a program to its outputs, also through loops, branches and calls.

    **Cost:** one visit an equation, some more within loops; nothing is traced or run. **Limits:**
    conservative: a result depends on every operand unless `visit` says otherwise.

    Args:
        jaxpr: Program to follow.
        ins: Marks of each of its inputs.
        visit: What an equation does; it is asked first for those that hold programs, too, and may be asked
            several times within a loop.
        consts: Marks of the arrays that the program closes over, but for those of at most `TABLE_SIZE` numbers.

    Returns:
        Marks of each output.
    """
    state: dict[Any, Marks] = dict(zip(jaxpr.invars, ins, strict=True))
    for v in jaxpr.constvars:
        aval: Any = v.aval
        state[v] = consts if math.prod(aval.shape) > TABLE_SIZE else NOTHING

    def of(v: Any) -> Marks:
        return NOTHING if isinstance(v, Literal) else state.get(v, NOTHING)

    for eqn in jaxpr.eqns:
        marks = [of(v) for v in eqn.invars]
        outs = visit(eqn, marks)
        if outs is None:
            outs = _through(eqn, marks, visit, consts)
        state.update(zip(eqn.outvars, outs, strict=True))
    return [of(v) for v in jaxpr.outvars]


def _through(eqn: JaxprEqn, marks: list[Marks], visit: Visit, closed: Marks) -> list[Marks]:
    """Return the marks of the results of one equation."""
    inner, name = [p.jaxpr for p in programs(eqn)], eqn.primitive.name
    if name == "scan":
        return _loop(inner[0], marks, eqn.params, visit, closed)
    if name == "while":
        num_cond, num_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        test, body = eqn.params["cond_jaxpr"].jaxpr, eqn.params["body_jaxpr"].jaxpr
        consts, carry = marks[num_cond : num_cond + num_body], marks[num_cond + num_body :]
        while True:
            stops = flow(test, marks[:num_cond] + carry, visit, closed)[0]
            outs = flow(body, consts + carry, visit, closed)
            grown = [a | b | stops for a, b in zip(carry, outs, strict=True)]
            if grown == carry:
                return grown
            carry = grown
    if name == "cond":
        each = [flow(branch, marks[1:], visit, closed) for branch in inner]
        return [marks[0].union(*outs) for outs in zip(*each, strict=True)]
    if len(inner) == 1 and len(inner[0].invars) == len(marks):
        outs = flow(inner[0], marks, visit, closed)
        if len(outs) == len(eqn.outvars):
            return outs
    return [NOTHING.union(*marks)] * len(eqn.outvars)


def _loop(
    body: Jaxpr, marks: list[Marks], params: dict, visit: Visit, closed: Marks
) -> list[Marks]:
    """Return the marks of the results of a scan, whose carry collects what any step brings to it."""
    num_consts, num_carry = scan_counts(params)
    consts, carry = marks[:num_consts], marks[num_consts : num_consts + num_carry]
    while True:
        outs = flow(body, consts + carry + marks[num_consts + num_carry :], visit, closed)
        grown = [a | b for a, b in zip(carry, outs[:num_carry], strict=True)]
        if grown == carry:
            return grown + outs[num_carry:]
        carry = grown


def taken_for_numbers(closed: ClosedJaxpr, ins: Sequence[Marks]) -> Marks:
    """Return the marks of whole numbers that a program turns into real ones, as it does not with an index."""
    found: set[Any] = set()

    def visit(eqn: JaxprEqn, marks: list[Marks]) -> list[Marks] | None:
        name = eqn.primitive.name
        if name in ("eq", "ne", "lt", "le", "gt", "ge"):
            return [NOTHING] * len(eqn.outvars)
        if name in ("gather", "dynamic_slice", "select_n"):
            return [NOTHING if name == "select_n" else marks[0]] * len(eqn.outvars)
        if name == "convert_element_type":
            before, after = (jnp.result_type(v.aval) for v in (eqn.invars[0], eqn.outvars[0]))
            if np.issubdtype(before, np.integer) and jnp.issubdtype(after, np.inexact):
                found.update(marks[0])
        return None

    flow(closed.jaxpr, ins, visit)
    return frozenset(found)


def read_by_schedule(closed: ClosedJaxpr, ins: Sequence[Marks]) -> Marks:
    """Return the marks of arrays that a program reads as `hg.schedule` does: at min(count, length − 1)."""
    found: set[Any] = set()

    def visit(eqn: JaxprEqn, marks: list[Marks]) -> list[Marks] | None:
        name = eqn.primitive.name
        last: Any = eqn.invars[-1] if eqn.invars else None
        if name == "min" and isinstance(last, Literal) and not np.shape(last.val):
            return [frozenset([("at most", float(last.val))])]
        if name in ("gather", "dynamic_slice"):
            aval: Any = eqn.invars[0].aval
            shape = aval.shape
            if shape and ("at most", shape[0] - 1.0) in NOTHING.union(*marks[1:]):
                found.update(marks[0])
            return [marks[0]]
        return None

    flow(closed.jaxpr, ins, visit)
    return frozenset(found)


def elementwise(function: Callable, x: Array | jax.ShapeDtypeStruct, *args) -> list[bool]:
    """Tell, for each output of `function`, whether its element j depends on element j of `x` alone.

    Then its Jacobian is diagonal, and one product with ones gives all of it.

    **Cost:** one trace. **Limits:** conservative: a primitive that is not in `ELEMENTWISE`, a loop and a choice
    count as mixing.

    Args:
        function: (x, *args) -> a list of arrays.
        x: Where; only shape and dtype matter.
        *args: Further arguments of any kind of array.

    Returns:
        One boolean an output; false also where an output does not depend on `x`.
    """

    def visit(eqn: JaxprEqn, marks: list[Marks]) -> list[Marks] | None:
        met = NOTHING.union(*marks)
        calls = programs(eqn) and eqn.primitive.name not in ("scan", "while", "cond")
        if not met or calls:
            return None
        read = [v for v, mark in zip(eqn.invars, marks, strict=True) if mark]
        shapes = {jnp.shape(v.aval) for v in [*read, *eqn.outvars]}
        pointwise = eqn.primitive.name in ELEMENTWISE and len(shapes) == 1
        return [met if pointwise else met | MIXED] * len(eqn.outvars)

    jaxpr = jax.make_jaxpr(function)(x, *args).jaxpr
    outs = flow(jaxpr, [ALIGNED] + [NOTHING] * (len(jaxpr.invars) - 1), visit)
    pairs: Any = zip(outs, jaxpr.outvars, strict=True)
    return [marks == ALIGNED and v.aval.shape == x.shape for marks, v in pairs]


def constants(closed: ClosedJaxpr) -> Iterator[Any]:
    """Go through the arrays that a program and those within it hold."""
    yield from closed.consts
    for eqn in closed.jaxpr.eqns:
        yield from (v.val for v in eqn.invars if isinstance(v, Literal) and np.ndim(v.val))
        for inner in programs(eqn):
            yield from constants(inner)


def same_program(a: ClosedJaxpr, b: ClosedJaxpr) -> bool:
    """Tell whether two traces of one function gave the same program: operations, numbers and arrays in it.

    **Cost:** arrays that are one object are not read. **Limits:** numbers that are still traced count as the
    same.
    """
    if len(a.consts) != len(b.consts) or not all(map(same_bits, a.consts, b.consts)):
        return False
    if len(a.jaxpr.eqns) != len(b.jaxpr.eqns):
        return False
    if not _same_literals(a.jaxpr.outvars, b.jaxpr.outvars):
        return False
    for x, y in zip(a.jaxpr.eqns, b.jaxpr.eqns, strict=True):
        if x.primitive is not y.primitive or not _same_literals(x.invars, y.invars):
            return False
        numbers = [{k: v for k, v in e.params.items() if _is_plain(v)} for e in (x, y)]
        inner = [programs(e) for e in (x, y)]
        if numbers[0] != numbers[1] or len(inner[0]) != len(inner[1]):
            return False
        if not all(map(same_program, *inner)):
            return False
    return True


def _is_plain(value: Any) -> bool:
    """Tell whether a parameter is a number or a tuple of numbers, such as where a slice begins."""
    parts = value if isinstance(value, tuple) else (value,)
    return all(isinstance(part, int | float) for part in parts)


def _same_literals(a: Sequence[Any], b: Sequence[Any]) -> bool:
    return len(a) == len(b) and all(
        isinstance(x, Literal) == isinstance(y, Literal)
        and (not isinstance(x, Literal) or same_bits(x.val, y.val))
        for x, y in zip(a, b, strict=True)
    )


def same_bits(a: Any, b: Any) -> bool:
    """Tell whether two constants of a program have the same bits, as far as they can be read."""
    if a is b or isinstance(a, core.Tracer) or isinstance(b, core.Tracer):
        return True
    if not all(getattr(x, "is_fully_addressable", True) for x in (a, b)):
        return True
    keys = [
        jnp.issubdtype(getattr(x, "dtype", None) or type(x), jax.dtypes.prng_key) for x in (a, b)
    ]
    if any(keys):
        return all(keys) and same_bits(jax.random.key_data(a), jax.random.key_data(b))
    a, b = (np.ascontiguousarray(x) for x in (a, b))
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return a.tobytes() == b.tobytes()
