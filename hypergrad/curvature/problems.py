"""Measures of a trained network, such as its flatness, as objectives, penalties and constraints."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from hypergrad.core.checks import check_function, check_least, check_share, check_whole
from hypergrad.core.types import Array, Batch, HParams, Params
from hypergrad.curvature.models import BatchLoss, number_of, traced_scalar
from hypergrad.problem import Problem, check_problem, check_scalar, split_loss
from hypergrad.train import carried, trained, with_parts

Measure: TypeAlias = Callable[[Params, HParams], Array]
"""(params, hparams) -> [], the measure of one network: the flatter, the lower."""

LossCurvature: TypeAlias = Callable[[BatchLoss, Params, Batch], Array]
"""(loss, params, batch) -> [], such as `curvature.sam`."""


def supremum(
    problem: Problem,
    curvature: LossCurvature,
    *,
    num_batches: int | None = None,
    batch_size: int | None = None,
) -> Measure:
    """Return the measure sup_{x ⊂ X} μ(x; h) over minibatches of the training set.

    With `batch_size`, the batches divide `problem.train_set`; examples beyond the last whole batch are left
    out, and all members see the same batches. Without it, they are the first `num_batches` of a training run of
    key 0.

    **Cost:** one measurement a batch, one after another.

    Args:
        problem: Training loop.
        curvature: (loss, params, batch) -> [], such as `curvature.sam`, or
            `lambda loss, params, batch: curvature.frobenius(model, params, batch).value`. Hyperparameters and
            carried state are closed over in `loss`, whose batches are those of the problem.
        num_batches: Number of batches. Where None, all of the training set with a `batch_size`, and 4 without.
        batch_size: Number of samples in each batch.

    Raises:
        ValueError: for a batch size without a training set or larger than it, and for more batches than it
            has; when measured, for a curvature that is not one number.
    """
    check_problem(problem)
    check_function("curvature", curvature, "curvature.sam")
    draw, num = _batches(problem, num_batches, batch_size)

    def measure(params: Params, hparams: HParams) -> Array:
        def loss(weights: Params, batch: Batch) -> Array:
            whole = with_parts(params, weights, carried(params))
            return split_loss(whole, problem.loss(whole, hparams, batch))[0]

        def one(index: Array) -> Array:
            found = curvature(loss, trained(params), draw(index))
            check_scalar({"curvature": found})
            return found

        return jnp.max(jax.lax.map(one, jnp.arange(num, dtype=jnp.int32)))

    return measure


def judged_by(problem: Problem, measure: Measure) -> Problem:
    """Return the problem whose objective is the measure alone.

    **Limits:** a network that has learned nothing is flat: see `penalized` and `bounded`.
    """
    return _with(problem, measure, lambda value, found: found)


def penalized(problem: Problem, measure: Measure, weight: float) -> Problem:
    """Return the problem whose objective is f + weight · μ.

    The hypergradient goes through the measure where that can be differentiated: exact norms, products, `sam`
    and `adaptive` can, and `keskar` as far as its search has found the maximum.

    Args:
        problem: Training loop.
        measure: (params, hparams) -> [].
        weight: Weight of the measure, at least 0.
    """
    if not traced_scalar(weight):
        check_least("weight", number_of(weight))
    return _with(problem, measure, lambda value, found: value + weight * found)


def bounded(problem: Problem, measure: Measure, bound: float) -> Problem:
    """Return the problem whose objective is f where μ ≤ bound, and infinite elsewhere.

    A trial beyond the bound counts as failed: every searcher and scheduler ranks it last, however low its
    objective is.

    **Limits:** a hypergradient does not see the bound from within.

    Args:
        problem: Training loop.
        measure: (params, hparams) -> [].
        bound: Largest allowed value of the measure.
    """
    if not traced_scalar(bound):
        check_share("bound", number_of(bound), "(-inf, inf)", what="a finite number")
    return _with(problem, measure, lambda value, found: jnp.where(found <= bound, value, jnp.inf))


def _with(problem: Problem, measure: Measure, join: Callable[[Array, Array], Array]) -> Problem:
    """Return the problem whose objective joins its own value and the measure."""
    check_problem(problem)
    check_function("measure", measure, "supremum(problem, curvature.sam)", "params, hparams")

    def objective(params: Params, hparams: HParams, batch: Batch) -> Array:
        found = measure(params, hparams)
        check_scalar({"measure": found})
        return join(problem.objective(params, hparams, batch), found)

    return problem._replace(objective=objective)


def _batches(
    problem: Problem, num_batches: int | None, batch_size: int | None
) -> tuple[Callable[[Array], Batch], int]:
    """Return a function (index) -> minibatch, and the number of minibatches."""
    if num_batches is not None:
        check_whole("num_batches", num_batches)
    if batch_size is None:
        key = jax.random.key(0)
        return lambda i: problem.train_batch(jax.random.fold_in(key, i), i), num_batches or 4
    check_whole("batch_size", batch_size)
    examples = problem.train_set
    if examples is None or examples.num_examples < batch_size:
        have = "no training set" if examples is None else f"{examples.num_examples} examples"
        raise ValueError(
            f"batch_size is {batch_size} for a problem with {have}, expected at least as many examples in "
            "problem.train_set; lower it, or leave it out"
        )
    most = examples.num_examples // batch_size
    if num_batches is not None and num_batches > most:
        raise ValueError(
            f"num_batches is {num_batches}, expected at most the {most} batches of {batch_size} among "
            f"{examples.num_examples} examples; lower it, or leave it out for all of them"
        )
    offsets = jnp.arange(batch_size, dtype=jnp.int32)
    return lambda i: examples.at(i * batch_size + offsets), num_batches or most
