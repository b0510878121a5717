"""Tuners: complete methods. One method, one file, one contract (`base.Tuner`).

- `base`: The contract of every tuner: one durable step of progress, whatever the method.
- `bilevel`: Stochastic bilevel optimization: weights, linear system and hparams move together, in one loop.
- `bilevel_methods`: The directions of stochastic bilevel optimization, and the methods that follow them.
- `clipping`: How a policy moves: an optimizer that cuts its gradient, and several moves on the same draws.
- `controller`: The controller: shared weights and the policy over architectures and optimizers, trained in
  turn.
- `controller_info`: The report of a controller on a step: the summary of its updates, and warnings with the
  step.
- `descent`: Hypergradient descent: walk down the objective in the unconstrained coordinates of the space.
- `finite_sums`: Finite sums: a loss and an objective as means over minibatches that come again.
- `methods`: All methods by name, and the settings that each of them reads.
- `safeguards`: What keeps a descent from falling off a cliff: clipped seeds, steps taken back, schedules that
  move smoothly.
- `search`: Population search: a searcher times a scheduler.
"""

from hypergrad.tuners.base import Tuner
from hypergrad.tuners.bilevel import BilevelState, bilevel
from hypergrad.tuners.bilevel_methods import (
    BILEVEL_METHODS,
    BilevelMethod,
    amigo,
    saba,
    soba,
)
from hypergrad.tuners.clipping import clipped, policy_adam
from hypergrad.tuners.controller import controller
from hypergrad.tuners.controller_info import ControllerState, ControllerWarning
from hypergrad.tuners.descent import DescentState, descent
from hypergrad.tuners.finite_sums import FiniteSum, finite_sum
from hypergrad.tuners.methods import METHODS, TUNERS, is_read, readers_of
from hypergrad.tuners.search import make_search, search

__all__ = [
    "BILEVEL_METHODS",
    "METHODS",
    "TUNERS",
    "BilevelMethod",
    "BilevelState",
    "ControllerState",
    "ControllerWarning",
    "DescentState",
    "FiniteSum",
    "Tuner",
    "amigo",
    "bilevel",
    "clipped",
    "controller",
    "descent",
    "finite_sum",
    "is_read",
    "make_search",
    "policy_adam",
    "readers_of",
    "saba",
    "search",
    "soba",
]
