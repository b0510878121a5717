"""Names for the command line -> factories of this package, and nothing else."""

from collections.abc import Callable

from hypergrad.directions import Method, amigo, finite_sum, nearest_divisor, saba, soba
from hypergrad.estimators import (
    Estimator,
    drift,
    es,
    forward,
    hd,
    implicit,
    nres,
    one_step,
    pes,
    reverse,
    reversible,
    rtho,
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
    "one_step": one_step,
    "rtho": rtho,
    "hd": hd,
    "es": es,
    "pes": pes,
    "nres": nres,
}
ONLINE = ("one_step", "rtho", "hd")
"""Estimators whose training goes on from one hypergradient to the next."""
NUM_READ = 20
"""Hypergradients that such an estimator reads in one run of training."""
METHODS: dict[str, str] = {
    "descent": "hypergradient descent on the unconstrained space, with any estimator",
    "bilevel": "weights and hyperparameters in one loop (see --bilevel), for hyperparameters of the loss",
    "random": "random search over schedules held constant, every trial trained to the end",
}
BILEVEL: dict[str, Callable[..., Method]] = {"soba": soba, "saba": saba, "amigo": amigo}
NAMES = {"method": METHODS, "estimator": ESTIMATORS, "bilevel": BILEVEL}
"""Option -> the names it may have."""
SUM_BATCH = 64
"""Examples in a minibatch of `saba`, as nearly as they divide the training set."""


def estimator(name: str, problem: Problem, horizon: int, space: PyTree) -> Estimator:
    """Build an estimator by name, with the settings the command line uses."""
    check_name("estimator", name, ESTIMATORS)
    if name == "truncated":
        return truncated(problem, horizon, max(1, horizon // 4))
    if name == "es":
        return es(problem, horizon, space=space)
    if name in ("pes", "nres"):
        return ESTIMATORS[name](problem, horizon, quarter(horizon), space=space)
    if name in ONLINE:
        interval = max(1, horizon // NUM_READ)
        return ESTIMATORS[name](problem, interval, restart_every=horizon)
    return ESTIMATORS[name](problem, horizon)


def bilevel_method(name: str, problem: Problem) -> Method:
    """Build a stochastic bilevel method by name, with the settings the command line uses."""
    check_name("bilevel", name, BILEVEL)
    if name != "saba":
        return BILEVEL[name]()
    size = SUM_BATCH
    if problem.train_set is not None:
        size = nearest_divisor(problem.train_set.num_examples, size)
    return saba(finite_sum(problem, size))


def quarter(horizon: int) -> int:
    """Return the largest divisor of the horizon that is at most a quarter of it, or 1."""
    return next(d for d in range(max(1, horizon // 4), 0, -1) if horizon % d == 0)
