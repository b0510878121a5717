"""Searchers: what to try. One method, one file, one contract (`base.Searcher`)."""

from hypergrad.beliefs import Belief, near
from hypergrad.distribution import distribution
from hypergrad.families import Smoothing
from hypergrad.searchers.base import Outcome, Searcher, final_values
from hypergrad.searchers.bayes import TrustRegion, bayes
from hypergrad.searchers.begin_with import begin_with
from hypergrad.searchers.cma_es import cma_es
from hypergrad.searchers.constant import constant
from hypergrad.searchers.cross_entropy import Stop, cross_entropy, steps_to
from hypergrad.searchers.evolution import evolution
from hypergrad.searchers.grid import grid
from hypergrad.searchers.prior import prior
from hypergrad.searchers.random import random
from hypergrad.searchers.sobol import sobol
from hypergrad.searchers.tpe import tpe
from hypergrad.searchers.warm_start import warm_start

__all__ = [
    "Belief",
    "Outcome",
    "Searcher",
    "Smoothing",
    "Stop",
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
