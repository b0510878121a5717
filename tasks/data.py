"""Read and encode the user's tables, strictly: every refusal is one line that says what to do."""

import difflib
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hypergrad.core.checks import check_name, is_whole
from tasks.arrays import find_file, read_idx, read_npz
from tasks.cells import read_number
from tasks.columns import Column, take_columns
from tasks.csv_file import read_cells
from tasks.drafts import KINDS, OPTION, WAYS, Dialect, missing_words

__all__ = [
    "Dialect",
    "Table",
    "check_batch",
    "encode",
    "encode_labels",
    "read_csv",
    "read_idx",
    "read_npz",
    "split",
]

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
        labels: str `[N]`, as they stand in the file; numbers as Python writes them.
        taken: how each column of the file was taken, one dict a column, for people.
    """

    names: list[str]
    columns: list[np.ndarray]
    label_name: str
    labels: np.ndarray
    taken: list[dict[str, Any]] | None = None


def read_csv(path: str | Path, label: str | None, dialect: Dialect = Dialect()) -> Table:  # noqa: B008
    """Read a CSV file with one header row, as a person would; docs/tabular.md has the rules.

    All cells are read as texts. A column is then taken as a whole: as numbers (with decimal points or commas,
    thousands, a currency, percent), times, booleans, texts, or an index, which is left out. Words for missing
    count in all of these but texts, where only the empty cell is missing. Refusals count rows as an editor
    does, by their line in the file.

    Args:
        path: of the file, at most 1 GiB.
        label: name of the label column; the last one where None.
        dialect: what decides where the file reads two ways.

    Raises:
        ValueError: in one line, for whatever is wrong with it.
    """
    path = find_file(path)
    check_dialect(dialect)
    cells = read_cells(path, dialect.delimiter, dialect.encoding)
    where, header = f"data {str(path)!r}", cells.header
    label = header[-1] if label is None else label
    if label not in header[1:] + [name for name in header[:1] if name]:
        near = difflib.get_close_matches(label, header, n=3) or header[:5]
        hint = ", ".join(map(repr, near))[:200]
        raise ValueError(
            f"label is {label!r}, expected a column of {str(path)!r}; the nearest are {hint}"
        )
    for name in dialect.kinds:
        check_name(f"kinds for {str(path)!r}", name, header)
    if dialect.kinds.get(label) == "skip":
        raise ValueError(
            f"kinds says 'skip' for the label {label!r}, expected another; leave it out"
        )
    taken = take_columns(where, cells, label, dialect)
    _check_header(where, taken)
    target = taken[header.index(label)]
    _check_labels(where, target, cells.lines, dialect)
    features = [c for c in taken if c is not target and c.kind not in ("index", "skip")]
    if not features:
        raise ValueError(
            f"{where} has the label only, expected a feature column beside it; "
            "separate columns by commas, or pass delimiter=' ' or what else stands between them"
        )
    return Table(
        [column.name for column in features],
        [column.values for column in features],
        label,
        _labels(target),
        [_described(column, column is target) for column in taken],
    )


def check_dialect(dialect: Dialect) -> None:
    """Raise a `ValueError` for an option that cannot be."""
    one, kinds, missing = dialect.delimiter, dialect.kinds, dialect.missing
    if one is not None and (not isinstance(one, str) or len(one) != 1 or one in '"\r\n\0'):
        raise ValueError(f"delimiter is {one!r:.80}, expected one character; pass e.g. ';'")
    for kind, name in OPTION.items():
        value = getattr(dialect, name)
        if value not in (None, *WAYS[kind]):
            ways = " or ".join(map(repr, WAYS[kind]))
            raise ValueError(f"{name} is {value!r:.80}, expected {ways}; pass one of them")
    if dialect.encoding is not None and not isinstance(dialect.encoding, str):
        raise ValueError(
            f"encoding is {dialect.encoding!r:.80}, expected a name; pass e.g. 'cp1252'"
        )
    if isinstance(missing, str) or not all(isinstance(word, str) for word in missing or ()):
        raise ValueError(
            f"missing is {missing!r:.80}, expected a list of words; pass e.g. ['?', 'NA']"
        )
    if not isinstance(kinds, dict) or not set(map(str, kinds.values())) <= set(KINDS):
        raise ValueError(
            f"kinds is {kinds!r:.80}, expected number, time, text or skip by column; pass e.g. "
            "{'zip': 'text'}"
        )


def _are_whole(names: list[str]) -> bool:
    """Tell whether names are whole numbers, as in a first row of data; 0, 1, 2 or years in a row are names."""
    return all(name.isdecimal() for name in names)


def _check_header(where: str, columns: list[Column]) -> None:
    names, seen = [column.name for column in columns], set()
    steps = {int(b) - int(a) for a, b in itertools.pairwise(names)} if _are_whole(names) else {1}
    if steps != {1} and all(column.kind == "number" for column in columns):
        raise ValueError(
            f"{where} has whole numbers alone for names, {', '.join(names)!s:.60}, expected a header row; "
            "put names above the first row"
        )
    for name in (column.name for column in columns if column.kind != "index"):
        if not name:
            raise ValueError(f"{where} has a column without a name, expected a header row; name it")
        if name in seen:
            raise ValueError(
                f"{where} has two columns {name!r}, expected different names; rename one"
            )
        if read_number(name, ".") and not name.isdigit():
            raise ValueError(
                f"{where} has the number {name!r:.40} for a name, expected a header row; put names above the "
                "first row"
            )
        seen.add(name)


def _check_labels(where: str, target: Column, lines: np.ndarray, dialect: Dialect) -> None:
    """Raise a `ValueError` for a row without a label; a word for missing is one only by request."""
    words = missing_words(dialect)
    missing = [
        m or text.lower() in words for m, text in zip(target.missing, target.texts, strict=True)
    ]
    if any(missing):
        row = missing.index(True)
        text = str(target.texts[row])
        way = f", or pass missing=[] if {text!r:.40} is a class" if text else ""
        raise ValueError(
            f"label {target.name!r} is missing in row {lines[row]} of {where.removeprefix('data ')}, "
            f"expected a label in every row; drop that row{way}"
        )


def _labels(target: Column) -> np.ndarray:
    """Return labels as texts, numbers in Python's spelling where the file has another."""
    if target.kind not in WAYS:
        return target.texts.astype(str)
    try:
        plain = [_number(text) for text in target.texts] == list(target.values)
    except ValueError:
        plain = False
    return target.texts.astype(str) if plain else np.array([repr(float(v)) for v in target.values])


def _described(column: Column, is_label: bool) -> dict[str, Any]:
    return {
        "column": column.name,
        "kind": f"{column.kind}, the label" if is_label else column.kind,
        "missing": int(column.missing.sum()),
        "example": column.example,
        "note": column.note,
    }


def _number(text: str) -> float:
    """Parse a number in Python's spelling, but for 1_000."""
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
