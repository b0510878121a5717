"""How the columns of a table are taken, each as a whole: numbers, times, booleans, texts or an index."""

import contextlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from tasks.cells import MISSING, Reading, read_number, read_time
from tasks.csv_file import Cells

KINDS = ("number", "time", "text", "skip")
"""What a column can be taken as by request."""
WAYS = {"number": (".", ","), "time": ("day", "month")}
"""Ways to read a cell, by kind: the mark before decimals, and what stands first in a date."""
_READ: dict[str, Callable[[str, str], Reading | None]] = {"number": read_number, "time": read_time}
OPTION = {"number": "decimal", "time": "dates"}
"""Option that decides between the two ways."""
_INDEX = "index id row rows row_id rowid rownames unnamed:_0 level_0 # no nr"
INDEX_NAMES = frozenset(_INDEX.split())
"""Names, in lower case with _ for spaces, of columns that are left out where they count the rows."""
MAX_CODES = 20
"""Most different numbers that are taken for categories beside texts, as 2, 3, 4 and 5more."""


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


class Column(NamedTuple):
    """A column as it was taken.

    Attributes:
        name: its name.
        kind: "number", "time", "boolean", "text", "index" or "skip".
        values: float64 `[N]` with NaN where missing, or str objects with "" where missing.
        texts: str objects `[N]`, as they stand in the file.
        missing: bool `[N]`.
        example: the first cell that is not missing, and its value where that is written otherwise.
        note: what else a reader should know.
    """

    name: str
    kind: str
    values: np.ndarray
    texts: np.ndarray
    missing: np.ndarray
    example: str
    note: str


def missing_words(dialect: Dialect) -> frozenset[str]:
    """Return the words for missing in lower case; the empty cell is missing besides."""
    return MISSING if dialect.missing is None else frozenset(map(str.lower, dialect.missing))


class _Draft:
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
        function, texts = _READ[kind], self.different[self.known]
        if not self._whole() or all(function(text, two) for text in texts):
            self.read[two] = self._read(kind, two)

    def _read(self, kind: str, way: str) -> np.ndarray:
        """Return a value a different text, NaN for one that says nothing in this way or has an odd mark."""
        function = _READ[kind]
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


def take_columns(where: str, cells: Cells, label: str, dialect: Dialect) -> list[Column]:
    """Take each column as numbers, times, booleans, texts or an index, or refuse it.

    Args:
        where: the file, for messages.
        cells: of the file. The first name may be "", if that column is an index. Where the delimiter is a comma
            and nothing else decides, decimals have a point.
        label: name of a column that is no index.
        dialect: what the user says.

    Raises:
        ValueError: in one line, for a cell that is odd, or a column that reads two ways.
    """
    lines = cells.lines
    drafts = [_Draft(*column, dialect) for column in zip(cells.header, cells.columns, strict=True)]
    kinds = [
        dialect.kinds.get(d.name)
        or ("index" if d.name != label and _is_index(i, d) else _kind(where, d, lines, label))
        for i, d in enumerate(drafts)
    ]
    evidence = {
        kind: {
            d.best(kind)[0]
            for d, k in zip(drafts, kinds, strict=True)
            if k == kind and d.settled(kind)
        }
        for kind in WAYS
    }
    if not evidence["number"] and cells.delimiter == ",":
        evidence["number"] = {"."}
    taken = []
    for draft, kind in zip(drafts, kinds, strict=True):
        if kind in WAYS:
            way = _way(where, draft, kind, lines, evidence[kind], dialect)
            taken.append(
                _numeric(where, draft, kind, way, lines, bool(dialect.kinds.get(draft.name)))
            )
        elif kind == "boolean":
            taken.append(_boolean(draft))
        else:
            taken.append(_textual(draft, kind, dialect))
    return taken


def _is_index(position: int, draft: _Draft) -> bool:
    """Tell whether a column names or counts the rows, and says nothing of them."""
    num = len(draft.texts)
    if num < 2 or len(draft.different) < num or not draft.known.all():
        return False
    if draft.name and draft.name.lower().replace(" ", "_") not in INDEX_NAMES:
        return False
    if draft.name:
        return counts_rows(draft.texts)
    values = draft.read["."]
    return position == 0 and bool(np.all(np.isnan(values) | (values == np.round(values))))


