"""From the bytes of a CSV file to a table of texts: encoding, delimiter, rows."""

import codecs
import csv
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hypergrad.core.checks import library
from tasks.arrays import MAX_BYTES

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
"""Delimiters that are looked for, with what people call them."""
_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


class Cells(NamedTuple):
    """The cells of a file as texts.

    Attributes:
        header: names of the columns; "" for one without.
        lines: int `[N]`, the line of the file in which each row ends, from 1.
        columns: str objects `[N]` for each column, without spaces around them.
        delimiter: what stands between cells.
    """

    header: list[str]
    lines: np.ndarray
    columns: list[np.ndarray]
    delimiter: str


class _Rows(NamedTuple):
    """Of each record: the line where it ends, its number of cells, and that of the last one not empty."""

    lines: np.ndarray
    counts: np.ndarray
    ends: np.ndarray


def read_cells(path: Path, delimiter: str | None, encoding: str | None) -> Cells:
    """Read a file with one header row as texts; rows without any text are skipped.

    The csv module counts the cells of each row, because pandas fills short rows without a word; pandas
    then reads them.

    Args:
        path: of the file.
        delimiter: one character; where None, that of a first line `sep=;`, or the one of `DELIMITERS` that cuts
            every row into as many cells as the header.
        encoding: of the file; that of its byte order mark, or UTF-8, where None.

    Raises:
        ValueError: in one line, for whatever is wrong with it.
    """
    pandas = library("pandas", "zoo", "extra")
    text, skipped, delimiter = _without_sep_line(_text(path, encoding), delimiter)
    delimiter, rows = _delimited(path, text, delimiter, skipped)
    kept = np.flatnonzero(rows.ends)
    if len(kept) < 2:
        raise ValueError(
            f"data {str(path)!r} has {len(kept)} rows, expected a header and at least one example"
        )
    try:
        frame = pandas.read_csv(
            io.StringIO(text, newline=""),
            sep=delimiter,
            header=None,
            names=list(range(rows.counts.max())),
            index_col=False,
            dtype=str,
            keep_default_na=False,
            na_filter=False,
            skip_blank_lines=False,
            skipinitialspace=True,
            low_memory=False,
        )
    except (pandas.errors.ParserError, UnicodeError) as error:
        raise _broken(path, str(error).splitlines()[0][:100]) from None
    if len(frame) != len(rows.lines):
        raise _broken(path, f"{len(rows.lines)} rows by csv, {len(frame)} by pandas")
    columns = [_stripped(pandas, frame[i].iloc[kept]) for i in frame]
    lines = rows.lines[kept] + skipped
    names = [column[0] for column in columns]
    shape = _Rows(lines, rows.counts[kept], rows.ends[kept])
    header = _header(path, names, columns[0], shape, delimiter)
    used = columns[: len(header)]
    return Cells(header, lines[1:], [column[1:] for column in used], delimiter)


def _stripped(pandas, column) -> np.ndarray:
    codes, texts = pandas.factorize(column.fillna("").to_numpy(object))
    return np.array([text.strip() for text in texts], dtype=object)[codes]


def _broken(path: Path, reason: str, line: int | None = None) -> ValueError:
    where = "" if line is None else f" in line {line}"
    return ValueError(
        f"data {str(path)!r} is broken{where} ({reason}), expected a CSV file; check its quotes"
    )


def _text(path: Path, encoding: str | None) -> str:
    """Decode a file, without its byte order mark."""
    content = _content(path)
    if content.startswith((b"PK\3\4", b"\x1f\x8b")):
        raise ValueError(
            f"data {str(path)!r} is an archive, as the workbooks of spreadsheets are, expected a CSV file; "
            "export or unpack it"
        )
    mark = next((mark for mark in _MARKS if content.startswith(mark)), b"")
    name = encoding or _MARKS.get(mark, "utf-8")
    try:
        text = content[len(mark) :].decode(name)
    except LookupError:
        raise ValueError(
            f"encoding is {encoding!r:.80}, expected one that Python knows; pass e.g. encoding='cp1252'"
        ) from None
    except UnicodeError as error:
        # the decoder counts from behind the byte order mark
        byte = getattr(error, "start", 0) + len(mark)
        raise ValueError(
            f"data {str(path)!r} is not {name.upper()} at byte {byte}, expected {name.upper()} text; "
            "convert it, or name its encoding, e.g. encoding='cp1252' for an older Windows"
        ) from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ValueError(
            f"data {str(path)!r} is no text: it has a zero byte in line {line}, expected a CSV file; name a "
            "text file, or its encoding, e.g. encoding='utf-16'"
        )
    return text


