"""One-step hypergradients in the form of DARTS: one virtual step while training continues."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from hypergrad.core import tree
from hypergrad.core.checks import check_least, check_positive, check_whole
from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.estimators.base import (
    Estimate,
    Estimator,
    first_nonfinite,
    inner_loss,
)
from hypergrad.estimators.unrolled.online import (
    OnlineState,
    check_restart,
    first_state,
    go_on,
    online_info,
)
from hypergrad.estimators.ways import check_leaves, in_gradient
from hypergrad.problem import Problem, check_problem
from hypergrad.train import (
    carried,
    draw_batch,
    split_key,
    trained,
    unroll_losses,
    with_parts,
)
from hypergrad.validation import check_step

Gradients: TypeAlias = Callable[[PyTree], tuple[PyTree, HParams]]
"""w -> (∇_w L, ∇_λ L)."""

SecondOrderProduct: TypeAlias = Callable[[Gradients, PyTree, PyTree], tuple[PyTree, HParams]]
"""(w -> (∇_w L, ∇_λ L), w, v) -> (Hv, (∂²L/∂w∂λ)ᵀ v)."""


def exact_product(gradient: Gradients, weights: PyTree, v: PyTree) -> tuple[PyTree, HParams]:
    """Differentiate the gradient along v, in forward mode."""
    return jax.jvp(gradient, (weights,), (v,))[1]


def central_difference(scale: float = 0.01) -> SecondOrderProduct:
    """Approximate the product by gradients at two points: (∇L(w + εv) − ∇L(w − εv)) / 2ε.

    Use it for losses whose gradient has no forward derivative. The error is O(ε²), plus rounding divided by ε.

    Args:
        scale: Factor in ε = scale / ‖v‖, as in DARTS.
    """
    check_positive("scale", scale)

    def product(gradient: Gradients, weights: PyTree, v: PyTree) -> tuple[PyTree, HParams]:
        norm = tree.norm(v)
        size = scale / jnp.where(norm > 0, norm, 1)

        def at(sign: int) -> tuple[PyTree, HParams]:
            moved = jax.tree.map(lambda w, d: (w + sign * size * d).astype(w.dtype), weights, v)
            return gradient(moved)

        return jax.tree.map(lambda a, b: ((a - b) / (2 * size)).astype(a.dtype), at(1), at(-1))

    return product


def darts(
    problem: Problem,
    step_size: float,
    interval: int = 1,
    *,
    product: SecondOrderProduct = exact_product,
    restart_every: int | None = None,
) -> Estimator:
    """Differentiate the objective after one virtual step of gradient descent.

    w' = w − ξ ∇_w L(w, λ),   hypergrad = ∂f(w', λ)/∂λ − ξ (∂²L(w, λ)/∂w∂λ)ᵀ ∇_w' f(w', λ)

    Each estimate trains `interval` steps with the problem's own optimizer. Then it takes one virtual step of
    size ξ on the next minibatch, and does not keep it.

    **Cost:** `interval` steps of training and about four gradients.

    **Limits:** a horizon of one step, with its bias: the response is ξ times the first term of the
    Neumann series for the implicit one. The hypergradient sees the loss alone, whatever the optimizer. A leaf
    that acts through the optimizer or the initial weights alone raises an error that names it. Where the loss
    reads it too, that part is left out, with a `StructuralZeroWarning`. `one_step` sees both.

    Args:
        problem: Training loop.
        step_size: Step size ξ, usually the learning rate; 0 leaves the direct gradient (first-order DARTS).
        interval: Number of inner steps trained by an estimate.
        product: `exact_product`, or `central_difference()` as in the paper.
        restart_every: Number of steps after which a new run begins; None: never.

    Returns:
        An estimator whose state is an `OnlineState`; `info` is an `OnlineInfo` with a horizon of 1 and
        ‖(I − ξH) ∇f‖ / ‖∇f‖ for its growth.

    Raises:
        ValueError: for settings out of range and, when traced, for a leaf that is not real or that the
            loss does not read, by name.

    Reference:
        Liu, Simonyan, Yang, 2019, arXiv:1806.09055, equations 7 and 8.
    """
    check_problem(problem)
    check_whole("interval", interval)
    check_restart(restart_every)
    check_least("step_size", step_size, example=0.1)

    def init(key: Key, hparams: HParams) -> OnlineState:
        return first_state(problem, key, hparams)

    def estimate(key: Key, state: OnlineState, hparams: HParams) -> tuple[OnlineState, Estimate]:
        check_step(problem, hparams, real=True)
        in_loss = in_gradient(problem, hparams)
        check_leaves(problem, hparams, 3, in_loss, "one-step hypergradient of the loss")
        before = go_on(state, first_state(problem, key, hparams), restart_every)
        frozen = jax.lax.stop_gradient(hparams)
        train, losses = unroll_losses(problem, frozen, before.train, interval)
        params, weights = train.params, trained(train.params)
        loss = inner_loss(problem, params, draw_batch(problem, train))

        def gradient(weights: PyTree) -> tuple[PyTree, HParams]:
            return jax.grad(loss, (0, 1))(weights, hparams)

        def objective(weights: PyTree, hparams: HParams) -> Array:
            whole = with_parts(params, weights, carried(params))
            return problem.objective(whole, hparams, problem.valid_batch(split_key(key)[1]))

        slope = gradient(weights)[0]
        virtual = jax.tree.map(lambda w, g: (w - step_size * g).astype(w.dtype), weights, slope)
        value, (v, direct) = jax.value_and_grad(objective, (0, 1))(virtual, hparams)
        bend, cross = product(gradient, weights, v)
        response = jax.tree.map(lambda c: -step_size * c, cross)

        ahead = tree.norm(jax.tree.map(lambda a, b: a - step_size * b, v, bend))
        size = tree.norm(v)
        growth = jnp.where(size > 0, ahead / jnp.where(size > 0, size, 1), 1)
        bad = first_nonfinite(losses, value)
        after = before._replace(train=train)
        info = online_info(before, after, hparams, (direct, response), 1, growth, bad)
        return after, Estimate(value, tree.add(direct, response), info)

    return Estimator(init, estimate)
