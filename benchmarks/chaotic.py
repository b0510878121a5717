"""Hypergradient descent from a start where training is chaotic: who still makes progress, and why.

A small network on digits, full batches, gradient descent with momentum and a learning rate of which every fifth of
the run has its own. The start is a rate so large that training bounces: neighbouring rates end far apart, and
the adjoint grows by a factor at every step on its way back. All estimators descend from that start with
the same tuner, with several seeds. The full run takes about two minutes.
"""

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.record import Figure, Results, markdown
from hypergrad import plots, study
from hypergrad.estimators import Estimator, es, nres, pes, reverse, truncated
from hypergrad.estimators.base import exploded_step
from hypergrad.problem import Problem
from hypergrad.space import LogReal, Sequence, constrain, default, schedule, unconstrain
from hypergrad.train import init_state, unroll
from hypergrad.tuners import descent

HORIZON, WINDOW = 100, 20
RATES = LogReal(1e-3, 100.0, default=20.0)
SPACE = {"lr": Sequence(RATES, HORIZON, knots=5)}
NUM_SEEDS, NUM_STEPS = 5, 60
NUM_JUDGE = 8
"""Trainings, the same at every step, whose mean objective is drawn."""
SIGMA = 0.1
NUM_LANDSCAPE = 400
STYLES: dict[str, dict[str, Any]] = {
    "reverse": {"color": "#D55E00", "linewidth": 1.5, "linestyle": (0, (5, 1.5))},
    "truncated": {"color": "#6e6e6e", "linewidth": 1.4, "linestyle": (0, (1.5, 1.5))},
    "es": {"color": "#CC79A7", "linewidth": 1.3},
    "pes": {"color": "#0072B2", "linewidth": 1.8, "zorder": 3},
    "nres": {"color": "#007D5C", "linewidth": 1.6},
}
