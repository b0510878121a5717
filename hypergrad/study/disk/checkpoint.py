"""The state of a tuner on disk: any pytree of arrays and PRNG keys, to the bit, without pickle.

`checkpoint-N.npz` holds the leaves before step N in the order of the tree, each as its own bits.
`checkpoint-N.json`, written after it, holds their types and the SHA-256 of the whole. The two newest are kept.
The structure is never read from a file: it comes from a fresh state, and a checkpoint that does not fit is
refused.
"""

import contextlib
import hashlib
import os
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad.core import tree
from hypergrad.core.types import PyTree
from hypergrad.study.disk.files import StudyWarning, open_file, read_json, replacing, write_json
from hypergrad.study.disk.folder import CHECKPOINT

NUM_KEPT = 2

_OVERHEAD = 1024
"""Bytes that a leaf may take besides its numbers: its two zip entries and its header."""


def save(folder: Path, step: int, state: PyTree) -> None:
    """Write the state before a step, then remove all but the two newest.

    **Cost:** the size of the state in memory and on disk, and two waits for the disk.

    Raises:
        ValueError: where the disk refuses, or a leaf is neither an array, a number nor a PRNG key.
    """
    path = _path(folder, step)
    leaves = _all_bits(state)
    with replacing(path) as fd, os.fdopen(os.dup(fd), "w+b") as file:
        members: dict[str, Any] = {_member(i): x for i, x in enumerate(leaves)}
        np.savez(file, **members)
        file.flush()
        size, digest = file.tell(), _digest(file)
    manifest = {"step": step, "bytes": size, "npz": digest, "leaves": leaf_types(state)}
    write_json(path.with_suffix(".json"), manifest)
    keep = steps(folder)[:NUM_KEPT]
    for name in os.listdir(folder):  # also those without a manifest, which a crash leaves
        match = CHECKPOINT.fullmatch(name)
        if match and int(match[1]) not in keep:
            remove(folder, int(match[1]))


def load(folder: Path, step: int, like: PyTree) -> PyTree:
    """Read the state before a step.

    **Limits:** a checkpoint that does not fit `like` is not read: names, number, sizes and types are compared
    first, so that memory is bounded by that of `like`.

    Args:
        folder: Folder of the study.
        step: Step among `steps(folder)`.
        like: Fresh state of the same tuner, for structure, shapes, dtypes and places.

    Raises:
        ValueError: in one line, where the checkpoint is damaged or is of another tuner.
    """
    blanks = _all_bits(like)
    with _opened(folder, step, blanks) as (file, leaves):
        if leaves != leaf_types(like):
            raise ValueError(
                f"{str(_path(folder, step))!r} is of another tuner or space; resume with the settings it has"
            )
        try:
            arrays = _read_members(file, blanks)
        except Exception as error:  # parsers of zip and npy may raise anything at hostile bytes
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{str(_path(folder, step))!r} is not a checkpoint ({reason})"
            ) from None
    leaves, structure = jax.tree.flatten(like)
    return jax.tree.unflatten(structure, map(_restore, arrays, leaves))


def newest(folder: Path, most: int, fresh: PyTree) -> tuple[int, PyTree]:
    """Return the newest whole checkpoint of at most `most` steps, (0, `fresh`) where there is none.

    The others are checked too, so that a damaged one is noticed before it is needed.

    Args:
        folder: Folder of the study.
        most: Largest step of the state.
        fresh: First state of the tuner.
    """
    first, state = 0, fresh
    for step in steps(folder):
        try:
            if step <= most and not first:
                state = load(folder, step, fresh)
                first = step
            else:
                with _opened(folder, step, _all_bits(fresh)):
                    pass
        except ValueError as error:
            text = f"{error}; the state is made again from an earlier one"
            warnings.warn(text, StudyWarning, stacklevel=5)
    return first, state


@contextlib.contextmanager
def _opened(folder: Path, step: int, blanks: list[np.ndarray]) -> Iterator[tuple[BinaryIO, Any]]:
    """Open a checkpoint that matches its manifest, and return the manifest's entries for its leaves."""
    bound = sum(x.nbytes + _OVERHEAD for x in blanks) + _OVERHEAD
    path = _path(folder, step)
    try:
        manifest = read_json(path.with_suffix(".json"))
        fd = open_file(path, os.O_RDONLY)
    except FileNotFoundError as error:
        raise ValueError(f"{str(error.filename)!r} is not there, expected a checkpoint") from None
    with open(fd, "rb") as file:
        size = os.fstat(fd).st_size
        if size > bound or (manifest.get("step"), manifest.get("bytes")) != (step, size):
            raise ValueError(
                f"{str(path)!r} has {size} bytes, expected at most {bound} and what its manifest says of it"
            )
        if _digest(file) != manifest.get("npz"):
            raise ValueError(f"{str(path)!r} does not match its checksum")
        file.seek(0)
        yield file, manifest.get("leaves")


