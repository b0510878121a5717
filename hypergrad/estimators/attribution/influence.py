"""Influence functions: the implicit hypergradients of the weights of examples."""

import jax
import jax.numpy as jnp

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
        An attribution whose `info` is the solver's, a `SolveInfo` of arrays like `value`.

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

    scores, info = for_predictions(one, value, 1)
    return Attribution(scores, value, None, None, info)


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
