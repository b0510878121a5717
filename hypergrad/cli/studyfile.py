"""Study files: the options of `tune` in TOML, refused with the line, the key and the nearest valid name.

task = "digits"             # a name from `hypergrad list`, or my_file.py:task
method = "descent"
budget = 60
out = "runs/digits"
log = ["jsonl"]

[arg]                       # arguments of the task
horizon = 100
width = 32
"""

import json
import re
import stat
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hypergrad.core.checks import check_name
from hypergrad.tuning.settings import OPTION, check_options

MAX_STUDYFILE_BYTES = 2**18
"""Largest study file; real ones have a few hundred bytes."""


class StudyFile(NamedTuple):
    """A study file as read.

    Attributes:
        path: Path of the file.
        options: Dict {option: value}, every value checked; options that the file leaves out have no entry.
        text: Text of the file.
    """

    path: Path
    options: dict[str, Any]
    text: str

    def place(self, *keys: str) -> str:
        """Return the place of a key, `'study.toml', line 3`, for messages."""
        return _place(self.path, self.text, keys)


def read(path: str | Path, known: Mapping[str, Collection[str]]) -> StudyFile:
    """Read a study file.

    Args:
        path: Path of the file, UTF-8, at most 256 KiB.
        known: Dict {option: the names it may have}, for options whose values are names.

    Raises:
        ValueError: in one line that names the file, and the line in it that is at fault, if any.
    """
    path = Path(path)
    text = _text(path)
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        last = f"at line {len(text.rstrip().splitlines())}, the last"
        reason = _line(error).replace("at end of document", last)
        raise ValueError(
            f"{str(path)!r} is not valid TOML: {reason}, expected key = value; correct it there"
        ) from None
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, brackets 1,000 deep
        raise ValueError(
            f"{str(path)!r} cannot be read ({_line(error)}), expected numbers and lists of ordinary "
            "size; shorten it"
        ) from None
    for key in data:
        if key not in OPTION:
            check_name(f"{_place(path, text, (key,))}: key", key, OPTION)
    options = check_options(data, lambda key: f"{_place(path, text, (key,))}: {key}", known)
    return StudyFile(path, options, text)


def _place(path: Path, text: str, keys: tuple[str, ...]) -> str:
    number = find_line(text, keys)
    return f"{str(path)!r}, line {number}" if number else f"{str(path)!r}"


def find_line(text: str, keys: tuple[str, ...]) -> int | None:
    """Find the line of a key or table in valid TOML.

    tomllib does not tell. But where the key is set once more ahead of the text, its error names the line of the
    key in the text.

    Args:
        text: Text of the whole file.
        keys: Key with the tables around it, outermost first: ("arg", "width").

    Returns:
        The line, from 1, of the key, or of the inline table it stands in; None where it is not found.
    """
    lines = text.split("\n")
    at, left = 0, keys  # the second key goes behind the header of its table, if there is one
    while left:
        path = ".".join(json.dumps(key, ensure_ascii=False) for key in left)
        last = _clash([*lines[:at], f"{path} = 0", *lines[at:], ""])
        if last is None or last - 1 <= at:
            return None
        at = _first_line(lines, last - 1)
        if not lines[at - 1].lstrip().startswith("["):
            return at
        left = keys[len(_path(lines[at - 1])) :]
    return at or None


def _clash(lines: list[str]) -> int | None:
    """Return the last line, from 1, of the text that tomllib refuses; None where the text is valid."""
    try:
        tomllib.loads("\n".join(lines))
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"at line (\d+)", str(error))
        return int(found[1]) if found else None
    return None


def _first_line(lines: list[str], last: int) -> int:
    """Return the first line of the key and value, or of the header, that end on a line."""
    for first in range(last, 0, -1):
        try:
            if tomllib.loads("\n".join(lines[first - 1 : last])):
                return first
        except tomllib.TOMLDecodeError:
            continue
    return last


def _path(header: str) -> list[str]:
    """Return the keys of a table's header."""
    found, table = [], tomllib.loads(header.strip())
    while table:
        (key,) = table
        found.append(key)
        table = table[key] if isinstance(table[key], dict) else {}
    return found


def _text(path: Path) -> str:
    content, wrong = b"", None
    try:
        if stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait forever
            with open(path, "rb") as file:
                content = file.read(MAX_STUDYFILE_BYTES + 1)
        else:
            wrong = " is not a regular file, expected a study file; name a TOML file"
    except FileNotFoundError:
        wrong = " is a file that is not there, expected a study file; check the path"
    except OSError as error:
        wrong = f" cannot be read ({error.strerror}); check its permissions"
    if len(content) > MAX_STUDYFILE_BYTES:
        most = f"over {MAX_STUDYFILE_BYTES} bytes"
        wrong = f" has {most}, expected a study file of a few lines; name another"
    try:
        # as editors save it: with or without a byte order mark, with either line ending
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        text, wrong = "", wrong or f", line {line}: not UTF-8, expected UTF-8 text; convert it"
    if wrong:
        raise ValueError(f"{str(path)!r}{wrong}")
    return text


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