def steps(folder: Path) -> list[int]:
    """List the steps that have a checkpoint with its manifest, newest first."""
    matches = (CHECKPOINT.fullmatch(name) for name in os.listdir(folder))
    return sorted((int(m[1]) for m in matches if m and m[2] == "json"), reverse=True)


def remove(folder: Path, step: int) -> None:
    """Remove a checkpoint, its manifest first."""
    for ending in ("json", "npz"):
        (folder / f"checkpoint-{step:010d}.{ending}").unlink(missing_ok=True)


def without_weak_types(state: PyTree) -> PyTree:
    """Strip weak types: no file keeps them, and the dtype of later arithmetic depends on them."""

    def strip(leaf: Any) -> Any:
        weak = getattr(leaf, "weak_type", False)
        return jax.lax.convert_element_type(leaf, leaf.dtype) if weak else leaf

    return jax.tree.map(strip, state)


def leaf_types(state: PyTree) -> list[str]:
    """Name the leaves of a state with their types and shapes, e.g. "best.lr float32 (1, 20)"."""
    return [f"{name} {_type(leaf)}" for name, leaf in zip(*_named(state), strict=True)]


def _named(state: PyTree) -> tuple[list[str], list[Any]]:
    return tree.leaf_names(state), jax.tree.leaves(state)


def _type(leaf: Any) -> str:
    if _is_key(leaf):
        return f"key {jax.random.key_impl(leaf)} {leaf.shape}"
    if isinstance(leaf, (bool, int, float)):
        return type(leaf).__name__
    return f"{leaf.dtype} {np.shape(leaf)}"


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _path(folder: Path, step: int) -> Path:
    return folder / f"checkpoint-{step:010d}.npz"


def _member(index: int) -> str:
    return f"{index:06d}"


def _all_bits(state: PyTree) -> list[np.ndarray]:
    """Return the leaves of a state as arrays that every numpy reads, in the order of the tree."""
    return [_bits(name, leaf) for name, leaf in zip(*_named(state), strict=True)]


def _bits(name: str, leaf: Any) -> np.ndarray:
    """Return a leaf as an array of a dtype that every numpy reads; bfloat16 and the like as whole numbers."""
    array = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf, order="C")
    if array.dtype.kind == "O" or array.dtype.hasobject:
        raise ValueError(
            f"the tuner's state has {type(leaf).__name__} at {name!r}, expected an array, a number or a key"
        )
    native = array.dtype.kind in "biufcSU"
    return array if native else array.view(f"u{array.dtype.itemsize}")


def _restore(bits: np.ndarray, like: Any) -> Any:
    """Turn bits back into a leaf of the same kind, dtype and place as `like`."""
    if isinstance(like, (bool, int, float)):
        return type(like)(bits.item())
    if _is_key(like):
        leaf = jax.random.wrap_key_data(jnp.asarray(bits), impl=jax.random.key_impl(like))
    elif isinstance(like, jax.Array):
        leaf = jnp.asarray(bits.view(like.dtype))
    else:
        return bits.view(like.dtype).copy() if like.ndim else bits.view(like.dtype)[()]
    # an array committed to its device would not find the programs of an uncommitted one
    return jax.device_put(leaf, like.sharding) if like.committed else leaf


def _read_members(file: BinaryIO, blanks: list[np.ndarray]) -> list[np.ndarray]:
    """Read the arrays of an npz file, each of the dtype and shape of its blank and stored as it is."""
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        found = [(info.filename, info.compress_type) for info in infos]
        if found != [(f"{_member(i)}.npy", zipfile.ZIP_STORED) for i in range(len(blanks))]:
            raise ValueError("it has other members, or compressed ones")
        return [_read_array(archive, *pair) for pair in zip(infos, blanks, strict=True)]


def _read_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, blank: np.ndarray) -> np.ndarray:
    with archive.open(info) as member:
        fits = info.file_size <= blank.nbytes + _OVERHEAD
        fits = fits and np.lib.format.read_magic(member) == (1, 0)
        expected = (blank.shape, False, blank.dtype)
        if not fits or np.lib.format.read_array_header_1_0(member) != expected:
            raise ValueError(f"{info.filename} is not an array of {blank.dtype} {blank.shape}")
        return np.frombuffer(member.read(blank.nbytes + 1), blank.dtype).reshape(blank.shape)


def _digest(file: Any) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()
