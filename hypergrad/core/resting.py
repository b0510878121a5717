"""The derivative of an optimizer at weights that rest: whose gradient is exactly zero, though it may bend.

An Adam-like update g/(|g| + ε) has the slope 1/ε at g = 0. A weight whose gradient is exactly zero while its
curvature c is not (the zero bias of a dead unit under an L2 penalty, a weight at its optimum) multiplies its
adjoint by η c/ε a step, 1e6 or so. The derivative is the right one: where such a gradient answers to a
hyperparameter, the weight does move that fast, and a slope of zero would hide it. Where it answers to none,
all that flows on is 0 times the adjoint, which rounding spoils in two ways:

- an update that reads the weights (schedule-free, MADGRAD) has a derivative in a number b that all weights
  share, such as b x − b z with x = z. Reverse mode sums ᾱx over all weights, and ᾱz over all weights, and
  subtracts the sums: nothing is left of the weights that move;
- ᾱ overflows, after 6 steps in float32, and 0 · ∞ is NaN.

So the cotangent of what all weights share leaves out those at rest whose own derivative in it is 0, bit for
bit, and the cotangent of a gradient entry that is zero stays finite. Forward mode, where zero times nothing is
nothing, is not changed.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

from hypergrad.core import tree
from hypergrad.core.autodiff import equations, live_inputs, smooth_program, uses
from hypergrad.core.flow import NOTHING, Marks, flow
from hypergrad.core.types import Array, PyTree

STEEP = frozenset({"sqrt", "cbrt", "rsqrt", "div", "pow"})
"""Primitives of gradients, weights or state without which an update has no slope 1/ε."""

COSTLY = frozenset({"dot_general", "while", "sort", "qr", "eigh", "svd", "cholesky"})
"""Primitives of updates that are no sums over entries: they mix weights, so that none rests for itself."""


def rested(function: Callable, init: Callable[[PyTree], PyTree]) -> Callable:
    """Make the derivative of an update right in reverse mode where weights rest; see the module.

    Values do not change, nor does forward mode. Singular derivatives become finite as by `autodiff.smooth`.

    **Cost:** two more derivatives of an update that reads the weights, which are elementwise, where its state
    is made from weights, too (schedule-free, MADGRAD, an L2 term before Adam): only such numbers cancel, as
    x − z does. Else 2 to 4 % of a hypergradient for Adam and AdamW, and nothing without a root or quotient of
    the gradients, the weights or the state: one of a schedule's count does not matter.

    **Limits:** the cotangents of a gradient entry that is exactly zero, and of its update, are cut off at
    1e-16 of the largest number of the smallest dtype in the update (3e22 in float32), where they would
    overflow within the next step.

    Args:
        function: (grads, weights, opt_state, *shared) -> (updates, opt_state).
        init: (weights) -> the first opt_state.

    Returns:
        A function of the same signature.
    """

    def update(grads: PyTree, weights: PyTree, opt_state: PyTree, *shared: PyTree) -> PyTree:
        closed, treedef = smooth_program(function, grads, weights, opt_state, *shared)
        args = jax.tree.leaves((grads, weights, opt_state, *shared))
        if _is_steep(closed, len(args) - len(jax.tree.leaves(shared))):
            num, at_most = len(jax.tree.leaves(grads)), _limit(closed)
            still = [g == 0 for g in args[:num]]
            args = [*_bounded(at_most, args[:num], still), *args[num:]]
            live = live_inputs(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
            costly = any(eqn.primitive.name in COSTLY for eqn in equations(closed.jaxpr))
            reads = any(live[num : 2 * num]) and not costly
            if reads and (_in_state(closed, num) or any(uses(init, weights))):
                entries = [*range(num), *range(num), *_entries(opt_state, weights)]
                owners = entries + [None] * (len(args) - len(entries))
                outs = _separated(closed, owners, entries[num:])(args)
            else:
                outs = jaxpr_as_fun(closed)(*args)
            outs = [*_bounded(at_most, outs[:num], still), *outs[num:]]
        else:
            outs = jaxpr_as_fun(closed)(*args)
        return jax.tree.unflatten(treedef, outs)

    return update


def _is_steep(closed: ClosedJaxpr, num: int) -> bool:
    """Tell whether a root or quotient reads any of the first `num` inputs of an update that are real."""
    entry, found = frozenset(["entry"]), set()

    def visit(eqn: JaxprEqn, marks: list[Marks]) -> None:
        if eqn.primitive.name in STEEP and any(marks):
            found.add(eqn.primitive.name)

    ins = [
        entry if i < num and tree.is_float(v.aval) else NOTHING
        for i, v in enumerate(closed.jaxpr.invars)
    ]
    flow(closed.jaxpr, ins, visit)
    return bool(found)


def _in_state(closed: ClosedJaxpr, num: int) -> bool:
    """Tell whether the new state of an optimizer reads any of the `num` leaves of the weights."""
    outs = len(closed.jaxpr.outvars)
    return any(live_inputs(closed.jaxpr, [i >= num for i in range(outs)])[num : 2 * num])


def _entries(opt_state: PyTree, weights: PyTree) -> list[int | None]:
    """Tell for each leaf of an optimizer's state to which leaf of the weights it belongs entry by entry."""
    leaves, treedef = jax.tree.flatten(weights)
    shapes = [jnp.shape(w) for w in leaves]

    def is_slot(node: Any) -> bool:
        found = jax.tree.structure(node) == treedef
        return found and [jnp.shape(x) for x in jax.tree.leaves(node)] == shapes

    owners: list[int | None] = []
    for node in jax.tree.leaves(opt_state, is_leaf=is_slot):
        owners += range(len(leaves)) if is_slot(node) else [None]
    return owners


