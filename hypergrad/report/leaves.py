"""The tuned hyperparameters by the way in which a report shows them."""

import math
from typing import Any

import numpy as np

from hypergrad.report.figures import Leaf
from hypergrad.report.results import Results
from hypergrad.report.sentences import ends
from hypergrad.report.text import number, readable_json
from hypergrad.space import Choice, Dimension, Integer, LogReal, Real, Sequence


def tuned_leaves(results: Results) -> tuple[list[Leaf], list[Leaf], list[str]]:
    """Split the tuned leaves into schedules, other numbers, and choices written as `name: old → new`."""
    start, best = ends(results)
    horizon = results.study.get("horizon")
    schedules, values, choices = [], [], []
    for name, after in best.leaves.items():
        before, dim = start.leaves.get(name), results.space.get(name)
        if isinstance(after, str) or isinstance(dim, Choice):
            path = [_option(dim, end) for end in (before, after) if end is not None]
            choices.append(f"{name}: {' → '.join(path)}")
            continue
        if isinstance(before, str) or (before is not None and before.shape != after.shape):
            before = None
        leaf = Leaf(name, before, after, *_range(dim))
        known = after.shape[:1] == (horizon,) if dim is None else isinstance(dim, Sequence)
        (schedules if known and after.ndim and len(after) > 1 else values).append(leaf)
    return schedules, values, choices


def _option(dim: Dimension | None, value: Any) -> str:
    """Name an option; an option that is not static is recorded by its place."""
    shown = plain_text(value)
    if isinstance(dim, Choice) and not dim.static and not isinstance(value, str):
        place = int(shown) if shown.isdecimal() else len(dim.options)
        return str(dim.options[place])[:200] if place < len(dim.options) else shown
    return shown


def _range(dim: Dimension | None) -> tuple[float, float, bool]:
    """Return the bounds of a dimension and whether its scale is logarithmic; NaN where it has none."""
    element = dim.element if isinstance(dim, Sequence) else dim
    if not isinstance(element, (Real, LogReal, Integer)):
        return math.nan, math.nan, False
    log = isinstance(element, LogReal) or (isinstance(element, Integer) and element.log)
    return float(element.low), float(element.high), log


def plain_text(value: Any) -> str:
    """Write a value of a file as one text: the first numbers of an array, or JSON."""
    if isinstance(value, np.ndarray):
        return ", ".join(number(item) for item in value.flat[:20])
    return value if isinstance(value, str) else readable_json(value)
