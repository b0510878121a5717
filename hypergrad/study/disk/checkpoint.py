"""The state of a tuner on disk: any pytree of arrays and PRNG keys, to the bit, without pickle.

`checkpoint-N.npz` holds the leaves before step N in the order of the tree, each as its own bits.
`checkpoint-N.json`, written after it, holds their types and the SHA-256 of the whole. The two newest are kept.
The structure is never read from a file: it comes from a fresh state, and a checkpoint that does not fit is
refused.
"""

import os
import warnings
from pathlib import Path
from typing import Any

import jax

from hypergrad.core.stored import open_tree, read_tree, write_tree
from hypergrad.core.types import PyTree
from hypergrad.study.disk.folder import CHECKPOINT, StudyWarning

NUM_KEPT = 2


def save(folder: Path, step: int, state: PyTree) -> None:
    """Write the state before a step, then remove all but the two newest.

    **Cost:** the size of the state in memory and on disk, and two waits for the disk.

    Raises:
        ValueError: where the disk refuses, or a leaf is neither an array, a number nor a PRNG key.
    """
    write_tree(_path(folder, step), step, state)
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
    return read_tree(_path(folder, step), step, like)


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
                with open_tree(_path(folder, step), step, fresh):
                    pass
        except ValueError as error:
            text = f"{error}; the state is made again from an earlier one"
            warnings.warn(text, StudyWarning, stacklevel=5)
    return first, state


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


def _path(folder: Path, step: int) -> Path:
    return folder / f"checkpoint-{step:010d}.npz"
