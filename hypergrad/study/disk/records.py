"""The record of a step, as JSON that reads back to the same bits."""

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad.core import tree
from hypergrad.searchers import Trials

_SPECIAL = {"nan", "inf", "-inf"}


def encode(step: int, trials: Trials) -> dict[str, Any]:
    """Turn the trials of a step into a record: {"step", "hparams": {leaf: numbers}, "values", ..., "info"}.

    Floats of every width are written so that they read back exactly, and those that are not finite as "nan",
    "inf" or "-inf" (the bits within a NaN are not kept).

    Raises:
        ValueError: for a leaf that is not boolean, whole, real or text, by its name.
    """
    record: dict[str, Any] = {"step": step}
    for part, value in trials._asdict().items():
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
    """Turn a record back into trials of the structure and dtypes of `like`.

    Raises:
        ValueError: where the record is of another tuner or space, or is not a record.
    """
    step = record.get("step")
    parts = {}
    for part, value in like._asdict().items():
        found = record.get(part)
        names, (leaves, structure) = _names(value), jax.tree.flatten(value)
        whole, texts = part in ("hparams", "info"), {}
        if part == "info" and isinstance(found, dict) and isinstance(value, dict):
            # what a tuner says on the host, which a trace does not show
            texts = {n: x for n, x in found.items() if n not in names and _are_texts(x)}
            found = {n: x for n, x in found.items() if n not in texts}
        if whole and (not isinstance(found, dict) or list(found) != names):
            raise _misfit(step, part, "other leaves")
        items = list(found.values()) if whole and isinstance(found, dict) else [found]
        arrays = [
            _array(item, leaf, f"{part}.{name}" if whole else part, step)
            for item, leaf, name in zip(items, leaves, names, strict=True)
        ]
        parts[part] = jax.tree.unflatten(structure, arrays)
        if texts:
            parts[part] |= {name: np.array(x) for name, x in texts.items()}
    for part in ("steps", "parent"):
        alike = np.shape(getattr(like, part)) == np.shape(like.values)
        if alike and np.shape(parts[part]) != np.shape(parts["values"]):
            raise _misfit(step, part, "another number of trials")
    return Trials(**parts)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(x, str) for x in value)


def check_same(again: dict[str, Any], old: dict[str, Any]) -> None:
    """Raise a `ValueError` naming the first part of a repeated step that differs from its record."""
    part = _first_difference(again, old)
    if part is not None:
        found, other = again[part], old.get(part)
        leaf = None
        if isinstance(found, dict) and isinstance(other, dict):
            leaf = _first_difference(found, other)
        name = part if leaf is None else f"{part} {leaf!r}"
        raise ValueError(
            f"step {again['step']} was repeated, and its {name} differ from its record, expected the same "
            "bits; resume with the task, data, settings, versions and machine it was started with"
        )


def _first_difference(one: dict[str, Any], other: dict[str, Any]) -> str | None:
    """Name the first entry of `one` that differs in `other`, to the bit."""
    # as text: 0.0 == -0.0, but their bits differ
    return next((n for n in one if json.dumps(one[n]) != json.dumps(other.get(n))), None)


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
            f"the trials have {array.dtype} at {name!r}, expected numbers or texts; leave it out of their info"
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
        return array.astype(str)  # of any length: a text is not cut
    try:
        return (array.astype(np.float64) if real else array).astype(dtype)
    except OverflowError:
        raise _misfit(step, name, "numbers too large") from None


def _misfit(step: Any, name: str, wrong: str) -> ValueError:
    return ValueError(
        f"the record of step {step} has {wrong} at {name!r}, expected those of this tuner; "
        "resume with the task and the settings it was made with"
    )


def digest(trials: list[Trials]) -> str:
    """Return the SHA-256 of the trials of all steps to the bit: equal for two runs that are the same."""
    found = hashlib.sha256()
    for step, one in enumerate(trials):
        found.update(json.dumps(encode(step, one)).encode())
    return found.hexdigest()
