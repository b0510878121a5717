"""Read and encode the user's tables, strictly: every refusal is one line that says what to do."""

import csv
import difflib
import io
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hypergrad.core.checks import is_whole
from tasks.arrays import MAX_BYTES, find_file, read_idx, read_npz

__all__ = [
    "Table",
    "check_batch",
    "encode",
    "encode_labels",
    "read_csv",
    "read_idx",
    "read_npz",
    "split",
]

MISSING = {"", "?", "na", "nan", "null", "none"}
MAX_CATEGORIES = 1000
"""Most values of a categorical column: more are names or numbers of the rows, not categories."""
MAX_CLASSES = 20
"""Most different whole numbers that are taken for classes where `kind` is not given."""
MAX_SCALED = 1e6
"""Where standardized numbers are clipped, in standard deviations of the training set."""


class Table(NamedTuple):
    """A table of columns.

    Attributes:
        names: of the feature columns.
        columns: one array a feature: float64 `[N]` with NaN where missing, or str objects with "".
        label_name: of the label column.
        labels: str `[N]`, as they stand in the file.
    """

    names: list[str]
    columns: list[np.ndarray]
    label_name: str
    labels: np.ndarray


def read_csv(path: str | Path, label: str | None) -> Table:
    """Read a CSV file with one header row.

    A column is numeric if all its known values are numbers. Missing: empty, ?, NA, NaN, null, None.
    Blank lines are skipped; refusals count rows as an editor does, by their line in the file.

    Args:
        path: of the file, UTF-8, at most 1 GiB.
        label: name of the label column; the last one where None.

    Raises:
        ValueError: in one line, for whatever is wrong with it.
    """
    path = find_file(path)
    rows = _rows(path)
    if len(rows) < 2:
        raise ValueError(
            f"data {str(path)!r} has {len(rows)} rows, expected a header and at least one example"
        )
    header = [name.strip() for name in rows[0][1]]
    _check_header(path, header)
    for line, row in rows[1:]:
        if len(row) != len(header):
            raise ValueError(
                f"data {str(path)!r} has {len(row)} fields in row {line}, expected {len(header)} as in "
                "the header; mend that row"
            )
    label = header[-1] if label is None else label
    if label not in header:
        near = difflib.get_close_matches(label, header, n=3) or header[:5]
        hint = ", ".join(map(repr, near))[:200]
        raise ValueError(
            f"label is {label!r}, expected a column of {str(path)!r}; the nearest are {hint}"
        )
    lines = [line for line, _ in rows[1:]]
    texts = np.array([[field.strip() for field in row] for _, row in rows[1:]], dtype=object)
    index = header.index(label)
    unlabelled = [line for line, v in zip(lines, texts[:, index], strict=True) if _missing(v)]
    if unlabelled:
        raise ValueError(
            f"label {label!r} is missing in row {unlabelled[0]} of {str(path)!r}, expected a label in "
            "every row; drop that row"
        )
    others = [(i, name) for i, name in enumerate(header) if name != label]
    if not others:
        raise ValueError(
            f"data {str(path)!r} has the label only, expected a feature column beside it; "
            "separate columns by commas"
        )
    columns = [_column(path, name, lines, texts[:, i]) for i, name in others]
    return Table([name for _, name in others], columns, label, texts[:, index].astype(str))


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """Read the rows that are not blank, each with the number of its last line in the file."""
    content = _content(path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # the decoder counts from behind the byte order mark
        byte = error.start + (3 if content.startswith(b"\xef\xbb\xbf") else 0)
        raise ValueError(
            f"data {str(path)!r} is not UTF-8 at byte {byte}, expected UTF-8 text; convert it"
        ) from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        return [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise ValueError(
            f"data {str(path)!r} is broken in line {reader.line_num} ({error}), expected a CSV file; "
            "check its quotes"
        ) from None


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


def _missing(text: str) -> bool:
    return text.lower() in MISSING


def _check_header(path: Path, header: list[str]) -> None:
    seen = set()
    for name in header:
        if not name:
            raise ValueError(
                f"data {str(path)!r} has a column without a name, expected a header row; name it"
            )
        if name in seen:
            raise ValueError(
                f"data {str(path)!r} has two columns {name!r}, expected different names; rename one"
            )
        seen.add(name)


def _column(path: Path, name: str, lines: list[int], texts: np.ndarray) -> np.ndarray:
    missing = np.array([_missing(text) for text in texts])
    try:
        values = np.array(
            [math.nan if m else _number(t) for t, m in zip(texts, missing, strict=True)]
        )
    except ValueError:
        return np.where(missing, "", texts).astype(object)
    infinite = np.flatnonzero(np.abs(values) > np.finfo(np.float32).max)
    if len(infinite):
        first = infinite[0]
        raise ValueError(
            f"data {str(path)!r} holds an infinity in column {name!r}, row {lines[first]}: "
            f"{texts[first][:40]!r}, expected finite float32 numbers; mend it or leave it empty"
        )
    return values


def _number(text: str) -> float:
    """Parse a number as a CSV file has it; Python's own spelling 1_000 does not count as a number."""
    if "_" in text:
        raise ValueError(text)
    return float(text)


def split(num: int, fractions: tuple[float, float], seed: int, labels=None) -> list[np.ndarray]:
    """Split indices into disjoint train, valid and test parts, stratified by `labels` where given.

    Args:
        num: number of examples.
        fractions: share of validation and test examples, each above 0, together below 1.
        seed: of the shuffle.
        labels: int `[num]`, or None.
    """
    if min(fractions) <= 0 or sum(fractions) >= 1:
        raise ValueError(
            f"fractions is {fractions}, expected two shares above 0 that leave some to train; "
            "pass e.g. (0.2, 0.2)"
        )
    random = np.random.default_rng(seed)
    groups = (
        [np.arange(num)]
        if labels is None
        else [np.flatnonzero(labels == c) for c in np.unique(labels)]
    )
    parts: list[list[np.ndarray]] = [[], [], []]
    for group in groups:
        order = random.permutation(group)
        num_valid, num_test = (round(f * len(order)) for f in fractions)
        cuts = [len(order) - num_valid - num_test, len(order) - num_test]
        for part, piece in zip(parts, np.split(order, cuts), strict=True):
            part.append(piece)
    whole = [np.sort(np.concatenate(part)) for part in parts]
    for name, part in zip(("training", "validation", "test"), whole, strict=True):
        if not len(part):
            classes = "" if labels is None else f" of {len(groups)} classes"
            raise ValueError(
                f"data has {num} examples{classes}, expected enough for a {name} set; bring more, "
                "or check the label column"
            )
    return whole


def encode(table: Table, train: np.ndarray) -> np.ndarray:
    """Encode features as float32 `[N, D]` with statistics of the `train` rows only.

    Numbers are standardized and clipped at `MAX_SCALED`, so that none is infinite as float32; missing
    ones are the mean, with an indicator column beside. Categories are one-hot, and all zero where
    missing or not seen in training.

    Raises:
        ValueError: for a column with too many categories, or where nothing is left to learn from.
    """
    blocks = [
        _one_hot(name, column, train) if column.dtype == object else _standardized(column, train)
        for name, column in zip(table.names, table.columns, strict=True)
    ]
    inputs = np.concatenate(blocks, 1)
    if not inputs.shape[1]:
        raise ValueError(
            "data has no feature with a known value in the training set, expected at least one; "
            "check for empty columns"
        )
    return inputs


def _one_hot(name: str, column: np.ndarray, train: np.ndarray) -> np.ndarray:
    seen = sorted({value for value in column[train] if value})
    if len(seen) > MAX_CATEGORIES:
        raise ValueError(
            f"data has {len(seen)} different texts in column {name!r}, expected at most {MAX_CATEGORIES} "
            "categories; drop that column"
        )
    block = np.zeros((len(column), len(seen)), np.float32)
    for position, value in enumerate(seen):
        block[:, position] = column == value
    return block


def _standardized(column: np.ndarray, train: np.ndarray) -> np.ndarray:
    missing = np.isnan(column)
    known = column[train][~missing[train]]
    mean, scale = (known.mean(), known.std()) if len(known) else (0.0, 0.0)
    if scale <= 1e-12 * abs(mean):  # constant up to rounding
        scale = 1.0
    with np.errstate(over="ignore"):
        values = np.where(missing, 0.0, (column - mean) / scale)
    values = np.clip(values, -MAX_SCALED, MAX_SCALED).astype(np.float32)[:, None]
    if not missing.any():
        return values
    return np.concatenate([values, missing[:, None].astype(np.float32)], 1)


def encode_labels(table: Table, kind: str | None) -> tuple[np.ndarray, list[str] | None]:
    """Encode labels as int32 classes with their names, or as float32 numbers and None.

    Args:
        table: whose labels to encode.
        kind: "classification", "regression", or None: classification for texts and for at most
            `MAX_CLASSES` different whole numbers, regression for other numbers.
    """
    if kind not in (None, "classification", "regression"):
        raise ValueError(
            f"kind is {kind!r}, expected 'classification' or 'regression'; pass one of them"
        )
    try:
        numbers = np.array([_number(text) for text in table.labels])
    except ValueError:
        numbers = None
    if kind == "regression" and numbers is None:
        raise ValueError(
            f"label {table.label_name!r} is not numeric, expected numbers for kind='regression'; "
            "leave kind out"
        )
    if numbers is not None and not (np.abs(numbers) <= np.finfo(np.float32).max).all():
        raise ValueError(
            f"label {table.label_name!r} holds NaN or infinity, expected finite numbers; mend it"
        )
    # as numbers 1 and 1.0 are one class, as texts they would be two
    names, classes = np.unique(table.labels if numbers is None else numbers, return_inverse=True)
    if len(names) < 2:
        raise ValueError(
            f"label {table.label_name!r} has one class, {str(table.labels[0])!r}, expected at least two; "
            "check the column"
        )
    if kind is None and numbers is not None:
        few = len(names) <= MAX_CLASSES and (numbers == np.round(numbers)).all()
        kind = "classification" if few else "regression"
    if kind == "regression":
        assert numbers is not None
        return numbers.astype(np.float32), None
    if numbers is not None:
        return classes.astype(np.int32), [f"{name:.15g}" for name in names]
    return classes.astype(np.int32), [str(name) for name in names]


def check_batch(batch_size: int, num_train: int) -> None:
    """Raise a `ValueError` unless a batch fits in the training set."""
    if not is_whole(batch_size) or not 1 <= batch_size <= num_train:
        raise ValueError(
            f"batch_size is {batch_size!r}, expected 1 to {num_train}, the size of the training set; "
            "pass a smaller one"
        )
