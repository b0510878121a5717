"""What a user's function reads from outside of its arguments, and whether that may change between two calls."""

import dis
import functools
import os
import random
import sys
import sysconfig
import zlib
from array import array
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import jax
import numpy as np

MAX_OBJECTS = 2000
"""Most objects that are looked at."""

MAX_ALIKE = 64
"""Most objects of one type that are looked at in a list, tuple, set or dict."""

MAX_CONTENTS = 2**24
"""Bytes of all arrays that are compared before and after a call; of larger ones evenly spaced blocks."""

NUM_BLOCKS = 256
"""Blocks of a large array that are compared."""

FIXED = (bool, int, float, complex, str, bytes, type(None), np.generic, jax.Array)
"""Types of what holds nothing and never changes."""

CLOCKS = {"time", "datetime", "secrets", "uuid", "torch", "tensorflow"}
"""Modules whose functions return something else with each call, or may."""

_OF_SYSTEM = ("urandom", "getrandom", "times", "getpid")

ENTROPY = {
    *(f"{system}.{name}" for system in ("posix", "nt") for name in _OF_SYSTEM),
    *("numpy.datetime64", "numpy.random.default_rng", "numpy.random._generator.default_rng"),
    *("numpy.random.SeedSequence", "numpy.random.bit_generator.SeedSequence"),
}
"""Further functions that may return something else with each call."""

LIBRARIES = tuple(
    os.path.join(folder, "")
    for folder in (
        *map(sysconfig.get_path, ("stdlib", "platlib", "purelib")),
        Path(__file__).parent.parent,
    )
)
"""Folders whose code is not the user's."""

CONTAINERS = (dict, list, tuple, set, frozenset, deque)

GENERATORS = (random.Random, np.random.Generator, np.random.RandomState, np.random.BitGenerator)


def reached(function: Any, few: bool = False) -> list[Any]:
    """Return the objects that a function can reach, itself first.

    Those are in its closure, its defaults, the globals that it names, the modules that it imports and the
    methods of the user's classes, and what these hold or reach, but not within libraries. **Limits:** what is
    reached otherwise is not seen.

    Args:
        function: Function to begin with.
        few: Whether to leave out what never changes, and most of what is alike in a container.
    """
    found: list[Any] = []
    seen: set[int] = set()
    waiting = deque([function])
    while waiting and len(found) < MAX_OBJECTS:
        x = waiting.popleft()
        if id(x) not in seen and not (few and isinstance(x, FIXED)):
            seen.add(id(x))
            found.append(x)
            held = _within(x)
            waiting += _unlike(held) if few and isinstance(x, CONTAINERS) else held
    return found


def may_change(objects: list[Any]) -> bool:
    """Tell whether an iterator, a random generator or a clock is among objects."""
    return any(map(_changes, objects))


def contents(objects: list[Any]) -> list[Any]:
    """Return what objects hold, to be compared before and after a call: identities, and checksums of arrays."""
    sums = iter(sums_of([x for x in objects if _is_buffer(x)]))
    return [next(sums) if _is_buffer(x) else tuple(map(id, _within(x))) for x in objects]


def reads_iterators(objects: list[Any]) -> bool:
    """Tell whether an iterator is among objects."""
    return any(isinstance(x, Iterator) for x in objects)


def sums_of(buffers: list[Any]) -> list[int]:
    """Return checksums of the bytes of arrays, of at most `MAX_CONTENTS` in all; the smallest come first."""
    numbers = [_bytes_of(x) for x in buffers]
    sums, left = [0] * len(numbers), MAX_CONTENTS
    order = sorted(range(len(numbers)), key=lambda i: numbers[i].nbytes)
    for place, i in enumerate(order):
        share = left // (len(order) - place)
        sums[i] = _sum_of(numbers[i], share)
        left -= min(numbers[i].nbytes, share)
    return sums


def _unlike(objects: list[Any]) -> list[Any]:
    """Return objects without those that are fixed, and at most `MAX_ALIKE` of each type."""
    seen: Counter[type] = Counter()
    found = []
    for x in objects:
        seen[type(x)] += 1
        if seen[type(x)] <= MAX_ALIKE and not isinstance(x, FIXED):
            found.append(x)
    return found


def _is_buffer(x: Any) -> bool:
    """Tell whether an object is an array that may be written into."""
    return x.flags.writeable if isinstance(x, np.ndarray) else isinstance(x, (bytearray, array))


def _bytes_of(x: Any) -> np.ndarray:
    """Return an array of a buffer, without a copy; of objects, one of the first that it holds."""
    if isinstance(x, np.ndarray):
        x = np.asarray(x)
        return np.array(list(map(id, islice(x.flat, MAX_OBJECTS)))) if x.dtype.hasobject else x
    return np.frombuffer(x, np.uint8) if len(x) else np.zeros(0, np.uint8)


