"""Estimators by name."""

from collections.abc import Callable

from hypergrad.core.checks import check_name
from hypergrad.core.scans import largest_divisor
from hypergrad.core.types import PyTree
from hypergrad.estimators.base import Estimator
from hypergrad.estimators.evolution.evolution import es, nres, pes
from hypergrad.estimators.implicit.implicit import implicit
from hypergrad.estimators.unrolled.drift import drift
from hypergrad.estimators.unrolled.forward import forward
from hypergrad.estimators.unrolled.hd import hd
from hypergrad.estimators.unrolled.reverse import reverse
from hypergrad.estimators.unrolled.reversible import reversible
from hypergrad.estimators.unrolled.rtho import rtho
from hypergrad.estimators.unrolled.truncated import one_step, truncated
from hypergrad.problem import Problem

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


def quarter(horizon: int) -> int:
    """Return the largest divisor of the horizon that is at most a quarter of it, or 1."""
    return largest_divisor(horizon, horizon // 4)
