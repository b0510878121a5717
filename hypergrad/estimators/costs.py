"""What hypergradients cost, counted in training runs: the same on every machine, whatever its clock says.

One step of training counts 1, the reverse pass over a step `BACKWARD`, and `TANGENT` a tangent through a step
or a product with the Hessian. What works on another batch counts as much more as that batch is larger than a
minibatch. The objective at the end of a run is not counted. Each estimator adds these up in its own file.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from hypergrad import space as spaces
from hypergrad.core.types import PyTree
from hypergrad.estimators.unrolled.adjoint import choose_checkpoint
from hypergrad.problem import Problem
from hypergrad.train import TrainState, init_state, trained

BACKWARD = 2.0
"""Steps of training that the reverse pass over one step counts: 1.3 to 3.1 in `benchmarks/README.md`."""

TANGENT = 1.5
"""Steps of training that one tangent through a step counts."""


def num_numbers(space: PyTree) -> int:
    """Return how many numbers the hyperparameters of a space are."""
    return sum(leaf.size for leaf in jax.tree.leaves(spaces.default(space)))


def first_shapes(problem: Problem, space: PyTree) -> TrainState:
    """Return the shapes of a state of training."""
    start = spaces.starting_values(space)
    return jax.eval_shape(lambda h: init_state(problem, jax.random.key(0), h), start)


def pass_back(problem: Problem, num_steps: int, space: PyTree) -> float:
    """Return what the default pass back over some steps counts, with what it trains again on its way."""
    levels = choose_checkpoint(first_shapes(problem, space), num_steps)
    return (BACKWARD + len(levels)) * num_steps


def num_weights(problem: Problem, space: PyTree) -> int:
    """Return how many weights a problem trains."""
    return _size(trained(first_shapes(problem, space).params))


def in_minibatches(problem: Problem, batch: Callable, *args: PyTree) -> float:
    """Return how many minibatches of training are as large as another batch; 1 where one has no numbers.

    Args:
        problem: Training loop.
        batch: (problem, *args) -> batch.
        *args: Arrays, or their shapes.
    """
    one = _size(jax.eval_shape(problem.train_batch, jax.random.key(0), jnp.zeros((), jnp.int32)))
    other = _size(jax.eval_shape(lambda *args: batch(problem, *args), *args))
    return other / one if one and other else 1.0


def valid_minibatches(problem: Problem) -> float:
    """Return how many minibatches of training are as large as a validation batch."""
    return in_minibatches(problem, lambda problem: problem.valid_batch(jax.random.key(0)))


def _size(shapes: PyTree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))
