"""An append-only journal of a study's steps: a line of JSON each, with a checksum, on disk before it counts.

    {"crc": "1f2e3d4c", "step": 7, "best": 0.31, "seconds": 8.2, "values": [...], "hparams": {...}, ...}

The CRC-32 is that of the bytes after it, and steps count from 0 without a gap. So a changed, a lost and a
repeated line are all noticed.
"""

import contextlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from hypergrad.core.files import (
    ADVICE,
    MAX_BYTES,
    check_room,
    failed,
    open_file,
    parse_json,
    replacing,
    sync,
    sync_folder,
    write_all,
)
from hypergrad.study.disk.folder import DAMAGED

MAX_STEPS = 10**6
"""Most steps of a study."""

_HEAD = re.compile(rb'\{"crc": "([0-9a-f]{8})", (?="step": (0|[1-9][0-9]{0,7}), )')


class Scan(NamedTuple):
    """Places of the whole records of a journal.

    Attributes:
        whole: Start and length of every record before the first damage, by step.
        later: {step: (start, length)} of the whole records after the damage.
        end: Place where the records of `whole` end.
        size: Size of the file.
        damage: Sentence on the first damaged line, None if no line is damaged.
    """

    whole: list[tuple[int, int]]
    later: dict[int, tuple[int, int]]
    end: int
    size: int
    damage: str | None


def encode_line(record: dict[str, Any]) -> bytes:
    """Write one record, whose first entry is its step, as a line with its checksum.

    Raises:
        ValueError: where the line takes more room than a reader allows.
    """
    body = json.dumps(record, allow_nan=False).encode()[1:] + b"\n"
    line = b'{"crc": "%08x", %s' % (zlib.crc32(body), body)
    advice = "take fewer trials a step, or a smaller space"
    check_room("the record of a step", len(line), line.count(b"[") + line.count(b"{"), advice)
    return line


def step_of(line: bytes) -> int | None:
    """Return the step of a line, None if it is not whole; a line without an end counts as if it had one."""
    head = _HEAD.match(line)
    if not head:
        return None
    check = zlib.crc32(memoryview(line)[head.end() :])
    if not line.endswith(b"\n"):
        check = zlib.crc32(b"\n", check)
    return int(head[2]) if check == int(head[1], 16) else None


def scan(file: BinaryIO, name: str) -> Scan:
    """Find the whole records of a journal, one line in memory at a time.

    A last line without an end was never acknowledged, unless its checksum shows that it is whole. Lines that
    another process appends meanwhile are left for the next call.

    Raises:
        ValueError: for a line or a number of lines beyond all bounds.
    """
    whole: list[tuple[int, int]] = []
    later: dict[int, tuple[int, int]] = {}
    damage, start, end, number = None, 0, 0, 0
    size = os.fstat(file.fileno()).st_size
    while line := file.readline(min(MAX_BYTES + 1, size - start)):
        number += 1
        if len(line) > MAX_BYTES or number > MAX_STEPS:
            raise ValueError(
                f"line {number} of {name!r} is over {MAX_BYTES} bytes or {MAX_STEPS} lines; {ADVICE}"
            )
        step = step_of(line)
        if damage is None and step == len(whole):
            whole.append((start, len(line)))
            end = start + len(line)
        elif damage is None and (step is not None or line.endswith(b"\n")):
            found = "does not match its checksum" if step is None else f"is of step {step}"
            damage = f"line {number} of {name!r} {found}, expected the record of step {len(whole)}"
        if damage is not None and step is not None:
            later[step] = (start, len(line))
        start += len(line)
    return Scan(whole, later, end, start, damage)


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Read the records of a journal, which another process may be writing, without their checksums.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: at the first damaged line, with its number and what to do.
    """
    with os.fdopen(open_file(path, os.O_RDONLY), "rb") as file:
        found = scan(file, str(path))
        for start, length in found.whole:
            yield _parse(os.pread(file.fileno(), length, start), path)
    if found.damage:
        raise ValueError(f"{found.damage}; `hypergrad resume` makes it and those after it again")


def _parse(line: bytes, path: Path) -> dict[str, Any]:
    record = parse_json(line, f"a record of {str(path)!r}")
    del record["crc"]
    return record


def _kept_aside(folder: Path) -> list[tuple[int, Path]]:
    """List the files that were kept aside of a journal, in order, each with its number."""
    found = [m for m in map(DAMAGED.fullmatch, os.listdir(folder)) if m]
    return sorted((int(m[1] or 1), folder / m[0]) for m in found)


def _next(path: Path) -> Path:
    """Name the next file for damage, so that none is ever overwritten."""
    taken = _kept_aside(path.parent)
    number = f"-{taken[-1][0] + 1}" if taken else ""
    return path.with_name(f"journal-damaged{number}.jsonl")


def check_journal(folder: Path) -> None:
    """Raise a `ValueError` where the journal of a study that has taken its steps is no longer there."""
    if not folder.is_dir():
        raise ValueError(
            f"the folder {str(folder)!r} was deleted or renamed while the study runs, expected it to stay; "
            "give it its name again and continue with `hypergrad resume`, or start the study again"
        )
    if not (folder / "journal.jsonl").is_file():
        raise ValueError(
            f"{str(folder / 'journal.jsonl')!r} was deleted or renamed while the study runs, expected it to "
            "stay; continue with `hypergrad resume`, which takes the steps again"
        )


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what tells the file at a path from every other one; None where there is none."""
    try:
        status = os.stat(path, follow_symlinks=False)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _place_now(fd: int) -> Path:
    """Return the path that an open file has now, where the system tells (Linux); else one that is not there."""
    try:
        return Path(os.readlink(f"/proc/self/fd/{fd}"))
    except OSError:
        return Path("/proc/unknown/unknown")


