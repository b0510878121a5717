"""Schedulers: how to spend training. One method, one file, one contract (`base.Scheduler`)."""

from hypergrad.schedulers.base import Rung, Scheduler, geometric_rungs
from hypergrad.schedulers.flatness import (
    blended,
    flatness,
    flattest,
    lowest_value,
    matched,
    pareto,
    traverse,
)
from hypergrad.schedulers.full import full, reach
from hypergrad.schedulers.halving import halving, staged
from hypergrad.schedulers.hyperband import hyperband
from hypergrad.schedulers.objectives import constrained, scalarized
from hypergrad.schedulers.pareto import (
    Scalarization,
    chebyshev,
    hypervolume,
    pareto_front,
    pareto_ranks,
)
from hypergrad.schedulers.pb2 import pb2
from hypergrad.schedulers.pbt import pbt, perturb

__all__ = [
    "Rung",
    "Scalarization",
    "Scheduler",
    "blended",
    "chebyshev",
    "constrained",
    "flatness",
    "flattest",
    "full",
    "geometric_rungs",
    "halving",
    "hyperband",
    "hypervolume",
    "lowest_value",
    "matched",
    "pareto",
    "pareto_front",
    "pareto_ranks",
    "pb2",
    "pbt",
    "perturb",
    "reach",
    "scalarized",
    "staged",
    "traverse",
]
