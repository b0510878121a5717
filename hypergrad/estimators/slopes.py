"""Finite differences in float64, and the problems made for them: the reference for `verify`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad import space as spaces
from hypergrad.core import tree
from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.estimators.policies import (
    check_policy,
    check_shared,
    enumerated,
    expected,
    factorized,
)
from hypergrad.problem import Problem
from hypergrad.train import split_key

STEP = 1e-6
"""Step of the central differences, in the unconstrained coordinates of the space."""

NUM_ESTIMATES = 16
"""Number of independent estimates; their mean is compared, and their spread gives its standard error."""


class Slopes(NamedTuple):
    """Finite differences along one direction per leaf, and how hypergradients are compared with them.

    Attributes:
        hparams: Hyperparameters of the differences.
        key: Key of the run.
        along: (hypergrad) -> its slope along the direction of each leaf `[num_leaves]`.
        reference: Finite differences `[num_leaves]`.
        run: Compiled function that trains once more.
    """

    hparams: HParams
    key: Key
    along: Callable[[HParams], np.ndarray]
    reference: np.ndarray
    run: Callable[[], Array]

    @property
    def scale(self) -> np.ndarray:
        """Return the scale of the errors: the size of each slope, but at least a millionth of the largest."""
        sizes = np.abs(self.reference)
        return np.maximum(sizes, 1e-6 * max(sizes.max(), 1e-30))

    @property
    def nonfinite(self) -> str | None:
        """Return the first leaf along which the objective is not finite, or None."""
        bad = ~np.isfinite(self.reference)
        return tree.leaf_names(self.hparams)[int(np.argmax(bad))] if bad.any() else None

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


def differences(objective: Callable[[HParams], Array], space: PyTree, key: Key) -> Slopes:
    """Take central differences of an objective along one random unit direction per leaf, at the defaults.

    ⟨∂λ/∂zᵀ hypergrad, d⟩ against (f(z + h d) − f(z − h d)) / 2h,   λ = constrain(z)

    Args:
        objective: (hparams) -> `[]`.
        space: Space of the hparams, real.
        key: Key of the run, kept for the estimates.
    """
    z = spaces.unconstrain(space, inside(space))
    hparams, pull = jax.vjp(lambda z: spaces.constrain(space, z), z)
    run = jax.jit(lambda z: objective(spaces.constrain(space, z)))
    leaves, treedef = jax.tree.flatten(z)
    random = np.random.default_rng(0)
    slopes, directions = [], []
    for index, leaf in enumerate(leaves):
        direction = random.normal(size=leaf.shape)
        direction = direction / np.linalg.norm(direction)
        sides = []
        for sign in (1, -1):
            moved = [*leaves[:index], leaf + sign * STEP * direction, *leaves[index + 1 :]]
            sides.append(float(run(jax.tree.unflatten(treedef, moved))))
        slopes.append((sides[0] - sides[1]) / (2 * STEP))
        directions.append(direction)

    def along(hypergrad: Any) -> np.ndarray:
        pairs = zip(jax.tree.leaves(pull(hypergrad)[0]), directions, strict=True)
        return np.asarray([float(np.sum(np.asarray(g) * d)) for g, d in pairs])

    return Slopes(hparams, key, along, np.asarray(slopes), lambda: run(z))


def inside(space: PyTree) -> HParams:
    """Return the defaults, moved off the bounds so that both sides can be evaluated."""
    unit = jnp.clip(spaces.to_unit(space, spaces.default(space)), 0.01, 0.99)
    return spaces.from_unit(space, unit)


def frozen(problem: Problem, key: Key) -> Problem:
    """Fix initial weights and batches to those of an estimate with `key`, whatever key they are given."""
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
    if not any(map(spaces.is_discrete, jax.tree.leaves(space))):
        return problem, space
    policy = factorized(space)
    phi = spaces.default(policy.space)
    check_policy(problem, policy, phi)
    check_shared(problem, policy, phi)
    policy.outcomes(phi)  # refuses too many of them
    return expected(problem, policy, enumerated(), key), policy.space


def in_float64(problem: Problem) -> Problem:
    """Cast the results of a problem's functions to float64, so that finite differences are accurate."""

    def wide(value: PyTree) -> PyTree:
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64) if tree.is_float(x) else x, value)

    examples = problem.train_set
    return problem._replace(
        init=lambda key, hparams: wide(problem.init(key, hparams)),
        train_batch=lambda key, step: wide(problem.train_batch(key, step)),
        valid_batch=lambda key: wide(problem.valid_batch(key)),
        train_set=examples and examples._replace(at=lambda index: wide(examples.at(index))),
    )
