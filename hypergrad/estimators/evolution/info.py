"""The estimate of antithetic pairs, and the meaning of its diagnostics."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad.core import tree
from hypergrad.core.types import Array, HParams, PyTree
from hypergrad.estimators.advice import broken_weights
from hypergrad.estimators.base import Estimate, mean_and_error, noise_advice
from hypergrad.estimators.evolution.moves import Perturbation
from hypergrad.estimators.evolution.pairs import Window
from hypergrad.train import earliest, trained


class EvolutionInfo(NamedTuple):
    """Diagnostics of a hypergradient by evolution; `advice` says in words what they mean.

    Attributes:
        direct: Hypergradient minus response, a pytree like `hparams`.
        response: Same estimate with the objective read at the unmoved hparams, a pytree like `hparams`.
        horizon: Number of steps of a whole run, int32 `[]`.
        growth: Always 1, `[]`, because nothing that could grow is differentiated.
        first_nonfinite: First step at which a run of this estimate was not finite (the number of steps made
            if only its objective was not), -1 if none; int32 `[]`.
        std_error: Standard error of the hypergradient from the spread of the pairs, a pytree like `hparams`.
        value_std_error: Standard error of the value, `[]`; infinite where it is the value of one pair.
        num_pairs: Number of antithetic pairs that ran, int32 `[]`.
        num_nonfinite: Number of pairs that are left out of all means, int32 `[]`.
        finite: Whether the weights of all other pairs are finite, for each leaf of params; bool `[]` each.
    """

    direct: HParams
    response: HParams
    horizon: Array
    growth: Array
    first_nonfinite: Array
    std_error: HParams
    value_std_error: Array
    num_pairs: Array
    num_nonfinite: Array
    finite: PyTree = ()

    def advice(self, estimate: Estimate) -> list[str]:
        """Say in words what is wrong with the estimate, and what to do."""
        said = []
        if self.num_nonfinite > 0:
            rest = "the mean is over those that survived"
            if self.num_nonfinite == self.num_pairs:
                rest = "there is no estimate"
            said.append(
                f"{self.num_nonfinite} of {self.num_pairs} pairs were not finite (the first at step "
                f"{self.first_nonfinite}) and are left out: {rest}; lower sigma or the learning rate"
            )
        said += broken_weights(self)
        cure = "num_pairs or sigma, or move fewer hparams"
        said += noise_advice(estimate.hypergrad, self.std_error, cure)
        errors = zip(tree.leaf_names(self.std_error), jax.tree.leaves(self.std_error), strict=True)
        for name, error in errors:
            if not np.any(error):
                said.append(
                    f"moving hparams[{name!r}] changed nothing: it is at a bound of the space, or the "
                    "objective does not depend on it"
                )
        return said


def summarize(
    moves: Perturbation,
    hparams: HParams,
    units: PyTree,
    changes: Array,
    found: Window,
    reported: Array,
    horizon: int,
) -> Estimate:
    """Average the slopes of the pairs that are finite.

    Args:
        moves: Perturbation that moved the pairs.
        hparams: Hyperparameters before the moves.
        units: Unit noise that gets the credit for each change, leading axis `[num_pairs]`.
        changes: Change of the target `[num_pairs, 2]`: at the moved hparams, and at the unmoved ones.
        found: Window of each pair, leading axis `[num_pairs]`.
        reported: Whether the value counts the objective of a pair `[num_pairs]`.
        horizon: Number of steps of a whole run.
    """
    alive = (found.first_nonfinite < 0) & jnp.all(jnp.isfinite(changes), -1)
    slopes = jax.vmap(lambda unit, change: moves.slope(hparams, unit, change))
    hypergrad, std_error = mean_and_error(slopes(units, changes[:, 0]), alive)
    response, _ = mean_and_error(slopes(units, changes[:, 1]), alive)
    value, value_error = mean_and_error(found.value, alive & reported)
    info = EvolutionInfo(
        direct=jax.tree.map(jnp.subtract, hypergrad, response),
        response=response,
        horizon=jnp.asarray(horizon, jnp.int32),
        growth=jnp.ones((), jnp.float32),
        first_nonfinite=earliest(found.first_nonfinite),
        std_error=std_error,
        value_std_error=value_error,
        num_pairs=jnp.asarray(len(alive), jnp.int32),
        num_nonfinite=jnp.sum(~alive, dtype=jnp.int32),
        finite=jax.tree.map(lambda w: _all_finite(w, alive), trained(found.train.params)),
    )
    return Estimate(value, hypergrad, info)


def _all_finite(weights: Array, alive: Array) -> Array:
    """Tell whether the weights `[num_pairs, 2, ...]` of the pairs that are alive are finite, bool `[]`."""
    whole = jnp.all(jnp.isfinite(weights), tuple(range(1, weights.ndim)))
    return jnp.all(whole | ~alive)
