"""What the text of one cell says: a number, a time, or a word for missing. docs/tabular.md has the rules."""

import datetime
import math
import re
from typing import NamedTuple

_WORDS = "? na n/a n.a. #n/a #na <na> nan -nan null (null) none nil \\n - -- – — . .. ... missing"
MISSING = frozenset(_WORDS.split())
"""Words for missing in lower case, beside the empty cell."""
ERRORS = frozenset(
    f"#{word}"
    for word in "DIV/0! REF! VALUE! NAME? NUM! NULL! SPILL! CALC! FIELD! ERROR!".split()  # noqa: SIM905
)
"""What a spreadsheet writes where a formula failed; it also writes #N/A, which is missing."""
_CODES = "USD EUR GBP JPY CHF CNY INR AUD CAD NZD SEK NOK DKK PLN CZK HUF BRL MXN ZAR KRW RUB TRY kr zł Rs"

_CURRENCY = rf"(?:[A-Z]{{0,3}}[$¢£¤¥฿\u20a0-\u20cf]|(?:{_CODES.replace(' ', '|')})(?![A-Za-z]))"
_BEFORE = re.compile(rf"({_CURRENCY})\s*(.*)", re.DOTALL)
_BEHIND = re.compile(rf"(.*?)\s*({_CURRENCY})", re.DOTALL)
_GROUPS = {  # thousands, by the mark before decimals
    ".": re.compile(
        r"[1-9]\d{0,2}([,'’ \u00a0\u2009\u202f])\d{3}(?:\1\d{3})*(?:\.\d*)?|[1-9]\d?(?:,\d\d)+,\d{3}(?:\.\d*)?",
        re.ASCII,
    ),
    ",": re.compile(r"[1-9]\d{0,2}([.'’ \u00a0\u2009\u202f])\d{3}(?:\1\d{3})*(?:,\d*)?", re.ASCII),
}
_DECIMAL_COMMA = re.compile(r"(?:\d+,?\d*|,\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_MINUS = str.maketrans("\u2212\u2013", "--")


class Reading(NamedTuple):
    """What a cell says when read in one way.

    Attributes:
        value: the number; days since 1970-01-01 of a date, hours of a time of day.
        mark: what all cells of a column have alike: "%", a currency, the form of a time; "" without one.
    """

    value: float
    mark: str = ""


def read_number(text: str, decimal: str) -> Reading | None:
    """Read a number in which `decimal`, a point or a comma, stands before its decimals.

    Thousands may be grouped by the other of the two, by an apostrophe or by a space. A sign may be U+2212 or an
    en dash, or parentheses around a negative number. A percentage is a share: 5% is .05. Python's own
    spelling 1_000 is no number.
    """
    plain = _plain_number(text, decimal)
    if plain is not None:
        return Reading(plain)
    body, negative = _negative(text.translate(_MINUS), False)
    percent = body.count("%") == 1 and "%" in (body[0], body[-1])
    body, mark = (body.strip("%").strip(), "%") if percent else (body, "")
    body, signed = _signed(body)
    for form, order in ((_BEFORE, (1, 2)), (_BEHIND, (2, 1))):
        found = None if mark else form.fullmatch(body)
        if found:
            mark, body = (found.group(i) for i in order)
            if not signed:
                body, negative = _negative(body, negative)
                body, signed = _signed(body)
    if mark not in ("", "%") and not body and signed == "-":
        return Reading(0.0, mark)  # accountants write $ - for nothing
    if (negative and signed) or not body or body[0] in "+-":
        return None
    value = _plain_number(body, decimal)
    if value is None and _GROUPS[decimal].fullmatch(body):
        value = float("".join(c if c.isdigit() else "." * (c == decimal) for c in body))
    if value is None:
        return None
    value = value / 100 if percent else value
    return Reading(-value if negative or signed == "-" else value, mark)


def _negative(body: str, already: bool) -> tuple[str, bool]:
    """Take off the parentheses around a negative number, once."""
    if not already and body[:1] == "(" and body[-1:] == ")":
        return body[1:-1].strip(), True
    return body, already


def _signed(body: str) -> tuple[str, str]:
    """Cut off a leading sign."""
    return (body[1:].lstrip(), body[0]) if body[:1] in ("-", "+") else (body, "")


def _plain_number(text: str, decimal: str) -> float | None:
    if decimal == ",":
        if "," in text:
            unsigned = text[1:] if text[:1] in ("-", "+") else text
            return float(text.replace(",", ".")) if _DECIMAL_COMMA.fullmatch(unsigned) else None
        if "." in text:
            return None
    try:
        value = math.nan if "_" in text else float(text)
    except ValueError:
        return None
    return None if math.isnan(value) else value


_NAMES = "january february march april may june july august september october november december"
_MONTHS = {name[:num]: i for i, name in enumerate(_NAMES.split(), 1) for num in (3, 4, len(name))}
_CLOCK = r"(\d{1,3}):(\d\d)(?::(\d\d(?:[.,]\d+)?))?(?:\s*([AaPp])\.?[Mm]\.?)?"
_ZONE = r"\s*(Z|UTC|GMT|[+-]\d\d(?::?\d\d)?)?"
_DATES = (
    ("ymd", r"(\d{4})([-/.])(\d\d?)\2(\d\d?)"),
    ("xyy", r"(\d\d?)([-/.])(\d\d?)\2(\d{4})"),
    ("xyy", r"(\d\d?)(/)(\d\d?)/(\d\d)"),
    ("dmy", r"(\d\d?)([- ])([A-Za-z]{3,9})\.?,?\2(\d{4}|\d\d)"),
    ("mdy", r"([A-Za-z]{3,9})(\.?) (\d\d?),? (\d{4})"),
)
_FORMS = [
    (order, re.compile(rf"{date}(?:(?:T|,?\s+){_CLOCK}{_ZONE})?", re.ASCII))
    for order, date in _DATES
]
_TIME = re.compile(_CLOCK, re.ASCII)
_MONTH = re.compile(r"(\d{4})-(\d\d)|([A-Za-z]{3,9})\.? (\d{4})", re.ASCII)


def read_time(text: str, first: str) -> Reading | None:
    """Read a date, with or without a time, or a time of day.

    `first`, "day" or "month", says how 03/04/2020 is read; with points, 03.04.2020, the day is always first.
    A year of two digits is one of 1970 to 2069. A time zone counts: the value is that of UTC.
    """
    if not any(map(str.isdigit, text)) or len(text) > 40:
        return None
    text = text.translate(_MINUS)
    found = _TIME.fullmatch(text)
    if found:
        hours, short = _hours(found.groups(), 1000), found.group(3) is None
        form = ("h:m" if short else "h:m:s") + " am/pm" * bool(found.group(4))
        return None if hours is None else Reading(hours, form)
    found = _MONTH.fullmatch(text)
    if found:
        year, month = found.group(1) or found.group(4), found.group(2) or found.group(3)
        day = _day(year, month, "1")
        return None if day is None else Reading(day, "month")
    for order, form in _FORMS:
        found = form.fullmatch(text)
        if found:
            return _date(order, found.groups(), first)
    return None


def _date(order: str, parts: tuple[str, ...], first: str) -> Reading | None:
    one, mark, two, three, *clock, zone = parts
    if order == "xyy":
        order = "dmy" if first == "day" or mark == "." else "mdy"
    named = dict(zip(order, (one, two, three), strict=True))
    day = _day(named["y"], named["m"], named["d"])
    hours = 0.0 if clock[0] is None else _hours(clock, 24)
    if day is None or hours is None:
        return None
    if zone is None:
        return Reading(day + hours / 24, "date")
    if zone[0] in "+-":
        digits = zone[1:].replace(":", "").ljust(4, "0")
        shift = int(digits[:2]) + int(digits[2:]) / 60
        hours -= shift if zone[0] == "+" else -shift
    return Reading(day + hours / 24, "date with zone")


def _day(year: str, month: str, day: str) -> float | None:
    number = int(month) if month.isdigit() else _MONTHS.get(month.lower(), 0)
    full = int(year) + (0 if len(year) == 4 else 1900 if int(year) >= 70 else 2000)
    try:
        date = datetime.date(full, number, int(day))
    except ValueError:
        return None
    return float(date.toordinal() - datetime.date(1970, 1, 1).toordinal())


def _hours(parts, below: int) -> float | None:
    hour, minute, second, half = parts
    hours, minutes = int(hour), int(minute)
    seconds = float((second or "0").replace(",", "."))
    if half:
        if not 1 <= hours <= 12:
            return None
        hours = hours % 12 + 12 * (half in "Pp")
    if hours >= below or minutes >= 60 or seconds >= 60:
        return None
    return hours + minutes / 60 + seconds / 3600