def counts_rows(texts: np.ndarray) -> bool:
    """Tell whether texts are the whole numbers from 0 or 1 on."""
    first = {"0": 0, "1": 1}.get(texts[0]) if len(texts) > 1 else None
    return first is not None and all(text == str(i) for i, text in enumerate(texts, first))


def _kind(where: str, draft: _Draft, lines: np.ndarray, label: str) -> str:
    """Return the kind of a column, or refuse it where a few cells are unlike the rest, or all unlike."""
    num = draft.num_known
    if not num:
        return "number"
    words = draft.different[draft.known]
    if len(words) <= 4 and set(map(str.lower, words)) <= {"true", "false"}:
        return "boolean"
    kind = max(WAYS, key=lambda kind: draft.good[draft.best(kind)[0]])
    read = ~np.isnan(draft.read[draft.best(kind)[0]])
    good = int(draft.counts[read].sum())
    if good == num:
        return kind
    odd = draft.known & ~read
    numbers, texts = int(read.sum()), int(odd.sum())
    like_codes = numbers <= MAX_CODES and good >= 2 * numbers
    few = num - good == 1 or num - good < 0.1 * num
    if not good or not (few or (numbers >= texts and not like_codes)):
        if draft.name != label:
            _check_repeated(where, draft, lines)
        return "text"
    alike = _alike(draft, kind, draft.best(kind)[0])
    raise ValueError(
        f"{_place(where, draft, odd, lines)}, where {good} of {num} cells are {alike}, expected {alike} only; "
        f"mend it, or pass kinds={{{draft.name!r}: {kind!r}}} to count it as missing, or 'text' for categories"
    )


def _check_repeated(where: str, draft: _Draft, lines: np.ndarray) -> None:
    """Refuse texts most of which occur once: one-hot, they would say nothing of other rows."""
    once = draft.known & (draft.counts == 1)
    if once.sum() > max(MAX_CODES, draft.num_known / 2):
        raise ValueError(
            f"{_place(where, draft, once, lines)}, where {once.sum()} of {draft.num_known} texts occur once, "
            "expected numbers or categories; write numbers without units and dates as 2024-01-31, or pass "
            f"kinds={{{draft.name!r}: 'skip'}}, or 'text' for categories"
        )


def _place(where: str, draft: _Draft, which: np.ndarray, lines: np.ndarray) -> str:
    """Name the first row that has one of the texts that are meant, a mask over the different ones."""
    row = int(draft.rows[which].min())
    return (
        f"{where} holds {str(draft.texts[row])[:40]!r} in column {draft.name!r}, row {lines[row]}"
    )


def _alike(draft: _Draft, kind: str, way: str) -> str:
    """Say what the cells have alike that are read."""
    read = [_READ[kind](text, way) for text in draft.different[~np.isnan(draft.read[way])]]
    marks = {one.mark for one in read if one is not None} - {""}
    mark = next(iter(marks), "")
    if kind == "time":
        return f"times of the form {mark}"
    return "percentages" if mark == "%" else f"numbers in {mark}" if mark else "plain numbers"


def _way(
    where: str, draft: _Draft, kind: str, lines: np.ndarray, evidence: set[str], dialect: Dialect
) -> str:
    """Return the way in which a column is read, or refuse it where nothing decides."""
    ways = draft.best(kind)
    if len(ways) == 1:
        return ways[0]
    asked = dialect.decimal if kind == "number" else dialect.dates
    if asked is not None:
        return asked
    if len(evidence) == 1:
        return next(iter(evidence))
    one, two = (draft.read[way] for way in ways)
    other = (one != two) & ~np.isnan(one) & ~np.isnan(two)
    first = draft.codes[draft.rows[other].min()]
    meanings = " or ".join(_shown(kind, float(values[first])) for values in (one, two))
    choice = " or ".join(f"{OPTION[kind]}={way!r}" for way in ways)
    raise ValueError(
        f"{_place(where, draft, other, lines)}, which is {meanings}, expected one meaning; pass {choice}"
    )


