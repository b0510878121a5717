"""Devices that a population is spread over: the cores of this machine, or the devices of many hosts."""

import os
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from hypergrad.core.checks import check_whole

AXIS = "members"
"""Name of the mesh axis over which members are spread."""


def use_cores(num: int | None = None) -> int:
    """Make every core of this machine a device, so that `mesh` spreads members over them.

    jax fixes its devices with its first computation. Call this function before that, as the command line does
    before it loads a task. Programs on an accelerator do not change.

    Args:
        num: Number of devices; one for every core that this process may run on where None. A given number must
            be reached; where None, a call that comes too late is not an error.

    Returns:
        The number of CPU devices.

    Raises:
        ValueError: for a number below 1, or a number given too late.
    """
    wanted = num_cores() if num is None else check_whole("num", num, example=4)
    try:
        # a user who sets the older flag overrides our default
        if num is not None or "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
            jax.config.update("jax_num_cpu_devices", wanted)
    except RuntimeError:
        pass  # jax has computed already, and keeps its devices
    there = _num_cpu_devices()
    if num is not None and there != num and jax.default_backend() == "cpu":
        raise ValueError(
            f"num is {num}, expected {there}, the CPU devices that jax has started with; call use_cores "
            "before the first computation"
        )
    return there


def _num_cpu_devices() -> int:
    try:
        return len(jax.devices("cpu"))
    except RuntimeError:  # JAX_PLATFORMS leaves CPUs out
        return 0


def num_cores() -> int:
    """Return the number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def mesh(devices: int | Iterable[Any] | None = None) -> Mesh:
    """Return a mesh of one axis, `"members"`.

    Args:
        devices: Devices, or the number of devices to take of those that jax has; all where None, which
            includes those of other hosts where `jax.distributed` is on.

    Raises:
        ValueError: for more devices than there are.
    """
    found = jax.devices()
    if devices is None:
        chosen = found
    elif isinstance(devices, int):
        if not 1 <= devices <= len(found):
            raise ValueError(
                f"devices is {devices}, expected a number from 1 to {len(found)}, those that jax has; "
                "call devices.use_cores before the first computation for more of a CPU"
            )
        chosen = found[:devices]
    else:
        chosen = list(devices)
    return Mesh(np.array(chosen), (AXIS,), axis_types=(AxisType.Auto,))
