"""States of a backward pass in the memory of the host, where an accelerator has another one of its own."""

from typing import Any

import jax

from hypergrad.core import tree
from hypergrad.core.types import PyTree

HOST = "pinned_host"
"""Kind of memory of the host from which a device can copy."""


def check_host_memory() -> None:
    """Raise a `ValueError` where the device that a program is traced for has no host memory besides its own."""
    device = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    if not isinstance(device, jax.Device):
        device = jax.local_devices(backend=device)[0]
    kinds = {memory.kind for memory in device.addressable_memories()}
    if device.platform == "cpu" or HOST not in kinds:
        raise ValueError(
            f"offload is True on a device of platform {device.platform!r}, expected one with memory of its own "
            f"besides the host's ({HOST!r}); leave offload out, or pass a longer checkpoint"
        )


def to_host(state: PyTree) -> PyTree:
    """Copy the floating-point arrays of a traced tree to the host; single numbers and keys stay."""
    return _moved(state, jax.memory.Space.Host)


def to_device(state: PyTree) -> PyTree:
    """Copy back what `to_host` copied."""
    return _moved(state, jax.memory.Space.Device)


def _moved(state: PyTree, space: Any) -> PyTree:
    def move(leaf: Any) -> Any:
        return jax.device_put(leaf, space) if tree.is_float(leaf) and leaf.ndim else leaf

    return jax.tree.map(move, state)
