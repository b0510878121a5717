"""A program in the widest floating point there is, whatever its own: what a narrow one loses by rounding."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from hypergrad.core import tree
from hypergrad.core.autodiff import bind_again, equations, programs, scan_counts
from hypergrad.core.types import Array, PyTree

_CALLS = {"jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"}
_CALLS |= {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}
"""Primitives that call one program, with their operands for its inputs."""


def widest() -> Any:
    """Return float64 where jax has it, else float32."""
    return jnp.dtype(jnp.result_type(float))


def is_narrow(dtype: Any) -> bool:
    """Tell whether a dtype is floating point and narrower than `widest`."""
    floating = dtype is not None and jnp.issubdtype(dtype, jnp.floating)
    return floating and jnp.finfo(dtype).bits < jnp.finfo(widest()).bits


def cast_wide(values: PyTree) -> PyTree:
    """Cast the narrow leaves of a tree to `widest`."""
    return jax.tree.map(_cast, values)


def _cast(x: Any) -> Any:
    return jnp.asarray(x, widest()) if is_narrow(jnp.result_type(x)) else x


def narrowest(closed: ClosedJaxpr) -> Any:
    """Return the floating dtype with the widest gaps among all that a program computes, or None."""
    avals: list[Any] = [v.aval for eqn in equations(closed.jaxpr) for v in eqn.outvars]
    dtypes = {getattr(aval, "dtype", None) for aval in avals}
    floating = [d for d in dtypes if d is not None and jnp.issubdtype(d, jnp.floating)]
    return max(floating, key=lambda d: float(jnp.finfo(d).eps), default=None)


def in_widest(function: Callable, like: tuple, args: tuple) -> PyTree:
    """Compute `function(*args)` in the widest floating point, its own casts to narrower dtypes left out.

    The function is traced at the dtypes of `like`, and each operation of its program is then done on wide
    numbers.

    **Limits:** functions with derivative rules of their own lose them where they compute in narrow numbers;
    what holds a program in another way than a loop, a choice or a call, and what takes no wide numbers, is
    computed as it is.

    Args:
        function: Any traceable function.
        like: Arguments of the dtypes that it expects, or their shapes.
        args: Arguments to compute at, of the same shapes.

    Returns:
        The results, their floats in the widest dtype.
    """
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*like)
    outs = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args))
    return jax.tree.unflatten(jax.tree.structure(shape), outs)


def _evaluate(jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """Evaluate a program on wide numbers."""
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], map(_cast, [*consts, *args]), strict=True))

    def read(v: Any) -> Any:
        return _cast(v.val) if isinstance(v, Literal) else values[v]

    for eqn in jaxpr.eqns:
        outs = _apply(eqn, [read(v) for v in eqn.invars])
        values.update(zip(eqn.outvars, map(_cast, outs), strict=True))
    return [read(v) for v in jaxpr.outvars]


def _apply(eqn: JaxprEqn, values: list[Any]) -> list[Any]:
    """Return the results of one equation on wide numbers."""
    name, params = eqn.primitive.name, eqn.params
    inner = programs(eqn)
    made = [
        v.aval
        for one in (eqn, *(e for p in inner for e in equations(p.jaxpr)))
        for v in one.outvars
    ]
    if not any(
        is_narrow(getattr(aval, "dtype", None)) for aval in [*made, *(v.aval for v in eqn.invars)]
    ):
        return bind_again(eqn, values, params)
    if name == "scan":
        return _scan(params, values)
    if name == "while":
        return _while(params, values)
    if name == "cond":
        branches = [_branch(branch) for branch in inner]
        return jax.lax.switch(values[0], branches, values[1:])
    if name in _CALLS and len(inner) == 1 and len(inner[0].jaxpr.invars) == len(values):
        return _evaluate(inner[0].jaxpr, inner[0].consts, values)
    if name == "reduce_precision":
        return values
    wide = {
        k: widest() if isinstance(v, np.dtype) and is_narrow(v) else v for k, v in params.items()
    }
    if not inner and name != "bitcast_convert_type":
        try:
            return bind_again(eqn, values, wide)
        except (TypeError, ValueError, NotImplementedError):
            pass
    avals: list[Any] = [v.aval for v in eqn.invars]
    own = [
        x.astype(a.dtype) if is_narrow(a.dtype) else x for x, a in zip(values, avals, strict=True)
    ]
    return bind_again(eqn, own, params)


def _branch(branch: ClosedJaxpr) -> Callable[[list[Any]], list[Any]]:
    return lambda values: [jnp.asarray(x) for x in _evaluate(branch.jaxpr, branch.consts, values)]


def _like(new: list[Any], old: list[Any]) -> list[Array]:
    """Give what a loop carries the types that it had."""
    pairs = zip(new, old, strict=True)
    return [x if tree.is_key(x) else jnp.asarray(x, jnp.result_type(y)) for x, y in pairs]


def _scan(params: dict, values: list[Any]) -> list[Any]:
    num_consts, num_carry = scan_counts(params)
    middle = num_consts + num_carry
    body, consts = params["jaxpr"], values[:num_consts]
    first = _like(values[num_consts:middle], values[num_consts:middle])

    def step(carry: list[Any], xs: list[Any]) -> tuple[list[Any], list[Any]]:
        outs = _evaluate(body.jaxpr, body.consts, [*consts, *carry, *xs])
        return _like(outs[:num_carry], carry), outs[num_carry:]

    carry, ys = jax.lax.scan(
        step, first, values[middle:], length=params["length"], reverse=params["reverse"]
    )
    return [*carry, *ys]


def _while(params: dict, values: list[Any]) -> list[Any]:
    num_test, num_body = params["cond_nconsts"], params["body_nconsts"]
    of_test, of_body = values[:num_test], values[num_test : num_test + num_body]
    test, body = params["cond_jaxpr"], params["body_jaxpr"]
    first = _like(values[num_test + num_body :], values[num_test + num_body :])

    def goes_on(carry: list[Any]) -> Array:
        return _evaluate(test.jaxpr, test.consts, [*of_test, *carry])[0]

    def step(carry: list[Any]) -> list[Any]:
        return _like(_evaluate(body.jaxpr, body.consts, [*of_body, *carry]), carry)

    return list(jax.lax.while_loop(goes_on, step, first))
