"""Any pytree of arrays and PRNG keys in a file, to the bit, without pickle.

`NAME.npz` holds the leaves in the order of the tree, each as its own bits. `NAME.json`, written after it, holds
their types and the SHA-256 of the whole. The structure is never read from a file: it comes from a tree that is
like it, and a file that does not fit is refused.
"""

import contextlib
import hashlib
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad.core import tree
from hypergrad.core.files import RESUME, open_file, read_json, replacing, write_json
from hypergrad.core.types import PyTree

_OVERHEAD = 1024
"""Bytes that a leaf may take besides its numbers: its two zip entries and its header."""


def write_tree(path: Path, step: int, state: PyTree, then: str = RESUME) -> None:
    """Write a tree, and its manifest after it.

    **Cost:** the size of the tree in memory and on disk, and two waits for the disk.

    Args:
        path: Path of the file, which ends in `.npz`.
        step: Step of the tree, which the manifest keeps.
        state: Tree of arrays, numbers and PRNG keys.
        then: What to do where the disk refuses, for the error.

    Raises:
        ValueError: where the disk refuses, or a leaf is neither an array, a number nor a PRNG key.
    """
    leaves = all_bits(state)
    with replacing(path, then=then) as fd, os.fdopen(os.dup(fd), "w+b") as file:
        members: dict[str, Any] = {_member(i): x for i, x in enumerate(leaves)}
        np.savez(file, **members)
        file.flush()
        size, digest = file.tell(), _digest(file)
    manifest = {"step": step, "bytes": size, "npz": digest, "leaves": leaf_types(state)}
    write_json(path.with_suffix(".json"), manifest, then)


def read_tree(path: Path, step: int, like: PyTree) -> PyTree:
    """Read a tree of `write_tree`.

    **Limits:** a file that does not fit `like` is not read: number, names, sizes and types are compared first,
    so that memory is bounded by that of `like`.

    Args:
        path: Path of the file.
        step: Step that its manifest must have.
        like: Tree with the structure, shapes, dtypes and places.

    Raises:
        ValueError: in one line, where the file is damaged or is of another tree.
    """
    blanks = all_bits(like)
    with open_tree(path, step, like) as (file, leaves):
        if leaves != leaf_types(like):
            raise ValueError(
                f"{str(path)!r} is of another tuner, problem or space; resume with the settings it has"
            )
        try:
            arrays = _read_members(file, blanks)
        except Exception as error:  # parsers of zip and npy may raise anything at hostile bytes
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{str(path)!r} is not a checkpoint ({reason})") from None
    leaves, structure = jax.tree.flatten(like)
    return jax.tree.unflatten(structure, map(_restore, arrays, leaves))


def tree_bytes(state: PyTree) -> int:
    """Return how many bytes a file of a tree takes at most."""
    return sum(x.nbytes + _OVERHEAD for x in all_bits(state)) + _OVERHEAD


@contextlib.contextmanager
def open_tree(path: Path, step: int, like: PyTree) -> Iterator[tuple[BinaryIO, Any]]:
    """Open a file that matches its manifest, and return the manifest's entries for its leaves."""
    bound = tree_bytes(like)
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


def _member(index: int) -> str:
    return f"{index:06d}"


def all_bits(state: PyTree) -> list[np.ndarray]:
    """Return the leaves of a state as arrays that every numpy reads, in the order of the tree."""
    return [_bits(name, leaf) for name, leaf in zip(*_named(state), strict=True)]


def _bits(name: str, leaf: Any) -> np.ndarray:
    """Return a leaf as an array of a dtype that every numpy reads; bfloat16 and the like as whole numbers."""
    array = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf, order="C")
    if array.dtype.kind == "O" or array.dtype.hasobject:
        raise ValueError(
            f"the state has {type(leaf).__name__} at {name!r}, expected an array, a number or a key"
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
