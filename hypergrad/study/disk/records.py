"""What a study writes of a step, a key and a machine, as JSON that reads back to the same bits."""

import hashlib
import json
import os
import platform
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad.core import tree
from hypergrad.core.types import Key
from hypergrad.populations import num_cores
from hypergrad.searchers import Trials
from hypergrad.study.disk.files import ADVICE
from hypergrad.study.disk.folder import FORMAT

_SPECIAL = {"nan", "inf", "-inf"}

_PACKAGES = ("hypergrad-jax", "jax", "jaxlib", "flax", "optax", "numpy")

_MUST_MATCH = {
    "platform": "run it where it was started",
    "num_devices": "give this process as many, e.g. by XLA_FLAGS=--xla_force_host_platform_device_count",
    "x64": "set JAX_ENABLE_X64 as it was",
    "threefry_partitionable": "set jax_threefry_partitionable as it was",
    "prng_impl": "set jax_default_prng_impl (JAX_DEFAULT_PRNG_IMPL) as it was",
}


def encode(step: int, outcome: Trials) -> dict[str, Any]:
    """Turn an outcome into a record: {"step", "hparams": {leaf: numbers}, "values", ..., "info": {...}}.

    Floats of every width are written so that they read back exactly, and what is not finite as "nan",
    "inf" or "-inf" (the bits within a NaN are not kept).

    Raises:
        ValueError: for a leaf that is neither true or false, whole, real nor text, naming it.
    """
    record: dict[str, Any] = {"step": step}
    for part, value in outcome._asdict().items():
        if part in ("hparams", "info"):
            leaves = jax.tree.leaves(value)
            record[part] = {
                n: _numbers(f"{part}.{n}", x) for n, x in zip(_names(value), leaves, strict=True)
            }
        else:
            record[part] = _numbers(part, value)
    return record


def timed(record: dict[str, Any], best: float, seconds: float) -> dict[str, Any]:
    """Add the best value so far and the time to a record; neither is compared when a step is repeated."""
    head = {"step": record["step"], "best": _numbers("best", best), "seconds": seconds}
    return head | record


def decode(record: dict[str, Any], like: Trials) -> Trials:
    """Turn a record back into an outcome of the structure and dtypes of `like`.

    Raises:
        ValueError: where the record is of another tuner or space, or is no record.
    """
    step = record.get("step")
    parts = {}
    for part, value in like._asdict().items():
        found = record.get(part)
        names, (leaves, structure) = _names(value), jax.tree.flatten(value)
        whole = part in ("hparams", "info")
        if whole and (not isinstance(found, dict) or list(found) != names):
            raise _misfit(step, part, "other leaves")
        items = list(found.values()) if whole and isinstance(found, dict) else [found]
        arrays = [
            _array(item, leaf, f"{part}.{name}" if whole else part, step)
            for item, leaf, name in zip(items, leaves, names, strict=True)
        ]
        parts[part] = jax.tree.unflatten(structure, arrays)
    for part in ("steps", "parent"):
        alike = np.shape(getattr(like, part)) == np.shape(like.values)
        if alike and np.shape(parts[part]) != np.shape(parts["values"]):
            raise _misfit(step, part, "another number of trials")
    return Trials(**parts)


def check_same(again: dict[str, Any], old: dict[str, Any]) -> None:
    """Raise a `ValueError` naming the first part of a step made again that differs from its record."""

    def differ(a: Any, b: Any) -> bool:
        return json.dumps(a) != json.dumps(b)  # 0.0 == -0.0, but their bits differ

    for part, value in again.items():
        other = old.get(part)
        if differ(value, other):
            leaf = ""
            if isinstance(value, dict) and isinstance(other, dict):
                leaf = next((f" {n!r}" for n in value if differ(value[n], other.get(n))), "")
            raise ValueError(
                f"step {again['step']} was made again, and its {part}{leaf} differ from its record, expected "
                "the same bits; resume with the task, data, settings, versions and machine it was started with"
            )


def _names(value: Any) -> list[str]:
    names = tree.leaf_names(value)
    if len(set(names)) != len(names):
        raise ValueError(f"the leaves {names} have a name twice, expected different ones; rename")
    return names


def _numbers(name: str, leaf: Any) -> Any:
    array = np.asarray(leaf)
    if array.dtype.kind in "bU":
        return array.tolist()
    if jnp.issubdtype(array.dtype, jnp.integer):
        wide = np.uint64 if jnp.issubdtype(array.dtype, jnp.unsignedinteger) else np.int64
        return array.astype(wide).tolist()
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(
            f"the outcome has {array.dtype} at {name!r}, expected true or false, whole or real numbers, or "
            "texts; leave it out of the tuner's info"
        )
    wide = array.astype(np.float64)
    finite = np.isfinite(wide)
    if finite.all():
        return wide.tolist()
    mixed = wide.astype(object)
    mixed[~finite] = [str(x) for x in wide[~finite]]
    return mixed.tolist()


