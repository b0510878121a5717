"""Central differences of a training run along random directions, and what is compared with them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad import space as spaces, tree
from hypergrad.types import Array, HParams, Key, PyTree

STEP = 1e-6
"""Step of the central differences, in the unconstrained coordinates of the space."""
NUM_ESTIMATES = 16
"""Independent estimates whose mean is compared, and whose spread gives its standard error."""


class Slopes(NamedTuple):
    """The finite differences, and what is compared with them.

    Attributes:
        hparams: where they were taken.
        key: of the run.
        along: hypergrad -> its slope along the direction of each leaf `[num_leaves]`.
        reference: the finite differences `[num_leaves]`.
        run: trains once more; compiled.
    """

    hparams: HParams
    key: Key
    along: Callable[[HParams], np.ndarray]
    reference: np.ndarray
    run: Callable[[], Array]

    @property
    def scale(self) -> np.ndarray:
        """What errors are relative to: each slope, but no less than a millionth of the largest."""
        sizes = np.abs(self.reference)
        return np.maximum(sizes, 1e-6 * max(sizes.max(), 1e-30))

    @property
    def nonfinite(self) -> str | None:
        """The first leaf along which the objective is not finite, or None."""
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
    """Take central differences of an objective along one random unit direction a leaf, at the defaults.

    ⟨∂λ/∂zᵀ hypergrad, d⟩ against (f(z + h d) − f(z − h d)) / 2h,   λ = constrain(z)

    Args:
        objective: (hparams) -> `[]`.
        space: of the hparams, real.
        key: kept for the estimates.
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
