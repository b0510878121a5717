"""A column of texts, and what each of them says when read in each way."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from tasks.cells import MISSING, Reading, read_number, read_time

KINDS = ("number", "time", "text", "skip")
"""What a column can be taken as by request."""
WAYS = {"number": (".", ","), "time": ("day", "month")}
"""Ways to read a cell, by kind: the mark before decimals, and what stands first in a date."""
READ: dict[str, Callable[[str, str], Reading | None]] = {"number": read_number, "time": read_time}
OPTION = {"number": "decimal", "time": "dates"}
"""Option that decides between the two ways."""


class Dialect(NamedTuple):
    """What a user says of how a file is written; None leaves it to the file.

    Attributes:
        delimiter: one character between cells.
        encoding: of the file, as Python names it.
        decimal: "." or ",", what stands before decimals where a column reads both ways.
        dates: "day" or "month", what stands first in dates such as 03/04/2020 where a column reads both ways.
        missing: words that are missing in every column; where None, `MISSING` in columns of numbers.
        kinds: column -> "number" or "time" (other cells are missing), "text", or "skip".
    """

    delimiter: str | None = None
    encoding: str | None = None
    decimal: str | None = None
    dates: str | None = None
    missing: Sequence[str] | None = None
    kinds: dict[str, str] = {}  # noqa: RUF012, never changed


def missing_words(dialect: Dialect) -> frozenset[str]:
    """Return the words for missing in lower case; the empty cell is missing besides."""
    return MISSING if dialect.missing is None else frozenset(map(str.lower, dialect.missing))


class Draft:
    """A column with its different texts, counted, and what they say when read in each way."""

    def __init__(self, name: str, texts: np.ndarray, dialect: Dialect):
        self.name, self.texts = name, texts
        self.different, self.rows, self.codes, self.counts = np.unique(
            texts, return_index=True, return_inverse=True, return_counts=True
        )
        words = missing_words(dialect)
        self.word = np.array([text.lower() in words for text in self.different], bool)
        self.empty = self.different == ""
        self.known = ~self.word & ~self.empty
        self.num_known = int(self.counts[self.known].sum())
        self.read = {
            way: np.full(len(self.different), np.nan) for ways in WAYS.values() for way in ways
        }
        asked = dialect.kinds.get(name)
        for kind in WAYS if asked is None else {asked} & set(WAYS):
            if not self._whole():
                self._read_all(kind)
        self.good = {way: int(self.counts[~np.isnan(v)].sum()) for way, v in self.read.items()}

    def _whole(self) -> bool:
        """Tell whether one way reads every cell."""
        return any(not np.isnan(values[self.known]).any() for values in self.read.values())

    def _read_all(self, kind: str) -> None:
        """Read in both ways; where the first reads every cell, the other counts only if it does, too."""
        one, two = WAYS[kind]
        self.read[one] = self._read(kind, one)
        function, texts = READ[kind], self.different[self.known]
        if not self._whole() or all(function(text, two) for text in texts):
            self.read[two] = self._read(kind, two)

    def _read(self, kind: str, way: str) -> np.ndarray:
        """Return a value a different text, NaN for one that says nothing in this way or has an odd mark."""
        function = READ[kind]
        found = [
            function(text, way) if known else None
            for text, known in zip(self.different, self.known, strict=True)
        ]
        values = np.array([np.nan if one is None else one.value for one in found])
        marks = np.array(["" if one is None else one.mark for one in found], dtype=object)
        weights = self.counts * ~np.isnan(values)
        totals = {mark: int(weights[marks == mark].sum()) for mark in set(marks)}
        fit = np.isin(marks, list(_marks_alike(kind, totals))) | (
            (values == 0) & (kind == "number")
        )
        return np.where(fit, values, np.nan)

    def best(self, kind: str) -> list[str]:
        """Return the ways that read the most cells, one alone where all give the same."""
        most = max(self.good[way] for way in WAYS[kind])
        ways = [way for way in WAYS[kind] if self.good[way] == most]
        if len(ways) == 2 and np.array_equal(*(self.read[way] for way in ways), equal_nan=True):
            return ways[:1]
        return ways

    def settled(self, kind: str) -> bool:
        """Tell whether every cell reads in one way, and not in the other: evidence for other columns."""
        one, two = (self.good[way] == self.num_known for way in WAYS[kind])
        return one != two


def _marks_alike(kind: str, totals: dict[str, int]) -> set[str]:
    """Return the marks that may stand in one column: percentages alone, one currency beside plain numbers."""
    if not totals:
        return set()
    if kind == "time":
        return {max(totals, key=lambda mark: (totals[mark], mark))}
    money = {mark: n for mark, n in totals.items() if mark not in ("", "%")}
    if totals.get("%", 0) > totals.get("", 0) + sum(money.values()):
        return {"%"}
    return {"", *([max(money, key=lambda mark: (money[mark], mark))] if money else [])}
