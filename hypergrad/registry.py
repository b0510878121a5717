"""Names for the command line -> factories of this package, and nothing else."""

from collections.abc import Callable

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
from hypergrad.settings import check_name

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
}


def estimator(name: str, problem: Problem, horizon: int) -> Estimator:
    """Build an estimator by name, with the settings the command line uses."""
    check_name("estimator", name, ESTIMATORS)
    if name == "truncated":
        return truncated(problem, horizon, max(1, horizon // 4))
    return ESTIMATORS[name](problem, horizon)
