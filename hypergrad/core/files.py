"""Files that a crash cannot tear: writes that are whole or absent, and JSON from untrusted sources."""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

MAX_BYTES = 64 * 2**20
"""Most room that JSON may take: its bytes, and 64 for each list or object (two characters make one)."""

MAX_DEPTH = 32
"""Greatest depth of nested lists and objects."""

FILE_MODE, FOLDER_MODE = 0o600, 0o700
"""Permissions of a study's files and folders: its owner's alone, because they may tell of private data."""

ADVICE = "the file is damaged or was edited; restore it from a copy, or start a new study"

RESUME = "then continue with `hypergrad resume`"
"""What to do once a disk takes files of a study again."""

_SEAL = re.compile(rb'\{\n "sha256": "([0-9a-f]{64})",')


def to_plain(value: Any) -> Any:
    """Turn arrays, tuples and numbers into JSON values; a non-finite number becomes null."""
    if isinstance(value, dict):
        return {str(name): to_plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, (str, bool, int)) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if not hasattr(value, "tolist"):
        raise ValueError(
            f"{str(value)[:60]!r} is of type {type(value).__name__}, expected numbers, text, lists or tables"
        )
    return to_plain(value.tolist())


def open_file(path: Path, flags: int) -> int:
    """Open a regular file of a study and return its descriptor; never follow a link or wait for a pipe.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: for a symbolic link, for anything but a file, and, where `flags` ask to write, for a
            file with a second name elsewhere, which would change with it.
    """
    writes = flags & (os.O_WRONLY | os.O_RDWR)
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, FILE_MODE)
    except FileNotFoundError:
        raise
    except OSError as error:
        if path.is_symlink():
            raise is_link(path) from None
        raise failed("open", path, error) from error
    status = os.fstat(fd)
    wrong = None
    if not stat.S_ISREG(status.st_mode):
        wrong = "is not a regular file, expected one; " + ADVICE
    elif writes and status.st_nlink > 1:
        wrong = "has a second name (a hard link), expected none; copy the study with `cp -r` first"
    if wrong:
        os.close(fd)
        raise ValueError(f"{str(path)!r} {wrong}")
    return fd


def sync(fd: int) -> None:
    """Wait until the contents of a file are on the disk."""
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
def replacing(
    path: Path, temporary: Path | None = None, mode: int = FILE_MODE, then: str = RESUME
) -> Iterator[int]:
    """Give the descriptor of a new file that replaces `path` at the end of the block.

    A crash leaves the old file or the new one, never a part, and so does a full disk.

    Args:
        path: Path of the file.
        temporary: Path at which it is written first; where None, `path` and `.tmp`, for a single writer.
        mode: Permissions of the file, less those that the process's umask takes.
        then: What to do where the disk refuses, for the error.

    Raises:
        ValueError: where the disk refuses.
    """
    temporary = path.with_name(path.name + ".tmp") if temporary is None else temporary
    try:
        temporary.unlink(missing_ok=True)
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            yield fd
            sync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise failed("write", path, error, then) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data`; one system call may take only a part of it."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def write_bytes(
    path: Path, data: bytes, temporary: Path | None = None, mode: int = FILE_MODE
) -> None:
    """Write a file so that a crash leaves the old one or the new one, never a part (`replacing`)."""
    with replacing(path, temporary, mode) as fd:
        write_all(fd, data)


def write_json(path: Path, value: dict[str, Any], then: str = RESUME) -> None:
    """Write a JSON object whose first entry is the SHA-256 of the bytes after it, whole or not at all."""
    body = json.dumps(to_plain(value), allow_nan=False, indent=1).encode()[1:] + b"\n"
    seal = hashlib.sha256(body).hexdigest().encode()
    with replacing(path, then=then) as fd:
        write_all(fd, b'{\n "sha256": "%s",%s' % (seal, body))


def read_json(path: Path, advice: str = ADVICE) -> dict[str, Any]:
    """Read a file of `write_json`, after its size, its depth and its checksum have been checked.

    Args:
        path: Path of the file.
        advice: What to do where the file is damaged, for the error.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: in one line that names the file, for anything else.
    """
    name = repr(str(path))
    with os.fdopen(open_file(path, os.O_RDONLY), "rb") as file:
        check_room(name, os.fstat(file.fileno()).st_size, advice=advice)
        try:
            data = file.read(MAX_BYTES)
        except OSError as error:
            raise failed("read", path, error) from error
    value = parse_json(data, name, advice)
    seal = _SEAL.match(data)
    if not seal or hashlib.sha256(data[seal.end() :]).hexdigest() != seal[1].decode():
        raise ValueError(f"{name} does not match its checksum; {advice}")
    del value["sha256"]
    return value


def parse_json(data: bytes, name: str, advice: str = ADVICE) -> dict[str, Any]:
    """Parse one JSON object of bounded size and depth; NaN and infinities become null.

    Raises:
        ValueError: in one line that begins with `name`.
    """
    # escapes and strings go first, so that the remaining brackets are structure
    bare = re.sub(rb'"[^"]*"', b"", re.sub(rb"\\.", b"", data, flags=re.DOTALL))
    brackets = np.frombuffer(bare.translate(None, _NO_BRACKET), np.uint8)
    opens = (brackets == ord("[")) | (brackets == ord("{"))
    depth = deepest = 0
    # in parts: sums take several times the room of the text
    for start in range(0, len(opens), 2**20):
        depths = depth + np.cumsum(np.where(opens[start : start + 2**20], 1, -1), dtype=np.int32)
        depth, deepest = int(depths[-1]), max(deepest, int(depths.max()))
    if deepest > MAX_DEPTH:
        raise ValueError(f"{name} is nested too deep, expected at most {MAX_DEPTH}; {advice}")
    check_room(name, len(data), int(opens.sum()), advice)
    try:
        value = json.loads(data.decode(), parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        reason = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else reason
        raise ValueError(f"{name} is not valid JSON ({reason}); {advice}") from None
    if not isinstance(value, dict):
        kind = "a list" if isinstance(value, list) else "no object"
        raise ValueError(f"{name}: the whole is {kind}, expected an object; {advice}")
    return value


_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))


def check_room(name: str, num_bytes: int, num_lists: int = 0, advice: str = ADVICE) -> None:
    """Raise a `ValueError` where JSON takes more than `MAX_BYTES`, as a text or as lists and objects."""
    room, most = (num_bytes + 64 * num_lists) / 2**20, MAX_BYTES / 2**20
    if room > most:
        raise ValueError(f"{name} takes {room:.1f} MB, expected at most {most:.0f} MB; {advice}")


def is_link(path: str | Path) -> ValueError:
    """Say in one line that a file is a link."""
    text = f"{str(path)!r} is a symbolic link, expected a file; copy what it points to"
    return ValueError(text)


def failed(action: str, path: Path, error: OSError, then: str = RESUME) -> ValueError:
    """Say in one line what the system refused to do, and what helps."""
    cure = _CURES.get(error.errno or 0, "make room or allow it")
    if error.errno in _GONE:
        cure = f"{str(path.parent)!r} was renamed or deleted, or is on a disk that is gone: "
        cure += "give it its name again, or restore it from a copy"
    return ValueError(f"cannot {action} {str(path)!r}: {error.strerror or error}; {cure}, {then}")


_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ENODEV)

_CURES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "allow it"),
}
