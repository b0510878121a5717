"""Names for the command line -> factories of this package, and nothing else."""

from collections.abc import Callable

from hypergrad.estimators import (
    Estimator,
    drift,
    es,
    forward,
    implicit,
    nres,
    pes,
    reverse,
    reversible,
    truncated,
)
from hypergrad.problem import Problem
from hypergrad.settings import check_name
from hypergrad.types import PyTree

ESTIMATORS: dict[str, Callable[..., Estimator]] = {
    "reverse": reverse,
    "forward": forward,
    "truncated": truncated,
    "implicit": implicit,
    "drift": drift,
    "reversible": reversible,
    "es": es,
    "pes": pes,
    "nres": nres,
}
METHODS: dict[str, str] = {
    "descent": "hypergradient descent on the unconstrained space, with any estimator",
    "random": "random search over schedules held constant, every trial trained to the end",
}


def estimator(name: str, problem: Problem, horizon: int, space: PyTree) -> Estimator:
    """Build an estimator by name, with the settings the command line uses."""
    check_name("estimator", name, ESTIMATORS)
    if name == "truncated":
        return truncated(problem, horizon, max(1, horizon // 4))
    if name == "es":
        return es(problem, horizon, space=space)
    if name in ("pes", "nres"):
        return ESTIMATORS[name](problem, horizon, quarter(horizon), space=space)
    return ESTIMATORS[name](problem, horizon)


def quarter(horizon: int) -> int:
    """Return the largest divisor of the horizon that is at most a quarter of it, or 1."""
    return next(d for d in range(max(1, horizon // 4), 0, -1) if horizon % d == 0)
