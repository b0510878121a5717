"""Read the user's data files, strictly: every refusal is one line that says what to do."""

import csv
import difflib
import gzip
import math
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

MISSING = {"", "?", "na", "nan", "null", "none"}
MAX_BYTES = 2**30
"""Largest file read, after decompression."""
IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


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

    Args:
        path: of the file, UTF-8, at most 1 GiB.
        label: name of the label column; the last one where None.

    Raises:
        ValueError: in one line, for whatever is wrong with it.
    """
    path = _file(path)
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(
            f"data {str(path)!r} has over {MAX_BYTES} bytes, expected less; take a sample"
        )
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = [(i, row) for i, row in enumerate(csv.reader(file, strict=True), 1) if row]
    except UnicodeDecodeError as error:
        raise ValueError(
            f"data {str(path)!r} is not UTF-8 at byte {error.start}, expected UTF-8 text; convert it"
        ) from None
    except csv.Error as error:
        raise ValueError(f"data {str(path)!r} is no CSV file ({error}); check its quotes") from None
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
        raise ValueError(
            f"label is {label!r}, expected a column of {str(path)!r}; the nearest are {', '.join(near)}"
        )
    texts = np.array([[field.strip() for field in row] for _, row in rows[1:]], dtype=object)
    index = header.index(label)
    unlabelled = [rows[1 + i][0] for i, v in enumerate(texts[:, index]) if v.lower() in MISSING]
    if unlabelled:
        raise ValueError(
            f"label {label!r} is missing in row {unlabelled[0]} of {str(path)!r}, expected a label in "
            "every row; drop that row"
        )
    names = [name for name in header if name != label]
    if not names:
        raise ValueError(
            f"data {str(path)!r} has the label only, expected a feature column beside it"
        )
    columns = [_column(path, name, texts[:, header.index(name)]) for name in names]
    return Table(names, columns, label, texts[:, index].astype(str))


def _check_header(path: Path, header: list[str]) -> None:
    for name in header:
        if not name:
            raise ValueError(
                f"data {str(path)!r} has a column without a name, expected a header row; name it"
            )
        if header.count(name) > 1:
            raise ValueError(
                f"data {str(path)!r} has two columns {name!r}, expected different names; rename one"
            )


def _column(path: Path, name: str, texts: np.ndarray) -> np.ndarray:
    missing = np.array([t.lower() in MISSING for t in texts])
    try:
        values = np.array(
            [math.nan if m else float(t) for t, m in zip(texts, missing, strict=True)]
        )
    except ValueError:
        return np.where(missing, "", texts).astype(object)
    if np.isinf(values).any():
        row = int(np.flatnonzero(np.isinf(values))[0]) + 2
        raise ValueError(
            f"data {str(path)!r} holds an infinity in column {name!r}, row {row}, expected finite "
            "numbers; mend it or leave it empty"
        )
    return values


def split(num: int, fractions: tuple[float, float], seed: int, labels=None) -> list[np.ndarray]:
    """Split indices into disjoint train, valid and test parts, stratified by `labels` where given.

    Args:
        num: number of examples.
        fractions: share of validation and test examples.
        seed: of the shuffle.
        labels: int `[num]`, or None.
    """
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
            raise ValueError(
                f"data has {num} examples, too few for a {name} set; bring at least 20"
            )
    return whole


def encode(table: Table, train: np.ndarray) -> np.ndarray:
    """Encode features as float32 `[N, D]` with statistics of the `train` rows only.

    Numbers are standardized, missing ones are the mean with an indicator column beside; categories are
    one-hot, and all zero where missing or not seen in training.
    """
    blocks = []
    for column in table.columns:
        if column.dtype == object:
            seen = sorted({v for v in column[train] if v})
            blocks.append(
                np.stack([column == value for value in seen], 1) if seen else column[:, :0]
            )
            continue
        known = column[train][~np.isnan(column[train])]
        mean, scale = (known.mean(), known.std()) if len(known) else (0.0, 0.0)
        missing = np.isnan(column)
        filled = np.where(missing, mean, column)
        blocks.append(((filled - mean) / (scale or 1.0))[:, None])
        if missing.any():
            blocks.append(missing[:, None])
    return np.concatenate([np.asarray(b, np.float32) for b in blocks], 1)


def encode_labels(table: Table, kind: str | None) -> tuple[np.ndarray, list[str] | None]:
    """Encode labels as int32 classes with their names, or as float32 numbers and None.

    Args:
        table: whose labels to encode.
        kind: "classification", "regression", or None: regression for numbers of over 20 values.
    """
    if kind not in (None, "classification", "regression"):
        raise ValueError(
            f"kind is {kind!r}, expected 'classification' or 'regression'; pass one of them"
        )
    numbers = None
    try:
        numbers = table.labels.astype(np.float64)
    except ValueError:
        if kind == "regression":
            raise ValueError(
                f"label {table.label_name!r} is not numeric, expected numbers for kind='regression'; "
                "leave kind out"
            ) from None
    names = sorted(set(table.labels))
    if kind == "regression" or (kind is None and numbers is not None and len(names) > 20):
        assert numbers is not None
        if not np.isfinite(numbers).all():
            raise ValueError(
                f"label {table.label_name!r} holds NaN or infinity, expected finite numbers"
            )
        return numbers.astype(np.float32), None
    if len(names) < 2:
        raise ValueError(
            f"label {table.label_name!r} has one class, {str(names[0])!r}, expected at least two; "
            "check the column"
        )
    return np.searchsorted(names, table.labels).astype(np.int32), names


def check_batch(batch_size: int, num_train: int) -> None:
    """Raise a `ValueError` unless a batch fits in the training set."""
    if not isinstance(batch_size, int) or not 1 <= batch_size <= num_train:
        raise ValueError(
            f"batch_size is {batch_size!r}, expected 1 to {num_train}, the size of the training set; "
            "pass a smaller one"
        )


def read_idx(path: str | Path) -> np.ndarray:
    """Read an IDX file (the format of MNIST), gzipped where its name ends in .gz.

    Raises:
        ValueError: for a wrong magic number, or sizes that do not fit the file, in one line.
    """
    path = _file(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            magic = file.read(4)
            if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in IDX_TYPES or not magic[3]:
                raise ValueError(
                    f"data {str(path)!r} starts with {magic.hex() or 'nothing'}, expected the magic number "
                    "of an IDX file, 0000TTDD; name an IDX file"
                )
            sizes = file.read(4 * magic[3])
            if len(sizes) < 4 * magic[3]:
                raise ValueError(
                    f"data {str(path)!r} ends in its header, expected {magic[3]} sizes"
                )
            shape = [int.from_bytes(sizes[i : i + 4], "big") for i in range(0, len(sizes), 4)]
            dtype = np.dtype(IDX_TYPES[magic[2]])
            expected = math.prod(shape) * dtype.itemsize
            if expected > MAX_BYTES:
                raise ValueError(
                    f"data {str(path)!r} declares {expected} bytes, expected at most {MAX_BYTES}; "
                    "take a part of it"
                )
            content = file.read(expected + 1)
    except (OSError, EOFError, gzip.zlib.error) as error:  # pyright: ignore[reportAttributeAccessIssue]
        raise ValueError(f"data {str(path)!r} cannot be read ({error}); fetch it again") from None
    if len(content) != expected:
        more = "more" if len(content) > expected else f"{len(content)} bytes"
        raise ValueError(
            f"data {str(path)!r} holds {more}, expected {expected} bytes for shape {tuple(shape)}; "
            "fetch it again"
        )
    return np.frombuffer(content, dtype).reshape(shape)


def read_npz(path: str | Path, names: tuple[str, ...]) -> list[np.ndarray]:
    """Read named arrays of an npz file; nothing is unpickled, sizes are checked before loading."""
    path = _file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(info.file_size for info in archive.infolist())
        if total > MAX_BYTES:
            raise ValueError(
                f"data {str(path)!r} unpacks to {total} bytes, expected at most {MAX_BYTES}"
            )
        with np.load(path, allow_pickle=False) as arrays:
            missing = [name for name in names if name not in arrays]
            if missing:
                raise ValueError(
                    f"data {str(path)!r} has no array {missing[0]!r}, expected {', '.join(names)}; "
                    f"it has {', '.join(arrays.files)[:200]}"
                )
            return [arrays[name] for name in names]
    except zipfile.BadZipFile:
        raise ValueError(
            f"data {str(path)!r} is no npz file, expected one made by numpy.savez"
        ) from None
    except ValueError as error:
        if "pickle" in str(error):
            raise ValueError(
                f"data {str(path)!r} holds Python objects, expected plain arrays, because nothing is "
                "unpickled; save numbers"
            ) from None
        raise


def _file(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"data is {str(path)!r}, a file that is not there; check the path")
    return path
