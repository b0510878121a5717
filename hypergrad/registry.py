"""Names for the command line -> factories of this package, and nothing else."""

import difflib
from collections.abc import Callable

from hypergrad.estimators import Estimator, drift, forward, reverse, reversible, truncated
from hypergrad.problem import Problem

ESTIMATORS: dict[str, Callable[..., Estimator]] = {
    "reverse": reverse,
    "forward": forward,
    "truncated": truncated,
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


def check_name(argument: str, name: str, known: dict) -> str:
    """Return `name` if it is one of `known`, or raise a `ValueError` with the nearest one."""
    if name in known:
        return name
    near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else "see hypergrad list"
    raise ValueError(f"{argument} is {name!r}, expected one of {', '.join(known)}; {hint}")
