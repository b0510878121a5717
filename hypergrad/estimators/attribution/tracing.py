"""Gradient tracing: products of gradients over the checkpoints of one run."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from hypergrad.core.checks import check_function, check_whole
from hypergrad.core.types import Array, HParams, Key
from hypergrad.estimators.attribution.base import (
    Attribution,
    Predictions,
    WeightedLoss,
    for_predictions,
    weighted,
)
from hypergrad.estimators.attribution.influence import products_of
from hypergrad.problem import Problem
from hypergrad.train import TrainState, init_state, split_key, unroll_losses


def gradient_tracing(
    problem: Problem,
    hparams: HParams,
    key: Key,
    horizon: int,
    *,
    of: Predictions | None = None,
    loss: WeightedLoss | None = None,
    num_checkpoints: int = 10,
    rate: Callable[[Array], Array] | None = None,
    chunk: int = 16,
) -> Attribution:
    """Attribute by products of gradients at checkpoints along the run (TracInCP).

    score_i = −(T/C) Σ_c η_c ∇f(w_c)·∇ℓ_i(w_c) / N at C checkpoints, T/C steps apart, the last at the end

    **Cost:** one training, and at each checkpoint all N examples forward and along a direction for each
    prediction.

    **Limits:** a heuristic: how steps after a checkpoint change what it did is left out, and so are momentum
    and preconditioners.

    Args:
        problem: Training loop with `train_set=Examples(num_examples, at, draw)`.
        hparams: Hyperparameters.
        key: Key of initial weights and minibatches.
        horizon: Number of inner steps.
        of: Predictions, as in `attribution`.
        loss: Weighted loss, as in `attribution`.
        num_checkpoints: Number C of checkpoints.
        rate: (step) -> learning rate η, an effective one (lr / (1 − momentum)); 1 where None, so that only
            the order of the scores means something.
        chunk: Number of predictions side by side.

    Reference:
        Pruthi, Liu, Sundararajan, Kale, 2020, arXiv:2002.08484, section 3.3.
    """
    made = weighted(problem, hparams, horizon, of, loss)
    check_whole("num_checkpoints", num_checkpoints)
    if num_checkpoints > horizon:
        raise ValueError(
            f"num_checkpoints is {num_checkpoints}, expected at most horizon = {horizon}; lower it"
        )
    if rate is not None:
        check_function("rate", rate, "lambda step: 0.1", "step")
    init_key, valid_key = split_key(key)
    ones, size = jnp.ones(made.num_examples), horizon // num_checkpoints

    def traced(state: TrainState, _: None) -> tuple[TrainState, tuple[Array, Array]]:
        state = unroll_losses(made.problem, ones, state, size)[0]
        value, pull, products = products_of(made, state.params, valid_key)
        scale = size if rate is None else size * rate(state.step - 1)
        parts = for_predictions(lambda c: -scale * products(pull(c)[0]), value, chunk)
        return state, (value, parts)

    start = init_state(made.problem, init_key, ones)
    start = unroll_losses(made.problem, ones, start, horizon % num_checkpoints)[0]
    _, (values, parts) = jax.lax.scan(traced, start, None, length=num_checkpoints)
    return Attribution(jnp.sum(parts, 0), values[-1], None, None, None)
