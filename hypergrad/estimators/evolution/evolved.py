"""Evolution for the leaves that set the odds of draws, derivatives of the run for the rest."""

from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hypergrad.core import tree
from hypergrad.core.checks import check_function, check_name, check_whole, describe
from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.estimators.advice import advice
from hypergrad.estimators.base import Estimate, Estimator, Through
from hypergrad.estimators.evolution.info import EvolutionInfo
from hypergrad.estimators.unrolled.base import by_unrolling
from hypergrad.problem import Problem, check_problem, with_hparams
from hypergrad.train import earliest


class EvolvedInfo(NamedTuple):
    """Diagnostics of a hypergradient that is evolved in some leaves.

    Attributes:
        direct: Direct part, a pytree like `hparams`.
        response: response, likewise; hypergrad = direct + response.
        horizon: As in the info of `through`, or of `evolve` where no leaf is left.
        growth: Likewise.
        first_nonfinite: Earliest step of either at which a run was not finite, -1 if none; int32 `[]`.
        evolution: Info of `evolve`, of the leaves by their names.
        through: Info of `through`, of the other leaves by their names; None where there is none.
    """

    direct: HParams
    response: HParams
    horizon: Array
    growth: Array
    first_nonfinite: Array
    evolution: EvolutionInfo
    through: Any

    def advice(self, estimate: Estimate) -> list[str]:
        """Say what is wrong with either part."""
        named, moved = tree.named(estimate.hypergrad), self.evolution.std_error
        said = advice(
            estimate._replace(hypergrad={n: named[n] for n in moved}, info=self.evolution)
        )
        if self.through is not None:
            rest = {n: leaf for n, leaf in named.items() if n not in moved}
            said += advice(estimate._replace(hypergrad=rest, info=self.through))
        return said


def evolved(
    problem: Problem,
    horizon: int,
    leaves: Collection[str],
    evolve: Through,
    *,
    through: Through | None = None,
) -> Estimator:
    """Differentiate some leaves by evolution, and the rest through the run.

    dF/dλ_i by `evolve` with the other leaves held for i in `leaves`, by `through` for the rest

    For leaves that set the odds of a draw, such as a dropout rate: a mask u < p has no derivative in p, so the
    pathwise one misses a part, which whole runs at moved rates see.

        es_of_rate = lambda problem, horizon: es(problem, horizon, sigma=0.05)
        estimator = evolved(problem, 100, ["rate"], es_of_rate)

    **Cost:** that of `evolve` and that of `through`.

    **Limits:** those of both: the evolved part is noisy and smoothed. The two use different keys, so different
    initial weights and minibatches; the value is that of `through`.

    Args:
        problem: The training loop.
        horizon: Number of inner steps.
        leaves: Names of the leaves to move, such as "encoder.rate".
        evolve: (problem, horizon) -> `es`, `pes` or `nres` with its sigma or space, of hparams {name: leaf}.
        through: (problem, horizon) -> the estimator of the other leaves; as `reverse` where None.

    Returns:
        An estimator whose state is that of both; `info` is an `EvolvedInfo`.

    Raises:
        ValueError: for a horizon below 1, no leaves and, when traced, a leaf that the hparams do not have.
    """
    check_problem(problem)
    check_whole("horizon", horizon)
    if isinstance(leaves, str) or not leaves or not all(isinstance(leaf, str) for leaf in leaves):
        raise ValueError(
            f"leaves is {describe(leaves)}, expected names of leaves of hparams; pass e.g. ['rate']"
        )
    through = by_unrolling if through is None else through
    check_function("evolve", evolve, "lambda problem, horizon: es(problem, horizon, sigma=0.05)")
    check_function("through", through, "hypergrad.estimators.reverse")

    def both(hparams: HParams) -> list[tuple[Estimator, dict[str, Array]]]:
        """Return the estimator of each part and its hparams."""
        named = tree.named(hparams)
        for leaf in leaves:
            check_name("leaves", leaf, named)
        parts = []
        for make, chosen in ((evolve, True), (through, False)):
            own = {name: leaf for name, leaf in named.items() if (name in leaves) is chosen}
            join = lambda own: _joined(hparams, named | own)  # noqa: E731
            if own:
                parts.append((make(with_hparams(problem, join), horizon), own))
        return parts

    def init(key: Key, hparams: HParams) -> tuple[PyTree, ...]:
        return tuple(estimator.init(key, own) for estimator, own in both(hparams))

    def estimate(
        key: Key, state: tuple[PyTree, ...], hparams: HParams
    ) -> tuple[tuple[PyTree, ...], Estimate]:
        keys = (jax.random.fold_in(key, 1), key)
        made = [
            estimator.estimate(k, s, own)
            for k, s, (estimator, own) in zip(keys, state, both(hparams), strict=False)
        ]
        found = [one for _, one in made]
        last = found[-1]

        def joined(*parts: dict[str, Array]) -> HParams:
            return _joined(hparams, {name: x for part in parts for name, x in part.items()})

        info = EvolvedInfo(
            direct=joined(*(one.info.direct for one in found)),
            response=joined(*(one.info.response for one in found)),
            horizon=last.info.horizon,
            growth=last.info.growth,
            first_nonfinite=earliest(jnp.stack([one.info.first_nonfinite for one in found])),
            evolution=found[0].info,
            through=last.info if len(found) > 1 else None,
        )
        hypergrad = joined(*(one.hypergrad for one in found))
        return tuple(s for s, _ in made), Estimate(last.value, hypergrad, info)

    return Estimator(init, estimate)


def _joined(hparams: HParams, named: dict[str, Array]) -> HParams:
    """Put leaves, by their names, into the structure of `hparams`."""
    names = tree.leaf_names(hparams)
    return jax.tree.unflatten(jax.tree.structure(hparams), [named[name] for name in names])
