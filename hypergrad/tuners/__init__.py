"""Tuners: complete methods. One method, one file, one contract (`base.Tuner`)."""

from hypergrad.tuners.base import Tuner
from hypergrad.tuners.bilevel import BilevelState, bilevel
from hypergrad.tuners.bilevel_methods import (
    BILEVEL_METHODS,
    BilevelMethod,
    FiniteSum,
    amigo,
    finite_sum,
    saba,
    soba,
)
from hypergrad.tuners.clipping import clipped, policy_adam
from hypergrad.tuners.controller import controller
from hypergrad.tuners.controller_info import ControllerState, ControllerWarning
from hypergrad.tuners.descent import DescentState, descent
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
