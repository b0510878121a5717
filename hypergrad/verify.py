"""Compare every estimator with float64 finite differences, on the user's own task."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad import registry, space as spaces, tree
from hypergrad.adjoint import mixed_mode, plain
from hypergrad.estimators import (
    Estimator,
    drift,
    es,
    forward,
    hd,
    nres,
    one_step,
    pes,
    reverse,
    reversible,
    rtho,
)
from hypergrad.estimators.base import split_key, temporary_bytes
from hypergrad.expected import check_policy, check_shared, enumerated, expected
from hypergrad.momentum import Recursion
from hypergrad.policies import factorized, is_discrete
from hypergrad.problem import Problem, Task, check, check_horizon
from hypergrad.train import init_state, unroll
from hypergrad.types import HParams, Key, PyTree

STEP = 1e-6
"""Step of the central differences, in the unconstrained coordinates of the space."""
MOST_TANGENTS = 64
"""Hyperparameters up to which `rtho` is compared."""
SIGMA = 1e-3
"""Moves of the stochastic estimators there: small, so that the smoothed gradient is the gradient."""
NUM_ESTIMATES = 16
"""Independent estimates whose mean is compared, and whose spread gives its standard error."""


class Row(NamedTuple):
    """One line of the table.

    Attributes:
        estimator: its name.
        error: largest relative error over the leaves of the derivative along a random direction.
        worst: the leaf with that error.
        cosine: cosine between the vectors of those derivatives and of the finite differences.
        ratio: time as a multiple of training.
        num_bytes: temporary memory of the compiled estimate.
        exact: whether the estimator claims to be exact.
        refused: why the estimator does not take this task; empty if it does.
        deviation: of a stochastic estimator, the largest error over the leaves as a multiple of its standard
            error; None for the others.
    """

    estimator: str
    error: float
    worst: str
    cosine: float
    ratio: float
    num_bytes: int
    exact: bool
    refused: str = ""
    deviation: float | None = None


def verify(task: Task, *, horizon: int | None = None, seed: int = 0) -> list[Row]:
    """Compare the estimators with central finite differences in float64 at the space's defaults.

    With λ = constrain(z): ⟨∂λ/∂zᵀ hypergrad, d⟩ against (f(z + h d) − f(z − h d)) / 2h, h = 1e-6, for one
    random unit direction d a leaf; in z both sides stay within the bounds, however close they are.
    Params, batches and hparams are cast to float64 for it; jax must run with x64. Where the space has
    integers or choices, the hparams are those of `mixed` with `enumerated()`: logits, and the expected
    objective of weights that all combinations share.

    A stochastic estimator (`es`, `pes`, `nres`) is run 16 times, independently, on the same training run; the
    error of the mean is judged by its standard error.

    **Cost:** two trainings a leaf, one compilation an estimator, and 256 trainings a stochastic one.

    **Limits:** a network with kinks (ReLU) is not differentiable on a set that a step of h may cross;
    errors of 1e-4 are then no fault of the estimator. Smooth activations agree to about 1e-8.

    Args:
        task: the user's task; its space must be real, or of few combinations of integers and choices.
        horizon: training steps to compare over; the task's, at most 50, where None.
        seed: of the run and the directions.

    Returns:
        One row an estimator.

    Raises:
        ValueError: without x64, for spaces with static leaves or too many combinations, for a drawn leaf that
            the optimizer reads, and where the objective is not finite.
    """
    if not jax.config.read("jax_enable_x64"):
        raise ValueError(
            "jax runs in float32, expected float64; set JAX_ENABLE_X64=1 before starting Python"
        )
    horizon = min(task.horizon, 50) if horizon is None else check_horizon(horizon)
    spaces.check_traceable(task.space)
    check(task.problem, spaces.default(task.space), horizon)
    key = jax.random.key(seed)
    problem, space = as_real(in_float64(task.problem), task.space, key)
    z = spaces.unconstrain(space, _inside(space))
    hparams, pull = jax.vjp(lambda z: spaces.constrain(space, z), z)

    train, reference, directions = _reference(problem, space, z, horizon, key)
    if not np.all(np.isfinite(reference)):
        name = tree.leaf_names(hparams)[int(np.argmin(np.isfinite(reference)))]
        raise ValueError(
            f"task {task.name!r} has an objective that is not finite around the default of hparams[{name!r}], "
            "expected a finite one; pass a shorter --horizon, or move the default"
        )
    slopes = Slopes(hparams, key, lambda grads: _along(pull(grads)[0], directions), reference)
    rows = []
    unfit = _unfit(problem, hparams, horizon)
    for name, (estimator, exact) in _deterministic(problem, horizon).items():
        if unfit.get(name):
            rows.append(Row(name, np.nan, "", np.nan, np.nan, 0, exact, unfit[name]))
            continue
        try:
            compiled, state = _compile(estimator, key, hparams)
        except ValueError as error:
            if exact:
                raise
            rows.append(Row(name, np.nan, "", np.nan, np.nan, 0, exact, str(error)))
            continue
        ours = slopes.along(compiled(key, state, hparams)[1].hypergrad)
        times = _interleave(lambda c=compiled, s=state: c(key, s, hparams), train)
        rows.append(Row(name, *slopes.compare(ours), times, temporary_bytes(compiled), exact))
    fixed = frozen(problem, key)
    for name, estimator in _stochastic(fixed, horizon, space).items():
        compiled, state = _compile(estimator, key, hparams)
        ours, deviation = slopes.judge(estimator.init, compiled)
        times = _interleave(lambda c=compiled, s=state: c(key, s, hparams), train)
        size = temporary_bytes(compiled)
        rows.append(Row(name, *slopes.compare(ours), times, size, False, deviation=deviation))
    return rows


class Slopes(NamedTuple):
    """The finite differences, and what is compared with them.

    Attributes:
        hparams: where they were taken.
        key: of the run.
        along: hypergrad -> its slope along the direction of each leaf `[num_leaves]`.
        reference: the finite differences `[num_leaves]`.
    """

    hparams: HParams
    key: Key
    along: Callable[[HParams], np.ndarray]
    reference: np.ndarray

    @property
    def scale(self) -> np.ndarray:
        """What errors are relative to: each slope, but no less than a millionth of the largest."""
        sizes = np.abs(self.reference)
        return np.maximum(sizes, 1e-6 * max(sizes.max(), 1e-30))

    def compare(self, ours: np.ndarray) -> tuple[float, str, float]:
        """Return the largest relative error, the leaf that has it, and the cosine."""
        errors = np.abs(ours - self.reference) / self.scale
        worst = int(np.argmax(np.nan_to_num(errors, nan=np.inf)))
        norms = float(np.linalg.norm(ours) * np.linalg.norm(self.reference))
        cosine = float(ours @ self.reference / norms) if norms else 1.0
        return float(errors[worst]), tree.leaf_names(self.hparams)[worst], cosine

    def judge(self, init: Callable, compiled: Callable) -> tuple[np.ndarray, float]:
        """Return the mean slopes of independent estimates, and their largest error in standard errors."""
        begin, each = jax.jit(init), []
        for key in jax.random.split(self.key, NUM_ESTIMATES):
            state = begin(key, self.hparams)
            each.append(self.along(compiled(key, state, self.hparams)[1].hypergrad))
        mean, spread = np.mean(each, 0), np.std(each, 0, ddof=1)
        error = np.maximum(spread / NUM_ESTIMATES**0.5, 1e-6 * self.scale)
        return mean, float(np.max(np.abs(mean - self.reference) / error))


def _compile(estimator: Estimator, key: Key, hparams: HParams) -> tuple[Any, PyTree]:
    """Compile an estimate, and make the state it starts from."""
    state = estimator.init(key, hparams)
    return jax.jit(estimator.estimate).lower(key, state, hparams).compile(), state


def _deterministic(problem: Problem, horizon: int) -> dict[str, tuple[Estimator, bool]]:
    """Make the estimators that do not draw, and say which claim to be exact."""
    return {
        "reverse": (reverse(problem, horizon), True),
        "reverse, all states": (reverse(problem, horizon, backward=mixed_mode(())), True),
        "reverse, plain": (reverse(problem, horizon, backward=plain()), True),
        "forward": (forward(problem, horizon, chunk=16), True),
        "truncated, a quarter": (registry.estimator("truncated", problem, horizon, None), False),
        "one_step": (one_step(problem, horizon), False),
        "rtho, from its start": (rtho(problem, horizon), True),
        "hd": (hd(problem, horizon), False),
        "implicit": (registry.estimator("implicit", problem, horizon, None), False),
        "drift": (drift(problem, horizon), True),
        "reversible": (reversible(problem, horizon, min_momentum=0.25), True),
    }


def _stochastic(problem: Problem, horizon: int, space: PyTree) -> dict[str, Estimator]:
    """Make the stochastic estimators, with moves small enough to compare them with the gradient itself."""
    moves: dict[str, Any] = {"sigma": SIGMA, "space": space}
    window = registry.quarter(horizon)
    return {
        "es": es(problem, horizon, **moves, num_pairs=8),
        "pes": pes(problem, horizon, window, **moves, num_pairs=32),
        "nres": nres(problem, horizon, window, **moves, num_pairs=32),
    }


def frozen(problem: Problem, key: Key) -> Problem:
    """Fix initial weights and batches to those that an estimate with `key` has, whatever key is given."""
    run_key, valid_key = split_key(key)
    init_key, batch_key = jax.random.split(run_key)
    return problem._replace(
        init=lambda key, hparams: problem.init(init_key, hparams),
        train_batch=lambda key, step: problem.train_batch(
            jax.random.fold_in(batch_key, step), step
        ),
        valid_batch=lambda key: problem.valid_batch(valid_key),
    )


def as_real(problem: Problem, space: PyTree, key: Key) -> tuple[Problem, PyTree]:
    """Return a problem of real hyperparameters: the expected one of a policy where some are drawn."""
    if not any(map(is_discrete, jax.tree.leaves(space))):
        return problem, space
    policy = factorized(space)
    phi = spaces.default(policy.space)
    check_policy(problem, policy, phi)
    check_shared(problem, policy, phi)
    policy.outcomes(phi)  # too many are refused
    return expected(problem, policy, enumerated(), key), policy.space


def _unfit(problem: Problem, hparams: HParams, horizon: int) -> dict[str, str]:
    """Say of each estimator that is not for this task why not."""
    refused = _irreversible(problem, hparams, horizon)
    num, many = sum(leaf.size for leaf in jax.tree.leaves(hparams)), ""
    if num > MOST_TANGENTS:
        many = f"it would carry a state for each of the {num} hyperparameters"
    return {"drift": refused, "reversible": refused, "rtho, from its start": many}


def _irreversible(problem: Problem, hparams: HParams, horizon: int) -> str:
    """Say why the training cannot be undone step by step; nothing where it can."""
    try:
        start = init_state(problem, jax.random.key(0), hparams)
        Recursion(problem, hparams, start, horizon)
    except ValueError as error:
        return str(error)
    return ""


def in_float64(problem: Problem) -> Problem:
    """Cast what a problem's own functions make to float64, so that finite differences mean something."""

    def wide(value: PyTree) -> PyTree:
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64) if tree.is_float(x) else x, value)

    examples = problem.train_set
    return problem._replace(
        init=lambda key, hparams: wide(problem.init(key, hparams)),
        train_batch=lambda key, step: wide(problem.train_batch(key, step)),
        valid_batch=lambda key: wide(problem.valid_batch(key)),
        train_set=examples and examples._replace(at=lambda index: wide(examples.at(index))),
    )


