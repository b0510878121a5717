"""The machine of a study: everything besides its inputs on which the bits of a run depend."""

import os
import platform
from typing import Any

import jax

from hypergrad.populations import num_cores

_PACKAGES = ("hypergrad-jax", "jax", "jaxlib", "flax", "optax", "numpy")

_MUST_MATCH = {
    "platform": "run it where it was started",
    "num_devices": "give this process as many, e.g. by XLA_FLAGS=--xla_force_host_platform_device_count",
    "x64": "set JAX_ENABLE_X64 as it was",
    "threefry_partitionable": "set jax_threefry_partitionable as it was",
    "prng_impl": "set jax_default_prng_impl (JAX_DEFAULT_PRNG_IMPL) as it was",
}


def describe_machine() -> dict[str, Any]:
    """Return everything besides its inputs on which the bits of a run depend."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    devices = jax.devices()
    return {
        "platform": jax.default_backend(),
        "num_devices": len(devices),
        "x64": bool(_config("jax_enable_x64")),
        "prng_impl": str(_config("jax_default_prng_impl")),
        "threefry_partitionable": bool(_config("jax_threefry_partitionable")),
        "device": devices[0].device_kind,
        "cores": num_cores(),
        "processor": platform.machine(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "matmul_precision": str(_config("jax_default_matmul_precision")),
        "versions": versions,
    }


def machine_differences(recorded: dict[str, Any]) -> list[str]:
    """List the differences between this machine and that of a study that may change bits, in sentences.

    Raises:
        ValueError: for a difference that certainly changes them.
    """
    here = describe_machine()
    for name, advice in _MUST_MATCH.items():
        if here[name] != recorded.get(name):
            raise ValueError(
                f"{name} is {here[name]!r}, expected {recorded.get(name)!r} as the study was started; {advice}"
            )
    old = recorded.get("versions")
    flat = {**recorded, **(old if isinstance(old, dict) else {})}
    return [
        f"{name} is {value!r} and was {flat.get(name)!r} when the study was started; if a "
        "repeated step differs from its record, the study stops"
        for name, value in {**here, **here["versions"]}.items()
        if name != "versions" and value != flat.get(name)
    ]


def _config(name: str) -> Any:
    return getattr(jax.config, name)