def _shown(kind: str, value: float) -> str:
    if kind == "number":
        return f"{value:.15g}"
    return str(
        np.datetime64("1970-01-01", "s") + np.timedelta64(round(value * 86400), "s")
    ).removesuffix("T00:00:00")


def _numeric(
    where: str, draft: _Draft, kind: str, way: str, lines: np.ndarray, asked: bool
) -> Column:
    read = draft.read[way]
    infinite = np.abs(read) > np.finfo(np.float32).max
    if infinite.any():
        row = int(draft.rows[infinite].min())
        raise ValueError(
            f"{where} holds an infinity in column {draft.name!r}, row {lines[row]}: "
            f"{str(draft.texts[row])[:40]!r}, expected finite float32 numbers; mend it or leave it empty"
        )
    notes = []
    mark = "." if way == "," else ","
    if kind == "number":
        texts = draft.different[~np.isnan(read)]
        notes += ["decimal comma"] if any("," in text for text in texts) and way == "," else []
        notes += [f"{mark} between thousands"] if any(mark in text for text in texts) else []
    odd = draft.different[draft.known & np.isnan(read)] if asked else []
    notes += [f"missing: {_listed(draft, [*draft.different[draft.word], *odd])}"]
    if kind == "number" and counts_rows(draft.texts):
        notes.append("counts the rows")
    values = read[draft.codes]
    missing = np.isnan(values)
    return _column(draft, kind, values, missing, _example(draft, kind, values, missing), notes)


def _example(draft: _Draft, kind: str, values: np.ndarray, missing: np.ndarray) -> str:
    """Return the first cell that is not missing, with its value where Python would not read it like that."""
    if missing.all():
        return ""
    row = int(np.argmin(missing))
    text, value = str(draft.texts[row]), float(values[row])
    clock = kind == "time" and ":" in text[:4]  # no date has one so early
    shown = f"{value:.6g} h" if clock else _shown(kind, value)
    with contextlib.suppress(ValueError):
        if kind == "number" and float(text) == value:
            return text
    return text if text == shown else f"{text} = {shown}"


def _listed(draft: _Draft, texts: list[str]) -> str:
    """List texts with how often each occurs, or nothing where there is none."""
    if not texts:
        return ""
    count = dict(zip(draft.different, draft.counts, strict=True))
    shown = [f"{text[:20]!r} ({count[text]})" for text in texts[:5]]
    return ", ".join(shown) + (f" and {len(texts) - 5} more" if len(texts) > 5 else "")


def _boolean(draft: _Draft) -> Column:
    value = np.array(
        [{"true": 1.0, "false": 0.0}.get(text.lower(), np.nan) for text in draft.different]
    )
    values = value[draft.codes]
    missing = np.isnan(values)
    example = str(draft.texts[int(np.argmin(missing))])
    notes = [f"missing: {_listed(draft, list(draft.different[draft.word]))}"]
    return _column(draft, "boolean", values, missing, example, notes)


def _textual(draft: _Draft, kind: str, dialect: Dialect) -> Column:
    """Take a column as texts: only the empty cell is missing, and words that the user named."""
    gone = draft.empty if dialect.missing is None else draft.empty | draft.word
    missing = gone[draft.codes]
    values = np.where(missing, "", draft.texts).astype(object)
    example = "" if missing.all() else str(draft.texts[int(np.argmin(missing))])
    notes = ["left out"] if kind in ("index", "skip") else []
    if kind == "text":
        notes.append(f"{int((~gone).sum())} different")
        words = list(draft.different[draft.word & ~gone])
        notes += [f"not missing: {_listed(draft, words)}"] if words else []
    return _column(draft, kind, values, missing, example, notes)


def _column(draft, kind, values, missing, example, notes) -> Column:
    note = "; ".join(note for note in notes if note and note != "missing: ")
    return Column(draft.name, kind, values, draft.texts, missing, example[:60], note)
