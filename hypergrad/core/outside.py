"""What a user's function reads from outside of its arguments, and whether that may change between two calls."""

import functools
import os
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

MOST = 2000
"""Most objects that are looked at."""

CLOCKS = {"time", "datetime", "secrets", "uuid", "torch", "tensorflow"}
"""Modules whose functions return something else with each call, or may."""

LIBRARIES = tuple(
    os.path.join(folder, "")
    for folder in (
        *map(sysconfig.get_path, ("stdlib", "platlib", "purelib")),
        Path(__file__).parent.parent,
    )
)
"""Folders whose code is not the user's."""

GENERATORS = (random.Random, np.random.Generator, np.random.RandomState, np.random.BitGenerator)


def reached(function: Any) -> list[Any]:
    """Return the objects that a function can reach, itself first.

    Those are in its closure, its defaults and the globals that it names, and what these hold or reach, but not
    within libraries. **Limits:** what is reached otherwise is not seen.
    """
    found: list[Any] = []
    seen: set[int] = set()
    waiting = [function]
    while waiting and len(found) < MOST:
        x = waiting.pop()
        if id(x) not in seen:
            seen.add(id(x))
            found.append(x)
            waiting += _within(x)
    return found


def may_change(objects: list[Any]) -> bool:
    """Tell whether an iterator, a random generator or a clock is among objects."""
    return any(map(_changes, objects))


def contents(objects: list[Any]) -> list[Any]:
    """Return the identities of what objects hold, to be compared before and after a call."""
    return [tuple(map(id, _within(x))) for x in objects]


def _changes(x: Any) -> bool:
    if isinstance(x, ModuleType):
        return x.__name__.partition(".")[0] in CLOCKS
    made_in = getattr(x, "__module__", None) if callable(x) else type(x).__module__
    of_clock = isinstance(made_in, str) and made_in.partition(".")[0] in CLOCKS
    return of_clock or isinstance(x, (Iterator, *GENERATORS))


def _within(x: Any) -> list[Any]:
    """Return the objects that one holds."""
    if isinstance(x, FunctionType):
        return _of_function(x)
    if isinstance(x, CellType):
        try:
            return [x.cell_contents]
        except ValueError:  # not filled yet
            return []
    if isinstance(x, functools.partial):
        return [x.func, *x.args, *x.keywords.values()]
    if isinstance(x, MethodType):
        return [x.__func__, x.__self__]
    owner = getattr(x, "__self__", None) if callable(x) else None
    if _changes(owner):  # of a method of C, such as that of a generator of numpy
        return [owner]
    if isinstance(x, dict):
        return list(x.values())[:MOST]
    if isinstance(x, (list, tuple, set, frozenset)):
        return list(x)[:MOST]
    if isinstance(x, (type, ModuleType, np.ndarray)):
        return []
    slots = [getattr(x, name) for name in _slots(x) if hasattr(x, name)]
    if not hasattr(x, "__dict__"):
        return slots
    call = getattr(type(x), "__call__", None)  # noqa: B004
    # the function within a jit, the attributes of an object
    return [*vars(x).values(), *slots, *([call] if isinstance(call, FunctionType) else [])]


def _slots(x: Any) -> list[str]:
    """Return the names of the slots of an object of Python's."""
    found = [vars(kind).get("__slots__", ()) for kind in type(x).__mro__]
    names = [name for one in found for name in ([one] if isinstance(one, str) else one)]
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def _of_function(function: FunctionType) -> list[Any]:
    """Return the cells and defaults of a function, and the globals that it names unless it is of a library."""
    found = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    found += function.__closure__ or ()
    code = function.__code__
    if not code.co_filename.startswith(LIBRARIES):
        names = _names(code)
        near = [function.__globals__[name] for name in names if name in function.__globals__]
        found += near
        for module in near:
            if isinstance(module, ModuleType):
                found += [vars(module)[name] for name in names if name in vars(module)]
    return found


def _names(code: CodeType) -> set[str]:
    """Return the names in a function and in those within it."""
    inner = [x for x in code.co_consts if isinstance(x, CodeType)]
    return set(code.co_names).union(*map(_names, inner))
