"""Tuned hyperparameters as a JSON file, and learned schedules read back from one.

{"format": "hypergrad.hparams", "version": 1, "hparams": {"lr": [0.1, ...], "momentum": 0.9}}
"""

import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from hypergrad import space as spaces
from hypergrad.core.checks import check_name
from hypergrad.core.files import MAX_BYTES, parse_json, to_plain, write_bytes

HPARAMS_FORMAT = "hypergrad.hparams"

VERSION = 1


def document(hparams: dict[str, Any]) -> dict[str, Any]:
    """Return the content of the file for hparams by leaf name; a value that is not finite is refused.

    A float32 is written with the digits that read back to the same bits.
    """
    for name, value in hparams.items():
        array = np.asarray(value)
        if array.dtype.kind not in "biufUS" or (
            array.dtype.kind == "f" and not np.isfinite(array).all()
        ):
            raise ValueError(
                f"hparams[{name!r}] holds {array.dtype} that JSON lacks, expected finite numbers; export others"
            )
    return {"format": HPARAMS_FORMAT, "version": VERSION, "hparams": to_plain(hparams)}


def write(path: str | Path, hparams: dict[str, Any]) -> None:
    """Write hparams by leaf name as a JSON file, whole or not at all; the last of several writers wins.

    Raises:
        ValueError: for values that are not finite, and where the file cannot be written.
    """
    text = json.dumps(document(hparams), allow_nan=False, indent=1) + "\n"
    place = Path(os.path.realpath(path))  # a link stays a link
    wrong = None
    if place.is_dir():
        wrong = f"a folder, expected a file; write e.g. {os.path.join(path, 'hparams.json')}"
    elif place.exists() and not place.is_file():
        wrong = (
            "not a regular file, expected one, or a new name; leave it out to write to the terminal"
        )
    elif not place.parent.is_dir():
        wrong = "in a folder that is not there, expected one that is; make it first"
    if wrong:
        raise ValueError(f"out is {str(path)!r}, {wrong}")
    try:
        temporary = place.with_name(f".hypergrad-{secrets.token_hex(8)}.tmp")
        write_bytes(place, text.encode(), temporary, 0o666)  # for others, as the umask has it
    except ValueError as error:
        cause = error.__cause__
        reason = cause.strerror if isinstance(cause, OSError) else error
        raise ValueError(
            f"out is {str(path)!r}, which cannot be written ({reason}); make room, or name another file"
        ) from cause


def read_hparams(path: str | Path) -> dict[str, Any]:
    """Read a file of `document` as {leaf name: numpy array or text}.

    Raises:
        ValueError: in one line, for a file of another kind.
    """
    name = repr(str(path))
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{name} cannot be read ({error.strerror}); check the path") from None
    found = parse_json(content, name)
    hparams = found.get("hparams")
    if (found.get("format"), found.get("version")) != (HPARAMS_FORMAT, VERSION):
        raise ValueError(
            f"{name} is not a file of tuned hyperparameters, {HPARAMS_FORMAT!r}, "
            f"version {VERSION}; export again"
        )
    if not isinstance(hparams, dict):
        raise ValueError(f"{name} has no hparams, expected an object of them; write it again")
    return {leaf: _leaf(f"{name}, hparams[{leaf!r:.80}]", value) for leaf, value in hparams.items()}


def _leaf(whose: str, value: Any) -> Any:
    if isinstance(value, str):
        return value
    try:
        array = np.asarray(value)
        good = array.dtype.kind in "biuf" and np.isfinite(array).all()
    except (ValueError, OverflowError):  # lists of different lengths
        good = False
    if not good:
        raise ValueError(f"{whose} holds something other than finite numbers; write it again")
    return array


def load_schedule(path: str | Path, name: str) -> Callable[..., Any]:
    """Read one learned schedule from a file of `Study.export` or `hypergrad export`.

    Args:
        path: Path of the file.
        name: Name of the leaf, such as "lr".

    Returns:
        An `optax.Schedule`: the value of each step, and the last one past the end.

    Raises:
        ValueError: in one line, for another file, another name, or a leaf that is no schedule.
    """
    return as_schedule(read_hparams(path), name)


def as_schedule(hparams: dict[str, Any], name: str) -> Callable[..., Any]:
    """Return the leaf `name` as an `optax.Schedule`, or raise a `ValueError`."""
    check_name("name", name, hparams)
    value = hparams[name]
    if isinstance(value, str) or np.ndim(value) < 1 or not np.shape(value)[0]:
        raise ValueError(
            f"hparams[{name!r}] is one value, expected a schedule with one value per step; use it as it is"
        )
    return spaces.schedule(jnp.asarray(value, jnp.result_type(float)))