def _separated(
    closed: ClosedJaxpr, owners: list[int | None], out_owners: list[int | None]
) -> Callable[[list[Array]], list[Array]]:
    """Return the program with the derivatives in what all weights share kept from weights at rest.

    Args:
        closed: Program of an update; its first inputs are the gradients.
        owners: Leaf of the weights to whose entries those of each input belong, or None.
        out_owners: The same for each output.
    """
    function = jaxpr_as_fun(closed)
    is_float = [tree.is_float(v.aval) for v in closed.jaxpr.outvars]

    @jax.custom_jvp
    def run(args: list[Array]) -> list[Array]:
        return function(*args)

    @run.defjvp
    def rule(primals: tuple, tangents: tuple) -> tuple[list[Array], list[Any]]:
        (args,), (dots,) = primals, tangents
        moving = [i for i, x in enumerate(args) if tree.is_float(x)]

        def floats(xs: list[Array]) -> tuple[list[Array], list[Array]]:
            whole = list(args)
            for i, x in zip(moving, xs, strict=True):
                whole[i] = x
            outs = function(*whole)
            return [x for x, ok in zip(outs, is_float, strict=True) if ok], outs

        _, push, outs = jax.linearize(floats, [args[i] for i in moving], has_aux=True)
        zeros = [jnp.zeros_like(args[i]) for i in moving]
        alone = [owners[i] is not None for i in moving]
        pairs = list(zip(moving, zeros, alone, strict=True))
        own = iter(push([dots[i] if mine else zero for i, zero, mine in pairs]))
        shared = iter(push([zero if mine else dots[i] for i, zero, mine in pairs]))
        probe = iter(push(_directions(zeros, alone)))
        tangents_out: list[Any] = []
        for x, ok, owner in zip(outs, is_float, out_owners, strict=True):
            if not ok:
                tangents_out.append(np.zeros(jnp.shape(x), jax.dtypes.float0))
                continue
            mine, theirs, tried = next(own), next(shared), next(probe)
            if owner is not None:
                rests = (args[owner] == 0) & (tried == 0)
                theirs = jnp.where(rests, 0, theirs)
            tangents_out.append(mine + theirs)
        return outs, tangents_out

    return run


def _directions(zeros: list[Array], alone: list[bool]) -> list[Array]:
    """Choose a direction in what all weights share: powers of two, so that products by them are exact.

    They differ from number to number up to 60 of them, so that derivatives do not cancel one another.
    """
    num = sum(x.size for x, mine in zip(zeros, alone, strict=True) if not mine)
    rng = np.random.default_rng(0)
    exponents = rng.permutation(60)[:num] if num <= 60 else rng.integers(0, 60, num)
    left, directions = np.exp2(exponents - 30.0), []
    for x, mine in zip(zeros, alone, strict=True):
        if mine:
            directions.append(x)
            continue
        directions.append(jnp.asarray(left[: x.size].reshape(x.shape), x.dtype))
        left = left[x.size :]
    return directions


def _limit(closed: ClosedJaxpr) -> float:
    """Return how large a cotangent may become in a program; Adafactor keeps a momentum in float32."""
    outputs = [v.aval for eqn in equations(closed.jaxpr) for v in eqn.outvars]
    dtypes = {aval.dtype for aval in outputs}  # pyright: ignore[reportAttributeAccessIssue]
    tops = [float(jnp.finfo(d).max) for d in dtypes if jnp.issubdtype(d, jnp.floating)]
    return min((1e-16 * top for top in tops if top > 1e30), default=max(tops, default=1.0))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _bounded(limit: float, xs: list[Array], where: list[Array]) -> list[Array]:
    """Return xs, with cotangents of at most `limit` at the entries `where`."""
    return xs


@_bounded.defjvp
def _bounded_jvp(limit: float, primals: tuple, tangents: tuple) -> tuple[list[Array], list[Array]]:
    xs, where = primals
    return xs, [bound_p.bind(*pair, limit=limit) for pair in zip(tangents[0], where, strict=True)]


bound_p = Primitive("bound")
"""The identity (x, where) -> x, whose transpose keeps cotangents within `limit` at the entries `where`."""


def _identity(x: Array, where: Array, limit: float) -> Array:
    return x


def _bound_transpose(cotangent: Any, x: Any, where: Array, limit: float) -> list[Any]:
    if isinstance(cotangent, ad.Zero):
        return [cotangent, None]
    return [jnp.where(where, jnp.clip(cotangent, -limit, limit), cotangent), None]


def _bound_batch(
    args: tuple[Array, Array], axes: tuple[Any, Any], limit: float
) -> tuple[Array, int]:
    size = next(x.shape[a] for x, a in zip(args, axes, strict=True) if a is not None)
    moved = [batching.bdim_at_front(x, a, size) for x, a in zip(args, axes, strict=True)]
    return bound_p.bind(*moved, limit=limit), 0


bound_p.def_impl(_identity)
bound_p.def_abstract_eval(_identity)
ad.defjvp(bound_p, lambda dot, x, where, limit: bound_p.bind(dot, where, limit=limit), None)
ad.primitive_transposes[bound_p] = _bound_transpose
batching.primitive_batchers[bound_p] = _bound_batch
mlir.register_lowering(bound_p, mlir.lower_fun(_identity, multiple_results=False))