def _content(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(
            f"data {str(path)!r} cannot be read ({error.strerror}); check its permissions"
        ) from None
    if len(content) > MAX_BYTES:
        raise ValueError(
            f"data {str(path)!r} has over {MAX_BYTES} bytes, expected less; take a sample"
        )
    return content


def _without_sep_line(text: str, delimiter: str | None) -> tuple[str, int, str | None]:
    """Cut off a first line `sep=;`, as spreadsheets write it, and take the delimiter that it names."""
    first, end, rest = text.partition("\n")
    words = first.rstrip("\r").strip('"')
    if words[:4].lower() != "sep=" or len(words) != 5:
        return text, 0, delimiter
    return rest, len(end), delimiter or words[4]


def _delimited(path: Path, text: str, given: str | None, skipped: int) -> tuple[str, _Rows]:
    """Return the delimiter that cuts every row into as many cells as the header, and the shape of the file."""
    if given is not None:
        return given, _rows(path, text, given, skipped)
    widths = {one: _first_width(text, one) for one in DELIMITERS}
    wide = [one for one, width in widths.items() if width > 1]
    if not wide:
        _refuse_spaces(path, text)
    if len(wide) < 2:
        one = wide[0] if wide else ","
        return one, _rows(path, text, one, skipped)
    found = {}
    for one in wide:
        try:
            found[one] = _rows(path, text, one, skipped)
        except ValueError:
            continue
    fitting = [one for one in found if _fits(found[one])]
    if len(fitting) > 1:
        names = " or ".join(f"{DELIMITERS[one]}s" for one in fitting)
        raise ValueError(
            f"data {str(path)!r} can be cut at {names}, expected one delimiter; pass e.g. "
            f"delimiter={fitting[0]!r}"
        )
    one = fitting[0] if fitting else max(wide, key=lambda one: widths[one])
    return one, found[one] if one in found else _rows(path, text, one, skipped)


def _refuse_spaces(path: Path, text: str) -> None:
    """Raise a `ValueError` where spaces cut the first rows into as many cells, and nothing else cuts them."""
    rows = [line for line in text.splitlines()[:10] if line.strip()]
    single, several = ({len(cut) for cut in map(by, rows)} for by in (_at_each_space, str.split))
    if len(several) == 1 and several != {1}:
        num = next(iter(several))
        how = "pass delimiter=' '"
        if single != several:
            how = "write it with one delimiter, as pandas.read_csv(path, sep=r'\\s+').to_csv(path, index=False)"
        raise ValueError(
            f"data {str(path)!r} is cut at spaces, into {num} cells a row, expected commas, semicolons, tabs "
            f"or bars; {how}"
        )


def _at_each_space(line: str) -> list[str]:
    return line.split(" ")


def _reader(text: str, delimiter: str):
    file = io.StringIO(text, newline="")
    return csv.reader(file, strict=True, delimiter=delimiter, skipinitialspace=True)


def _first_width(text: str, delimiter: str) -> int:
    try:
        return next((len(row) for row in _reader(text, delimiter) if any(map(str.strip, row))), 0)
    except csv.Error:
        return 0


def _rows(path: Path, text: str, delimiter: str, skipped: int) -> _Rows:
    reader, found = _reader(text, delimiter), []
    try:
        for row in reader:
            end = len(row)
            while end and not row[end - 1].strip():
                end -= 1
            found.append((reader.line_num, len(row), end))
    except csv.Error as error:
        raise _broken(path, str(error), reader.line_num + skipped) from None
    return _Rows(*np.array(found, dtype=np.int64).reshape(-1, 3).T)


def _fits(rows: _Rows) -> bool:
    """Tell whether every row has as many cells as the header, but for empty ones behind it."""
    kept = np.flatnonzero(rows.ends)
    width = rows.ends[kept[0]]
    return bool(((rows.ends[kept] <= width) & (width <= rows.counts[kept])).all())


def _header(
    path: Path, names: list[str], firsts: np.ndarray, rows: _Rows, delimiter: str
) -> list[str]:
    """Return the names of the columns that count.

    Empty cells behind the last name belong to no column. A table of R has a name less than columns: its
    first column, the names of the rows, has none. With commas such a file is refused, because decimal
    commas without quotes look the same.
    """
    counts, width = rows.counts, rows.ends[0]
    if (rows.ends > width).any() and (counts == counts[0]).all():
        width = counts[0]  # a column without a name, which is refused unless it is an index
    elif (rows.ends[1:] == width + 1).all() and delimiter != ",":
        return ["", *names[:width]]
    wrong = np.flatnonzero((rows.ends > width) | (counts < width))
    if len(wrong):
        first = wrong[0]
        advice = "mend that row"
        notes = [i for i in (0, first) if firsts[i][:1] == "#" and len(firsts[i]) > 1]
        if notes:
            advice = f"remove the comment in row {rows.lines[notes[0]]}"
        elif counts[first] > width:
            advice += (
                f", and put cells that hold a {DELIMITERS.get(delimiter, 'delimiter')} in quotes"
            )
        raise ValueError(
            f"data {str(path)!r} has {counts[first]} fields in row {rows.lines[first]}, expected {width} as in "
            f"the header; {advice}"
        )
    return names[:width]
