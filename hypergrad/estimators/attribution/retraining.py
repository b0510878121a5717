"""Training again on weighted examples, without each example in turn, and on random subsets."""

import jax
import jax.numpy as jnp

from hypergrad.core.checks import check_share, check_whole, describe
from hypergrad.core.types import Array, HParams, Key
from hypergrad.estimators.attribution.base import (
    Attribution,
    Predictions,
    Weighted,
    WeightedLoss,
    in_chunks,
    weighted,
)
from hypergrad.problem import Problem
from hypergrad.train import TrainState, init_state, split_key, unroll_losses


def retrained(
    problem: Problem,
    hparams: HParams,
    key: Key,
    horizon: int,
    weights: Array,
    *,
    of: Predictions | None = None,
    loss: WeightedLoss | None = None,
    chunk: int = 1,
) -> Array:
    """Train again with other weights of the examples, from the same key in the same order of minibatches.

    An example of weight 0 is missing from its minibatches, which still count B, as in `attribution`.

    **Cost:** one training for each row of weights.

    Args:
        problem: Training loop with `train_set=Examples(num_examples, at, draw)`.
        hparams: Hyperparameters.
        key: Key of initial weights and minibatches.
        horizon: Number of inner steps.
        weights: Weights `[S, N]`.
        of: Predictions, as in `attribution`.
        loss: Weighted loss, as in `attribution`.
        chunk: Number of trainings side by side.

    Returns:
        Values `[S]`, or predictions `[S, M]`.
    """
    made = weighted(problem, hparams, horizon, of, loss)
    check_whole("chunk", chunk)
    shape = jnp.shape(weights)
    if len(shape) != 2 or shape[1] != made.num_examples:
        raise ValueError(
            f"weights is {describe(weights)}, expected an array of shape (S, {made.num_examples}), a weight "
            "for each example; make some with random_subsets(...)"
        )
    return _values(made, key, horizon, jnp.asarray(weights, float), chunk)


def exact_leave_one_out(
    problem: Problem,
    hparams: HParams,
    key: Key,
    horizon: int,
    *,
    of: Predictions | None = None,
    loss: WeightedLoss | None = None,
    chunk: int = 1,
) -> Attribution:
    """Train again without each example: score_i = f(1) − f(1 − e_i), for a small set.

    **Cost:** N + 1 trainings.

    **Limits:** rounding: the change by one example may be smaller than what training in float32 loses.

    Args:
        problem: Training loop with `train_set=Examples(num_examples, at, draw)`.
        hparams: Hyperparameters.
        key: Key of initial weights and minibatches.
        horizon: Number of inner steps.
        of: Predictions, as in `attribution`.
        loss: Weighted loss, as in `attribution`.
        chunk: Number of trainings side by side.
    """
    made = weighted(problem, hparams, horizon, of, loss)
    check_whole("chunk", chunk)
    num = made.num_examples
    weights = jnp.concatenate([jnp.ones((1, num)), 1 - jnp.eye(num)])
    values = _values(made, key, horizon, weights, chunk)
    return Attribution((values[0] - values[1:]).T, values[0], None, None, None)


def random_subsets(key: Key, num_subsets: int, num_examples: int, drop: float) -> Array:
    """Draw weights `[num_subsets, num_examples]`, each with a share `drop` of zeros among ones.

    Args:
        key: Key of the draw.
        num_subsets: Number of subsets.
        num_examples: Number N of examples.
        drop: Share of the examples dropped; at least one and at most all but one.
    """
    check_whole("num_subsets", num_subsets)
    check_whole("num_examples", num_examples, 2)
    check_share("drop", drop, "(0, 1)", example=0.05)
    num = min(max(round(drop * num_examples), 1), num_examples - 1)
    row = jnp.where(jnp.arange(num_examples) < num, 0.0, 1.0)
    keys = jax.random.split(key, num_subsets)
    return jax.vmap(lambda k: jax.random.permutation(k, row))(keys)


def _values(made: Weighted, key: Key, horizon: int, weights: Array, chunk: int) -> Array:
    """Train with each row of weights `[S, N]`; return the objectives or predictions."""
    return in_chunks(lambda row: ended(made, key, horizon, row)[1], weights, chunk)


def ended(made: Weighted, key: Key, horizon: int, weights: Array) -> tuple[TrainState, Array]:
    """Train with weights `[N]`; return the last state, and the objective or predictions there."""
    init_key, valid_key = split_key(key)
    start = init_state(made.problem, init_key, weights)
    last = unroll_losses(made.problem, weights, start, horizon)[0]
    batch = made.problem.valid_batch(valid_key)
    return last, jnp.asarray(made.problem.objective(last.params, weights, batch))
