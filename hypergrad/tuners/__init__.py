"""Tuners: methods, whole. One method, one file, one contract (`base.Tuner`)."""

from hypergrad.core.methods import Method, by_name
from hypergrad.searchers import SEARCHERS
from hypergrad.tuners.base import Tuner
from hypergrad.tuners.bilevel import BILEVEL, BilevelState, bilevel
from hypergrad.tuners.bilevel_methods import (
    BILEVEL_METHODS,
    BilevelMethod,
    FiniteSum,
    amigo,
    finite_sum,
    saba,
    soba,
)
from hypergrad.tuners.controller import (
    CONTROLLER,
    ControllerState,
    ControllerWarning,
    clipped,
    controller,
    policy_adam,
)
from hypergrad.tuners.descent import DESCENT, DescentState, descent
from hypergrad.tuners.search import search

TUNERS: dict[str, Method] = by_name(DESCENT, BILEVEL, CONTROLLER)
"""Tuners by name that follow hypergradients; each `make` takes (task, settings, start), and returns a tuner
and how many estimates or steps of its own one of its steps costs."""

METHODS: dict[str, Method] = TUNERS | SEARCHERS
"""All that `--method` may name: tuners, and the searchers of a search."""

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
    "policy_adam",
    "saba",
    "search",
    "soba",
]
