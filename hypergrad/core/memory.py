"""The memory of a device or machine, and how much of it the states of one training run may take."""

import contextlib
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path

import jax

from hypergrad.core.types import PyTree

SHARE = 8
"""The states that a hypergradient stores take at most one part in `SHARE` of the memory of a device."""

_RECORDED: ContextVar[int | None] = ContextVar("recorded", default=None)
_SIDE_BY_SIDE: ContextVar[int] = ContextVar("side_by_side", default=1)


def accelerator_memory() -> int | None:
    """Return how many bytes a program may take, None where the device does not say (a CPU does not)."""
    stats = jax.local_devices()[0].memory_stats()
    if not stats or "bytes_limit" not in stats:
        return None
    return int(0.9 * stats["bytes_limit"])


def total_memory() -> int:
    """Return the bytes of all devices of one host, or where they do not say, as CPUs do not, of the host.

    The total decides, never what is free at the moment: the same study would else be refused on some days.
    """
    memory = accelerator_memory()
    return host_memory() if memory is None else memory * jax.local_device_count()


def host_memory() -> int:
    """Return the bytes of the host's memory, or what a container may take of it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # a container may have less
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return memory


def states_memory() -> int:
    """Return the bytes that the states of one run may take: an eighth of a device, or what a study recorded."""
    recorded = _RECORDED.get()
    if recorded is None:
        recorded = total_memory() // jax.local_device_count() // SHARE
    return recorded // _SIDE_BY_SIDE.get()


@contextlib.contextmanager
def recorded_memory(num_bytes: int | None) -> Iterator[None]:
    """Let states take what they took on another machine; what this one allows where None."""
    token = _RECORDED.set(num_bytes)
    try:
        yield
    finally:
        _RECORDED.reset(token)


@contextlib.contextmanager
def side_by_side(num: int) -> Iterator[None]:
    """Let `num` runs share what states may take, while they are traced under `vmap`."""
    token = _SIDE_BY_SIDE.set(num * _SIDE_BY_SIDE.get())
    try:
        yield
    finally:
        _SIDE_BY_SIDE.reset(token)


def at_once(num: int) -> int:
    """Return how many of `num` estimates run side by side: all on an accelerator, one on a CPU.

    A batch of them is no faster on a CPU than one after another; it compiles 1.5 times as long and holds the
    states of all.
    """
    return 1 if jax.default_backend() == "cpu" else num


def for_each(function: Callable[..., PyTree], num: int) -> Callable[..., PyTree]:
    """Return a function of `num` of everything, `[num]`, that calls `function` for each; see `at_once`."""

    def call(*many: PyTree) -> PyTree:
        if at_once(num) == 1:
            return jax.lax.map(lambda one: function(*one), many)
        with side_by_side(num):
            return jax.vmap(function)(*many)

    return call
