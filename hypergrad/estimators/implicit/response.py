"""The response of trained weights to hyperparameters, where training has come to rest.

∇_w L(w*, λ) = 0   ⟹   dw*/dλ = −H⁻¹ ∂²L/∂w∂λ,   H = ∂²L/∂w²

What is assumed, and refused where it cannot hold, is here; `estimators.implicit` computes with it.
"""

import warnings
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from hypergrad.core import tree
from hypergrad.core.autodiff import depends
from hypergrad.core.checks import check_whole
from hypergrad.core.solve import MatVec, Solve, cg, gmres
from hypergrad.core.types import Array, Batch, HParams, Key, Params, PyTree
from hypergrad.estimators.advice import StructuralZeroWarning
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
"""(problem, state at the end of training) -> the batch over which L is taken to be stationary."""


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


def inner_loss(
    problem: Problem, params: Params, batch: Batch
) -> Callable[[PyTree, HParams], Array]:
    """Return L as a function (weights, hparams) -> `[]`, with the carried state of `params` held."""

    def loss(weights, hparams):
        whole = with_parts(params, weights, carried(params))
        return evaluate_loss(problem, whole, hparams, batch)[0]

    return loss


def hessian_of_loss(problem: Problem, params: Params, hparams: HParams, batch: Batch) -> MatVec:
    """Return u -> H u with H = ∂²L/∂w², linearized once at the weights.

    **Cost:** a gradient to build, keeping its activations, and about one a product.
    **Limits:** the loss must have forward derivatives (no `jax.custom_vjp` in it).
    """
    loss = inner_loss(problem, params, batch)
    return jax.linearize(lambda w: jax.grad(loss)(w, hparams), trained(params))[1]


def gauss_newton(
    outputs: Callable[[Params, HParams, Batch], PyTree],
    convex: Callable[[PyTree, HParams, Batch], Array],
) -> Curvature:
    """Use the Gauss-Newton matrix G = Jᵀ (∂²c/∂z²) J of a loss L = c(z(w)) for the Hessian.

    Positive semidefinite where c is convex in the outputs z, whatever the network. A penalty on the
    weights belongs into both: let the outputs be (logits, weights), and c add the penalty.

    **Limits:** biased by Σ_i (∂c/∂z_i) ∂²z_i/∂w², which vanishes where the loss is fitted.

    Args:
        outputs: (params, hparams, batch) -> z, floating point.
        convex: (z, hparams, batch) -> c `[]`, such that convex(outputs(...)) is the loss.

    Reference:
        Schraudolph, 2002, "Fast curvature matrix-vector products"; Martens, 2010.
    """

    def curvature(problem, params, hparams, batch):
        weights = trained(params)

        def forward(weights):
            return outputs(with_parts(params, weights, carried(params)), hparams, batch)

        made, push = jax.linearize(forward, weights)
        pull = jax.linear_transpose(push, weights)
        _, bend = jax.linearize(jax.grad(lambda z: convex(z, hparams, batch)), made)
        return lambda u: pull(bend(push(u)))[0]

    return curvature


def settle(
    problem: Problem, weights: PyTree, hparams: HParams, params: Params, batch: Batch
) -> Params:
    """Return `params` with these weights, the carried state following them by its own fixed point.

    c* = s(w, c*, λ)   ⟹   dc* = (I − ∂s/∂c)⁻¹ (∂s/∂w dw + ∂s/∂λ dλ)

    for running statistics and averaged weights, which the objective may read. The value is that of
    `params`; only derivatives are made here. Nothing happens without carried state.
    """
    state = carried(params)
    floats, join = tree.split_float(state)
    if not floats:
        return with_parts(params, weights, state)

    def gap(c):
        whole = with_parts(params, weights, join(c))
        new = tree.floats(evaluate_loss(problem, whole, hparams, batch)[1])
        return [a - b for a, b in zip(c, new, strict=True)]

    solve = gmres()

    def tangent_solve(linear, y):
        def invert(matvec, b):
            return solve(matvec, b)[0]

        return jax.lax.custom_linear_solve(linear, y, invert, transpose_solve=invert)

    settled = jax.lax.custom_root(gap, jax.lax.stop_gradient(floats), _as_found, tangent_solve)
    return with_parts(params, weights, join(settled))


def _as_found(function: Callable, found: PyTree) -> PyTree:
    """Take what training found for the root."""
    return found


