"""The response of trained weights to hyperparameters, where training has come to rest.

∇_w L(w*, λ) = 0   ⟹   dw*/dλ = −H⁻¹ ∂²L/∂w∂λ,   H = ∂²L/∂w²

`implicit` computes a hypergradient with it, `best_response` makes it a differentiable function.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from hypergrad.core import tree
from hypergrad.core.autodiff import gauss_newton_product, hessian_product
from hypergrad.core.checks import check_function, check_whole
from hypergrad.core.solve import MatVec, Solve, cg, gmres
from hypergrad.core.types import Array, Batch, HParams, Key, Params, PyTree
from hypergrad.estimators.base import inner_loss
from hypergrad.estimators.ways import check_implicit
from hypergrad.problem import Problem, check_problem
from hypergrad.train import (
    TrainState,
    carried,
    draw_batch,
    evaluate_loss,
    init_state,
    trained,
    unroll,
    with_parts,
)
from hypergrad.validation import check_step

Curvature: TypeAlias = Callable[[Problem, Params, HParams, Batch], MatVec]
"""(problem, params, hparams, batch) -> the product of a curvature matrix with a direction of the weights."""

BatchOf: TypeAlias = Callable[[Problem, TrainState], Batch]
"""(problem, state at the end of training) -> the batch over which L is assumed to be stationary."""


def full_batch(problem: Problem, state: TrainState) -> Batch:
    """Return all training examples, `problem.train_set`, as one batch."""
    if problem.train_set is None:
        raise ValueError(
            "problem.train_set is None, expected Examples(num_examples, at); set it, or pass "
            "batch=next_batch for the minibatch that would come next"
        )
    return problem.train_set.at(jnp.arange(problem.train_set.num_examples))


def next_batch(problem: Problem, state: TrainState) -> Batch:
    """Return the batch that the next step of training would draw: a stochastic curvature."""
    return draw_batch(problem, state)


def default_batch(problem: Problem) -> BatchOf:
    """Return `full_batch` where the problem has a `train_set`, else `next_batch`."""
    return next_batch if problem.train_set is None else full_batch


def hessian_of_loss(problem: Problem, params: Params, hparams: HParams, batch: Batch) -> MatVec:
    """Return u -> H u with H = ∂²L/∂w², linearized once at the weights.

    **Cost:** a gradient to build, keeping its activations, and about one a product.
    **Limits:** the loss must have forward derivatives (no `jax.custom_vjp` in it).
    """
    loss = inner_loss(problem, params, batch)
    return hessian_product(lambda w: loss(w, hparams), trained(params))


def gauss_newton(
    outputs: Callable[[Params, HParams, Batch], PyTree],
    convex: Callable[[PyTree, HParams, Batch], Array],
) -> Curvature:
    """Use the Gauss-Newton matrix G = Jᵀ (∂²c/∂z²) J of a loss L = c(z(w)) in place of the Hessian.

    The matrix is positive semidefinite where c is convex in the outputs z, whatever the network. A penalty on
    the weights belongs in both: let the outputs be (logits, weights), and let c add the penalty.

    **Limits:** biased by Σ_i (∂c/∂z_i) ∂²z_i/∂w², which vanishes where the loss is fitted.

    Args:
        outputs: (params, hparams, batch) -> z, floating point.
        convex: (z, hparams, batch) -> c `[]`, such that convex(outputs(...)) is the loss.

    Reference:
        Schraudolph, 2002, "Fast curvature matrix-vector products"; Martens, 2010.
    """

    def curvature(problem: Problem, params: Params, hparams: HParams, batch: Batch) -> MatVec:
        weights = trained(params)

        def forward(weights: PyTree) -> PyTree:
            return outputs(with_parts(params, weights, carried(params)), hparams, batch)

        return gauss_newton_product(forward, lambda z: convex(z, hparams, batch), weights)

    return curvature


def settle(
    problem: Problem, weights: PyTree, hparams: HParams, params: Params, batch: Batch
) -> Params:
    """Return `params` with these weights; the carried state follows them by its own fixed point.

    c* = s(w, c*, λ)   ⟹   dc* = (I − ∂s/∂c)⁻¹ (∂s/∂w dw + ∂s/∂λ dλ)

    This serves running statistics and averaged weights, which the objective may read. The value is that of
    `params`; only derivatives are made here. Nothing happens without carried state.
    """
    state = carried(params)
    floats, join = tree.split_float(state)
    if not floats:
        return with_parts(params, weights, state)

    def gap(c: list[Array]) -> list[Array]:
        whole = with_parts(params, weights, join(c))
        new = tree.floats(evaluate_loss(problem, whole, hparams, batch)[1])
        return [a - b for a, b in zip(c, new, strict=True)]

    solve = gmres()

    def tangent_solve(linear: MatVec, y: PyTree) -> PyTree:
        def invert(matvec: MatVec, b: PyTree) -> PyTree:
            return solve(matvec, b)[0]

        return jax.lax.custom_linear_solve(linear, y, invert, transpose_solve=invert)

    settled = jax.lax.custom_root(gap, jax.lax.stop_gradient(floats), _as_found, tangent_solve)
    return with_parts(params, weights, join(settled))


def _as_found(function: Callable, found: PyTree) -> PyTree:
    """Return the result of training as the root."""
    return found


def best_response(
    problem: Problem, horizon: int, *, solve: Solve | None = None, batch: BatchOf | None = None
) -> Callable[[HParams, Key], Params]:
    """Train, and differentiate the weights by the implicit function theorem instead of the run.

    w*(λ) = argmin_w L(w, λ),   dw*/dλ = −H⁻¹ ∂²L/∂w∂λ

    A pure function of the hparams: `jax.grad`, `jax.jvp`, `jax.hessian` and `jax.vmap` go through it.

    **Cost:** `horizon` steps of training and a linear solve a derivative; memory of one state, whatever
    the horizon.

    **Limits:** away from the minimum the derivative is wrong by O(‖∇_w L‖). This function does not report it;
    the estimator `implicit` does. Effects through the optimizer or the initial weights are left out: a leaf
    that acts in no other way raises an error, and one that the loss reads too brings a `StructuralZeroWarning`.
    The Hessian is that of the loss, assumed to be symmetric.

    Args:
        problem: Training loop.
        horizon: Number of inner steps.
        solve: Linear solver from `estimators.solve`; `cg()` where None.
        batch: Function that returns the batch over which L is stationary; `full_batch` where the problem has
            a `train_set`, else `next_batch`.

    Returns:
        (hparams, key) -> params after training. The key draws initial weights and minibatches.

    Raises:
        ValueError: for a horizon below 1 and, when traced, for a leaf without implicit derivative and a
            loss without curvature.

    Reference:
        Pedregosa, 2016, arXiv:1602.02355; Blondel et al., 2022, arXiv:2105.15183.
    """
    check_problem(problem)
    check_whole("horizon", horizon)
    solve = cg() if solve is None else solve
    choose = default_batch(problem) if batch is None else batch
    check_function("solve", solve, "cg()", "matvec, b")
    check_function("batch", choose, "next_batch", "problem, state")

    def tangent_solve(linear: MatVec, y: PyTree) -> PyTree:
        return jax.lax.custom_linear_solve(linear, y, lambda a, b: solve(a, b)[0], symmetric=True)

    def respond(hparams: HParams, key: Key) -> Params:
        check_step(problem, hparams, real=True)
        check_implicit(problem, hparams, horizon, choose)
        frozen = jax.lax.stop_gradient(hparams)
        final = unroll(problem, frozen, init_state(problem, key, frozen), horizon)
        params, data = final.params, choose(problem, final)
        loss = inner_loss(problem, params, data)
        weights = jax.lax.custom_root(
            lambda w: jax.grad(loss)(w, hparams), trained(params), _as_found, tangent_solve
        )
        return settle(problem, weights, hparams, params, data)

    return respond
