"""How the columns of a table are taken, each as a whole: numbers, times, booleans, texts or an index."""

import contextlib
from typing import NamedTuple

import numpy as np

from tasks.cells import ERRORS
from tasks.csv_file import Cells
from tasks.drafts import OPTION, READ, WAYS, Dialect, Draft

_INDEX = "index id row rows row_id rowid rownames unnamed:_0 level_0 # no nr"
INDEX_NAMES = frozenset(_INDEX.split())
"""Names, in lower case with _ for spaces, of columns that are left out where they count the rows."""
MAX_CODES = 20
"""Most different numbers that are taken for categories beside texts, as 2, 3, 4 and 5more."""


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
    drafts = [Draft(*column, dialect) for column in zip(cells.header, cells.columns, strict=True)]
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


def _is_index(position: int, draft: Draft) -> bool:
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


def _kind(where: str, draft: Draft, lines: np.ndarray, label: str) -> str:
    """Return the kind of a column, or refuse it where a few cells are unlike the rest, or all unlike."""
    num = draft.num_known
    if not num:
        return "number"
    words = draft.different[draft.known]
    if len(words) <= 4 and set(map(str.lower, words)) <= {"true", "false"}:
        return "boolean"
    kind = max(WAYS, key=lambda kind: draft.good[draft.best(kind)[0]])
    way = draft.best(kind)[0]
    if draft.good[way] == num:
        return kind
    if _is_categories(draft):
        if draft.name != label:
            _check_texts(where, draft, lines)
        return "text"
    alike, odd = _alike(draft, kind, way), draft.known & np.isnan(draft.read[way])
    raise ValueError(
        f"{_place(where, draft, odd, lines)}, where {draft.good[way]} of {num} cells are {alike}, "
        f"expected {alike} only; mend it, or pass kinds={{{draft.name!r}: {kind!r}}} to count it as missing, "
        "or 'text' for categories"
    )


def _is_categories(draft: Draft) -> bool:
    """Tell whether texts are categories, some of which may be written as numbers, or numbers with odd cells."""
    values = np.array([_says_something(text) for text in draft.different], bool) & draft.known
    texts = draft.known & ~values
    num_values, num_texts = int(draft.counts[values].sum()), int(draft.counts[texts].sum())
    if not num_values:
        return True
    if num_texts <= 1 or num_texts < 0.1 * draft.num_known or ERRORS & set(draft.different):
        return False
    codes = values.sum() <= MAX_CODES and num_values >= 2 * values.sum()
    whole = all(text.isdigit() for text in draft.different[values])
    return bool((codes and whole) or values.sum() < texts.sum())


def _says_something(text: str) -> bool:
    """Tell whether a cell is a number, a time or a boolean, in any way."""
    if text.lower() in ("true", "false"):
        return True
    return any(READ[kind](text, way) for kind, ways in WAYS.items() for way in ways)


def _check_texts(where: str, draft: Draft, lines: np.ndarray) -> None:
    """Refuse texts most of which occur once: one-hot, they would say nothing of other rows. Refuse errors."""
    errors = np.isin(draft.different, list(ERRORS)) & draft.known
    if errors.any():
        words = [str(text) for text in draft.different[errors]]
        raise ValueError(
            f"{_place(where, draft, errors, lines)}, where a formula failed, expected its value; mend it, or "
            f"pass missing={words}"
        )
    once = draft.known & (draft.counts == 1)
    if once.sum() > max(MAX_CODES, draft.num_known / 2):
        raise ValueError(
            f"{_place(where, draft, once, lines)}, where {once.sum()} of {draft.num_known} texts occur once, "
            "expected numbers or categories; write numbers without units and dates as 2024-01-31, or pass "
            f"kinds={{{draft.name!r}: 'skip'}}, or 'text' for categories"
        )


def _place(where: str, draft: Draft, which: np.ndarray, lines: np.ndarray) -> str:
    """Name the first row that has one of the texts that are meant, a mask over the different ones."""
    row = int(draft.rows[which].min())
    return (
        f"{where} holds {str(draft.texts[row])[:40]!r} in column {draft.name!r}, row {lines[row]}"
    )


def _alike(draft: Draft, kind: str, way: str) -> str:
    """Say what the cells have alike that are read."""
    read = [READ[kind](text, way) for text in draft.different[~np.isnan(draft.read[way])]]
    marks = {one.mark for one in read if one is not None} - {""}
    mark = next(iter(marks), "")
    if kind == "time":
        return f"times of the form {mark}"
    return "percentages" if mark == "%" else f"numbers in {mark}" if mark else "plain numbers"


def _way(
    where: str, draft: Draft, kind: str, lines: np.ndarray, evidence: set[str], dialect: Dialect
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
    where: str, draft: Draft, kind: str, way: str, lines: np.ndarray, asked: bool
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
        zeros = any(text[:1] == "0" and text[1:].isdigit() for text in texts)
        notes += ["leading zeros say nothing"] if zeros else []
    odd = draft.different[draft.known & np.isnan(read)] if asked else []
    notes += [f"missing: {_listed(draft, [*draft.different[draft.word], *odd])}"]
    if kind == "number" and counts_rows(draft.texts):
        notes.append("counts the rows")
    values = read[draft.codes]
    missing = np.isnan(values)
    return _column(draft, kind, values, missing, _example(draft, kind, values, missing), notes)


def _example(draft: Draft, kind: str, values: np.ndarray, missing: np.ndarray) -> str:
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


def _listed(draft: Draft, texts: list[str]) -> str:
    """List texts with how often each occurs, or nothing where there is none."""
    if not texts:
        return ""
    count = dict(zip(draft.different, draft.counts, strict=True))
    shown = [f"{text[:20]!r} ({count[text]})" for text in texts[:5]]
    return ", ".join(shown) + (f" and {len(texts) - 5} more" if len(texts) > 5 else "")


def _boolean(draft: Draft) -> Column:
    value = np.array(
        [{"true": 1.0, "false": 0.0}.get(text.lower(), np.nan) for text in draft.different]
    )
    values = value[draft.codes]
    missing = np.isnan(values)
    example = str(draft.texts[int(np.argmin(missing))])
    notes = [f"missing: {_listed(draft, list(draft.different[draft.word]))}"]
    return _column(draft, "boolean", values, missing, example, notes)


def _textual(draft: Draft, kind: str, dialect: Dialect) -> Column:
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