def best_response(
    problem: Problem, horizon: int, *, solve: Solve | None = None, batch: BatchOf | None = None
) -> Callable[[HParams, Key], Params]:
    """Train, and differentiate the weights by the implicit function theorem instead of the run.

    w*(λ) = argmin_w L(w, λ),   dw*/dλ = −H⁻¹ ∂²L/∂w∂λ

    A pure function of the hparams: `jax.grad`, `jax.jvp`, `jax.hessian` and `jax.vmap` go through it.

    **Cost:** `horizon` steps of training and a linear solve a derivative; memory of one state, whatever
    the horizon.

    **Limits:** off the minimum the derivative is wrong by O(‖∇_w L‖); nothing here says so, the estimator
    `implicit` does. What acts through the optimizer or the initial weights is left out: a leaf that acts
    so alone is refused, one that the loss reads too brings a `StructuralZeroWarning`. The Hessian is that of
    the loss, taken to be symmetric.

    Args:
        problem: the training loop.
        horizon: number of inner steps.
        solve: a linear solver from `hypergrad.solve`; `cg()` where None.
        batch: over which L is stationary; `full_batch` where the problem has a `train_set`, else
            `next_batch`.

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

    def tangent_solve(linear, y):
        return jax.lax.custom_linear_solve(linear, y, lambda a, b: solve(a, b)[0], symmetric=True)

    def respond(hparams, key):
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


def check_implicit(problem: Problem, hparams: HParams, horizon: int, batch: BatchOf) -> None:
    """Raise a `ValueError` where the implicit function theorem has nothing to say, leaf by leaf.

    Warns of the leaves of which it says a part (`check_leaves`).

    **Cost:** traces of a gradient and of three steps; nothing is compiled or run.
    """
    key = jax.random.key(0)

    def stationarity(weights, floats, hparams):
        start = init_state(problem, key, jax.lax.stop_gradient(hparams))
        # integers and keys of the carried state are no arguments of a derivative: they are made here
        join = tree.split_float(carried(start.params))[1]
        params = with_parts(start.params, weights, join(floats))
        loss = inner_loss(problem, params, batch(problem, start._replace(params=params)))
        return jax.grad(loss)(weights, hparams)

    shapes = jax.eval_shape(lambda h: init_state(problem, key, h).params, hparams)
    weights, floats = trained(shapes), tree.floats(carried(shapes))
    used = depends(stationarity, weights, floats, hparams)
    num_w, num_c = len(jax.tree.leaves(weights)), len(floats)
    if not any(used[:num_w]):
        raise ValueError(
            "problem.loss is linear in the params (its gradient does not depend on them), expected "
            "curvature; add a penalty on the weights, or use reverse(...)"
        )
    if any(used[num_w : num_w + num_c]):
        raise ValueError(
            "problem.loss reads its carried state, expected weights alone to decide its gradient; use "
            "reverse(...), which differentiates through the state"
        )
    check_leaves(problem, hparams, horizon, used[num_w + num_c :], "implicit hypergradient")


def check_leaves(
    problem: Problem, hparams: HParams, horizon: int, in_loss: list[bool], what: str
) -> None:
    """Refuse the leaves that move the weights by other ways than the loss alone, warn of those that do both.

    A leaf is taken as a whole: of rates and penalties in one array it is not known which entry does what.

    Args:
        problem: the training loop.
        hparams: of the shapes to be used.
        horizon: number of inner steps.
        in_loss: for each leaf, whether the gradient of the loss reads it.
        what: sees what the loss does alone.
    """
    other_ways = past_the_loss(problem, hparams, horizon)
    for name, loss_reads, others_read in zip(
        tree.leaf_names(hparams), in_loss, other_ways, strict=True
    ):
        if others_read and not loss_reads:
            raise ValueError(
                f"hparams[{name!r}] acts on training through problem.optimizer or problem.init alone, "
                f"where the {what} is zero, expected a leaf of problem.loss; use "
                "reverse(...) or forward(...) for it, or close over it"
            )
        if others_read:
            warnings.warn(
                f"the {what} leaves out what hparams[{name!r}] does through problem.optimizer or "
                "problem.init: that part counts as zero, which at rest it is for a rate, and not for a decay; "
                "split the leaf where its entries do one or the other, or use reverse(...) or forward(...)",
                StructuralZeroWarning,
                stacklevel=4,
            )


def past_the_loss(problem: Problem, hparams: HParams, horizon: int) -> list[bool]:
    """Tell, for each leaf, whether it moves the weights through the optimizer or the initial weights.

    **Cost:** a trace of three steps; nothing is compiled or run.
    """

    def loss(params, h, batch):
        return problem.loss(params, jax.lax.stop_gradient(h), batch)

    blind = problem._replace(loss=loss)

    def run(hparams):
        start = init_state(blind, jax.random.key(0), hparams)
        return tree.floats(unroll(blind, hparams, start, min(horizon, 3)).params)

    return depends(run, hparams)


def unused(problem: Problem, hparams: HParams) -> list[str]:
    """Name the leaves that neither the gradient of the loss nor the objective reads."""

    def reads(hparams):
        key = jax.random.key(0)
        start = init_state(problem, key, jax.lax.stop_gradient(hparams))
        params, batch = start.params, draw_batch(problem, start)
        grads = jax.grad(inner_loss(problem, params, batch))(trained(params), hparams)
        state = tree.floats(evaluate_loss(problem, params, hparams, batch)[1])
        return grads, state, problem.objective(params, hparams, problem.valid_batch(key))

    alive = depends(reads, hparams)
    return [name for name, lives in zip(tree.leaf_names(hparams), alive, strict=True) if not lives]