class Journal:
    """A journal opened by its only writer: partial lines are cut off, damage is kept aside.

    Damage and what follows it move to `journal-damaged.jsonl` (`-2`, `-3`, ... for later ones, never over an
    earlier one). The whole records among them stay available until their steps are in the journal again,
    however often the process is killed meanwhile.

    Attributes:
        damage: Sentence on the damage found when it was opened; None without damage.

    Args:
        path: Path of the journal, which is made if it is missing. The caller has locked its folder.

    Raises:
        ValueError: where the file cannot be written, or the disk refuses.
    """

    def __init__(self, path: Path):
        self.path = path
        self.damage: str | None = None
        self._aside: dict[int, tuple[Path, int, int]] = {}
        self._fd = open_file(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        try:
            sync_folder(path.parent)  # always: its maker may have been killed before this
            with os.fdopen(os.dup(self._fd), "rb") as file:
                found = scan(file, str(path))
                self._whole = found.whole
                self._end = found.end
                self._mend(found, file)
            self._find_aside()
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise failed("write", path, error) from error
            raise

    def _mend(self, found: Scan, file: BinaryIO) -> None:
        """Cut off partial lines; keep damage and what follows it aside first."""
        if found.damage:
            aside = _next(self.path)
            file.seek(found.end)
            with replacing(aside) as fd, os.fdopen(os.dup(fd), "wb") as copy:
                shutil.copyfileobj(file, copy)
            self.damage = (
                f"{found.damage}; kept as {aside.name}, it and those after it are made again"
            )
        elif found.size > found.end:
            self.damage = (
                f"the last {found.size - found.end} bytes of {str(self.path)!r} are not a whole record, "
                "as a process killed while it writes leaves them; cut off"
            )
        if found.size > found.end:
            os.ftruncate(self._fd, found.end)
            sync(self._fd)
        if self._end and os.pread(self._fd, 1, self._end - 1) != b"\n":
            self._write(b"\n")

    def _find_aside(self) -> None:
        """Find the whole records of steps that the journal lacks among the files kept aside."""
        for _, path in _kept_aside(self.path.parent):
            with os.fdopen(open_file(path, os.O_RDONLY), "rb") as file:
                found = scan(file, str(path))
            for step, (start, length) in {**dict(enumerate(found.whole)), **found.later}.items():
                if step >= self.count:
                    self._aside[step] = (path, start, length)

    @property
    def count(self) -> int:
        """Return the number of whole records from step 0 on."""
        return len(self._whole)

    def record(self, step: int) -> dict[str, Any] | None:
        """Return the record of a step; None where no whole record exists."""
        if step < len(self._whole):
            start, length = self._whole[step]
            return _parse(os.pread(self._fd, length, start), self.path)
        if step not in self._aside:
            return None
        path, start, length = self._aside[step]
        with os.fdopen(open_file(path, os.O_RDONLY), "rb") as file:
            return _parse(os.pread(file.fileno(), length, start), path)

    def append(self, record: dict[str, Any]) -> None:
        """Write the record of the next step and wait for the disk.

        Raises:
            ValueError: where the record is too large or the disk refuses; no part of it remains then. And where
                the journal is no longer in its place (`check_there`).
        """
        line, start = encode_line(record), self._end
        self._write(line)
        self._whole.append((start, len(line)))
        self.check_there()

    def check_there(self) -> None:
        """Raise a `ValueError` where the journal was deleted, renamed or replaced while it is written.

        This process still has the records. Where the folder is in its place, they are put back into it: under
        their own name, or kept aside like damage where another file has taken it.
        """
        ours, theirs = os.fstat(self._fd), _identity(self.path)
        if theirs == (ours.st_dev, ours.st_ino):
            return
        folder = self.path.parent
        wrong = f"{str(self.path)!r} was deleted, renamed or replaced while the study runs"
        if not folder.is_dir():
            wrong = f"the folder {str(folder)!r} was deleted or renamed while the study runs"
            place = _place_now(self._fd).parent
            if ours.st_nlink and place.is_dir():
                cure = f"the {self.count} steps so far are in {str(place)!r}; resume it there"
            else:
                cure = "nothing of it is left; start the study again"
            raise ValueError(f"{wrong}, expected it to stay; {cure}")
        back = self.path if theirs is None else _next(self.path)
        with os.fdopen(os.dup(self._fd), "rb") as old, replacing(back) as fd:
            old.seek(0)
            with os.fdopen(os.dup(fd), "wb") as copy:
                shutil.copyfileobj(old, copy)
        raise ValueError(
            f"{wrong}, expected it to stay; its {self.count} steps so far are kept as {back.name}; "
            "continue with `hypergrad resume`"
        )

    def _write(self, data: bytes) -> None:
        try:
            write_all(self._fd, data)
            sync(self._fd)
            self._end += len(data)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._end)
            if isinstance(error, OSError):
                raise failed("write", self.path, error) from error
            raise

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
