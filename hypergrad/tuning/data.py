"""The data that a task reads: their digests, so that a study goes on with the same."""

import hashlib
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax import core
from jax.extend.core import ClosedJaxpr, Jaxpr

from hypergrad.core.autodiff import equations
from hypergrad.core.flow import constants
from hypergrad.core.host import Store
from hypergrad.core.outside import reached
from hypergrad.study import StudyWarning

MAX_DIGESTED = 2**30
"""Bytes of an array that are read; of a larger one evenly spaced rows that make up as many."""

MAX_DIGESTS = 1000
"""Arrays of a function that a study writes down."""

_BLOCK = 2**24

_OF_ARRAY = ("__array__", "shape", "dtype")


class Data(NamedTuple):
    """What is known of the data that a task reads; entries of `study.json`.

    Attributes:
        data: {name of a function: short digests of the arrays that it reads}.
        data_unknown: Names of the functions some of whose data cannot be known.
    """

    data: dict[str, list[str]]
    data_unknown: list[str]


def data_of(programs: Mapping[str, ClosedJaxpr]) -> Data:
    """Find the arrays that the functions of a task read besides their arguments.

    What a traced function takes from elsewhere is a constant of its program, however it came there: by a
    closure, a default, a partial, an attribute, a global, a file read within. A function on the host
    (`host_batches`, `jax.pure_callback`) is looked through for arrays, memory-mapped files among them.

    **Cost:** reading the arrays once, about a second a gigabyte; of `host_batches` one example.

    **Limits:** an array of more than 1 GiB is read in part: evenly spaced rows. What a function on the host
    reads from files or from another process is not seen; where it holds no array, or reaches lists or
    names of files as well, its name is in `data_unknown`. An array that it fills by itself counts as data.

    Args:
        programs: Programs of the task's functions by their names.
    """
    found, unknown = {}, []
    for name, program in programs.items():
        digests = {_digest(array) for array in constants(program)}
        for call in _host_calls(program.jaxpr):
            store = getattr(call, "__self__", None)
            own = store.fetch if _is_store(store) else call
            objects = reached(own)
            held = {_digest(x) for x in held_arrays(objects)}
            digests |= held if held and not _reads_more(objects) else held | {None}
            if _is_store(store):
                digests |= {_digest(x) for x in store.checked(np.zeros(1, np.int64))}
        if None in digests:
            unknown.append(name)
        if known := sorted(x for x in digests if x):
            found[name] = known[:MAX_DIGESTS]
    return Data(found, unknown)


def check_same_data(here: Data, described: Mapping[str, Any]) -> None:
    """Raise a `ValueError` that names what reads other arrays than when the study began; new ones may join."""
    was = described.get("data")
    was = was if isinstance(was, dict) else {}
    changed = [
        name
        for name, known in was.items()
        if isinstance(known, list) and not set(map(str, known)) <= set(here.data.get(name, ()))
    ]
    if changed:
        raise ValueError(
            f"the data that {', '.join(changed)!s:.200} reads changed since the study was started, expected "
            "the same; restore them, or pass allow_changes=True"
        )


def warn_of_unknown(described: Mapping[str, Any]) -> None:
    """Warn of functions whose data could not be compared when a study is resumed."""
    unknown = described.get("data_unknown")
    if isinstance(unknown, list) and unknown:
        warnings.warn(
            f"{', '.join(map(str, unknown))!s:.200} reads data on the host that cannot be compared with "
            "those of the study's start; see for yourself that they are the same",
            StudyWarning,
            stacklevel=3,
        )


def _host_calls(jaxpr: Jaxpr) -> Iterator[Any]:
    """Go through the functions on the host that a program calls."""
    for eqn in equations(jaxpr):
        if eqn.primitive.name == "pure_callback":
            yield getattr(eqn.params["callback"], "callback_func", eqn.params["callback"])


def _is_store(owner: Any) -> TypeGuard[Store]:
    """Tell whether a callback is that of `host_batches`, whose cache is no data."""
    return isinstance(owner, Store)


def _reads_more(objects: list[Any]) -> bool:
    """Tell whether lists, or names of files that exist, which may be data, are among objects."""
    names = (x for x in objects if isinstance(x, (str, os.PathLike)))
    return any(isinstance(x, (list, set)) for x in objects) or any(map(os.path.exists, names))


def held_arrays(objects: list[Any]) -> Iterator[Any]:
    """Go through the arrays and bytes among the objects that a function on the host can reach."""
    for one in objects:
        if isinstance(one, bytes):
            yield np.frombuffer(one, np.uint8)
        elif not isinstance(one, type) and all(hasattr(one, name) for name in _OF_ARRAY):
            yield one


def _digest(array: Any) -> str | None:
    """Return a digest of an array, None for one that cannot be read here."""
    if isinstance(array, core.Tracer) or not getattr(array, "is_fully_addressable", True):
        return None
    found = hashlib.sha256(f"{array.dtype}{tuple(array.shape)}".encode())
    try:
        for block in _blocks(array):
            found.update(block)
    except Exception:  # of another library, which only looks like an array
        return None
    return found.hexdigest()[:16]


def _blocks(array: Any) -> Iterator[bytes]:
    """Read an array some rows at a time, of a large one evenly spaced rows."""
    if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    if isinstance(array, jax.Array) and array.nbytes <= MAX_DIGESTED:
        array = np.asarray(array)  # a slice on the device would be compiled
    if not array.shape:
        array = np.asarray(array)[None]
    num = array.shape[0]
    row = max(1, math.prod(array.shape[1:]) * np.dtype(array.dtype).itemsize)
    step = max(1, _BLOCK // row)
    if num * row <= MAX_DIGESTED:
        for start in range(0, num, step):
            yield _bytes(np.asarray(array[start : start + step]))
        return
    rows = np.unique(np.linspace(0, num - 1, max(1, MAX_DIGESTED // row)).astype(np.int64))
    for start in range(0, len(rows), step):
        yield _bytes(np.asarray(array[rows[start : start + step]]))


def _bytes(values: np.ndarray) -> bytes:
    """Return the bytes of an array; of objects such as texts, how they are written."""
    if not values.dtype.hasobject:
        return values.tobytes()
    written = values.reshape(-1).tolist()
    if not all(x is None or isinstance(x, (str, bytes, int, float)) for x in written):
        raise TypeError("objects of other kinds have no bytes that last")
    return repr(written).encode()
