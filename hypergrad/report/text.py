"""Numbers and names as a report writes them: short, on one line, without control characters."""

import json
import math
import re
import unicodedata
from typing import Any

_HIDDEN = ("Cc", "Cf", "Cs")
"""Unicode categories that are not shown: controls, format characters such as bidi marks, surrogates."""

_ODD = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)

_PATH = re.compile(r"(?<![\w.:/~\\-])/(?:[^\s/'\"`,;()\[\]{}]+/)+[^\s/'\"`,;()\[\]{}]*")

_QUOTED_PATH = re.compile(r"(['\"])(/(?:[^'\"/\n]+/)+[^'\"/\n]*)\1")
"""A path in quotes, which may hold spaces."""


def clean(text: str, limit: int = 48) -> str:
    """Return `text` on one line of at most `limit` characters, with a mark in place of each control."""
    text = " ".join(text[: 4 * limit].split())
    text = "".join("\ufffd" if unicodedata.category(c) in _HIDDEN else c for c in text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def clean_lines(text: str, limit: int) -> str:
    """Return the first `limit` characters of `text` with its line breaks and spaces, without controls."""
    return "\n".join(visible(line) for line in text[:limit].splitlines())


def visible(text: str) -> str:
    """Put a mark in place of every character that a page could not show."""
    return _ODD.sub("\ufffd", text)


def without_folders(text: str) -> str:
    """Leave only the last part of every absolute path in a text: the others tell where its writer works."""
    text = _QUOTED_PATH.sub(lambda found: found[1] + _last_part(found[2]) + found[1], text)
    return _PATH.sub(lambda found: _last_part(found[0]), text)


def _last_part(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def number(value: float, digits: int = 3) -> str:
    """Return `value` in at most `digits` significant digits, as `0.0123`, `12.5` or `1.2e-5`."""
    if not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    if 1e-4 <= abs(value) < 1e6:
        decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
        text = f"{value:.{decimals}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    else:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".")
        text = f"{mantissa}e{int(exponent)}"
    return text.replace("-", "\u2212")


def duration(seconds: float) -> str:
    """Return a time such as `9.5 s`, `41 s`, `12 min` or `3.2 h`; empty where it is unknown."""
    if not math.isfinite(seconds) or seconds < 0:
        return ""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.0f} min" if minutes < 120 else f"{hours:.1f} h"


def counted(count: int, noun: str) -> str:
    """Return `1 seed`, `2 seeds`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def capitalized(text: str) -> str:
    """Return `text` with a capital first letter; the others stay as they are."""
    return text[:1].upper() + text[1:]


def readable_json(value: Any) -> str:
    """Write JSON with its letters as they are, unless one of them cannot be shown."""
    shown = json.dumps(value, ensure_ascii=False)
    return shown if visible(shown) == shown else json.dumps(value)
