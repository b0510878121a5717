"""Follow derivatives through a traced program: which results move with which inputs, whatever the numbers."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal

from hypergrad.core.autodiff import bind_again, equations, live_inputs
from hypergrad.core.flow import ELEMENTWISE, NOTHING, Marks, flow

_UNION = """
all_gather broadcast_in_dim concatenate conv_general_dilated copy_p cumlogsumexp cummax cummin cumprod cumsum
dot_general dynamic_slice dynamic_update_slice expand_dims gather imag iota pad psum pvary real reduce_max
reduce_min reduce_precision reduce_prod reduce_sum reduce_window_sum reshape rev scatter scatter-add scatter_add
select_and_scatter_add sharding_constraint slice split squeeze times transpose
"""

UNION = (ELEMENTWISE - {"sign", "stop_gradient"}) | frozenset(_UNION.split())
"""Primitives whose real results move with every real operand."""

ENTERED = frozenset(
    {"jit", "closed_call", "core_call", "checkpoint", "remat2", "scan", "while", "cond"}
)
"""Primitives that are followed into the programs that they hold."""

MUTABLE = frozenset({"get", "swap", "addupdate"})
"""Primitives that read or write an array in place."""


def derivative_flow(closed: ClosedJaxpr, ins: Sequence[Marks]) -> list[Marks]:
    """Carry marks from the inputs of a program to the outputs whose derivative along them can be nonzero.

    Rounding, signs, comparisons, integers and `stop_gradient` end a derivative, and so does a rule of the
    user's (`jax.custom_jvp`) that drops it.

    **Cost:** some visits an equation, and a trace of the derivative of each one that holds a rule of its own;
    the program is not traced again, and nothing is run. **Limits:** conservative where a program writes into an
    array in place: there every output counts.

    Args:
        closed: Program to follow.
        ins: Marks of each of its inputs; `NOTHING` for one that is no real number.

    Returns:
        Marks of each output.
    """
    known: dict[Any, list[list[bool]]] = {}

    def visit(eqn: JaxprEqn, marks: list[Marks]) -> list[Marks] | None:
        if not any(marks):
            return [NOTHING] * len(eqn.outvars)
        name, real = eqn.primitive.name, [_is_real(v) for v in eqn.outvars]
        if name in ENTERED:
            return None
        if name in UNION:
            met = NOTHING.union(*marks)
            return [met if ok else NOTHING for ok in real]
        moving = tuple(i for i, mark in enumerate(marks) if mark)
        key = (id(eqn), moving)
        if key not in known:
            known[key] = _alone(eqn, moving, real)
        rows = iter(known[key])
        return [_chosen([marks[i] for i in moving], next(rows)) if ok else NOTHING for ok in real]

    if any(eqn.primitive.name in MUTABLE for eqn in equations(closed.jaxpr)):
        met = NOTHING.union(*ins)
        return [met if _is_real(v) else NOTHING for v in closed.jaxpr.outvars]
    return flow(closed.jaxpr, ins, visit)


def _is_real(v: Any) -> bool:
    return jnp.issubdtype(getattr(v.aval, "dtype", bool), jnp.inexact)


def _chosen(marks: list[Marks], used: list[bool]) -> Marks:
    return NOTHING.union(*(mark for mark, ok in zip(marks, used, strict=True) if ok))


def _alone(eqn: JaxprEqn, moving: tuple[int, ...], real: list[bool]) -> list[list[bool]]:
    """Tell for each real result of an equation which of the moving operands its derivative reads."""
    avals: list[Any] = [v.aval for v in eqn.invars]
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=x.weak_type) for x in avals]

    def tangents(values: list[Any], dots: list[Any]) -> list[Any]:
        full = [
            v.val if isinstance(v, Literal) else x for v, x in zip(eqn.invars, values, strict=True)
        ]

        def along(*moved: Any) -> list[Any]:
            for i, x in zip(moving, moved, strict=True):
                full[i] = x
            outs = bind_again(eqn, full, eqn.params)
            return [x for x, ok in zip(outs, real, strict=True) if ok]

        return jax.jvp(along, tuple(full[i] for i in moving), tuple(dots))[1]

    jaxpr = jax.make_jaxpr(tangents)(shapes, [shapes[i] for i in moving]).jaxpr
    each = range(len(jaxpr.outvars))
    return [live_inputs(jaxpr, [i == j for i in each])[len(shapes) :] for j in each]
