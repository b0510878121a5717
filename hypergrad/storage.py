"""The folder of a study: files that survive a crash and are safe to open, whoever wrote them.

JSON carries a checksum and is written whole or not at all. Every size is bounded before anything is read,
no link is followed, and one process at a time writes.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import stat
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FORMAT = 2
MAX_JSON = 64 * 2**20
MAX_STUDY = 4 * 2**20
"""Bytes of what says what a study is."""
MAX_DEPTH = 32
MAX_CONTAINERS = 10**6
ADVICE = "the file is damaged or was edited; restore it from a copy, or start a new study"
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
CHECKPOINT = re.compile(r"checkpoint-([0-9]{10})\.(npz|json)")
DAMAGED = re.compile(r"journal-damaged(?:-([1-9][0-9]{0,8}))?\.jsonl")
_REPORT = re.compile(r"\.report\.html\.[0-9a-f]{12}")
"""What a process leaves that is killed while it writes a report."""
FILES = (
    "study-copy.json",
    "study.json",
    "journal.jsonl",
    "result.json",
    "flatness.json",
    "report.html",
    "log.jsonl",
)
FOLDERS = ("figures", "random", "tensorboard", "wandb")
_BEFORE = ("lock", "study.json.tmp", "study-copy.json", "study-copy.json.tmp")
"""What a process may leave that was killed before its study began."""
_SEAL = re.compile(rb'\{\n "sha256": "([0-9a-f]{64})",')


class StudyWarning(UserWarning):
    """A study's folder was damaged and made good, or this machine differs from the one before."""


class Folder(NamedTuple):
    """A study's folder that this process alone may write, until the block that opened it ends."""

    path: Path


def plain(value: Any) -> Any:
    """Turn arrays, tuples and numbers into what JSON can say; a non-finite number becomes null."""
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (str, bool, int)) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if not hasattr(value, "tolist"):
        raise ValueError(
            f"{str(value)[:80]!r} is of type {type(value).__name__}, expected numbers, text, lists and tables "
            "of them; write it as text"
        )
    return plain(value.tolist())


def open_file(path: Path, flags: int) -> int:
    """Open a regular file of a study and return its descriptor; no link is followed, no pipe waited for.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: for a symbolic link, for anything but a file, and, where `flags` ask to write, for a
            file with a second name elsewhere, which would change with it.
    """
    writes = flags & (os.O_WRONLY | os.O_RDWR)
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except FileNotFoundError:
        raise
    except OSError as error:
        if path.is_symlink():
            raise ValueError(
                f"{str(path)!r} is a symbolic link, expected a file; copy what it points to"
            ) from None
        raise failed("open", path, error) from error
    status = os.fstat(fd)
    wrong = None
    if not stat.S_ISREG(status.st_mode):
        wrong = "is no regular file, expected one; " + ADVICE
    elif writes and status.st_nlink > 1:
        wrong = "has a second name (a hard link), expected none; copy the study with `cp -r` first"
    if wrong:
        os.close(fd)
        raise ValueError(f"{str(path)!r} {wrong}")
    return fd


