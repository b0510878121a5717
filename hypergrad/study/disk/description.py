"""The description of a study: `study.json`, written twice, so that one flipped bit does not end it."""

import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad.core.files import ADVICE, read_json, write_json
from hypergrad.core.types import Key
from hypergrad.study.disk.folder import Folder, StudyWarning
from hypergrad.study.disk.journal import MAX_STEPS
from hypergrad.study.disk.machine import describe_machine

FORMAT = 3
"""Format of the files of a study; a study of another format is refused."""

_NAMES = ("study.json", "study-copy.json")

_KEY_SIZES = {None: 2, "threefry2x32": 2, "rbg": 4, "unsafe_rbg": 4}
"""Implementation of a PRNG key (None for an old-style one) -> number of words of the key."""


def begin(
    folder: Folder,
    key: Key,
    num_steps: int,
    details: dict[str, Any] | None = None,
    *,
    checkpoint_seconds: float = 10.0,
) -> dict[str, Any]:
    """Write `study.json`. From then on `resume_run` can take the steps.

    Args:
        folder: Folder of the study, opened by `create`.
        key: Key of the whole study.
        num_steps: Number of steps.
        details: Further entries.
        checkpoint_seconds: Time between two checkpoints.

    Returns:
        The content of the file.

    Raises:
        ValueError: for a budget or a time out of range, and where the disk refuses.
    """
    description = {
        "format": FORMAT,
        **(details or {}),
        "num_steps": num_steps,
        "checkpoint_seconds": checkpoint_seconds,
        "key": encode_key(key),
        "machine": describe_machine(),
    }
    _check_description(description, "the study")
    for name in reversed(_NAMES):  # the copy first
        write_json(folder.path / name, description)
    return description


def has_begun(directory: str | Path) -> bool:
    """Tell whether a folder holds a study to resume; where `study.json` is lost, its copy is read."""
    return any((Path(directory) / name).is_file() for name in ("study.json", "journal.jsonl"))


def read_description(directory: str | Path) -> dict[str, Any]:
    """Read `study.json`, or its copy with a `StudyWarning`, and check the entries that a resume needs.

    Raises:
        ValueError: in one line, where there is neither, or both are damaged.
    """
    path = Path(directory) / "study.json"
    try:
        description = read_either(path)
    except FileNotFoundError:
        raise ValueError(
            f"{str(path)!r} does not exist, expected a study that has begun; start it with `hypergrad tune`"
        ) from None
    _check_description(description, repr(str(path)))
    return description


def mend_description(directory: Path) -> None:
    """Write `study.json` or its copy again where one of them is damaged; only the study's writer may.

    Raises:
        FileNotFoundError: where there is neither.
        ValueError: where both are damaged.
    """
    description = read_either(directory / "study.json")
    for path in (directory / name for name in _NAMES):
        try:
            whole = read_json(path) == description
        except (ValueError, FileNotFoundError):
            whole = False
        if not whole:
            text = f"{str(path)!r} was damaged or missing; it is made again from the other one"
            warnings.warn(text, StudyWarning, stacklevel=3)
            path.unlink(missing_ok=True)  # a link or a pipe is replaced, never followed
            write_json(path, description)


def read_either(path: Path) -> dict[str, Any]:
    """Read `study.json`, or with a `StudyWarning` its copy where the first is damaged or missing.

    Raises:
        FileNotFoundError: where neither is there.
        ValueError: in one line, where both are damaged.
    """
    try:
        return read_json(path)
    except (ValueError, FileNotFoundError) as error:
        try:
            description = read_json(path.with_name("study-copy.json"))
        except (ValueError, FileNotFoundError):
            raise error from None
        where = repr(str(path.parent))
        text = f"{path.name} of {where} is damaged or missing; its copy is read instead"
        warnings.warn(text, StudyWarning, stacklevel=3)
        return description


def check_format(description: dict[str, Any], name: str) -> None:
    """Raise a `ValueError` unless a study has the format that this version writes."""
    found = description.get("format")
    if type(found) is not int or found != FORMAT:
        older = "an older one, " if type(found) is int and found < FORMAT else ""
        raise ValueError(
            f"{name}: format is {found!r:.40}, {older}expected {FORMAT}; read it with the version of hypergrad "
            "that wrote it, or start a new study"
        )


def _check_description(description: dict[str, Any], name: str) -> None:
    """Raise a `ValueError` unless each entry that a resume needs is of its type and range."""
    check_format(description, name)
    num_steps, seconds = description.get("num_steps"), description.get("checkpoint_seconds")
    good = {
        "num_steps": type(num_steps) is int and 0 < num_steps <= MAX_STEPS,
        "checkpoint_seconds": isinstance(seconds, (int, float)) and 0 <= seconds < float("inf"),
        "key": _is_encoded_key(description.get("key")),
        "machine": isinstance(description.get("machine"), dict),
    }
    for entry, fine in good.items():
        if not fine:
            raise ValueError(f"{name}: {entry} is missing or of another kind; {ADVICE}")


def encode_key(key: Key) -> dict[str, Any]:
    """Turn a PRNG key into its implementation's name (None for an old-style one) and its numbers."""
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    data = np.asarray(jax.random.key_data(key) if typed else key)
    return {"impl": str(jax.random.key_impl(key)) if typed else None, "data": data.tolist()}


def decode_key(value: dict[str, Any]) -> Key:
    """Turn what `encode_key` returned back into a key."""
    data = jnp.asarray(value["data"], jnp.uint32)
    return data if value["impl"] is None else jax.random.wrap_key_data(data, impl=value["impl"])


def _is_encoded_key(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    impl, data = value.get("impl"), value.get("data")
    return (
        (impl is None or isinstance(impl, str))
        and isinstance(data, list)
        and len(data) == _KEY_SIZES.get(impl)
        and all(type(x) is int and 0 <= x < 2**32 for x in data)
    )
