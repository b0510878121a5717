"""Read arrays from the user's IDX and npz files: sizes are checked first, nothing is unpickled."""

import gzip
import math
import zipfile
import zlib
from pathlib import Path

import numpy as np

MAX_BYTES = 2**30
"""Largest file read, after decompression."""
MAX_AXES = 8
"""Most axes of an array in a file."""
IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def find_file(path: str | Path) -> Path:
    """Return the path of a file that is there, or raise a `ValueError`."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"data is {str(path)!r}, a folder, expected a file; name a file in it")
    if not path.is_file():
        raise ValueError(
            f"data is {str(path)!r}, a file that is not there, expected one that is; check the path"
        )
    return path


def read_idx(path: str | Path) -> np.ndarray:
    """Read an IDX file (the format of MNIST), gzipped where its name ends in .gz.

    Raises:
        ValueError: for a wrong magic number, or sizes that do not fit the file, in one line.
    """
    path = find_file(path)
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
                    f"data {str(path)!r} ends in its header, expected {magic[3]} sizes; fetch it again"
                )
            shape = [int.from_bytes(sizes[i : i + 4], "big") for i in range(0, len(sizes), 4)]
            dtype = np.dtype(IDX_TYPES[magic[2]])
            if 0 in shape or len(shape) > MAX_AXES:
                raise ValueError(
                    f"data {str(path)!r} declares the shape {str(tuple(shape))[:80]}, expected at most "
                    f"{MAX_AXES} sizes, each at least 1; name a file with examples"
                )
            expected = math.prod(shape) * dtype.itemsize
            if expected > MAX_BYTES:
                raise ValueError(
                    f"data {str(path)!r} declares {expected} bytes, expected at most {MAX_BYTES}; "
                    "take a part of it"
                )
            content = file.read(expected + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"data {str(path)!r} cannot be read ({error}); fetch it again") from None
    if len(content) != expected:
        more = "more" if len(content) > expected else f"{len(content)} bytes"
        raise ValueError(
            f"data {str(path)!r} holds {more}, expected {expected} bytes for shape {tuple(shape)}; "
            "fetch it again"
        )
    return np.frombuffer(content, dtype).reshape(shape)


def npz_names(path: str | Path) -> list[str]:
    """List the arrays of an npz file."""
    with _open_npz(find_file(path)) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def read_npz(path: str | Path, names: tuple[str, ...]) -> list[np.ndarray]:
    """Read named arrays of numbers from an npz file.

    Raises:
        ValueError: for an array that is missing, too big, damaged or of Python objects, in one line.
    """
    there = npz_names(path)
    missing = [name for name in names if name not in there]
    if missing:
        raise ValueError(
            f"data {str(path)!r} has no array {missing[0]!r}, expected {', '.join(names)}; "
            f"it has {', '.join(map(repr, there))[:200] or 'none'}"
        )
    with _open_npz(Path(path)) as archive:
        return [_member(f"data {str(path)!r}, array {name!r},", archive, name) for name in names]


def _open_npz(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"data {str(path)!r} is no npz file ({_reason(error)}), expected one made by numpy.savez"
        ) from None


def _member(whose: str, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Read one array, after its header: `np.load` would allocate whatever that declares."""
    try:
        with archive.open(f"{name}.npy") as file:
            shape, fortran_order, dtype = _header(file)
            fits = len(shape) <= MAX_AXES and all(0 < size <= MAX_BYTES for size in shape)
            expected = math.prod(shape) * dtype.itemsize
            allowed = dtype.kind in "biuf" and fits and expected <= MAX_BYTES
            content = file.read(expected + 1) if allowed else b""
    except Exception as error:  # zlib, zipfile and numpy raise a dozen classes on damaged files
        raise ValueError(f"{whose} cannot be read ({_reason(error)}); save it again") from None
    if dtype.hasobject:
        raise ValueError(
            f"{whose} holds Python objects, expected plain numbers, because nothing is unpickled; "
            "save numbers"
        )
    if dtype.kind not in "biuf":
        raise ValueError(f"{whose} holds {dtype}, expected numbers; save numbers")
    if not allowed:
        raise ValueError(
            f"{whose} declares the shape {str(shape)[:80]} of {dtype}, expected at most {MAX_AXES} sizes, "
            f"each at least 1, and at most {MAX_BYTES} bytes; take a part of it"
        )
    if len(content) != expected:
        more = "more" if len(content) > expected else f"{len(content)} bytes"
        raise ValueError(
            f"{whose} holds {more}, expected {expected} bytes for shape {shape}; save it again"
        )
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran_order else "C")


def _header(file) -> tuple[tuple[int, ...], bool, np.dtype]:
    if np.lib.format.read_magic(file) == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:100]
