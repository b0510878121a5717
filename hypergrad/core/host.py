"""Data that stay on the host: batches by index, for traced programs."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn

from hypergrad.core import tree
from hypergrad.core.autodiff import equations
from hypergrad.core.checks import check_bytes, check_function, describe
from hypergrad.core.flow import NOTHING, Marks, flow
from hypergrad.core.types import Array, Batch, PyTree

CALL = "hypergrad_host_batches"
"""Name of the call in a traced program."""

DRAW = "draw augmentations in problem.loss, from a key in the batch"

OVERHEAD = 128
"""Bytes that an index costs beside its example."""


def host_batches(
    fetch: Callable[[np.ndarray], PyTree], like: PyTree, *, memory: int = 2**28
) -> Callable[..., Batch]:
    """Serve batches from the host by index: data sets that are files, or too large for the device.

    A traced program has no place for an iterator: it is read once and frozen, or read on in a backward pass.
    What is fetched by index is the same whenever it is asked for, so every estimator, population and resumed
    study sees the same data. `fetch` runs in Python, once for all members under `vmap`, with the indices that
    are not in the cache:

        at = hg.host_batches(lambda rows: (images[rows], labels[rows]), like=(image, label))
        train_batch = lambda key, step: at(jax.random.randint(key, (32,), 0, 50_000))

    **Cost:** a call of Python a batch, and `fetch` for what is not cached. A backward pass asks for the
    batches of the forward pass again: with memory for all of them nothing is fetched twice.

    **Limits:** the device waits for `fetch`, unless `soon` named the indices. An index may not depend on
    hyperparameters or weights. On many devices `fetch` is called by each, one at a time.

    Args:
        fetch: Distinct indices `[B]`, int64, in ascending order -> a pytree of numpy arrays `[B, ...]`; a
            function of the indices alone that never calls jax.
        like: One example: a pytree of arrays or of `jax.ShapeDtypeStruct`.
        memory: Bound of the cache in bytes; what came first goes first.

    Returns:
        at(indices, soon=None): integers of any shape `[...]` -> batch `[..., ...]`. `soon` names indices that
        a thread fetches after this call, e.g. those of the next step.

    Raises:
        ValueError: where `fetch` does not return what `like` says, or other numbers the second time.
    """
    check_function("fetch", fetch, "lambda rows: (images[rows], labels[rows])")
    check_bytes(memory)
    store = Store(fetch, like, memory)
    store.check_repeats()

    def call(indices: Array, *soon: Array) -> Batch:
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(indices.shape + x.shape, x.dtype), store.like
        )
        return jax.pure_callback(store.serve, shapes, indices, *soon, vmap_method="broadcast_all")

    call.__name__ = CALL
    call = jax.jit(call)

    def at(indices: Array, soon: Array | None = None) -> Batch:
        given = {"indices": indices} if soon is None else {"indices": indices, "soon": soon}
        for name, value in given.items():
            if not hasattr(value, "dtype") or not jnp.issubdtype(value.dtype, jnp.integer):
                raise ValueError(
                    f"{name} is {describe(value)}, expected an array of integers; pass e.g. jnp.arange(32)"
                )
        return call(*given.values())

    return at


class Store:
    """Examples by index: fetched when they are wanted, kept within a bound, fetched ahead.

    One thread at a time calls `fetch`.
    """

    def __init__(self, fetch: Callable[[np.ndarray], PyTree], like: PyTree, memory: int) -> None:
        self.fetch = fetch
        self.like = jax.tree.map(_shape, like)
        self.names = tree.leaf_names(self.like, bare="batch")
        self.leaves, self.form = jax.tree.flatten(self.like)
        if not self.leaves:
            raise ValueError(
                "like has no leaves, expected the arrays of one example; pass e.g. "
                "jax.ShapeDtypeStruct((28, 28), np.float32)"
            )
        for name, leaf in zip(self.names, self.leaves, strict=True):
            if jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype:
                raise ValueError(
                    f"like[{name!r}] has dtype {leaf.dtype}, expected at most 32 bits without jax_enable_x64; "
                    "cast in fetch, and in like"
                )
        size = OVERHEAD + sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in self.leaves)
        self.room = memory // size
        self.pools = [np.empty((self.room, *x.shape), x.dtype) for x in self.leaves]
        self.places: dict[int, int] = {}
        self.lock = threading.Lock()
        self.worker: ThreadPoolExecutor | None = None
        self.ahead: Future | None = None

    def serve(self, indices: Any, *soon: Any) -> PyTree:
        """Return the batch of the indices, and let a thread fetch those that are wanted soon."""
        indices = np.asarray(indices)
        found, back = self.take(indices)
        batch = [x[back].reshape(indices.shape + x.shape[1:]) for x in found]
        if soon and (self.ahead is None or self.ahead.done()):
            self.worker = self.worker or ThreadPoolExecutor(1, CALL)
            # where it fails, the call that wants the example fails, too, and says why
            self.ahead = self.worker.submit(self.take, np.asarray(soon[0]))
        return jax.tree.unflatten(self.form, batch)

    def take(self, indices: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """Return the distinct examples `[U, ...]` of some indices, and which of them each index is `[...]`."""
        wanted, back = np.unique(indices.astype(np.int64), return_inverse=True)
        with self.lock:
            places = np.array([self.places.get(i, -1) for i in wanted.tolist()], np.int64)
            new = places < 0
            if not new.any():
                return [pool[places] for pool in self.pools], back.reshape(-1)
            fetched = self.checked(wanted[new])
            found = [np.empty((len(wanted), *x.shape), x.dtype) for x in self.leaves]
            for one, pool, part in zip(found, self.pools, fetched, strict=True):
                one[~new], one[new] = pool[places[~new]], part
            self.keep(wanted[new], fetched)
        return found, back.reshape(-1)

    def keep(self, indices: np.ndarray, fetched: list[np.ndarray]) -> None:
        """Put examples into the cache, in the place of those that came first."""
        num = min(len(indices), self.room)
        places = []
        for index in indices[:num].tolist():
            full = len(self.places) == self.room
            places.append(self.places.pop(next(iter(self.places))) if full else len(self.places))
            self.places[index] = places[-1]
        for pool, part in zip(self.pools, fetched, strict=True):
            pool[places] = part[:num]

    def checked(self, indices: np.ndarray) -> list[np.ndarray]:
        """Fetch the examples of some indices, or raise a `ValueError` for what `like` does not say."""
        if indices.min() < 0:
            raise ValueError(
                f"indices hold {indices.min()}, expected at least 0; count from the front"
            )
        try:
            made = self.fetch(indices)
        except IndexError as error:
            raise ValueError(
                f"fetch refused the indices {indices.min()} to {indices.max()} ({error}), expected examples "
                "for all of them; draw indices below the number of examples"
            ) from error
        leaves, form = jax.tree.flatten(made)
        if form != self.form:
            raise ValueError(
                f"fetch returned the structure {form}, expected {self.form}; return what like says"
            )
        for name, leaf, wanted in zip(self.names, leaves, self.leaves, strict=True):
            shape, expected = getattr(leaf, "shape", None), (len(indices), *wanted.shape)
            array = isinstance(leaf, np.ndarray)
            if not array or shape != expected or leaf.dtype != wanted.dtype:
                got = describe(leaf) if array else f"{type(leaf).__name__} {describe(leaf)}"
                raise ValueError(
                    f"fetch returned {name!r} as {got}, expected a numpy array of shape {expected} and dtype "
                    f"{wanted.dtype}; stack the examples with np.stack, cast with astype"
                )
        return leaves

    def check_repeats(self) -> None:
        """Raise a `ValueError` unless `fetch` returns one example for one index, however often it is asked."""
        first, again = (self.checked(np.zeros(2, np.int64)) for _ in range(2))
        for name, a, b in zip(self.names, first, again, strict=True):
            if not a[0].tobytes() == a[1].tobytes() == b[0].tobytes():
                raise ValueError(
                    f"fetch returned two different {name!r} for index 0, expected a function of the indices "
                    f"alone; {DRAW}"
                )


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
        leaf = np.asarray(leaf)
    return jax.ShapeDtypeStruct(tuple(leaf.shape), np.dtype(leaf.dtype))


def check_indices(traced: list[tuple[str, ClosedJaxpr, list[str | None]]]) -> None:
    """Raise a `ValueError` where an index of `host_batches` in a program depends on what has a derivative.

    Args:
        traced: Of each function that was traced its name, its program, and the name of what each of its inputs
            depends on, None where that may decide an index.
    """
    for name, closed, origins in traced:
        found = _index_depends_on(closed, origins)
        if found:
            raise ValueError(
                f"{name} fetches host_batches by an index that depends on {min(found)}, expected none, because "
                "no derivative passes through an index; choose indices in problem.train_batch, from its key "
                "and step"
            )


def _index_depends_on(closed: ClosedJaxpr, origins: list[str | None]) -> set[str]:
    found: set[str] = set()

    def visit(eqn: JaxprEqn, marks: list[Marks]) -> list[Marks] | None:
        if eqn.params.get("name") == CALL:
            found.update(*marks)
        return None

    ins = [frozenset([x]) if x else NOTHING for x in origins]
    if CALL in {eqn.params.get("name") for eqn in equations(closed.jaxpr)}:
        flow(closed.jaxpr, ins, visit)
    return found
