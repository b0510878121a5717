"""What a study leaves on disk: JSON written whole or not at all, and an append-only journal."""

import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np

FORMAT = 1
FILES = ("study.json", "journal.jsonl", "result.json", "report.html", "figures")


def plain(value: Any) -> Any:
    """Turn arrays, tuples and numbers into what JSON can say; a non-finite number becomes null."""
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (str, bool, int)) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return plain(np.asarray(value).tolist())


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that a crash leaves the old one or the new one, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(plain(value), file, allow_nan=False, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def create(directory: str | Path, overwrite: bool = False) -> Path:
    """Make the folder of a new study.

    Raises:
        ValueError: where it holds something already and `overwrite` is false, or is not a folder.
    """
    path = Path(directory)
    if path.exists() and not path.is_dir():
        raise ValueError(f"out is {str(path)!r}, a file, expected a folder; name another one")
    if path.is_dir() and any(path.iterdir()):
        if not overwrite:
            raise ValueError(
                f"out is {str(path)!r}, which is not empty, expected a new folder; name another one or "
                "pass --overwrite"
            )
        if not (path / "study.json").is_file():
            raise ValueError(
                f"out is {str(path)!r}, which holds something else than a study, expected a study to "
                "overwrite; name another folder"
            )
        for name in FILES:
            target = path / name
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"out is {str(path)!r}, which cannot be made ({error.strerror}); name a folder you may write"
        ) from error
    return path


class Journal:
    """An append-only file of JSON lines; a line is on disk when `append` returns."""

    def __init__(self, path: Path):
        self._file: TextIO = open(path, "a", encoding="utf-8")  # noqa: SIM115

    def append(self, record: dict[str, Any]) -> None:
        """Write one record and wait for the disk."""
        self._file.write(json.dumps(plain(record), allow_nan=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """Read the whole records of a journal; a last line without an end was never acknowledged."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)