def read_bytes(path: Path, limit: int) -> bytes:
    """Read a file of at most `limit` bytes.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: where it is larger, and as `open_file`.
    """
    with os.fdopen(open_file(path, os.O_RDONLY), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise ValueError(
                f"{str(path)!r} has {size / 2**20:.1f} MB, expected at most {limit / 2**20:.0f} MB; {ADVICE}"
            )
        try:
            return file.read(limit)
        except OSError as error:
            raise failed("read", path, error) from error


def sync(fd: int) -> None:
    """Wait until what was written to a file is on the disk."""
    import fcntl

    full = getattr(fcntl, "F_FULLFSYNC", None)  # on macOS, fsync stops at the drive's own cache
    if full is None:
        os.fsync(fd)
    else:
        fcntl.fcntl(fd, full)


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def replacing(path: Path, temporary: Path | None = None) -> Iterator[int]:
    """Give the descriptor of a new file that takes the place of `path` at the end of the block.

    A crash leaves the old file or the new one, never a part, and so does a full disk.

    Args:
        path: of the file.
        temporary: where it is written; `path` with `.tmp` where None, for the one writer of a study.

    Raises:
        ValueError: where the disk refuses.
    """
    temporary = path.with_name(path.name + ".tmp") if temporary is None else temporary
    try:
        temporary.unlink(missing_ok=True)
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            yield fd
            sync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise failed("write", path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data`; one call of the system may take a part of it."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def write_bytes(path: Path, data: bytes, temporary: Path | None = None) -> None:
    """Write a file so that a crash leaves the old one or the new one, never a part; as `replacing`."""
    with replacing(path, temporary) as fd:
        write_all(fd, data)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object whose first entry is the SHA-256 of the bytes after it, whole or not at all."""
    body = json.dumps(plain(value), allow_nan=False, indent=1).encode()[1:] + b"\n"
    seal = hashlib.sha256(body).hexdigest().encode()
    write_bytes(path, b'{\n "sha256": "%s",%s' % (seal, body))


def read_json(path: Path, limit: int = MAX_JSON) -> dict[str, Any]:
    """Read what `write_json` wrote, after its size, its depth and its checksum have been checked.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: in one line that names the file, for anything else.
    """
    data = read_bytes(path, limit)
    value = parse_json(data, repr(str(path)))
    seal = _SEAL.match(data)
    if not seal or hashlib.sha256(data[seal.end() :]).hexdigest() != seal[1].decode():
        raise ValueError(f"{str(path)!r} does not match its checksum; {ADVICE}")
    del value["sha256"]
    return value


def write_study(path: Path, value: dict[str, Any]) -> None:
    """Write what a study is, twice: one flipped bit must not end it.

    Args:
        path: of `study.json`; the copy beside it is written first.
        value: its content.
    """
    write_json(path.with_name("study-copy.json"), value)
    write_json(path, value)


def read_study(path: Path) -> dict[str, Any]:
    """Read what `write_study` wrote, from the copy, with a `StudyWarning`, where the first is damaged.

    Raises:
        FileNotFoundError: where there is neither.
        ValueError: for the first, where both are damaged.
    """
    try:
        return read_json(path, MAX_STUDY)
    except (ValueError, FileNotFoundError) as error:
        try:
            value = read_json(path.with_name("study-copy.json"), MAX_STUDY)
        except (ValueError, FileNotFoundError):
            raise error from None
        text = (
            f"{path.name} of {str(path.parent)!r} is damaged or missing; its copy is read instead"
        )
        warnings.warn(text, StudyWarning, stacklevel=3)
        return value


def mend_study(path: Path) -> None:
    """Make `study.json` or its copy again where one of them is not whole; for the one writer."""
    value = read_study(path)
    for place in (path, path.with_name("study-copy.json")):
        try:
            whole = read_json(place, MAX_STUDY) == value
        except (ValueError, FileNotFoundError):
            whole = False
        if not whole:
            text = f"{str(place)!r} was damaged or missing; it is made again from the other one"
            warnings.warn(text, StudyWarning, stacklevel=3)
            place.unlink(missing_ok=True)  # a link or a pipe is replaced, never followed
            write_json(place, value)


def parse_json(data: bytes, name: str) -> dict[str, Any]:
    """Parse one JSON object of bounded depth and number of parts; NaN and infinities become null.

    Raises:
        ValueError: in one line that begins with `name`.
    """
    # escapes and strings go first, so that the brackets left are structure
    bare = re.sub(rb'"[^"]*"', b"", re.sub(rb"\\.", b"", data, flags=re.DOTALL))
    brackets = np.frombuffer(bare.translate(None, _NO_BRACKET), np.uint8)
    opens = (brackets == ord("[")) | (brackets == ord("{"))
    depth = deepest = 0
    # in parts: sums take several times the room of the text
    for start in range(0, len(opens), 2**20):
        depths = depth + np.cumsum(np.where(opens[start : start + 2**20], 1, -1), dtype=np.int32)
        depth, deepest = int(depths[-1]), max(deepest, int(depths.max()))
    if deepest > MAX_DEPTH:
        raise ValueError(f"{name} is nested too deep, expected at most {MAX_DEPTH}: {ADVICE}")
    if opens.sum() > MAX_CONTAINERS:
        raise ValueError(
            f"{name} has {opens.sum()} lists and objects, expected at most {MAX_CONTAINERS}; {ADVICE}"
        )
    try:
        value = json.loads(data.decode(), parse_constant=lambda _: None)
    except UnicodeDecodeError:
        raise ValueError(f"{name} is not UTF-8 text: {ADVICE}") from None
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"{name} is not valid JSON ({reason}): {ADVICE}") from None
    if not isinstance(value, dict):
        kind = "a list" if isinstance(value, list) else "no object"
        raise ValueError(f"{name}: the whole is {kind}, expected an object: {ADVICE}")
    return value


_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))


def check_name(name: str, argument: str) -> str:
    """Return `name` if it can name a study's folder anywhere, or raise a `ValueError`."""
    if not NAME.fullmatch(name):
        raise ValueError(
            f"{argument} is named {name[:140]!r}, expected up to 128 letters, digits, dots, dashes and "
            "underscores, the first no dot or dash; rename it"
        )
    return name


def check_folder(directory: str | os.PathLike[str]) -> Path:
    """Return the path of a folder that holds no symbolic link, or raise a `ValueError`."""
    path = Path(directory)
    if not path.is_dir():
        raise ValueError(
            f"directory {str(path)!r} does not exist or is no directory: "
            "give the directory of a study, as `hypergrad tune --out` wrote it"
        )
    for entry in os.scandir(path):
        if entry.is_symlink():
            raise ValueError(
                f"{entry.path!r} is a symbolic link, expected a file; copy what it points to"
            )
    return path


@contextlib.contextmanager
def lock(directory: str | Path) -> Iterator[Folder]:
    """Open a study's folder for writing, to the end of the block; no other process may meanwhile.

    The lock is the kernel's: it ends with the block, or with the process, however that ends.

    **Limits:** a child that is forked within the block shares the lock. Nothing that the child does ends it
    for this process; but where this process is killed, it stays until the child has ended, too, or has
    started another program.

    Raises:
        ValueError: where another process has it, naming that process; within a second.
    """
    import fcntl

    path, owner = check_folder(directory), os.getpid()
    with contextlib.ExitStack() as opened:
        fd = open_file(path / "lock", os.O_RDWR | os.O_CREAT)
        opened.callback(os.close, fd)
        # the folder too, for a user may remove the file, taking it for a stale one
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
            if os.getpid() == owner:  # a forked child that leaves the block ends nothing
                with contextlib.suppress(OSError):
                    os.ftruncate(fd, 0)
                for held in (folder, fd):  # to close them would leave it to children that still run
                    with contextlib.suppress(OSError):
                        fcntl.flock(held, fcntl.LOCK_UN)


def _lock_folder(fd: int) -> None:
    """Lock a folder itself, where the file system can: some of the network's lock files alone."""
    import fcntl

    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        pass


def _holder(fd: int) -> str:
    """Name the process that holds a lock; one that has just taken it may not have said so yet."""
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
    """Make the folder of a new study and lock it, to the end of the block.

    Raises:
        ValueError: where it holds something already and `overwrite` is false, is not a folder, has a name
            of other characters, or is in use.
    """
    path = Path(directory)
    check_name(path.absolute().name, "out")
    _check_free(path, overwrite)  # before anything is made
    try:
        made = [place for place in (path, *path.parents) if not place.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for place in made:
            sync_folder(place.parent)
    except OSError as error:
        raise ValueError(
            f"out is {str(path)!r}, which cannot be made ({error.strerror}); name a folder you may write"
        ) from error
    with lock(path) as folder:
        _check_free(path, overwrite)  # another process may have been faster
        _clear(path)
        yield folder


def _check_free(path: Path, overwrite: bool) -> None:
    if path.exists() and not path.is_dir():
        raise ValueError(f"out is {str(path)!r}, a file, expected a folder; name another one")
    if not path.is_dir() or all(e.name in _BEFORE for e in path.iterdir()):
        return
    if not overwrite:
        raise ValueError(
            f"out is {str(path)!r}, which is not empty, expected a new folder; name another one, "
            "pass --overwrite, or go on with `hypergrad resume`"
        )
    if not all(_is_ours(entry.name) for entry in path.iterdir()):
        raise ValueError(
            f"out is {str(path)!r}, which holds something else than a study, expected a study to "
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


def failed(action: str, path: Path, error: OSError) -> ValueError:
    """Say in one line what the system refused to do."""
    return ValueError(
        f"cannot {action} {str(path)!r}: {error.strerror or error}; make room or allow it, "
        "then go on with `hypergrad resume`"
    )
