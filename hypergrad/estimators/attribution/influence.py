"""Influence functions: the implicit hypergradients of the weights of examples."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hypergrad.core import tree
from hypergrad.core.checks import check_function
from hypergrad.core.solve import Solve, SolveInfo, cg, positive
from hypergrad.core.types import Array, Batch, HParams, Key, PyTree
from hypergrad.estimators.attribution.base import (
    Attribution,
    Predictions,
    Weighted,
    WeightedLoss,
    for_predictions,
    weighted,
)
from hypergrad.estimators.attribution.retraining import ended
from hypergrad.estimators.base import inner_loss
from hypergrad.estimators.implicit.response import Curvature, hessian_of_loss
from hypergrad.problem import Problem
from hypergrad.train import carried, split_key, trained, with_parts


class InfluenceInfo(NamedTuple):
    """Diagnostics of influence functions.

    Attributes:
        solved: How well the linear systems were solved, arrays like `value`.
        gradient_norm: Norm ‖∇_w L‖ of the loss of all examples at the end, `[]`; zero in theory.
    """

    solved: SolveInfo
    gradient_norm: Array

    def advice(self, found: Attribution) -> list[str]:
        """Say in words what is wrong with the scores, and what to do."""
        solved, said = self.solved, []
        if not jnp.all(jnp.isfinite(found.scores)):
            said.append("the scores are not finite; lower the learning rate, or damp the solve")
        if not jnp.all(solved.smallest_curvature > 0):
            said.append(
                f"the smallest curvature met is {jnp.min(solved.smallest_curvature):.1e}, expected above 0: "
                "the Hessian is not positive definite here; train longer, or damp the solve"
            )
        if not jnp.all(solved.converged):
            said.append(
                f"the linear solver left a relative residual of {jnp.max(solved.residual):.1e}: allow it "
                "more iterations, or damp it"
            )
        if jnp.any(solved.damping > 0):
            said.append(
                f"the Hessian was damped by up to {jnp.max(solved.damping):.1e}: the scores are too small "
                "where the loss is flatter than that"
            )
        return said


def influence(
    problem: Problem,
    hparams: HParams,
    key: Key,
    horizon: int,
    *,
    of: Predictions | None = None,
    loss: WeightedLoss | None = None,
    solve: Solve | None = None,
    curvature: Curvature = hessian_of_loss,
) -> Attribution:
    """Attribute by influence functions, where training has come to rest.

    score_i = −∇fᵀ H⁻¹ ∇ℓ_i / N,   H = ∂²/∂w² (1/N) Σ_i ℓ_i(w_T)

    **Cost:** one training, and a linear solve over all N examples for each prediction, one after another.

    **Limits:** those of `estimators.implicit`: exact at a minimum, elsewhere off by O(‖∇_w L‖) and by what
    damping or a truncated solve leave. What carried state does is left out.

    Args:
        problem: Training loop with `train_set=Examples(num_examples, at, draw)`.
        hparams: Hyperparameters.
        key: Key of initial weights and minibatches.
        horizon: Number of inner steps.
        of: Predictions, as in `attribution`.
        loss: Weighted loss, as in `attribution`.
        solve: Linear solver; `positive(cg())` where None.
        curvature: Curvature of the loss of all examples, as in `estimators.implicit`. It is given the problem
            whose hparams are weights `[N]` and whose batches are (batch, indices).

    Returns:
        An attribution whose `info` is an `InfluenceInfo`.

    Reference:
        Koh, Liang, 2017, arXiv:1703.04730, equation 2.
    """
    made = weighted(problem, hparams, horizon, of, loss)
    solver = positive(cg()) if solve is None else solve
    check_function("solve", solver, "cg()", "matvec, b")
    check_function("curvature", curvature, "hessian_of_loss", "problem, params, hparams, batch")
    ones, batch = jnp.ones(made.num_examples), _every(made)
    last = ended(made, key, horizon, ones)[0]
    matvec = curvature(made.problem, last.params, ones, batch)
    value, pull, products = products_of(made, last.params, split_key(key)[1])

    def one(cotangent: Array) -> tuple[Array, SolveInfo]:
        v, info = solver(matvec, pull(cotangent)[0])
        return -products(v), info

    scores, solved = for_predictions(one, value, 1)
    slope = jax.grad(inner_loss(made.problem, last.params, batch))(trained(last.params), ones)
    return Attribution(scores, value, None, None, InfluenceInfo(solved, tree.norm(slope)))


def _every(made: Weighted) -> tuple[Batch, Array]:
    """Return all examples as one batch of the weighted problem."""
    indices = jnp.arange(made.num_examples)
    return made.at(indices), indices


def products_of(made: Weighted, params: PyTree, valid_key: Key) -> tuple:
    """Return the predictions at some weights, their pullback, and v -> ∇ℓ_i·v / N of every example `[N]`."""
    ones, batch = jnp.ones(made.num_examples), _every(made)
    judged, weights = made.problem.valid_batch(valid_key), trained(params)

    def objective(weights: PyTree) -> Array:
        whole = with_parts(params, weights, carried(params))
        return jnp.asarray(made.problem.objective(whole, ones, judged))

    value, pull = jax.vjp(objective, weights)
    losses = jax.grad(
        inner_loss(made.problem, params, batch), 1
    )  # the loss is linear in the weights
    products = jax.linearize(lambda w: losses(w, ones), weights)[1]
    return value, pull, products
