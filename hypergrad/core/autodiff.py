"""Derivatives: finite ones where autodiff makes none, curvature products, who depends on whom."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun
from jax.extend.core.primitives import jit_p, mul_p, scan_p, select_n_p

from hypergrad.core.tame import can_be_singular, twin
from hypergrad.core.types import Array, PyTree


def smooth(function: Callable) -> Callable:
    """Make the derivative of `function` finite where a root, quotient or power in it is singular.

    The Adam family divides by √ν + ε. At a gradient entry that is exactly zero (a dead pixel, a dead
    unit, padding) plain autodiff multiplies √′(0) = ∞ by the zero derivative of ν and makes NaN of a
    derivative that is finite; so does a quotient 0/0 whose value a `where` discards (clipping, LAMB,
    normalization). Here a partial derivative that is not finite counts as zero. Values do not change,
    bit for bit under the same jit; `eps_root` would change the training.

    The function is traced to a jaxpr, and each such primitive in it, also within loops, branches and
    `jax.checkpoint`, is replaced by its twin (`core.tame`). This cures every optax optimizer without touching
    its code.

    **Cost:** a derivative has as many equations as that of `function`.

    **Limits:** functions with derivative rules of their own (`custom_jvp`, `custom_vjp`) keep them.

    Args:
        function: Any traceable function of pytrees of arrays.

    Returns:
        A function of the same signature, without keyword arguments.
    """

    def smoothed(*args: PyTree) -> PyTree:
        return as_function(*smooth_program(function, *args))(*args)

    return smoothed


def as_function(closed: ClosedJaxpr, treedef: Any) -> Callable[..., PyTree]:
    """Return a program as a function of pytrees, whose results have the structure `treedef`."""

    def call(*args: PyTree) -> PyTree:
        return jax.tree.unflatten(treedef, jaxpr_as_fun(closed)(*jax.tree.leaves(args)))

    return call


def smooth_program(function: Callable, *args: PyTree) -> tuple[ClosedJaxpr, Any]:
    """Trace what `smooth(function)` computes; return the program, and the structure of its outputs."""
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
    # a `where` may throw an infinite number away, and so may what never reads a weight that became 0/0
    products = any(map(_makes_products_singular, equations(closed.jaxpr)))
    return _substitute(closed, products), jax.tree.structure(shape)


def _makes_products_singular(eqn: JaxprEqn) -> bool:
    """Tell whether an equation may throw a real number away, or make one that is not finite."""
    aval: Any = eqn.outvars[0].aval if eqn.outvars else None
    chooses = eqn.primitive is select_n_p and jnp.issubdtype(aval.dtype, jnp.inexact)
    return chooses or (eqn.primitive is not mul_p and can_be_singular(eqn))


def hessian_product(function: Callable[[PyTree], Array], x: PyTree) -> Callable[[PyTree], PyTree]:
    """Return u -> H u with H = ∂²f/∂x², linearized once at `x`.

    **Cost:** a gradient to build, keeping its activations, and about one a product.

    **Limits:** the function must have forward derivatives (no `jax.custom_vjp` in it).

    Args:
        function: x -> `[]`.
        x: Floating-point arrays.
    """
    return jax.linearize(jax.grad(function), x)[1]


def gauss_newton_product(
    outputs: Callable[[PyTree], PyTree], convex: Callable[[PyTree], Array], x: PyTree
) -> Callable[[PyTree], PyTree]:
    """Return u -> Jᵀ (∂²c/∂z²) J u of a function c(z(x)), with J = ∂z/∂x, linearized once at `x`.

    Positive semidefinite where c is convex.

    **Cost:** a pass forwards to build, keeping its activations, and about one gradient a product.

    Args:
        outputs: x -> z, floating point.
        convex: z -> c `[]`.
        x: Floating-point arrays.

    Reference:
        Schraudolph, 2002, "Fast curvature matrix-vector products".
    """
    made, push = jax.linearize(outputs, x)
    pull = jax.linear_transpose(push, x)
    bend = hessian_product(convex, made)
    return lambda u: pull(bend(push(u)))[0]


def equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """Go through the equations of a program and of all the programs within it."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in programs(eqn):
            yield from equations(inner.jaxpr)


