"""The contract of every scheduler: how to spend training on what was asked."""

from collections.abc import Callable
from typing import TypeAlias

from hypergrad.population import Population
from hypergrad.searchers.base import Outcome
from hypergrad.types import HParams, Key

Scheduler: TypeAlias = Callable[[Population, Key, HParams], Outcome]
"""(population, key, hparams `[N]`) -> `Outcome`."""
