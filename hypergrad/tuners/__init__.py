"""Tuners: methods, whole. One method, one file, one contract (`base.Tuner`)."""

from hypergrad.tuners.base import Tuner
from hypergrad.tuners.descent import DescentState, descent
from hypergrad.tuners.search import search

__all__ = ["DescentState", "Tuner", "descent", "search"]
