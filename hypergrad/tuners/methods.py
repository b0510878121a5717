"""All methods by name, and the settings that each of them reads."""

from hypergrad.core.methods import Method, by_name
from hypergrad.searchers import SEARCHERS
from hypergrad.tuners.bilevel import BILEVEL
from hypergrad.tuners.controller import CONTROLLER
from hypergrad.tuners.descent import DESCENT

TUNERS: dict[str, Method] = by_name(DESCENT, BILEVEL, CONTROLLER)
"""Tuners that follow hypergradients, by name; each `make` takes (task, settings, start), and returns a tuner
and the `StepCost` of one of its steps."""

METHODS: dict[str, Method] = TUNERS | SEARCHERS
"""All that `--method` may name: tuners, and the searchers of a search."""

SEARCH_READS = ("population", "generations", "scheduler", "devices", "chunk", "memory")
"""Settings that every search reads, whatever its searcher."""


def readers_of(setting: str) -> list[str]:
    """List the methods that read a setting; none where all methods read it."""
    if setting in SEARCH_READS:
        found = {name: name in SEARCHERS or setting in METHODS[name].reads for name in METHODS}
    else:
        found = {name: setting in method.reads for name, method in METHODS.items()}
    return [name for name, reads in found.items() if reads]


def is_read(setting: str, method: str) -> bool:
    """Tell whether a method reads a setting."""
    readers = readers_of(setting)
    return not readers or method in readers
