"""The folder of a study: files that survive a crash and are safe to open, whoever wrote them.

JSON carries a checksum and is written whole or not at all. Every size is bounded before anything is read,
no link is followed, and one process at a time writes.
"""

import contextlib
import os
import re
import shutil
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hypergrad.core.checks import describe
from hypergrad.core.files import FOLDER_MODE, is_link, open_file, sync_folder

MAX_NAME = 200
"""Most bytes of a folder's name as UTF-8; file systems allow 255."""

_MARKS = " ._-+,=@()"
"""Characters besides letters and digits that every file system and shell takes within quotes."""

CHECKPOINT = re.compile(r"checkpoint-([0-9]{10})\.(npz|json)")

DAMAGED = re.compile(r"journal-damaged(?:-([1-9][0-9]{0,8}))?\.jsonl")

_REPORT = re.compile(r"\.report\.html\.[0-9a-f]{12}")
"""Names that a process may leave when it is killed while it writes a report."""

FILES = (
    "study-copy.json",
    "study.json",
    "journal.jsonl",
    "result.json",
    "flatness.json",
    "report.html",
    "log.jsonl",
)

FOLDERS = ("figures", "random", "scout", "tensorboard", "wandb")

_BEFORE = ("lock", "study.json.tmp", "study-copy.json", "study-copy.json.tmp")
"""Names that a process may leave when it is killed before its study begins."""


class StudyWarning(UserWarning):
    """A study's folder was damaged and repaired, or this machine differs from the earlier one."""


class Folder(NamedTuple):
    """A study's folder that only this process may write, until the block that opened it ends."""

    path: Path


def check_folder_name(name: str, argument: str) -> str:
    """Return `name` if it can name a study's folder anywhere, or raise a `ValueError`.

    Letters and digits of every script are allowed, and spaces within the name.
    """
    fine = all(unicodedata.category(c)[0] in "LMN" or c in _MARKS for c in name)
    size = len(name.encode(errors="surrogatepass"))
    if not fine or not 0 < size <= MAX_NAME or name[0] in ".- " or name[-1] == " ":
        raise ValueError(
            f"{argument} is named {name[:140]!r}, expected at most {MAX_NAME} bytes of letters, digits, spaces "
            f"and {' '.join(_MARKS.strip())}, not led by . or - and no space at either end; name another folder"
        )
    return name


def check_folder(directory: str | os.PathLike[str]) -> Path:
    """Return the path of a folder that holds no symbolic link, or raise a `ValueError`."""
    if not isinstance(directory, (str, os.PathLike)):
        raise ValueError(
            f"directory is {describe(directory)}, expected the path of a study's folder; pass the task first, "
            "as in hypergrad.resume(task, 'runs/mine')"
        )
    path = Path(directory)
    if not path.is_dir():
        raise ValueError(
            f"directory {str(path)!r} does not exist or is not a directory; name the directory of a study"
        )
    for entry in os.scandir(path):
        if entry.is_symlink():
            raise is_link(entry.path)
    return path


@contextlib.contextmanager
def lock(directory: str | Path) -> Iterator[Folder]:
    """Open a study's folder for writing until the end of the block; meanwhile no other process can.

    The lock is the kernel's: it ends with the block, or with the process, however that ends.

    **Limits:** a child that is forked within the block shares the lock, and cannot end it for this process. But
    where this process is killed, the lock stays until the child has ended too, or has started another program.

    Raises:
        ValueError: where another process has it, naming that process; within a second.
    """
    import fcntl

    path, owner = check_folder(directory), os.getpid()
    with contextlib.ExitStack() as opened:
        fd = open_file(path / "lock", os.O_RDWR | os.O_CREAT)
        opened.callback(os.close, fd)
        # the folder too, because a user may remove the file as stale
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        opened.callback(os.close, folder)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _lock_folder(folder)
        except BlockingIOError:
            raise ValueError(
                f"{str(path)!r} is in use by {_holder(fd)}, expected one writer; wait for it or end it"
            ) from None
        with contextlib.suppress(OSError):  # the number is for people; a full disk may refuse it
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        try:
            yield Folder(path)
        finally:
            if os.getpid() == owner:  # a forked child that leaves the block does not end the lock
                with contextlib.suppress(OSError):
                    os.ftruncate(fd, 0)
                for held in (folder, fd):  # closing would leave it to children
                    with contextlib.suppress(OSError):
                        fcntl.flock(held, fcntl.LOCK_UN)


def _lock_folder(fd: int) -> None:
    """Lock a folder itself, where the file system can: some network file systems lock only files."""
    import fcntl

    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        pass


def _holder(fd: int) -> str:
    """Name the process that holds a lock; a process that has just taken it may not be named yet."""
    text = b""
    for _ in range(10):
        text = os.pread(fd, 32, 0).strip()
        if text.isdigit() and _alive(int(text)):
            return f"process {int(text)}"
        time.sleep(0.05)
    if text.isdigit():
        return f"a process that process {int(text)} started before it ended"
    return "another process"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


@contextlib.contextmanager
def create(directory: str | Path, overwrite: bool = False) -> Iterator[Folder]:
    """Make the folder of a new study, for its owner alone, and lock it, to the end of the block.

    Raises:
        ValueError: where the folder is not empty and `overwrite` is false, is not a folder, has a name with
            other characters, or is in use.
    """
    if not isinstance(directory, str | Path):
        raise ValueError(
            f"storage is {describe(directory)}, expected the path of a folder; pass e.g. 'runs/mine'"
        )
    if not isinstance(overwrite, bool):
        raise ValueError(
            f"overwrite is {describe(overwrite)}, expected True or False; pass overwrite=True to replace it"
        )
    path = Path(directory)
    check_folder_name(path.absolute().name, "storage")
    _check_free(path, overwrite)  # before anything is made
    try:
        made = [place for place in (path, *path.parents) if not place.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(FOLDER_MODE, exist_ok=True)
        for place in made:
            sync_folder(place.parent)
    except OSError as error:
        raise ValueError(
            f"storage is {str(path)!r}, which cannot be made ({error.strerror}); name a folder you may write"
        ) from error
    with lock(path) as folder:
        _check_free(path, overwrite)  # another process may have been faster
        _clear(path)
        yield folder


def _check_free(path: Path, overwrite: bool) -> None:
    if path.exists() and not path.is_dir():
        raise ValueError(f"storage is {str(path)!r}, a file, expected a folder; name another one")
    if not path.is_dir() or all(e.name in _BEFORE for e in path.iterdir()):
        return
    if not overwrite:
        raise ValueError(
            f"storage is {str(path)!r}, which is not empty, expected a new folder; name another one, "
            "pass overwrite=True, or resume that study"
        )
    if not all(_is_ours(entry.name) for entry in path.iterdir()):
        raise ValueError(
            f"storage is {str(path)!r}, which holds something other than a study, expected a study to "
            "overwrite; name another folder"
        )


def _clear(path: Path) -> None:
    """Remove what a study leaves behind, and nothing else."""
    for entry in sorted(path.iterdir(), key=lambda entry: entry.name.startswith("study")):
        if entry.name in FOLDERS and entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != "lock" and _is_ours(entry.name) and not entry.is_dir():
            entry.unlink()


def _is_ours(name: str) -> bool:
    """Tell whether a study may have left a file or folder of this name."""
    bare = name.removesuffix(".tmp")
    patterns = (CHECKPOINT, DAMAGED, _REPORT)
    return name in (*FOLDERS, *_BEFORE) or bare in FILES or any(p.fullmatch(bare) for p in patterns)
