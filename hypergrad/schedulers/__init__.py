"""Schedulers: how to spend training. One method, one file, one contract (`base.Scheduler`).

- `base`: The contract of every scheduler, and helpers of those that stop trials early.
- `flatness`: Flatness-guided search: train all trials for an epoch, and the flattest to the end (FGHPO).
- `full`: Train everything to the end.
- `halving`: Successive halving: train many trials a little, and the best of them further.
- `hyperband`: Hyperband: several successive halvings, from the boldest to the most patient.
- `objectives`: Schedulers whose trials are judged by several objectives, or must keep constraints.
- `pareto`: Several objectives at once, all minimised: the front, its hypervolume, and their combination.
- `pb2`: Population-based bandits: exploration in population-based training by a Gaussian process.
- `pbt`: Population-based training: the worst members continue from the best, with other hyperparameters.
"""

from hypergrad.core.methods import Method, by_name
from hypergrad.schedulers.base import Rung, Scheduler, geometric_rungs
from hypergrad.schedulers.flatness import (
    FLATNESS,
    blended,
    flatness,
    flattest,
    lowest_value,
    matched,
    pareto,
    traverse,
)
from hypergrad.schedulers.full import FULL, full, reach
from hypergrad.schedulers.halving import HALVING, halving, staged
from hypergrad.schedulers.hyperband import HYPERBAND, hyperband
from hypergrad.schedulers.objectives import constrained, scalarized
from hypergrad.schedulers.pareto import (
    Scalarization,
    chebyshev,
    hypervolume,
    pareto_front,
    pareto_ranks,
)
from hypergrad.schedulers.pb2 import PB2, pb2
from hypergrad.schedulers.pbt import PBT, pbt, perturb

SCHEDULERS: dict[str, Method] = by_name(FULL, HALVING, HYPERBAND, FLATNESS, PBT, PB2)
"""The schedulers that the command line offers.

Each is made by `make(problem, space, horizon, size)`, with the settings that the command line uses: of a task's
problem and space, the training steps of the trials that are trained longest, and the trials of a generation.
That returns the scheduler, and the cost of a generation in trainings of `horizon` steps.
"""

BY_COPIES = ("pbt", "pb2")
"""Names of the schedulers whose members continue from one another."""

__all__ = [
    "BY_COPIES",
    "SCHEDULERS",
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