def _array(value: Any, like: Any, name: str, step: Any) -> np.ndarray:
    dtype, shape = np.dtype(like.dtype), np.shape(like)
    if 0 in shape:
        return np.zeros(shape, dtype)
    array = np.array(value, object)
    real = jnp.issubdtype(dtype, jnp.floating)
    kind = float if real else {"b": bool, "U": str}.get(dtype.kind, int)
    if array.ndim != len(shape) or not all(
        type(x) is kind or (real and type(x) is str and x in _SPECIAL) for x in array.flat
    ):
        raise _misfit(step, name, "other shapes or types")
    if kind is str:
        return array.astype(str)  # of whatever length: a text is not cut
    try:
        return (array.astype(np.float64) if real else array).astype(dtype)
    except OverflowError:
        raise _misfit(step, name, "numbers too large") from None


def _misfit(step: Any, name: str, wrong: str) -> ValueError:
    return ValueError(
        f"the record of step {step} has {wrong} at {name!r}, expected those of this tuner; "
        "resume with the task and the settings it was made with"
    )


def encode_key(key: Key) -> dict[str, Any]:
    """Turn a PRNG key into its implementation's name (None for an old-style one) and its numbers."""
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    data = np.asarray(jax.random.key_data(key) if typed else key)
    return {"impl": str(jax.random.key_impl(key)) if typed else None, "data": data.tolist()}


def decode_key(value: dict[str, Any]) -> Key:
    """Turn what `encode_key` returned back into a key."""
    data = jnp.asarray(value["data"], jnp.uint32)
    return data if value["impl"] is None else jax.random.wrap_key_data(data, impl=value["impl"])


def machine() -> dict[str, Any]:
    """Describe what the bits of a run depend on beside its inputs."""
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


def check_machine(recorded: dict[str, Any]) -> list[str]:
    """Compare this machine with that of a study.

    Returns:
        What differs and may change bits, for a warning.

    Raises:
        ValueError: for what certainly would.
    """
    here = machine()
    for name, advice in _MUST_MATCH.items():
        if here[name] != recorded.get(name):
            raise ValueError(
                f"{name} is {here[name]!r}, expected {recorded.get(name)!r} as the study was started; {advice}"
            )
    old = recorded.get("versions")
    flat = {**recorded, **(old if isinstance(old, dict) else {})}
    return [
        f"{name} is {value!r} and was {flat.get(name)!r} when the study was started; should a step that is "
        "made again differ from its record, the study stops"
        for name, value in {**here, **here["versions"]}.items()
        if name != "versions" and value != flat.get(name)
    ]


def check_study(described: dict[str, Any], name: str) -> None:
    """Raise a `ValueError` unless `study.json` holds what a resume needs, each of its type and range."""
    form = described.get("format")
    if type(form) is not int or form != FORMAT:
        raise ValueError(
            f"{name}: format is {form!r}, expected {FORMAT}; "
            "resume with the version of hypergrad that wrote it"
        )
    num_steps, seconds = described.get("num_steps"), described.get("checkpoint_seconds")
    key, about = described.get("key"), described.get("machine")
    good = {
        "num_steps": type(num_steps) is int and 0 < num_steps <= 10**6,
        "checkpoint_seconds": isinstance(seconds, (int, float)) and 0 <= seconds < float("inf"),
        "key": isinstance(key, dict) and _is_key(key),
        "machine": isinstance(about, dict),
    }
    for entry, fine in good.items():
        if not fine:
            raise ValueError(f"{name}: {entry} is missing or of another kind; {ADVICE}")


def _is_key(value: dict[str, Any]) -> bool:
    impl, data = value.get("impl"), value.get("data")
    known = impl is None or impl in ("threefry2x32", "rbg", "unsafe_rbg")
    return (
        known
        and isinstance(data, list)
        and len(data) == (4 if impl in ("rbg", "unsafe_rbg") else 2)
        and all(type(x) is int and 0 <= x < 2**32 for x in data)
    )


def _config(name: str) -> Any:
    return getattr(jax.config, name)


def digest(trials: list[Trials]) -> str:
    """Return the SHA-256 of the trials of all steps to the bit: equal for two runs that are the same."""
    found = hashlib.sha256()
    for step, one in enumerate(trials):
        found.update(json.dumps(encode(step, one)).encode())
    return found.hexdigest()
