"""Checks of the numbers that a caller passes, made before anything compiles."""

import math
from numbers import Integral
from typing import Any


def is_whole(value: Any) -> bool:
    """Tell whether a value is a whole number, of Python or numpy; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Tell whether a value is a real number of Python, infinity and NaN included; True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_whole(name: str, value: Any, least: int = 1, *, example: int = 10) -> int:
    """Return `value` as an int if it is a whole number of at least `least`, or raise a `ValueError`."""
    whole = is_whole(value)
    if not whole or value < least:
        got = f"{value!r:.80}"
        if hasattr(value, "dtype") and not whole:
            got = f"an array of shape {value.shape} and dtype {value.dtype}"
        raise ValueError(
            f"{name} is {got}, expected a whole number of at least {least}; pass e.g. {name}={example}"
        )
    return int(value)


def check_positive(name: str, value: Any, *, example: float = 0.01) -> None:
    """Raise a `ValueError` unless `value` is a positive, finite number."""
    if not is_number(value) or not 0 < value < math.inf:
        raise ValueError(
            f"{name} is {value!r:.80}, expected a positive number; pass e.g. {name}={example}"
        )


def check_bytes(memory: Any) -> None:
    """Raise a `ValueError` unless `memory` is a number of bytes."""
    if not is_whole(memory) or memory < 1:
        raise ValueError(
            f"memory is {memory!r:.80}, expected a positive number of bytes; pass e.g. 64 * 2**20"
        )
