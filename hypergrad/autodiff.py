"""Derivative rules that plain autodiff lacks: a square root that is smooth at zero, and who depends on whom."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun
from jax.extend.core.primitives import jit_p, scan_p, sqrt_p

from hypergrad.types import Array


@jax.custom_jvp
def sqrt(x: Array) -> Array:
    """Return √x with the derivative 0 at x = 0, where that of `jnp.sqrt` is infinite.

    The Adam family divides by √ν + ε. At a gradient entry that is exactly zero (a dead pixel, a dead
    unit, padding) plain autodiff multiplies √′(0) = ∞ by the zero derivative of ν and makes NaN of a
    derivative that is finite. Values are those of `jnp.sqrt`, bit for bit.
    """
    return jax.lax.sqrt(x)


@sqrt.defjvp
def _sqrt_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    root = sqrt(x)
    positive = x > 0
    return root, jnp.where(positive, dx * 0.5 / jnp.where(positive, root, 1), 0)


def smooth_sqrt(function: Callable) -> Callable:
    """Make `function` use `sqrt` wherever it takes a square root; its values do not change.

    The function is traced to a jaxpr, and each `sqrt` in it, also within loops and branches, is
    replaced. This is how every optax optimizer is cured without touching its code or its training
    (`eps_root` would change both).

    **Limits:** functions with derivative rules of their own (`custom_jvp`, `custom_vjp`) keep them.

    Args:
        function: any traceable function of pytrees of arrays.

    Returns:
        A function of the same signature, without keyword arguments.
    """

    def smooth(*args):
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        outs = jaxpr_as_fun(_substitute(closed))(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shape), outs)

    return smooth


def _substitute(closed: ClosedJaxpr) -> ClosedJaxpr:
    """Put `sqrt` in the place of every square root, down into loops, branches and inner jits."""
    eqns = []
    for eqn in closed.jaxpr.eqns:
        if eqn.primitive is sqrt_p:
            aval = eqn.invars[0].aval
            traced = jax.make_jaxpr(sqrt)(jax.ShapeDtypeStruct(aval.shape, aval.dtype)).jaxpr.eqns
            # traced is the single call that carries the derivative rule
            eqns.append(traced[0].replace(invars=eqn.invars, outvars=eqn.outvars))
        elif eqn.primitive.name.startswith("custom_"):
            eqns.append(eqn)
        else:
            params = {name: _substitute_param(value) for name, value in eqn.params.items()}
            eqns.append(eqn.replace(params=params))
    return ClosedJaxpr(closed.jaxpr.replace(eqns=eqns), closed.consts)


def _substitute_param(value: Any) -> Any:
    if isinstance(value, ClosedJaxpr):
        return _substitute(value)
    if isinstance(value, tuple) and any(isinstance(v, ClosedJaxpr) for v in value):
        return tuple(_substitute_param(v) for v in value)
    return value


def depends(function: Callable, *args) -> list[bool]:
    """Tell, for each leaf of `args`, whether the derivative of `function` along it can be nonzero.

    The tangent is traced, not computed: rounding, signs, comparisons, integer casts and
    `stop_gradient` end it, and a leaf whose tangent reaches no output has a derivative that is zero
    *by structure*, whatever the numbers.

    **Cost:** one trace; nothing is compiled or run. **Limits:** conservative within `while` and
    `cond`: true may still mean a derivative of zero.

    Args:
        function: (pytrees of float arrays or their shapes) -> pytree of arrays.
        *args: where; only shapes and dtypes matter.

    Returns:
        One boolean for each leaf, in the order of `jax.tree.leaves(args)`.
    """
    leaves, treedef = jax.tree.flatten(args)
    shapes = [jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)) for x in leaves]

    def tangent(primals, tangents):
        def flat(*leaves):
            return function(*jax.tree.unflatten(treedef, leaves))

        return jax.jvp(flat, primals, tangents)[1]

    jaxpr = jax.make_jaxpr(tangent)(tuple(shapes), tuple(shapes)).jaxpr
    used = _live(jaxpr, [True] * len(jaxpr.outvars))
    return used[len(shapes) :]


def uses(function: Callable, *args) -> list[bool]:
    """Tell, for each leaf of `args`, whether the value of `function` depends on it; one trace."""
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    return _live(jaxpr, [True] * len(jaxpr.outvars))


def _live(jaxpr: Jaxpr, live_outs: list[bool]) -> list[bool]:
    """Propagate liveness from the outputs of a jaxpr back to its inputs."""
    live = {
        v
        for v, used in zip(jaxpr.outvars, live_outs, strict=True)
        if used and not isinstance(v, Literal)
    }
    for eqn in reversed(jaxpr.eqns):
        outs = [v in live for v in eqn.outvars]
        if not any(outs):
            continue
        if eqn.primitive is jit_p:
            ins = _live(eqn.params["jaxpr"].jaxpr, outs)
        elif eqn.primitive is scan_p:
            ins = _live_scan(eqn.params, outs)
        else:
            ins = [True] * len(eqn.invars)
        live.update(
            v
            for v, used in zip(eqn.invars, ins, strict=True)
            if used and not isinstance(v, Literal)
        )
    return [v in live for v in jaxpr.invars]


def _live_scan(params: dict, outs: list[bool]) -> list[bool]:
    """Propagate through a loop: what the carry needs in a later step it needs in this one too."""
    num_consts, num_carry = params["num_consts"], params["num_carry"]
    carry, stacked = outs[:num_carry], outs[num_carry:]
    while True:
        ins = _live(params["jaxpr"].jaxpr, carry + stacked)
        grown = [
            a or b for a, b in zip(carry, ins[num_consts : num_consts + num_carry], strict=True)
        ]
        if grown == carry:
            return ins[:num_consts] + grown + ins[num_consts + num_carry :]
        carry = grown
