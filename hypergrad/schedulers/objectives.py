"""Schedulers whose trials are judged by several objectives, or must keep constraints."""

from collections.abc import Callable

import jax.numpy as jnp

from hypergrad.core.checks import check_function
from hypergrad.core.types import Array, HParams, Key
from hypergrad.populations import Population, count
from hypergrad.schedulers.base import Scheduler, check_one_each
from hypergrad.schedulers.pareto import Scalarization, check_rows
from hypergrad.searchers import Trials


def scalarized(
    scheduler: Scheduler, objectives: Callable[[Trials], Array], scalar: Scalarization
) -> Scheduler:
    """Judge trials by several objectives, combined into one number.

    The values of the trials become `scalar(objectives(trials))`, which the searcher minimises and by which the
    study takes its best. `info["objectives"]` `[N, K]` keeps the objectives, for `pareto_front` and
    `hypervolume` when the study has ended.

    **Limits:** within a run the scheduler compares members by the problem's objective alone, so halving and
    pbt stop by it. A trial that diverged stays NaN.

    Args:
        scheduler: Scheduler that trains the trials.
        objectives: Function (trials) -> `[N, K]` of measurements of a population (`info`) and of hparams, e.g.
            `lambda t: jnp.stack([t.values, t.hparams["w"]], -1)`.
        scalar: Function that combines them into one number, such as `chebyshev(weights, ideal)`.
    """
    check_function("objectives", objectives, "lambda trials: trials.info['sizes']", "trials")
    check_function("scalar", scalar, "chebyshev((1.0, 0.1), (0.0, 0.0))", "objectives")

    def run(population: Population, key: Key, hparams: HParams) -> Trials:
        trials = scheduler(population, key, hparams)
        found = jnp.asarray(objectives(trials))
        check_rows("objectives", found, count(hparams))
        values = jnp.asarray(scalar(found))
        check_one_each("scalar", values, count(hparams))
        values = jnp.where(jnp.isfinite(trials.values), values, trials.values)
        info = trials.info | {"objectives": found}
        return trials._replace(values=values.astype(trials.values.dtype), info=info)

    return run


def constrained(scheduler: Scheduler, violation: Callable[[Trials], Array]) -> Scheduler:
    """Let trials that break a constraint lose to all trials that keep it.

    The constraint is g(trials) <= 0. The value of a trial with g > 0, or g = NaN, becomes infinite, so that it
    is never the best of a study nor among the elites; `info["violation"]` has max(g, 0) of each, NaN where it
    diverged. Searchers rank those trials behind all others, the smallest violation first (Deb's rule), and so
    move to where the constraint is kept. `info["objective"]` has the original objectives.

    **Limits:** within a run the scheduler does not know of the constraint: a halving may stop trials that keep
    it in favour of trials that do not.

    Args:
        scheduler: Scheduler that trains the trials.
        violation: Function (trials) -> g `[N]`; of several constraints the sum of max(g_i, 0), scaled.

    Reference:
        Deb, "An efficient constraint handling method for genetic algorithms", Comput. Methods Appl. Mech.
        Eng. 186, 2000.
    """
    check_function("violation", violation, "lambda trials: trials.info['size'] - 1e6", "trials")

    def run(population: Population, key: Key, hparams: HParams) -> Trials:
        trials = scheduler(population, key, hparams)
        found = jnp.asarray(violation(trials))
        check_one_each("violation", found, count(hparams))
        broken = jnp.where(jnp.isnan(found), jnp.inf, jnp.maximum(found, 0))
        broken = jnp.where(jnp.isfinite(trials.values), broken, jnp.nan)
        broken = broken.astype(trials.values.dtype)
        values = jnp.where(broken > 0, jnp.inf, trials.values)
        info = trials.info | {"violation": broken, "objective": trials.values}
        return trials._replace(values=values, info=info)

    return run
