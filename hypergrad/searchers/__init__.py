"""Searchers: what to try. One method, one file, one contract (`base.Searcher`)."""

from hypergrad.searchers.base import Searcher, Trials, final_values
from hypergrad.searchers.bayes import TrustRegion, bayes
from hypergrad.searchers.beliefs import Belief, near
from hypergrad.searchers.cma_es import cma_es
from hypergrad.searchers.cross_entropy import Stop, cross_entropy, steps_to
from hypergrad.searchers.evolution import evolution
from hypergrad.searchers.grid import grid
from hypergrad.searchers.models.distribution import distribution
from hypergrad.searchers.models.families import Smoothing
from hypergrad.searchers.prior import prior
from hypergrad.searchers.random import random
from hypergrad.searchers.sobol import sobol
from hypergrad.searchers.tpe import tpe
from hypergrad.searchers.wrappers import begin_with, constant, warm_start

__all__ = [
    "Belief",
    "Searcher",
    "Smoothing",
    "Stop",
    "Trials",
    "TrustRegion",
    "bayes",
    "begin_with",
    "cma_es",
    "constant",
    "cross_entropy",
    "distribution",
    "evolution",
    "final_values",
    "grid",
    "near",
    "prior",
    "random",
    "sobol",
    "steps_to",
    "tpe",
    "warm_start",
]
