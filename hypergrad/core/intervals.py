"""Spans of whole numbers, of which it is known what is met for certain, and their arithmetic."""

import itertools
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np


class Span(NamedTuple):
    """Whole numbers from `low` to `high`, of which both are met.

    Attributes:
        low, high: Smallest and largest number.
        up: What the numbers grow with: the step, the place in a range, a draw, an array of data, a shuffle.
        down: What they fall with; nothing is in both.
        met: All numbers that are met, in any order, where they are known.
        array: The array itself, where it is one that the program holds.
    """

    low: int
    high: int
    up: frozenset = frozenset()
    down: frozenset = frozenset()
    met: range | np.ndarray | None = None
    array: np.ndarray | None = None


class Columns(NamedTuple):
    """The spans of the columns of an array of indices; None where one is not known."""

    spans: tuple[Span | None, ...]


Numbers: TypeAlias = Span | Columns | None

SOURCES = itertools.count()


def every(low: int, high: int, kind: str, source: int) -> Span:
    """Return the span of numbers that are all met, from a source of a kind."""
    up = frozenset([(kind, source)] if high > low else [])
    return Span(low, high, up, met=range(low, high + 1))


def span_of_data(numbers: np.ndarray) -> Span:
    """Return the span of the numbers of an array."""
    low, high = int(numbers.min()), int(numbers.max())
    up = _of_data() if low < high else frozenset()
    return Span(low, high, up, met=numbers.reshape(-1), array=numbers)


def drawn_span(low: int, high: int) -> Span:
    """Return the span of numbers that are drawn."""
    return every(low, high, "random", next(SOURCES))


def without_order(x: Span) -> Span:
    """Return the span of the same numbers in another order."""
    return (
        x if exact(x) is not None or is_random(x) else x._replace(up=_of_data(), down=frozenset())
    )


def _of_data() -> frozenset:
    return frozenset([("data", next(SOURCES))])


def exact(x: Numbers) -> int | None:
    """Return the number that a span of one number holds."""
    return x.low if isinstance(x, Span) and x.low == x.high else None


def is_random(span: Numbers) -> bool:
    """Tell whether numbers are drawn, each by itself or in a random order."""
    if not isinstance(span, Span) or span.down:
        return False
    return bool(span.up) and all(kind in ("random", "shuffled") for kind, _ in span.up)


def _meet(a: Span, b: Span) -> bool:
    """Tell whether the ends of two spans are met together, as those of data and shuffles may not be."""
    if exact(a) is not None or exact(b) is not None:
        return True
    ours, theirs = a.up | a.down, b.up | b.down
    if any(kind in ("data", "shuffled") for kind, _ in ours | theirs):
        return False
    return all(kind == "step" for kind, _ in ours & theirs)


def _placed(sources: frozenset) -> bool:
    return any(kind == "place" for kind, _ in sources)


def _opposed(up: frozenset, down: frozenset) -> bool:
    """Tell whether numbers may both grow and fall with one source; two places may lie along one axis."""
    return bool(up & down) or (_placed(up) and _placed(down))


def add_spans(a: Numbers, b: Numbers) -> Span | None:
    """Return the span of a sum."""
    if not isinstance(a, Span) or not isinstance(b, Span) or not _meet(a, b):
        return None
    up, down = a.up | b.up, a.down | b.down
    if _opposed(up, down):
        return None
    return Span(a.low + b.low, a.high + b.high, up, down, _sums(a, b))


def _sums(a: Span, b: Span) -> range | np.ndarray | None:
    """Return all sums of the numbers of two spans, where they are known."""
    if exact(a) is not None:
        a, b = b, a
    if exact(b) is not None:
        if isinstance(a.met, range):
            return range(a.low + b.low, a.high + b.low + 1, a.met.step)
        return None if a.met is None else a.met + b.low
    if not isinstance(a.met, range) or not isinstance(b.met, range) or a.up & b.up:
        return None
    if _placed(a.up) and _placed(b.up):
        return None  # perhaps along one axis
    wide, fine = (a.met, b.met) if a.met.step > b.met.step else (b.met, a.met)
    whole = fine.step == 1 and how_many(fine) >= wide.step  # such as step * 8 + arange(8)
    return range(a.low + b.low, a.high + b.high + 1) if whole else None


def how_many(numbers: range | np.ndarray) -> int:
    """Return how many numbers there are; `len` refuses a range whose length has more than 63 bits."""
    if not isinstance(numbers, range):
        return len(numbers)
    return max(0, -((numbers.start - numbers.stop) // numbers.step))


def negate_span(a: Numbers) -> Span | None:
    """Return the span of the negative."""
    return Span(-a.high, -a.low, a.down, a.up) if isinstance(a, Span) else None


def multiply_spans(a: Numbers, b: Numbers) -> Span | None:
    """Return the span of a product."""
    if not isinstance(a, Span) or not isinstance(b, Span) or not _meet(a, b):
        return None
    if exact(a) is not None:
        a, b = b, a
    if exact(b) is not None and b.low < 0:
        a, b = Span(-a.high, -a.low, a.down, a.up), Span(-b.low, -b.low)
    positive = b.low >= 0 and (a.low >= 0 or exact(b) is not None)
    if not positive or _opposed(a.up | b.up, a.down | b.down):
        return None
    met = None
    if isinstance(a.met, range) and a.met.step > 0 and b.low == b.high > 0:
        met = range(a.low * b.low, a.high * b.low + 1, a.met.step * b.low)
    return Span(a.low * b.low, a.high * b.high, a.up | b.up, a.down | b.down, met)


def divide_span(a: Numbers, b: Numbers) -> Span | None:
    """Return the span of a quotient, rounded down."""
    by = exact(b) or 0
    if not isinstance(a, Span) or by <= 0 or a.low < 0:
        return None
    return Span(a.low // by, a.high // by, a.up, a.down)


def remainder_span(a: Numbers, b: Numbers) -> Span | None:
    """Return the span of a remainder."""
    by = exact(b) or 0
    if not isinstance(a, Span) or by <= 0 or a.low < 0:
        return None
    if exact(a) is not None:
        return Span(a.low % by, a.low % by)
    if a.high < by:
        return a
    whole = isinstance(a.met, range) and a.met.step == 1 and how_many(a.met) >= by
    return drawn_span(0, by - 1)._replace(up=a.up) if whole and is_random(a) else None


def bounded_span(pick: Callable[[int, int], int]) -> Callable[[Numbers, Numbers], Span | None]:
    """Return the rule of `max` or `min`."""

    def bounded(a: Numbers, b: Numbers) -> Span | None:
        if not isinstance(a, Span) or not isinstance(b, Span):
            return None
        if exact(a) is None and exact(b) is None:
            return None
        low, high = pick(a.low, b.low), pick(a.high, b.high)
        for same, other in ((a, b), (b, a)):
            if exact(other) is not None and (same.low, same.high) == (low, high):
                return same
        return Span(low, high, a.up | b.up, a.down | b.down) if low < high else Span(low, high)

    return bounded
