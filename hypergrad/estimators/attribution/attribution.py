"""Hypergradients with regard to the weight of every training example, through all of training."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hypergrad.core import tree
from hypergrad.core.checks import check_whole
from hypergrad.core.types import Array, HParams, Key
from hypergrad.core.widen import cast_wide
from hypergrad.estimators.attribution.base import (
    Attribution,
    AttributionInfo,
    Predictions,
    Weighted,
    WeightedLoss,
    for_predictions,
    loss_gap,
    weighted,
)
from hypergrad.estimators.base import first_nonfinite
from hypergrad.estimators.rounding import moved_in_wide, relative_gap
from hypergrad.estimators.unrolled.adjoint import each_step, state_floats
from hypergrad.estimators.unrolled.base import growth_rate, unknown_lengths
from hypergrad.problem import Problem
from hypergrad.train import init_state, split_key, trained


def attribution(
    problem: Problem,
    hparams: HParams,
    key: Key,
    horizon: int,
    *,
    of: Predictions | None = None,
    loss: WeightedLoss | None = None,
    per_step: bool = False,
    certified: bool = True,
    chunk: int = 16,
) -> Attribution:
    """Differentiate the objective, or predictions, in the weight of every training example.

    L_t(w, ω) = (1/B) Σ_b ω_{i(t,b)} ℓ(w, x_{i(t,b)}),   score_i = d f(w_T) / d ω_i at ω = 1
              = −Σ_t Σ_b 1{i(t,b) = i} v_t·∇ℓ(w_t, x_i) / B with v_t the adjoint of the gradient of step t

    Each example has one weight through the whole of training; `per_step` gives each of its appearances one.
    A weight of 0 means that the term of the example is missing from its minibatches, which still count B:
    the same initial weights, the same minibatches in the same order, and no other example in its place
    (`retrained`).

    A pure function: `jax.jit` it over hparams and key.

    **Cost:** for one value 3 to 5 x training, as `reverse`; for M predictions training once, and the backward
    pass for `chunk` of them at a time, which share its gradients. The certificate doubles all of it. Memory
    of the states as in `reverse`, and of `chunk` x horizon x B scores; by step, of those of all predictions.

    **Limits:** exact for weights near 1, except for rounding: how far the change after dropping many
    examples is linear, `linear_datamodeling_score` says. Without `loss`, the loss must be a mean over the
    rows of its batch; a penalty that it adds is weighted along, and where it draws, each row draws by
    itself. `info.gap` tells the difference. Where training is chaotic the scores are useless: see `advice`.

    Args:
        problem: Training loop with `train_set=Examples(num_examples, at, draw)`.
        hparams: Hyperparameters.
        key: Key of initial weights and minibatches.
        horizon: Number of inner steps.
        of: (params, hparams) -> predictions `[]` or `[M]`; the objective where None.
        loss: (params, hparams, batch, weights `[B]`) -> the weighted loss of a batch, which is
            `problem.loss` at weights of 1, for losses that are no mean over rows (BatchNorm, dropout,
            penalties).
        per_step: Whether to return the score of each row of each minibatch.
        certified: Whether to make the rounding certificate of `estimators.rounding`.
        chunk: Number of predictions pulled back side by side.

    Raises:
        ValueError: for examples without an index, for predictions that are not scalars, and for a carried state
            without `loss`.

    Reference:
        Ilyas, Engstrom, 2025, arXiv:2504.16430 (MAGIC); Maclaurin, Duvenaud, Adams, 2015, arXiv:1502.03492.
    """
    made = weighted(problem, hparams, horizon, of, loss)
    check_whole("chunk", chunk)
    # one weight a row: each step reads the same B ones, whose cotangents the pass keeps apart
    rows = made.problem._replace(
        loss=lambda params, weights, batch: made.problem.loss(
            params, weights, (batch[0], jnp.arange(made.batch_size))
        )
    )
    ones = jnp.ones(made.batch_size)
    start = init_state(rows, split_key(key)[0], ones)
    gap, matched = loss_gap(
        problem, made, hparams, start.params, jax.random.fold_in(start.key, start.step)
    )
    indices = _indices(made, start.key, horizon)

    def scored(parts: Array) -> Array:
        return parts if per_step else _by_example(parts, indices, made)

    found = _pulled(rows, ones, key, horizon, scored, chunk)
    scores, rounding, error = found.scores, None, None
    if certified:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the first pass has given them
            second = moved_in_wide(rows, ones)
            wide = _pulled(second, cast_wide(ones), key, horizon, scored, chunk).scores
        gaps = relative_gap if not found.value.ndim else jax.vmap(relative_gap)
        rounding, error = gaps(scores, wide), jnp.abs(wide - scores).astype(scores.dtype)
    info = AttributionInfo(
        horizon=jnp.asarray(horizon, jnp.int32),
        growth=jnp.max(found.growth),
        first_nonfinite=first_nonfinite(found.losses, jnp.sum(found.value)),
        gap=gap,
        matched=matched,
        error=error,
    )
    return Attribution(scores, found.value, indices if per_step else None, rounding, info)


class _Found(NamedTuple):
    """What one pass found.

    Attributes:
        value: `[]` or `[M]`.
        scores: Scores of all examples, or rows, for each value.
        growth: `[]` or `[M]`.
        losses: Training losses `[T]`.
    """

    value: Array
    scores: Array
    growth: Array
    losses: Array


def _pulled(
    problem: Problem,
    ones: Array,
    key: Key,
    horizon: int,
    scored: Callable[[Array], Array],
    chunk: int,
) -> _Found:
    """Train, and pull every prediction back; `scored` makes scores of those of all rows `[T, B]`."""
    init_key, valid_key = split_key(key)
    start = init_state(problem, init_key, ones)
    run = each_step(problem, ones, start, horizon)
    leaves, join = state_floats(run.state)
    batch, num = problem.valid_batch(valid_key), len(jax.tree.leaves(trained(start.params)))

    def objective(leaves: list[Array]) -> Array:
        return jnp.asarray(problem.objective(join(leaves).params, ones, batch))

    value, pull = jax.vjp(objective, leaves)

    def one(cotangent: Array) -> tuple[Array, Array]:
        (adjoint,) = pull(cotangent)
        pulled = run.pullback(adjoint)
        growth = growth_rate(tree.norm(adjoint[:num]), pulled.norms[::-1])
        return scored(pulled.hparams[0]), growth

    with unknown_lengths("use an optimizer without line search, or lax.scan"):
        scores, growth = for_predictions(one, value, chunk)
    return _Found(value, scores, growth, run.losses)


def _indices(made: Weighted, key: Key, horizon: int) -> Array:
    """Return the examples of every minibatch of a run `[T, B]`."""

    def one(step: Array) -> Array:
        return made.draw(jax.random.fold_in(key, step), step)

    return jax.lax.map(one, jnp.arange(horizon, dtype=jnp.int32))


def _by_example(parts: Array, indices: Array, made: Weighted) -> Array:
    """Sum the scores `[T, B]` of the rows of each example, `[N]`."""
    return jnp.zeros(made.num_examples, parts.dtype).at[indices.reshape(-1)].add(parts.reshape(-1))
