"""Tables that a task adds for people, such as how the columns of its file were read."""

from typing import Any, NamedTuple

from hypergrad.report.text import clean

MAX_NOTE_ROWS = 200
"""Most rows of a table on a page; the others are in `result.json`."""


class Note(NamedTuple):
    """A table as it is shown: texts without control characters, cut to a length.

    Attributes:
        title: What it says.
        names: Names of its columns.
        rows: Its cells, at most `MAX_NOTE_ROWS` rows.
        left: Number of rows that are left out.
    """

    title: str
    names: list[str]
    rows: list[list[str]]
    left: int


def is_notes(notes: Any) -> bool:
    """Tell whether notes are tables by title: lists of dicts of texts and numbers with the same names."""
    return isinstance(notes, dict) and all(
        isinstance(title, str) and isinstance(rows, list) and _is_table(rows)
        for title, rows in notes.items()
    )


def _is_table(rows: list[Any]) -> bool:
    return all(
        isinstance(row, dict)
        and row
        and list(row) == list(rows[0])
        and all(isinstance(name, str) for name in row)
        and all(value is None or isinstance(value, (str, int, float)) for value in row.values())
        for row in rows
    )


def shown_notes(notes: dict[str, list[dict[str, Any]]], most: int = MAX_NOTE_ROWS) -> list[Note]:
    """Return notes as they are shown, with at most `most` rows each."""
    return [
        Note(
            clean(title, 200),
            [clean(name, 40) for name in rows[0]],
            [
                ["" if x is None else clean(str(x), 100) for x in row.values()]
                for row in rows[:most]
            ],
            max(0, len(rows) - most),
        )
        for title, rows in notes.items()
        if rows
    ]
