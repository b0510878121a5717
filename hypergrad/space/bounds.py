"""What the arguments of a dimension must be, and the values with a step."""

import functools
import math
from decimal import Decimal
from typing import Any

import numpy as np

from hypergrad.core.checks import describe, is_number, is_whole

MAX_GRID_VALUES = 2**16
"""Most values of a `Real` with a step, which are held in memory."""


def _plain(value: Any) -> Any:
    """Return a scalar of numpy as a number of Python, and anything else as it is."""
    return np.asarray(value).item() if hasattr(value, "item") else value


def check_bounds(dim: Any, what: str = "a finite number; pass one", kind: type = float) -> None:
    """Raise a `ValueError` unless low < high are numbers of a kind, with the default between, and sizes fit."""
    for name in ("low", "high", "default"):
        value = getattr(dim, name)
        number = is_number(value) and math.isfinite(value) and (kind is float or is_whole(value))
        check_argument(dim, name, number or (name == "default" and value is None), what)
        object.__setattr__(dim, name, _plain(value))
        if kind is float and value is not None:
            counted = "a number in [-1e37, 1e37], as float32 can count with; change its unit"
            check_argument(dim, name, abs(value) <= 1e37, counted)
    ordered = f"low < high = {dim.high!r}; swap them, or close over a value that is fixed"
    check_argument(dim, "low", dim.low < dim.high, ordered)
    if kind is float:
        # XLA takes numbers below the smallest normal one for zero
        apart = bool(np.float32(dim.high) - np.float32(dim.low) >= np.finfo(np.float32).tiny)
        once = f"low < high = {dim.high!r} in float32, where they are one number; move them apart"
        check_argument(dim, "low", apart, once)
    inside = dim.default is None or dim.low <= dim.default <= dim.high
    check_argument(
        dim, "default", inside, f"a value in [{dim.low!r}, {dim.high!r}]; move it inside"
    )
    shape = dim.shape
    sizes = isinstance(shape, tuple) and all(is_whole(n) and n > 0 for n in shape)
    check_argument(dim, "shape", sizes, "a tuple of positive sizes; pass e.g. (3,)")
    if kind is float:
        object.__setattr__(dim, "shape", tuple(map(int, shape)))


@functools.lru_cache(maxsize=256)
def stepped_values(low: float, high: float, step: float) -> np.ndarray:
    """Return low, low + step, ..., high, each rounded once from decimals."""
    first, gap = Decimal(repr(low)), Decimal(repr(step))
    num = int((Decimal(repr(high)) - first) / gap) + 1
    return np.array([float(first + k * gap) for k in range(num)])


def check_stepped(dim: Any, step: float) -> None:
    """Raise a `ValueError` unless the values with a step are few and apart, from low to high."""
    good = is_number(step) and 0 < step < math.inf
    check_argument(dim, "step", good, "a positive number; pass e.g. step=0.1")
    object.__setattr__(dim, "step", _plain(step))
    alone = "() with a step; give each number a leaf of its own"
    check_argument(dim, "shape", dim.shape == (), alone)
    num = (dim.high - dim.low) / step + 1
    few = f"at most {MAX_GRID_VALUES} values, not {num:.3g}; leave step out, and round within the problem"
    check_argument(dim, "step", num < MAX_GRID_VALUES + 0.5, few)
    check_on_grid(dim)
    least = 4 * float(np.spacing(np.float32(max(abs(dim.low), abs(dim.high)))))
    apart = f"at least {least:.3g}, for float32 to tell its values apart; take a larger one, or shift the range"
    check_argument(dim, "step", step >= least, apart)


def check_on_grid(dim: Any) -> None:
    """Raise a `ValueError` unless `high` and the default are low + k step, in decimals."""
    low, step = Decimal(repr(dim.low)), Decimal(repr(dim.step))
    for name in ("high", "default"):
        value = getattr(dim, name)
        if value is None:
            continue
        k, rest = divmod(Decimal(repr(value)) - low, step)
        near = [low + step * n for n in (k, k + 1)]
        if name == "default" and near[1] > dim.high:
            near = near[:1]
        between = " or ".join(map(str, near))
        check_argument(dim, name, rest == 0, f"low + k * step = {between}; pass one of them")


def check_argument(dim: Any, name: str, good: bool, expected: str) -> None:
    """Raise a `ValueError` unless an argument of a dimension is `good`."""
    if not good:
        raise ValueError(
            f"{name} is {describe(getattr(dim, name))} in {type(dim).__name__}, expected {expected}"
        )
