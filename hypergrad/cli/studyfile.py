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

import re
import stat
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hypergrad.core.checks import check_name, nearest
from hypergrad.tuning.settings import OPTION, check_option

MAX_STUDYFILE_BYTES = 2**18
"""Largest study file; real ones have a few hundred bytes."""

# Whatever may hold a `=`, a `[` or a line break that is none: comments and the four kinds of strings.
_OPAQUE = re.compile(
    r'#[^\n]*|"{3}(?:\\.|[^\\])*?"{3,5}|\'{3}.*?\'{3,5}|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'', re.DOTALL
)

_TABLE = re.compile(r"\s*\[\[?([\w\s.\"-]+)\]\]?\s*$")

_KEY = re.compile(r"([\w\s.\"-]+)=")


class StudyFile(NamedTuple):
    """A study file as read.

    Attributes:
        path: of the file.
        options: {option: value}, every value checked; what the file leaves out is left out.
        text: of the file.
    """

    path: Path
    options: dict[str, Any]
    text: str

    def place(self, *keys: str) -> str:
        """Say where a key stands, `'study.toml', line 3`, for messages."""
        return _place(self.path, self.text, keys)


def read(path: str | Path, known: Mapping[str, Collection[str]]) -> StudyFile:
    """Read a study file.

    Args:
        path: of the file, UTF-8, at most 256 KiB.
        known: option -> the names it may have, for options whose values are names.

    Raises:
        ValueError: in one line that names the file, and the line in it where one is to blame.
    """
    path = Path(path)
    text = _text(path)
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        last = f"at line {len(text.rstrip().splitlines())}, the last"
        reason = _line(error).replace("at end of document", last)
        raise ValueError(
            f"{str(path)!r} is not valid TOML: {reason}, expected key = value; mend it there"
        ) from None
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, brackets 1,000 deep
        raise ValueError(
            f"{str(path)!r} cannot be read ({_line(error)}), expected numbers and lists of ordinary "
            "size; shorten it"
        ) from None
    options = {}
    for key, value in data.items():
        try:
            options[key] = _check(key, value, known)
        except ValueError as error:
            raise ValueError(f"{_place(path, text, (key,))}: {error}") from None
    return StudyFile(path, options, text)


def _check(key: str, value: Any, known: Mapping[str, Collection[str]]) -> Any:
    if key not in OPTION:
        near = nearest(key, OPTION)
        hint = f"did you mean {near!r}?" if near else f"see the names in {', '.join(OPTION)}"
        raise ValueError(
            f"{key!r:.80} is no option, expected one of `hypergrad tune --help`; {hint}"
        )
    value = check_option(key, value)
    if key in known:
        for name in value if isinstance(value, list) else [value]:
            check_name(key, name, known[key])
    return value


def _place(path: Path, text: str, keys: tuple[str, ...]) -> str:
    number = find_line(text, keys)
    return f"{str(path)!r}, line {number}" if number else f"{str(path)!r}"


def find_line(text: str, keys: tuple[str, ...]) -> int | None:
    """Find the line of a key or table in valid TOML; tomllib does not tell.

    Args:
        text: of the whole file.
        keys: the key with the tables around it, outermost first: ("arg", "width").

    Returns:
        The line, from 1, of the key, or of the inline table it stands in; None where it is not found.
    """
    strings: list[str] = []

    def hide(match: re.Match) -> str:
        if match[0].startswith("#"):
            return ""
        strings.append(match[0])
        return f'"{len(strings) - 1}"' + "\n" * match[0].count("\n")

    table, nearest_line = (), None
    for number, line in enumerate(_OPAQUE.sub(hide, text).split("\n"), 1):
        if header := _TABLE.match(line):
            here = table = _parts(header[1], strings)
        elif key := _KEY.match(line):
            here = table + _parts(key[1], strings)
        else:
            continue
        if here[: len(keys)] == keys:
            return number
        if keys[: len(here)] == here:
            nearest_line = number
    return nearest_line


def _parts(dotted: str, strings: list[str]) -> tuple[str, ...]:
    """Split a dotted key whose quoted parts are hidden behind their numbers."""

    def part(text: str) -> str:
        if not re.fullmatch(r'"\d+"', text):
            return text
        return tomllib.loads(f"key = {strings[int(text[1:-1])]}")["key"]

    return tuple(part(text.strip()) for text in dotted.split("."))


def _text(path: Path) -> str:
    name = repr(str(path))
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            raise ValueError(f"{name} is no regular file, expected a study file; name a TOML file")
        with open(path, "rb") as file:
            content = file.read(MAX_STUDYFILE_BYTES + 1)
    except FileNotFoundError:
        raise ValueError(
            f"{name} is a file that is not there, expected a study file; check the path"
        ) from None
    except OSError as error:
        raise ValueError(
            f"{name} cannot be read ({error.strerror}); check its permissions"
        ) from None
    if len(content) > MAX_STUDYFILE_BYTES:
        raise ValueError(
            f"{name} has over {MAX_STUDYFILE_BYTES} bytes, expected a study file of a few lines; name another"
        )
    try:
        # as editors save it: with or without a byte order mark, with either line end
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{name}, line {line}: not UTF-8, expected UTF-8 text; convert it"
        ) from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
