"""Finite sums: a loss and an objective as means over minibatches that come again."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hypergrad.core.checks import check_whole
from hypergrad.core.types import Array, Batch
from hypergrad.problem import Problem, check_problem


class FiniteSum(NamedTuple):
    """A loss and an objective as means over finitely many minibatches of equal weight.

    Attributes:
        num_train: Number of minibatches of the loss.
        train: (index) -> minibatch of the loss.
        num_valid: Number of minibatches of the objective.
        valid: (index) -> minibatch of the objective.
    """

    num_train: int
    train: Callable[[Array], Batch]
    num_valid: int
    valid: Callable[[Array], Batch]


def finite_sum(problem: Problem, batch_size: int) -> FiniteSum:
    """Cut a problem's `train_set` into minibatches; its validation batch stays whole.

    Minibatch i holds the examples i, i + n, i + 2n, ... for n = num_examples / batch_size, so that a
    sorted set is spread over all of them. The validation batch is that of one key: where `valid_batch`
    draws a part, write a `FiniteSum` of your own.

    Args:
        problem: Problem with a `train_set`.
        batch_size: Divisor of the number of examples, since every minibatch has the same weight.

    Raises:
        ValueError: without a `train_set`, and for another batch size, with the nearest that divides.
    """
    check_problem(problem)
    check_whole("batch_size", batch_size)
    if problem.train_set is None:
        raise ValueError(
            "problem.train_set is None, expected Examples(num_examples, at), because saba needs a finite "
            "sum; set it, use soba(), or pass a FiniteSum"
        )
    size, at = problem.train_set[:2]
    if size % batch_size:
        near = nearest_divisor(size, batch_size)
        raise ValueError(
            f"batch_size is {batch_size}, expected a divisor of the {size} training examples; pass e.g. {near}"
        )
    num = size // batch_size

    def train(index: Array) -> Batch:
        return at(index + num * jnp.arange(batch_size))

    return FiniteSum(num, train, 1, lambda index: problem.valid_batch(jax.random.key(0)))


def nearest_divisor(number: int, wanted: int) -> int:
    """Return the divisor of `number` that is nearest to `wanted` by their ratio."""
    divisors = (d for d in range(1, number + 1) if number % d == 0)
    return min(divisors, key=lambda d: max(d / wanted, wanted / d))
