"""Find random draws whose distribution depends on a value, and that lose its derivative."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, JaxprEqn

from hypergrad.core.autodiff import programs
from hypergrad.core.flow import NOTHING, Marks, Visit, flow
from hypergrad.core.kinks import COMPARISONS, Route, Smooth, is_call, smooth_places

DRAWN = frozenset(["a draw"])
"""Mark of what random bits were made into."""

DATA = frozenset(["data"])
"""Mark of examples and weights."""

CAST = "cast "
"""What comes before the name of a value that lost its derivative before it met a draw."""

LOST = "lost "
"""What comes before the name of a value that a draw lost."""

BIT_SOURCES = {"random_bits", "threefry2x32", "rng_bit_generator"}

JUMPS = {"lt", "le", "gt", "ge", "lt_to", "le_to", "floor", "ceil", "round", "sign"}
"""Primitives that are flat but for jumps."""

EXACT = {"interp", "_interp", "expm"}
"""Functions of jax that jump within, and whose results do not."""

PICKS = {"argmax", "argmin", "top_k"}


def draws_that_lose(
    closed: ClosedJaxpr, ins: Sequence[Marks], live: Sequence[bool] | None = None
) -> set[str]:
    """Name the values whose derivative a random draw loses: the rate of a mask, the odds of a choice.

    Looked for is where random bits and the value meet in a comparison (`bernoulli`), an `argmax`
    (`categorical`), a rounding or a cast to integers, the order of a sort or `top_k`, where the bits are
    taken modulo a rounded value (`randint`), or where a rounded value makes the key, and what is lost reaches a
    result. A draw that scales or shifts noise keeps its derivative, also through a kink such as that of leaky
    ReLU, and through linear interpolation; see `core.kinks`.

    **Limits:** a comparison in a loop that decides what another step does counts as lost, and so does a kink
    that cannot be told from a jump.

    Args:
        closed: Traced program.
        ins: Marks of its inputs: `{name}` of a value, `DRAWN`, `DATA`, or nothing.
        live: Whether each result counts, and not such as is written down only; all where None.

    Returns:
        Names that were found.
    """
    live = [True] * len(closed.jaxpr.outvars) if live is None else live

    def found(fine: Smooth) -> set[str]:
        outs = flow(closed.jaxpr, ins, _visitor((), fine), DATA)
        kept = [out for out, counts in zip(outs, live, strict=True) if counts]
        return {name.removeprefix(LOST).removeprefix(CAST) for name in _lost(NOTHING.union(*kept))}

    if not found(Smooth(set(), {})):
        return set()
    return found(smooth_places(closed.jaxpr, ins, live, _made_by_bits))


def _made_by_bits(eqn: JaxprEqn) -> Marks:
    return DRAWN if eqn.primitive.name in BIT_SOURCES else NOTHING


def _visitor(path: Route, fine: Smooth) -> Visit:
    """Return the visit of the equations within some calls."""

    def visit(eqn: JaxprEqn, marks: list[Marks]) -> list[Marks] | None:
        lost, inner = _lost(NOTHING.union(*marks)), [p.jaxpr for p in programs(eqn)]
        if eqn.params.get("name") in EXACT and inner:
            return [NOTHING.union(*marks)] * len(eqn.outvars)
        if is_call(eqn):
            return flow(inner[0], marks, _visitor((*path, id(eqn)), fine), DATA)
        outs = _outs(eqn, [m - lost for m in marks], (*path, id(eqn)), fine)
        return None if outs is None else [out | lost for out in outs]

    return visit


def _outs(eqn: JaxprEqn, marks: list[Marks], place: Route, fine: Smooth) -> list[Marks] | None:
    """Return the marks of the results of an equation, with what it loses; None for those of its operands."""
    name, met = eqn.primitive.name, NOTHING.union(*marks)
    values = met - DRAWN - DATA
    lost: Marks = NOTHING
    if name in BIT_SOURCES:
        out, lost = DRAWN, _as_lost(_cast(values))  # a rounded value that makes the key
    elif name in ("gather", "dynamic_slice"):
        out = marks[0]  # which example is drawn makes no draw of it
    elif name == "stop_gradient":
        out = met - values
    elif name == "rem" and met >= DRAWN:
        lost = _as_lost(_cast(values))
        out = met
    elif name == "sort":  # the sorted values have a derivative, the order of others has none
        num = eqn.params["num_keys"]
        keys = NOTHING.union(*marks[:num])
        order = _as_lost(keys - DRAWN - DATA) if keys >= DRAWN else NOTHING
        return [met | (order if i >= num else NOTHING) for i in range(len(eqn.outvars))]
    elif _loses(eqn):
        if place in fine.places:
            return [met - values] * len(eqn.outvars)
        asked = fine.signs.get(place, (met,)) if name in COMPARISONS else (met,)
        if met >= DRAWN and any(m >= DRAWN for m in asked):
            lost = _as_lost(values if place not in fine.signs else _asked_of(values, asked))
        out = (met - values) | {v if v.startswith(CAST) else CAST + v for v in values}
        if name == "top_k":
            return [met, out | lost]
    else:
        return None
    return [out | lost] * len(eqn.outvars)


def _asked_of(values: Marks, asked: Sequence[Marks]) -> Marks:
    """Return the values that a factor with a draw in it depends on."""
    names = NOTHING.union(*(m for m in asked if m >= DRAWN))
    return frozenset(v for v in values if v.removeprefix(CAST) in names)


def _cast(values: Marks) -> Marks:
    return frozenset(v for v in values if v.startswith(CAST))


def _lost(marks: Marks) -> Marks:
    """Return the marks of values that a draw has lost."""
    return frozenset(x for x in marks if x.startswith(LOST))


def _as_lost(values: Marks) -> Marks:
    return frozenset(LOST + value for value in values)


def _loses(eqn: JaxprEqn) -> bool:
    """Tell whether an equation loses the derivative of its operands."""
    name = eqn.primitive.name
    if name == "convert_element_type":
        before, after = (jnp.result_type(v.aval) for v in (eqn.invars[0], eqn.outvars[0]))
        return jnp.issubdtype(before, jnp.inexact) and not jnp.issubdtype(after, jnp.inexact)
    return name in JUMPS or name in PICKS


def marks_of_batch(closed: ClosedJaxpr) -> list[Marks]:
    """Return the marks of a batch, given its program: `DRAWN` for what is a draw alone, else `DATA`."""

    def visit(eqn: JaxprEqn, marks: list[Marks]) -> list[Marks] | None:
        if eqn.primitive.name in BIT_SOURCES:
            return [DRAWN] * len(eqn.outvars)
        if eqn.primitive.name in ("gather", "dynamic_slice"):
            return [marks[0]] * len(eqn.outvars)
        return None

    outs = flow(closed.jaxpr, [NOTHING] * len(closed.jaxpr.invars), visit, DATA)
    return [DRAWN if marks == DRAWN else DATA for marks in outs]
