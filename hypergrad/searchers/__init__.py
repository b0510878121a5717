"""Searchers: what to try. One method, one file, one contract (`base.Searcher`)."""

from hypergrad.searchers.base import Outcome, Searcher, final_values
from hypergrad.searchers.random import random

__all__ = ["Outcome", "Searcher", "final_values", "random"]
