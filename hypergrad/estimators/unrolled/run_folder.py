"""The folder of a run on disk: files by kind and step, a description, and one writer at a time."""

import contextlib
import hashlib
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypergrad.core.files import FOLDER_MODE, read_json, to_plain, write_json
from hypergrad.core.stored import all_bits, leaf_types, read_tree
from hypergrad.core.types import PyTree

DESCRIPTION = "run.json"

AGAIN = "then call it again: it goes on from the last whole segment"

_FILE = re.compile(r"(state|adjoint)-([0-9]{10})\.(npz|json)(\.tmp)?|run\.json(\.tmp)?")


class DamagedWarning(UserWarning):
    """A file of a run on disk is damaged; what it held is computed again."""


def make_folder(path: Path) -> Path:
    """Make a folder where it is missing; refuse one with files of something else."""
    try:
        path.mkdir(FOLDER_MODE, parents=True, exist_ok=True)
        strange = [name for name in os.listdir(path) if not _FILE.fullmatch(name)]
    except OSError as error:
        raise ValueError(
            f"folder is {str(path)!r}, which cannot be made or read ({error.strerror}); "
            "name a folder you may write"
        ) from None
    if strange:
        raise ValueError(
            f"folder is {str(path)!r}, which holds {strange[0]!r}, expected an empty one or an unfinished run; "
            "name another one"
        )
    return path


@contextlib.contextmanager
def one_writer(path: Path) -> Iterator[None]:
    """Let one process at a time use a folder; the lock is the kernel's and ends with the process."""
    import fcntl

    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"folder is {str(path)!r}, which another run uses, expected one run at a time; wait, "
                "or name another one"
            ) from None
        yield
    finally:
        os.close(fd)


def describe_run(path: Path, about: dict[str, Any], inputs: PyTree, like: PyTree) -> bool:
    """Compare a folder with the run that is asked for, or describe that run in it.

    Args:
        path: Folder, of which this process is the only writer.
        about: Lengths of the run.
        inputs: Arrays and keys that the run depends on.
        like: A state of it.

    Returns:
        Whether the folder had the run.
    """
    digest = hashlib.sha256("".join(leaf_types(inputs)).encode())
    for bits in all_bits(inputs):
        digest.update(bits.tobytes())
    about = {**about, "inputs": digest.hexdigest(), "state": leaf_types(like)}
    try:
        known = read_json(path / DESCRIPTION, "delete the folder, and the run starts again")
    except FileNotFoundError:
        clear_run(path)
        write_json(path / DESCRIPTION, about, AGAIN)
        return False
    for name, value in to_plain(about).items():
        if value != known.get(name):
            what = {"inputs": "the key or the hparams", "state": "the problem"}.get(name, name)
            raise ValueError(
                f"folder is {str(path)!r}, whose unfinished run differs in {what}, expected the same "
                "run; delete it to start again, or name another folder"
            )
    return True


def check_disk(path: Path, num: int, one: int, others: int) -> None:
    """Raise a `ValueError` unless the disk has room for `num` states of `one` byte count and `others` bytes."""
    there = len(list(path.glob("state-*.npz")))
    needed = max(num - there, 0) * one + others
    free = shutil.disk_usage(path).free
    if needed > free:
        raise ValueError(
            f"folder is {str(path)!r} with {free / 2**20:.1f} MB left, expected {needed / 2**20:.1f} MB for "
            f"{num} states of {one / 2**20:.1f} MB; make room, or pass a longer segment"
        )


def read_kept(path: Path, step: int, like: Any) -> Any:
    """Read a file; None where there is none, or where it is damaged, which a warning says."""
    if not path.with_suffix(".json").exists():  # it is written last
        return None
    try:
        return read_tree(path, step, like)
    except (ValueError, OSError) as error:
        text = f"{' '.join(str(error).split())}; what it held is computed again"
        warnings.warn(text, DamagedWarning, stacklevel=2)
        return None


def remove_beyond(path: Path, kind: str, above: int) -> None:
    """Remove the files of a kind beyond a step, the manifests first."""
    for ending in ("json", "npz"):
        for file in path.glob(f"{kind}-*.{ending}"):
            if int(file.stem.partition("-")[2]) > above:
                file.unlink(missing_ok=True)


def clear_run(path: Path) -> None:
    """Remove the files of a run, its description last."""
    names = [name for name in os.listdir(path) if _FILE.fullmatch(name)]
    for name in sorted(names, key=lambda name: name == DESCRIPTION):
        (path / name).unlink(missing_ok=True)
