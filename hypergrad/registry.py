"""Names for the command line -> factories of this package, and nothing else."""

from collections.abc import Callable
from functools import partial

from hypergrad.estimators import (
    Estimator,
    drift,
    forward,
    implicit,
    reverse,
    reversible,
    truncated,
)
from hypergrad.problem import Problem
from hypergrad.searchers import (
    Searcher,
    bayes,
    constant,
    cross_entropy,
    evolution,
    grid,
    random,
    sobol,
    tpe,
)
from hypergrad.searchers.grid import levels_within
from hypergrad.settings import check_name
from hypergrad.space import sample_constant
from hypergrad.types import PyTree

ESTIMATORS: dict[str, Callable[..., Estimator]] = {
    "reverse": reverse,
    "forward": forward,
    "truncated": truncated,
    "implicit": implicit,
    "drift": drift,
    "reversible": reversible,
}
METHODS: dict[str, str] = {
    "descent": "hypergradient descent on the unconstrained space, with any estimator",
    "random": "random search over schedules held constant, every trial trained to the end",
    "grid": "every combination of as many values as the budget allows, in random order",
    "sobol": "a scrambled Sobol sequence, which fills the space more evenly than random trials",
    "cross_entropy": "a distribution fitted to the best of every generation (CEHPO)",
    "evolution": "differential evolution",
    "bayes": "a Gaussian process and its log expected improvement",
    "tpe": "tree-structured Parzen estimators, multivariate",
}


def most_trials(name: str) -> int:
    """Return the most trials of a generation of a search, where the population is not given.

    What is learned from one generation guides the next; the searches that model the objective make more
    of each trial, and are better with more generations.
    """
    return 4 if name in ("bayes", "tpe") else 16


def estimator(name: str, problem: Problem, horizon: int) -> Estimator:
    """Build an estimator by name, with the settings the command line uses."""
    check_name("estimator", name, ESTIMATORS)
    if name == "truncated":
        return truncated(problem, horizon, max(1, horizon // 4))
    return ESTIMATORS[name](problem, horizon)


def searcher(name: str, space: PyTree, num_trials: int, size: int) -> Searcher:
    """Build a searcher by name, with the settings the command line uses.

    Args:
        name: one of `METHODS` but "descent".
        space: of the task; schedules of more than a few free steps are held constant.
        num_trials: that it will be asked for in all.
        size: of a generation.
    """
    check_name("method", name, [method for method in METHODS if method != "descent"])
    if name == "random":
        return random(space, sample_constant)
    # a few elites are needed to fit a distribution to, also where generations are small
    share = min(0.5, max(0.1, 4 / size))
    makers: dict[str, Callable[[PyTree], Searcher]] = {
        "grid": lambda space: grid(space, levels_within(space, num_trials)),
        "sobol": sobol,
        "cross_entropy": partial(cross_entropy, rho=share),
        "evolution": partial(evolution, num_members=max(4, size)),
        "bayes": partial(bayes, capacity=min(256, max(16, 2 ** (num_trials - 1).bit_length()))),
        "tpe": partial(tpe, capacity=min(512, max(16, num_trials))),
    }
    return constant(space, makers[name])
