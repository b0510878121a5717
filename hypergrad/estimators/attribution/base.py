"""What an attribution is, and training on weighted examples."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from hypergrad.core import tree
from hypergrad.core.checks import check_function, check_whole, describe
from hypergrad.core.types import Array, Batch, HParams, Key, Params, PyTree, Variables
from hypergrad.estimators.advice import unrolled_advice
from hypergrad.estimators.rounding import MAX_ROUNDED
from hypergrad.problem import Examples, Problem, check_problem, split_loss
from hypergrad.train import evaluate_loss, init_state
from hypergrad.validation import check_step

Predictions: TypeAlias = Callable[[Params, HParams], Array]
"""(params, hparams) -> what is attributed: one real number `[]`, or one for each prediction `[M]`."""

WeightedLoss: TypeAlias = Callable[[Params, HParams, Batch, Array], Any]
"""(params, hparams, batch, weights of its rows `[B]`) -> what `problem.loss` returns."""

MAX_GAP = 1e-3
"""Relative difference of the weighted loss at weights of 1 from the loss, above which `advice` names it."""

_LOSS = "pass loss=lambda params, hparams, batch, weights: ..."
_DRAW = "write train_set=Examples(num_examples, at, draw) with draw=lambda key, step: indices of the batch"


class AttributionInfo(NamedTuple):
    """Diagnostics of an attribution through training.

    Attributes:
        horizon: Number of steps differentiated through, int32 `[]`.
        growth: Mean growth of the adjoint a step, as in `UnrollInfo`, the largest over the predictions, `[]`.
        first_nonfinite: First step that was not finite, or -1; int32 `[]`.
        gap: Relative difference of the weighted loss, at weights of 1, from the loss in the first step, `[]`.
        matched: Share of the entries of the first batch that are those of `train_set.at` at the indices drawn,
            `[]`; NaN where the two have other shapes.
        error: Difference of each score in the second pass of the certificate, like `scores`; None without it.
    """

    horizon: Array
    growth: Array
    first_nonfinite: Array
    gap: Array
    matched: Array
    error: Array | None


class Attribution(NamedTuple):
    """How much the weight of every training example moves a value.

    A score is the derivative d value / d weight at weights of 1, or an estimate of it. To drop an example is
    to set its weight to 0, which changes the value by about minus its score.

    Attributes:
        scores: `[N]` for N examples, or `[M, N]` for M predictions; by step `[T, B]` or `[M, T, B]`.
        value: Objective or predictions at the end of training, `[]` or `[M]`.
        indices: Examples of every minibatch `[T, B]`, where the scores are by step; else None.
        rounding: Certificate ‖s' − s‖ / ‖s'‖ of the scores of each prediction, as in `RoundingInfo`, float32
            like `value`; None where none was made.
        info: Method's own diagnostics.
    """

    scores: Array
    value: Array
    indices: Array | None
    rounding: Array | None
    info: Any

    def predicted(self, weights: Array) -> Array:
        """Predict the value after training with these weights: value + Σ_i (weight_i − 1) score_i.

        Args:
            weights: Weights of the examples, `[..., N]`; 0 where an example is dropped.

        Returns:
            Values `[...]`, or `[..., M]`.
        """
        return self.value + (weights - 1) @ self.scores.T

    def advice(self) -> list[str]:
        """Say in words why the scores should not be trusted; empty if nothing shows. A host function."""
        info = self.info
        if not isinstance(info, AttributionInfo):
            return info.advice(self) if hasattr(info, "advice") else []
        said = unrolled_advice(info)
        if info.first_nonfinite >= 0:
            return said
        if self.rounding is not None:
            lost = jnp.atleast_1d(~(self.rounding <= MAX_ROUNDED))
            if jnp.any(lost):
                said.append(
                    f"rounding moves the scores of {jnp.sum(lost)} of {lost.size} predictions by more than "
                    f"{MAX_ROUNDED:.0%} of their size, at most {jnp.max(self.rounding):.0%}: train in wider "
                    "numbers, shorten the horizon, or trust no digits beyond that"
                )
        if not info.gap <= MAX_GAP:
            said.append(
                f"the loss of a batch is {info.gap:.0%} off the mean of the losses of its rows: a sum, draws, "
                f"or BatchNorm; the scores are those of training on that mean; {_LOSS}"
            )
        if info.matched < 1:
            said.append(
                f"{1 - info.matched:.0%} of the first batch are not the examples that train_set.draw names: "
                "unless train_batch changes its examples, the scores belong to others; draw the batch by "
                "train_batch=lambda key, step: at(draw(key, step))"
            )
        return said


class Weighted(NamedTuple):
    """A problem whose hparams are weights of its examples.

    Attributes:
        problem: Problem of hparams `[N]`; its batches are (batch, indices `[B]`).
        num_examples: Number N of examples.
        batch_size: Number B of rows of a batch.
        draw: (key, step) -> indices `[B]`.
        at: (indices) -> batch of the problem as it was.
    """

    problem: Problem
    num_examples: int
    batch_size: int
    draw: Callable[[Key, Array], Array]
    at: Callable[[Array], Batch]


def weighted(
    problem: Problem,
    hparams: HParams,
    horizon: int,
    of: Predictions | None,
    loss: WeightedLoss | None,
) -> Weighted:
    """Check the arguments that all attributions share, and return the problem of the weights of examples."""
    check_problem(problem)
    check_whole("horizon", horizon)
    if loss is not None:
        check_function("loss", loss, _LOSS[5:], "params, hparams, batch, weights")
    check_step(problem, hparams)
    params = jax.eval_shape(lambda: init_state(problem, jax.random.key(0), hparams).params)
    examples, draw, size = _indexed(problem)
    if loss is None and isinstance(params, Variables):
        raise ValueError(
            "problem.init returned Variables, expected a loss that is a mean over the rows of its batch, which "
            f"one with carried state is not; {_LOSS}"
        )
    if of is not None:
        _check_predictions(of, params, hparams)
    each = row_by_row(problem) if loss is None else loss

    def weighted_loss(params: Params, weights: Array, batch: Batch) -> Any:
        rows, indices = batch
        return each(params, hparams, rows, weights[indices])

    made = Problem(
        init=lambda key, weights: problem.init(key, hparams),
        loss=weighted_loss,
        objective=lambda params, weights, batch: (
            problem.objective(params, hparams, batch) if of is None else of(params, hparams)
        ),
        optimizer=lambda weights: problem.optimizer(hparams),
        train_batch=lambda key, step: (problem.train_batch(key, step), draw(key, step)),
        valid_batch=problem.valid_batch if of is None else lambda key: (),
    )

    return Weighted(made, examples.num_examples, size, draw, examples.at)


def row_by_row(problem: Problem) -> WeightedLoss:
    """Return Σ_b w_b L(batch of row b alone) / B of a problem's loss L.

    A leaf of the batch whose leading axis is B has a row for each example. One PRNG key becomes another for
    each row; every other leaf is shared.
    """

    def loss(params: Params, hparams: HParams, batch: Batch, weights: Array) -> Array:
        leaves, structure = jax.tree.flatten(batch)
        num, axes, parts = len(weights), [], []
        for x in map(jnp.asarray, leaves):
            lone_key = tree.is_key(x) and not x.shape
            own = lone_key or x.shape[:1] == (num,)
            row = x.reshape(num, 1, *x.shape[1:]) if own and not lone_key else x
            parts.append(jax.random.split(x, num) if lone_key else row)
            axes.append(0 if own else None)
        if not any(axis == 0 and x.shape for axis, x in zip(axes, leaves, strict=True)):
            raise ValueError(
                f"problem.train_batch returned shapes {[x.shape for x in leaves]}, expected a row for each "
                f"of the {num} indices of train_set.draw; draw the batch by at(draw(key, step))"
            )

        def one(*row: Array) -> Array:
            value = problem.loss(params, hparams, jax.tree.unflatten(structure, row))
            return split_loss(params, value)[0]

        each = jax.vmap(one, axes)(*parts)
        return jnp.mean(weights.astype(each.dtype) * each)

    return loss


def loss_gap(
    problem: Problem, made: Weighted, hparams: HParams, params: Params, key: Key
) -> tuple[Array, Array]:
    """Return `gap` and `matched` of `AttributionInfo`; `key` is that of the first batch."""
    batch = made.problem.train_batch(key, jnp.zeros((), jnp.int32))
    plain = evaluate_loss(problem, params, hparams, batch[0])[0]
    ones = jnp.ones(made.num_examples)
    gap = jnp.abs(evaluate_loss(made.problem, params, ones, batch)[0] - plain) / jnp.abs(plain)
    return jnp.where(plain == 0, 0, gap), _matched(batch[0], made.at(batch[1]))


def _matched(batch: Batch, named: Batch) -> Array:
    """Return the share of equal entries of two batches, their keys aside; NaN where shapes differ."""
    leaves = [[x for x in jax.tree.leaves(b) if not tree.is_key(x)] for b in (batch, named)]
    if [jnp.shape(x) for x in leaves[0]] != [jnp.shape(x) for x in leaves[1]]:
        return jnp.asarray(jnp.nan)
    pairs = zip(*leaves, strict=True)
    same = [jnp.ravel((a == b) | ((a != a) & (b != b))) for a, b in pairs]
    return jnp.mean(jnp.concatenate(same))


def in_chunks(function: Callable[..., PyTree], many: PyTree, chunk: int) -> PyTree:
    """Call a function on everything along the leading axis, `chunk` side by side."""
    if chunk == 1:
        return jax.lax.map(function, many)
    return jax.lax.map(function, many, batch_size=chunk)


def for_predictions(function: Callable[[Array], PyTree], value: Array, chunk: int) -> PyTree:
    """Call a function on the cotangent of the value, or on that of each prediction, `[M, ...]`."""
    if not value.ndim:
        return function(jnp.ones_like(value))
    return in_chunks(function, jnp.eye(len(value), dtype=value.dtype), chunk)


def _indexed(problem: Problem) -> tuple[Examples, Callable[[Key, Array], Array], int]:
    """Return the examples, their draw and its number of rows; raise a `ValueError` where they have no index."""
    examples = problem.train_set
    if examples is None or examples.draw is None:
        what = "problem.train_set" if examples is None else "problem.train_set.draw"
        raise ValueError(f"{what} is None, expected examples with an index; {_DRAW}")
    check_function(
        "problem.train_set.draw", examples.draw, "lambda key, step: indices", "key, step"
    )
    key, step = jax.eval_shape(jax.random.key, 0), jax.ShapeDtypeStruct((), jnp.int32)
    found = jax.eval_shape(examples.draw, key, step)
    whole = hasattr(found, "dtype") and jnp.issubdtype(found.dtype, jnp.integer)
    if not whole or found.ndim != 1 or not found.size:
        raise ValueError(
            f"problem.train_set.draw returned {describe(found)}, expected whole numbers of shape (B,); return "
            "the indices of the examples in the batch"
        )
    return examples, examples.draw, found.size


def _check_predictions(of: Predictions, params: Params, hparams: HParams) -> None:
    """Raise a `ValueError` unless `of` returns a real number for each prediction."""
    check_function("of", of, "lambda params, hparams: logits[0, 1]", "params, hparams")
    found = jax.eval_shape(of, params, hparams)
    real = hasattr(found, "dtype") and jnp.issubdtype(found.dtype, jnp.floating)
    if not real or found.ndim > 1:
        raise ValueError(
            f"of returned {describe(found)}, expected one real number of shape (), or one for each prediction, "
            "(M,); reduce each prediction to a scalar, such as its loss"
        )
