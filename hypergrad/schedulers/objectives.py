"""Schedulers whose trials are judged by several objectives, or have to keep to constraints."""

from collections.abc import Callable

import jax.numpy as jnp

from hypergrad.core.types import Array
from hypergrad.populations import count
from hypergrad.schedulers.base import Scheduler
from hypergrad.schedulers.pareto import Scalarization
from hypergrad.searchers import Trials


def scalarized(
    scheduler: Scheduler, objectives: Callable[[Trials], Array], scalar: Scalarization
) -> Scheduler:
    """Judge trials by several objectives, made one number.

    The outcome's values become `scalar(objectives(outcome))`, which the searcher minimises and the study
    takes its best by. The objectives are kept in `info["objectives"]` `[N, K]`, of which `pareto_front` and
    `hypervolume` are asked when the study has ended.

    **Limits:** within a run the scheduler compares members by the problem's objective alone, so halving and
    pbt stop by it. A trial that diverged stays NaN.

    Args:
        scheduler: how trials are trained.
        objectives: (outcome) -> `[N, K]`, e.g. `lambda o: jnp.stack([o.values, o.hparams["width"]], -1)`;
            what a population measures (`info`) and what follows from hparams are at hand.
        scalar: such as `pareto.chebyshev(weights, ideal)`.
    """
    _check_function("objectives", objectives)
    _check_function("scalar", scalar)

    def run(population, key, hparams):
        outcome = scheduler(population, key, hparams)
        found = jnp.asarray(objectives(outcome))
        num = count(hparams)
        if found.ndim != 2 or found.shape[0] != num:
            raise ValueError(
                f"objectives returned the shape {found.shape}, expected [{num}, K], a row for each trial; "
                "return e.g. jnp.stack([outcome.values, sizes], -1)"
            )
        values = _one_each("scalar", scalar(found), num)
        values = jnp.where(jnp.isfinite(outcome.values), values, outcome.values)
        return outcome._replace(
            values=values.astype(outcome.values.dtype), info={**outcome.info, "objectives": found}
        )

    return run


def constrained(scheduler: Scheduler, violation: Callable[[Trials], Array]) -> Scheduler:
    """Let trials that break a constraint lose to all that keep it.

    g(outcome) <= 0 is kept. The value of a trial with g > 0, or g = NaN, becomes infinite, so that it is
    never the best of a study nor among the elites; `info["violation"]` has max(g, 0) of each, NaN where it
    diverged. Searchers rank those trials behind all others, the least violation first (Deb's rule), and so
    find their way to where the constraint is kept. `info["objective"]` has the objectives as they were.

    **Limits:** within a run the scheduler does not know of it: a halving may stop trials that keep it in
    favour of some that do not.

    Args:
        scheduler: how trials are trained.
        violation: (outcome) -> g `[N]`; of several constraints the sum of max(g_i, 0), each in its scale.

    Reference:
        Deb, "An efficient constraint handling method for genetic algorithms", Comput. Methods Appl. Mech.
        Eng. 186, 2000.
    """
    _check_function("violation", violation)

    def run(population, key, hparams):
        outcome = scheduler(population, key, hparams)
        found = _one_each("violation", violation(outcome), count(hparams))
        broken = jnp.where(jnp.isnan(found), jnp.inf, jnp.maximum(found, 0))
        broken = jnp.where(jnp.isfinite(outcome.values), broken, jnp.nan)
        broken = broken.astype(outcome.values.dtype)
        values = jnp.where(broken > 0, jnp.inf, outcome.values)
        info = {**outcome.info, "violation": broken, "objective": outcome.values}
        return outcome._replace(values=values, info=info)

    return run


def _check_function(name: str, given: object) -> None:
    if not callable(given):
        raise ValueError(f"{name} is {given!r:.80}, expected a function; pass one")


def _one_each(name: str, found: Array, num: int) -> Array:
    if jnp.shape(found) != (num,):
        raise ValueError(
            f"{name} returned the shape {jnp.shape(found)}, expected ({num},), one number a trial; "
            "return one for each"
        )
    return jnp.asarray(found)
