"""Find random draws whose distribution depends on a value, and that lose its derivative."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, JaxprEqn

from hypergrad.core.flow import NOTHING, Marks, flow

DRAWN = frozenset(["a draw"])
"""Mark of what random bits were made into."""

DATA = frozenset(["data"])
"""Mark of examples and weights."""

CAST = "cast "
"""What comes before the name of a value that lost its derivative before it met a draw."""

BIT_SOURCES = {"random_bits", "threefry2x32", "rng_bit_generator"}

JUMPS = {"lt", "le", "gt", "ge", "lt_to", "le_to", "floor", "ceil", "round", "sign"}
"""Primitives that are flat but for jumps."""

PICKS = {"argmax", "argmin", "top_k"}


def draws_that_lose(closed: ClosedJaxpr, ins: Sequence[Marks]) -> set[str]:
    """Name the values whose derivative a random draw loses: the rate of a mask, the odds of a choice.

    Looked for is where random bits and the value meet in a comparison (`bernoulli`), an `argmax`
    (`categorical`), a rounding or a cast to integers, a sort that permutes others, or where the bits are taken
    modulo a rounded value (`randint`). A draw that scales or shifts noise keeps its derivative.

    **Limits:** a comparison counts where one side is a draw alone, or where no data and no weights take part in
    it, so that kinks such as that of leaky ReLU are not taken for draws.

    Args:
        closed: Traced program.
        ins: Marks of its inputs: `{name}` of a value, `DRAWN`, `DATA`, or nothing.

    Returns:
        Names that were found.
    """
    found: set[str] = set()

    def visit(eqn: JaxprEqn, marks: list[Marks]) -> list[Marks] | None:
        name, met = eqn.primitive.name, NOTHING.union(*marks)
        values = met - DRAWN - DATA
        if name in BIT_SOURCES:
            out = DRAWN
        elif name in ("gather", "dynamic_slice"):
            out = marks[0]  # which example is drawn makes no draw of it
        elif name == "stop_gradient":
            out = met - values
        elif name == "rem" and met >= DRAWN:
            found.update(value for value in values if value.startswith(CAST))
            out = met
        elif name == "sort":
            keys = NOTHING.union(*marks[: eqn.params["num_keys"]])
            # else the sorted values are used, too, which have a derivative
            if type(eqn.outvars[0]).__name__ == "DropVar" and keys >= DRAWN:
                found.update(keys - DRAWN - DATA)
            return None
        elif _loses(eqn):
            alone = DRAWN in marks  # a draw alone on one side
            if met >= DRAWN and (alone or name in PICKS or not met & DATA):
                found.update(values)
            out = (met - values) | {v if v.startswith(CAST) else CAST + v for v in values}
        else:
            return None
        return [out] * len(eqn.outvars)

    flow(closed.jaxpr, ins, visit, DATA)
    return {name.removeprefix(CAST) for name in found}


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