def _sum_of(x: np.ndarray, share: int) -> int:
    """Return a checksum of an array; of one of more bytes than a share, of evenly spaced blocks."""
    if not x.nbytes:
        return 0
    blocks: Iterable[np.ndarray] = [x]
    if x.nbytes > share:
        flat = x.ravel("K") if x.flags.forc else x.flat
        length = max(1, share // (NUM_BLOCKS * x.itemsize))
        starts = np.linspace(0, max(0, x.size - length), NUM_BLOCKS).astype(int)
        blocks = (flat[i : i + length] for i in starts.tolist())
    found = 0
    for block in blocks:
        found = zlib.crc32(np.ascontiguousarray(block).view(np.uint8).data, found)
    return found


def _changes(x: Any) -> bool:
    if isinstance(x, ModuleType):
        return x.__name__.partition(".")[0] in CLOCKS
    if isinstance(x, type) and issubclass(x, GENERATORS):  # made anew, perhaps without a seed
        return True
    made_in = _get(x, "__module__") if callable(x) else type(x).__module__
    if not isinstance(made_in, str):
        return isinstance(x, (Iterator, *GENERATORS))
    named = f"{made_in}.{_get(x, '__name__')}"
    of_clock = made_in.partition(".")[0] in CLOCKS or named in ENTROPY
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
    owner = _get(x, "__self__") if callable(x) else None
    if _changes(owner):  # of a method of C, such as that of a generator of numpy
        return [owner]
    if isinstance(x, dict):
        return list(islice(x.values(), MAX_OBJECTS))
    if isinstance(x, CONTAINERS):
        return list(islice(x, MAX_OBJECTS))
    if isinstance(x, type):
        held = vars(x).items() if _is_of_user(x) else ()
        return [v for name, v in held if isinstance(v, FunctionType) or not name.startswith("__")]
    if isinstance(x, (staticmethod, classmethod)):
        return [x.__func__]
    if isinstance(x, property):
        return [x.fget]
    if isinstance(x, (ModuleType, np.ndarray, array)):
        return []
    slots = [_get(x, name) for name in _slots(x)]
    kinds = [kind for kind in type(x).__mro__ if _is_of_user(kind)]
    if not hasattr(x, "__dict__"):
        return [*slots, *kinds]
    # the function within a jit, the attributes of an object
    return [*vars(x).values(), *slots, *kinds]


def _is_of_user(kind: type) -> bool:
    """Tell whether a class is defined in a file of the user's."""
    module = sys.modules.get(kind.__module__)
    if kind.__module__ == "builtins" or module is None:
        return False
    file = getattr(module, "__file__", None)
    return not (file or "").startswith(LIBRARIES) and (
        file is not None or module.__name__ == "__main__"
    )


def _is_of_library(code: CodeType) -> bool:
    return code.co_filename.startswith(LIBRARIES)


def _get(x: Any, name: str) -> Any:
    """Return an attribute; None where an object has none, or does not tell."""
    try:
        return getattr(x, name, None)
    except Exception:  # of a `__getattr__` of the user's
        return None


def _slots(x: Any) -> list[str]:
    """Return the names of the slots of an object of Python's."""
    found = [vars(kind).get("__slots__", ()) for kind in type(x).__mro__]
    names = [name for one in found for name in ([one] if isinstance(one, str) else one)]
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def _of_function(function: FunctionType) -> list[Any]:
    """Return the cells and defaults of a function, and unless it is of a library its globals and attributes."""
    found = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    found += function.__closure__ or ()
    code = function.__code__
    if not _is_of_library(code):
        for chain in _chains(code):
            near: Any = function.__globals__
            for name in chain:
                near = near.get(name) if isinstance(near, dict) else vars(near).get(name)
                found.append(near)
                if not isinstance(near, ModuleType):
                    break
        found += [*_imported(code), *vars(function).values()]
    return found


def _imported(code: CodeType) -> list[Any]:
    """Return the modules that a function imports by itself, with what it may name in them."""
    found: list[Any] = []
    names = _names(code)
    waiting: list[Any] = [sys.modules.get(name) for name in names]
    waiting = [x for x in waiting if x is not None] if _imports(code) else []
    while waiting:
        near = waiting.pop()
        if not any(near is x for x in found):
            found.append(near)
            held = vars(near) if isinstance(near, ModuleType) else {}
            waiting += [held[name] for name in names if name in held]
    return found


def _inner(code: CodeType) -> list[CodeType]:
    return [x for x in code.co_consts if isinstance(x, CodeType)]


def _names(code: CodeType) -> set[str]:
    """Return the names in a function and in those within it."""
    return set(code.co_names).union(*map(_names, _inner(code)))


@functools.lru_cache(2**12)
def _imports(code: CodeType) -> bool:
    """Tell whether a function, or one within it, imports a module."""
    here = any(x.opname == "IMPORT_NAME" for x in dis.get_instructions(code))
    return here or any(map(_imports, _inner(code)))


@functools.lru_cache(2**12)
def _chains(code: CodeType) -> list[tuple[str, ...]]:
    """Return the globals that a function names, each with the attributes that follow it.

    `np.random.normal()` is `("np", "random", "normal")`.
    """
    found = [chain for inner in _inner(code) for chain in _chains(inner)]
    follows = False
    for one in dis.get_instructions(code):
        if one.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            found.append((one.argval,))
            follows = True
        elif one.opname in ("LOAD_ATTR", "LOAD_METHOD") and follows:
            found[-1] += (one.argval,)
        elif one.opname != "EXTENDED_ARG":
            follows = False
    return found
