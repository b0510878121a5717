"""The gradient of an inner loss whose own reverse mode is mixed: for loops of the user's own."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import jaxpr_as_fun

from hypergrad.core import tree
from hypergrad.core.abstract import traced
from hypergrad.core.checks import check_function
from hypergrad.core.types import Array, PyTree
from hypergrad.problem import check_scalar


def mixed_mode_grad(loss: Callable[..., Any], *, has_aux: bool = False) -> Callable[..., Any]:
    """Differentiate a loss as `jax.grad` does, so that reverse mode through the gradient is mixed.

    Where a loop of your own takes `jax.grad(loss)(params, hparams, batch)` in every step and is itself
    differentiated in reverse, the backward pass of a step needs Hv and (∂²L/∂λ∂w)ᵀv for one v, the adjoint of
    the gradient. The Hessian is symmetric, so both come from one forward derivative of the gradient map,
    (d/dε) ∇_{(w,λ)} L(w + εv, λ), and nothing within the gradient is kept for it. An adjoint s of the aux a
    joins as κ⟨s, a⟩ in the loss, differentiated along κ = ε.

    **Cost:** a gradient forward, and backward the forward derivative of one, about two gradients more, as
    `jax.grad` has them; memory of the params and of the traced arguments of each step, in place of all
    activations of its gradient. What carries no derivative, such as the examples of a batch, costs none. Draw
    large batches within `jax.checkpoint(step)`, which keeps their keys alone.

    **Limits:** `jax.jvp`, `jax.linearize` and `jax.jacfwd` through the gradient are refused by jax; take
    `jax.grad` there. Second derivatives are right, and plain. The gradient of the loss must have forward
    derivatives, which excludes loops of unknown length. What the loss returns beside its value are arrays.

    Args:
        loss: (params, ...) -> `[]`; with `has_aux`, -> (`[]`, aux). Hyperparameters, batches and keys may be
            arguments, keywords or closed over: the derivative reaches all of them.
        has_aux: Whether the loss returns a pair. To have the value beside the gradient, return it as aux.

    Returns:
        (params, ...) -> gradient; with `has_aux`, -> (gradient, aux).

    Raises:
        ValueError: for a loss that is no function, or that returns anything else.

    Reference:
        Kemaev, Calian, Zintgraf, Farquhar, van Hasselt, "Scalable Meta-Learning via Mixed-Mode
        Differentiation", 2025, arXiv:2505.00793.
    """
    check_function("loss", loss, "lambda params, hparams, batch: ...")

    @wraps(loss)
    def gradient(params: PyTree, *args: Any, **kwargs: Any) -> Any:
        weights, treedef = jax.tree.flatten(params)

        def evaluate(*weights: Array) -> tuple[Array, PyTree]:
            out = loss(jax.tree.unflatten(treedef, weights), *args, **kwargs)
            return _split(out) if has_aux else (_checked(out), None)

        closed, shapes = jax.make_jaxpr(evaluate, return_shape=True)(*weights)
        aux_tree = jax.tree.structure(shapes[1])
        # what is traced outside may carry a derivative, and must not be closed over
        outer = [i for i, x in enumerate(closed.consts) if traced(x)]

        def run(weights: list[Array], given: list[Array]) -> tuple[Array, list[Array]]:
            consts = list(closed.consts)
            for i, x in zip(outer, given, strict=True):
                consts[i] = x
            value, *aux = jaxpr_as_fun(closed.replace(consts=consts))(*weights)
            return value, aux

        grads, aux = _mixed(run)(weights, [closed.consts[i] for i in outer])
        grads = jax.tree.unflatten(treedef, grads)
        return (grads, jax.tree.unflatten(aux_tree, aux)) if has_aux else grads

    return gradient


def _checked(value: Any) -> Array:
    check_scalar({"loss": value})
    return jnp.asarray(value)


def _split(out: Any) -> tuple[Array, PyTree]:
    if not isinstance(out, tuple) or len(out) != 2:
        raise ValueError(
            "loss returned one value, expected (value, aux) with has_aux=True; return a pair"
        )
    return _checked(out[0]), out[1]


def _mixed(
    run: Callable[[list[Array], list[Array]], tuple[Array, list[Array]]],
) -> Callable[[list[Array], list[Array]], tuple[list[Array], list[Array]]]:
    """Return (weights, given) -> (gradient, aux) of `run`, with the mixed pullback."""

    @jax.custom_vjp
    def plain(weights: list[Array], given: list[Array]) -> tuple[list[Array], list[Array]]:
        return jax.grad(run, has_aux=True)(weights, given)

    def forward(weights: list[Any], given: list[Any]) -> tuple[Any, Any]:
        values = [x.value for x in weights], [x.value for x in given]
        # None where no derivative is asked for: the structure says it to the backward pass
        moved = [x.value if x.perturbed and tree.is_float(x.value) else None for x in given]
        held = [None if m is not None else x.value for x, m in zip(given, moved, strict=True)]
        return jax.grad(run, has_aux=True)(*values), (values[0], moved, held)

    def backward(kept: Any, bars: tuple[list[Any], list[Any]]) -> tuple[list[Any], list[Any]]:
        weights, moved, held = kept
        v = [jnp.zeros(b.shape, b.dtype) if _zero(b) else b for b in bars[0]]
        live = [i for i, b in enumerate(bars[1]) if not _zero(b)]

        def slopes(weights: list[Array], kappa: Array) -> tuple[list[Array], list[Any]]:
            def lagrangian(weights: list[Array], moved: list[Any]) -> Array:
                given = [h if m is None else m for m, h in zip(moved, held, strict=True)]
                value, aux = run(weights, given)
                if not live:
                    return value
                plus = tree.dot([aux[i] for i in live], [bars[1][i] for i in live])
                return value + (kappa * plus).astype(value.dtype)

            return jax.grad(lagrangian, (0, 1))(weights, moved)

        ends = jnp.zeros(()), jnp.ones(())
        _, pulled = jax.jvp(slopes, (weights, ends[0]), (v, ends[1]))
        return pulled

    plain.defvjp(forward, backward, symbolic_zeros=True)
    return plain


def _zero(bar: Any) -> bool:
    """Tell whether a cotangent is zero by structure, as that of an integer is."""
    return isinstance(bar, SymbolicZero) or bar.dtype == jax.dtypes.float0
