"""Schedulers: how to spend training. One method, one file, one contract (`base.Scheduler`)."""

from hypergrad.schedulers.base import Rung, Scheduler, geometric_rungs
from hypergrad.schedulers.full import full
from hypergrad.schedulers.halving import halving, staged
from hypergrad.schedulers.hyperband import hyperband
from hypergrad.schedulers.objectives import constrained, scalarized
from hypergrad.schedulers.pb2 import pb2
from hypergrad.schedulers.pbt import pbt, perturb

__all__ = [
    "Rung",
    "Scheduler",
    "constrained",
    "full",
    "geometric_rungs",
    "halving",
    "hyperband",
    "pb2",
    "pbt",
    "perturb",
    "scalarized",
    "staged",
]