def _inside(space: PyTree) -> HParams:
    """Return the defaults, moved off the bounds so that both sides can be evaluated."""
    unit = jnp.clip(spaces.to_unit(space, spaces.default(space)), 0.01, 0.99)
    return spaces.from_unit(space, unit)


def _reference(
    problem: Problem, space: PyTree, z: PyTree, horizon: int, key
) -> tuple[Any, np.ndarray, list]:
    """Take central differences along one random unit direction a leaf."""
    run_key, valid_key = jax.random.split(key)

    @jax.jit
    def train(z):
        hparams = spaces.constrain(space, z)
        state = unroll(problem, hparams, init_state(problem, run_key, hparams), horizon)
        return problem.objective(state.params, hparams, problem.valid_batch(valid_key))

    leaves, treedef = jax.tree.flatten(z)
    random = np.random.default_rng(0)
    slopes, directions = [], []
    for index, leaf in enumerate(leaves):
        direction = random.normal(size=leaf.shape)
        direction = direction / np.linalg.norm(direction)
        sides = []
        for sign in (1, -1):
            moved = [*leaves[:index], leaf + sign * STEP * direction, *leaves[index + 1 :]]
            sides.append(float(train(jax.tree.unflatten(treedef, moved))))
        slopes.append((sides[0] - sides[1]) / (2 * STEP))
        directions.append(direction)
    return lambda: train(z), np.asarray(slopes), directions


def _along(grads: HParams, directions: list[np.ndarray]) -> np.ndarray:
    pairs = zip(jax.tree.leaves(grads), directions, strict=True)
    return np.asarray([float(np.sum(np.asarray(g) * d)) for g, d in pairs])


def _interleave(first, second, num_repeats: int = 5) -> float:
    """Return the ratio of median times of two programs, run in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(num_repeats):
        for program, seconds in zip((first, second), times, strict=True):
            began = time.perf_counter()
            jax.block_until_ready(program())
            seconds.append(time.perf_counter() - began)
    return float(np.median(times[0]) / np.median(times[1]))
