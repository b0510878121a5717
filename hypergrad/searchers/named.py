"""Searchers by name."""

from collections.abc import Callable
from functools import partial

from hypergrad.core.checks import check_name
from hypergrad.core.types import PyTree
from hypergrad.searchers.base import Searcher
from hypergrad.searchers.bayes import bayes
from hypergrad.searchers.beliefs import Beliefs
from hypergrad.searchers.cma_es import cma_es
from hypergrad.searchers.cross_entropy import cross_entropy
from hypergrad.searchers.evolution import evolution
from hypergrad.searchers.grid import grid, levels_within
from hypergrad.searchers.models.distribution import distribution
from hypergrad.searchers.optuna import named_sampler, optuna_searcher
from hypergrad.searchers.prior import prior
from hypergrad.searchers.random import random
from hypergrad.searchers.sobol import sobol
from hypergrad.searchers.tpe import tpe
from hypergrad.searchers.wrappers import begin_with, constant
from hypergrad.space import sample_constant

OPTUNA: dict[str, str] = {
    "optuna_tpe": "Optuna's TPE, told of running trials; the extra `optuna`",
    "optuna_cma": "Optuna's CMA-ES; options at random; the extra `optuna`",
    "optuna_gp": "Optuna's Gaussian process; the extra `optuna`, and torch",
}

SEARCHERS: dict[str, str] = {
    "random": "random search over schedules held constant, every trial trained to the end",
    "grid": "every combination of as many values as the budget allows, in random order",
    "sobol": "a scrambled Sobol sequence, which fills the space more evenly than random trials",
    "prior": "trials near what --prior says, and a quarter of them anywhere",
    "cross_entropy": "a distribution fitted to the best of every generation (CEHPO)",
    "evolution": "differential evolution",
    "cma_es": "CMA-ES: a normal distribution that moves and turns; options by tables",
    "bayes": "a Gaussian process and its log expected improvement",
    "tpe": "tree-structured Parzen estimators, multivariate",
    **OPTUNA,
}

LEAST_BELIEVED = 8
"""First trials that come from the beliefs, where a search has no distribution of its own to put them in."""

LEAST_GENERATION = 3
"""Trials of a generation of `cross_entropy`, of whose best half, two at least, it fits a distribution."""


def searcher(
    name: str, space: PyTree, num_trials: int, size: int, beliefs: Beliefs | None = None
) -> Searcher:
    """Build a searcher by name, with the settings the command line uses.

    Args:
        name: one of `SEARCHERS`.
        space: of the task; schedules of more than a few free steps are held constant.
        num_trials: that it will be asked for or told in all.
        size: of a generation.
        beliefs: {leaf name: `near(value, spread)`}, for the methods that read them.
    """
    check_name("method", name, SEARCHERS)
    if name == "random":
        return random(space, sample_constant)
    # a few elites are needed to fit a distribution to, also where generations are small
    share = min(0.5, max(0.1, 4 / size))
    if name == "cross_entropy" and size < LEAST_GENERATION:
        raise ValueError(
            f"population is {size} with method 'cross_entropy', expected at least {LEAST_GENERATION}, so that "
            f"two trials are elite; pass population={LEAST_GENERATION} or more, or a larger budget"
        )
    makers: dict[str, Callable[[PyTree], Searcher]] = {
        "grid": lambda space: grid(space, levels_within(space, num_trials)),
        "sobol": sobol,
        "prior": partial(prior, beliefs=beliefs or {}),
        "cross_entropy": partial(
            cross_entropy, rho=share, family=partial(distribution, beliefs=beliefs)
        ),
        "evolution": partial(evolution, num_members=max(4, size)),
        "cma_es": partial(cma_es, num_members=max(4, size)),
        "bayes": partial(bayes, capacity=min(256, max(16, 2 ** (num_trials - 1).bit_length()))),
        "tpe": partial(tpe, capacity=min(512, max(16, num_trials))),
    }
    if name in OPTUNA:
        sampler = named_sampler(name.removeprefix("optuna_"))
        makers[name] = partial(optuna_searcher, sampler=sampler, capacity=num_trials)

    def make(space):
        if not beliefs or name not in ("evolution", "cma_es", "bayes", "tpe"):
            return makers[name](space)
        num = max(size, LEAST_BELIEVED)
        return begin_with(makers[name](space), prior(space, beliefs), num)

    return constant(space, make)