def programs(eqn: JaxprEqn) -> list[ClosedJaxpr]:
    """List the programs that an equation holds: the body of a loop, the branches of a choice."""
    kinds = (Jaxpr, ClosedJaxpr)
    found = jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: isinstance(x, kinds))
    return [
        ClosedJaxpr(x, []) if isinstance(x, Jaxpr) else x for x in found if isinstance(x, kinds)
    ]


def bind_again(eqn: JaxprEqn, values: list[Any], params: dict) -> list[Any]:
    """Apply the primitive of an equation to values, with these params; return its results."""
    given = eqn.primitive.get_bind_params(params)
    # as versions of jax differ
    functions, params = given if isinstance(given, tuple) else ((), given)
    outs = eqn.primitive.bind(*functions, *values, **params)
    return list(outs) if eqn.primitive.multiple_results else [outs]


def _substitute(closed: ClosedJaxpr, products: bool) -> ClosedJaxpr:
    """Put its twin in the place of every primitive that may be singular, down into whatever holds programs."""
    eqns = []
    for eqn in closed.jaxpr.eqns:
        if can_be_singular(eqn) and (products or eqn.primitive is not mul_p):
            eqns.append(twin(eqn))
        elif eqn.primitive.name.startswith("custom_") or not programs(eqn):
            eqns.append(eqn)
        else:
            params = {k: _substitute_param(v, products) for k, v in eqn.params.items()}
            eqns.append(eqn.replace(params=params))
    return ClosedJaxpr(closed.jaxpr.replace(eqns=eqns), closed.consts)


def _substitute_param(value: Any, products: bool) -> Any:
    if isinstance(value, ClosedJaxpr):
        return _substitute(value, products)
    if isinstance(value, Jaxpr):
        return _substitute(ClosedJaxpr(value, []), products).jaxpr
    if isinstance(value, tuple) and any(isinstance(v, ClosedJaxpr) for v in value):
        return tuple(_substitute_param(v, products) for v in value)
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

    def tangent(primals: tuple, tangents: tuple) -> PyTree:
        def flat(*leaves: Array) -> PyTree:
            return function(*jax.tree.unflatten(treedef, leaves))

        return jax.jvp(flat, primals, tangents)[1]

    jaxpr = jax.make_jaxpr(tangent)(tuple(shapes), tuple(shapes)).jaxpr
    used = live_inputs(jaxpr, [True] * len(jaxpr.outvars))
    return used[len(shapes) :]


def uses(function: Callable, *args) -> list[bool]:
    """Tell, for each leaf of `args`, whether the value of `function` depends on it; one trace."""
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    return live_inputs(jaxpr, [True] * len(jaxpr.outvars))


def live_inputs(jaxpr: Jaxpr, live_outs: list[bool]) -> list[bool]:
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
            ins = live_inputs(eqn.params["jaxpr"].jaxpr, outs)
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


def scan_counts(params: dict) -> tuple[int, int]:
    """Return how many operands of a scan are constants, and how many its carry."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    num_consts, num_carry, _ = map(len, params["ft_in"].unpack())  # as jax 0.12 keeps them
    return num_consts, num_carry


def _live_scan(params: dict, outs: list[bool]) -> list[bool]:
    """Propagate through a loop, whose carry needs in every step what it needs in a later one."""
    num_consts, num_carry = scan_counts(params)
    carry, stacked = outs[:num_carry], outs[num_carry:]
    while True:
        ins = live_inputs(params["jaxpr"].jaxpr, carry + stacked)
        grown = [
            a or b for a, b in zip(carry, ins[num_consts : num_consts + num_carry], strict=True)
        ]
        if grown == carry:
            return ins[:num_consts] + grown + ins[num_consts + num_carry :]
        carry = grown
