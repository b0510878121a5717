"""Helpers that estimators share when they differentiate through every step of training."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from hypergrad.core import tree
from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.estimators.advice import warn_structural_zeros
from hypergrad.estimators.base import Estimate, Estimator, first_nonfinite, no_state
from hypergrad.estimators.unrolled.adjoint import Backward, mixed_mode, state_floats
from hypergrad.problem import Problem
from hypergrad.train import (
    TrainState,
    init_state,
    split_key,
    trained,
)
from hypergrad.validation import check_step


class UnrollInfo(NamedTuple):
    """Diagnostics of a hypergradient through an unrolled run.

    Attributes:
        direct: ∂f/∂λ at the final weights, a pytree like `hparams`.
        response: (∂f/∂w)(dw/dλ), a pytree like `hparams`; hypergrad = direct + response.
        horizon: Number of steps differentiated through, int32 `[]`.
        sensitivity: `[horizon]`; in reverse mode the norm of the adjoint of the weights before each
            step, in forward mode that of their derivative after each step.
        growth: Geometric mean growth of `sensitivity` a step (towards the start in reverse mode, over the
            second half of the steps in forward mode, where it builds up in the first), `[]`. Well above 1
            means chaos: gradients through the run explode.
        first_nonfinite: First step whose training loss was not finite, the number of steps if only the
            objective was not, -1 if none; int32 `[]`.
        resting: Multiple of the size of the last adjoint that entries at rest reached in each leaf of
            params, a pytree of float32 `[]`; 0 without such entries. They are weights that are where
            they started, with a gradient that is exactly zero; `sensitivity` and `growth` leave them out.
            `()` in forward mode, where they do not matter.
        finite: Whether the final weights are finite, for each leaf of params, a pytree of booleans `[]`. A
            leaf that neither loss nor objective reads may not be, though all else is.
    """

    direct: HParams
    response: HParams
    horizon: Array
    sensitivity: Array
    growth: Array
    first_nonfinite: Array
    resting: PyTree = ()
    finite: PyTree = ()


def objective_parts(
    problem: Problem, key: Key, hparams: HParams, state: TrainState
) -> tuple[Array, HParams, list[Array]]:
    """Differentiate the objective at the end of a run.

    Returns:
        The value `[]`, the direct gradient, and the adjoint of the state's float leaves.
    """
    leaves, join = state_floats(state)
    batch = problem.valid_batch(key)

    def objective(leaves: list[Array], hparams: HParams) -> Array:
        return problem.objective(join(leaves).params, hparams, batch)

    value, (adjoint, direct) = jax.value_and_grad(objective, (0, 1))(leaves, hparams)
    return value, direct, adjoint


def finite_leaves(state: TrainState) -> PyTree:
    """Tell for each leaf of the weights whether all of it is finite, bool `[]`."""
    return jax.tree.map(lambda w: jnp.all(jnp.isfinite(w)), trained(state.params))


def growth_rate(first: Array, norms: Array, *, late: bool = False) -> Array:
    """Return the geometric mean growth a step of the norms `first` `[]`, `norms` `[T]`.

    The mean runs from the first norm above zero to the last before an overflow; it is 1 where nothing could
    grow.

    Args:
        first: Norm before the first step.
        norms: Norm after each step.
        late: Whether to leave out the first half of the steps, in which a derivative along the run builds up
            from nothing: that of Adam's b1 from a rounding error, as its bias correction cancels it at first.
    """
    norms = jnp.append(first, norms)
    begin, end = jnp.argmax(norms > 0), jnp.sum(jnp.cumprod(jnp.isfinite(norms[1:])))
    if late:
        begin = jnp.maximum(begin, end // 2)
    alive = (norms[begin] > 0) & (norms[end] > 0) & (end > begin)
    ratio = jnp.log(jnp.where(alive, norms[end], 1)) - jnp.log(jnp.where(alive, norms[begin], 1))
    return jnp.exp(ratio / jnp.maximum(end - begin, 1))


def unrolled_estimate(
    problem: Problem,
    key: Key,
    hparams: HParams,
    start: TrainState,
    num_steps: int,
    backward: Backward,
    through_init: bool = True,
) -> tuple[Estimate, Array, Any, TrainState]:
    """Estimate by reverse mode through `num_steps` steps from `start`.

    Args:
        problem: Training loop.
        key: Key that draws the validation batch, and (with `through_init`) drew `start`: see `split_key`.
        hparams: Real hyperparameters.
        start: State before the first step differentiated.
        num_steps: Number of steps.
        backward: Backward pass (`adjoint.mixed_mode`, `adjoint.plain`).
        through_init: Whether `start` is the run's first state and depends on the hparams.

    Returns:
        The estimate, the training losses `[num_steps]`, the pass's certificate, and the state after the
        last step.
    """
    init_key, valid_key = split_key(key)
    with unknown_lengths("use the estimator 'forward', or lax.scan"):
        run = backward(problem, hparams, start, num_steps)
        value, direct, adjoint = objective_parts(problem, valid_key, hparams, run.state)
        total, first, norms, certificate, resting = run.pullback(adjoint)
    if through_init:
        total = tree.add(total, through_start(problem, init_key, hparams, first))
    chex.assert_shape(run.losses, (num_steps,))
    bad = first_nonfinite(run.losses, value)
    parts = (value, direct, adjoint)
    estimate = assembled(hparams, run.state, parts, total, norms, resting, bad)
    return estimate, run.losses, certificate, run.state


@contextlib.contextmanager
def unknown_lengths(cure: str) -> Iterator[None]:
    """Say in one line that reverse mode met a loop of unknown length."""
    try:
        yield
    except ValueError as error:
        if "Reverse-mode differentiation does not work" not in str(error):
            raise
        raise ValueError(
            "problem has a loop of unknown length (lax.while_loop, or a line search as in optax.lbfgs), "
            f"expected loops that reverse mode can go back through; {cure}"
        ) from error


def through_start(
    problem: Problem, key: Key, hparams: HParams, adjoint: list[Array]
) -> list[Array]:
    """Pull the adjoint of a run's first state back to the hparams' float leaves; `key` made that state."""
    _, pull = jax.vjp(lambda h: state_floats(init_state(problem, key, h))[0], hparams)
    return tree.floats(pull(adjoint)[0])


def assembled(
    hparams: HParams,
    final: TrainState,
    parts: tuple[Array, HParams, list[Array]],
    total: list[Array],
    norms: Array,
    resting: Any,
    first_bad: Array,
) -> Estimate:
    """Make an estimate of what a backward pass found.

    Args:
        hparams: Real hyperparameters.
        final: State after the last step.
        parts: What `objective_parts` returned there.
        total: Cotangent of the hparams' leaves, without the direct gradient.
        norms: `Pulled.norms` `[num_steps]`.
        resting: `Pulled.resting`.
        first_bad: First step that was not finite, or -1, int32 `[]`.
    """
    value, direct, adjoint = parts
    response = jax.tree.unflatten(jax.tree.structure(hparams), total)
    chex.assert_trees_all_equal_shapes(response, direct)
    treedef = jax.tree.structure(trained(final.params))
    growth = growth_rate(tree.norm(adjoint[: treedef.num_leaves]), norms[::-1])
    horizon = jnp.asarray(len(norms), jnp.int32)
    if not isinstance(resting, tuple):
        peaks = jnp.max(resting, 0, initial=0) / tree.norm(adjoint)
        resting = jax.tree.unflatten(treedef, list(jnp.where(peaks > 0, peaks, 0)))
    finite = finite_leaves(final)
    info = UnrollInfo(direct, response, horizon, norms, growth, first_bad, resting, finite)
    return Estimate(value, tree.add(direct, response), info)


def by_unrolling(problem: Problem, horizon: int, backward: Backward | None = None) -> Estimator:
    """Make the estimator that differentiates through the whole run; see `estimators.reverse`."""
    estimator = unrolling(problem, horizon, backward)

    def estimate(key: Key, state: tuple[()], hparams: HParams) -> tuple[tuple[()], Estimate]:
        check_step(problem, hparams, real=True)
        return estimator.estimate(key, state, hparams)

    return estimator._replace(estimate=estimate)


def unrolling(problem: Problem, horizon: int, backward: Backward | None = None) -> Estimator:
    """Make the estimator of `by_unrolling`, for hparams that have been checked."""
    backward = mixed_mode() if backward is None else backward

    def estimate(key: Key, state: tuple[()], hparams: HParams) -> tuple[tuple[()], Estimate]:
        warn_structural_zeros(problem, hparams, horizon)
        start = init_state(problem, split_key(key)[0], hparams)
        result, *_ = unrolled_estimate(problem, key, hparams, start, horizon, backward)
        return state, result

    return Estimator(no_state, estimate)
