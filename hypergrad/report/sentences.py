"""What a report says about a study: how numbers are written, and the sentences made from them."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from hypergrad.report.results import Configuration, Interval, Results
from hypergrad.report.text import capitalized, number

Show = Callable[[float], str]
"""How a number is written."""


class Value(NamedTuple):
    """A mean and its interval as the page writes them; `bounds` is empty where there is no interval."""

    mean: str
    bounds: str = ""


class Change(NamedTuple):
    """What tuning did to one quantity; `verb` is "fell", "rose", "went" or "stayed"."""

    name: str
    verb: str
    before: Value
    after: Value


class Rival(NamedTuple):
    """What random search reached, and how the tuned hyperparameters compare with it."""

    budget: str
    valid: Value
    test: Value
    standing: str


class Headline(NamedTuple):
    """What tuning changed, and what the numbers do not show.

    Attributes:
        changes: Changes of the validation objective and of the test metric; empty where nothing was compared.
        about: What the intervals of the test metric are.
        sentences: The verdict.
        rival: What random search reached; None where it was not run.
    """

    changes: list[Change]
    about: str
    sentences: list[str]
    rival: Rival | None = None


def ends(results: Results) -> tuple[Configuration, Configuration]:
    """Return where the study started and the best it found, empty where the file has none."""
    empty = Configuration(None, {}, Interval(), Interval(), {})
    found = results.configurations
    return found.get("default", empty), found.get("tuned", found.get("random", empty))


def headline(results: Results) -> Headline:
    """Say what tuning changed, and what the numbers do not show."""
    start, best = ends(results)
    found = results.configurations
    if not {"default", "tuned"} <= set(found) and not {"default", "random"} <= set(found):
        nothing = "No tuned configuration was recorded, so there is nothing to compare."
        return Headline([], "", [nothing])
    score = score_format(results)
    kind = "bootstrap 95 % intervals" if math.isfinite(best.test.low) else ""
    size = f"n = {best.test.num}" if best.test.num else ""
    about = ", ".join(part for part in (kind, size) if part)
    before, after = Interval(start.valid.mean), Interval(best.valid.mean)
    changes = [
        _change(capitalized(results.objective), before, after, four_digits),
        _change(f"test {results.metric}", start.test, best.test, score),
    ]
    if not results.trace["trainings"].size:
        stopped = "No outer step was finished, so there is no descent to show."
        return Headline(changes, about, [stopped])
    learned = _ahead(start.valid, best.valid, False) == 1 or (
        math.isfinite(best.valid.mean) and math.isnan(start.valid.mean)
    )
    verdict = _verdict(start.test, best.test, results.higher_is_better, learned)
    if not learned:
        verdict = f"Tuning did not improve the {results.objective}. {verdict}"
    if "random" in found and "tuned" in found:
        return Headline(changes, about, [verdict], _rival(results))
    alone = "Random search at equal cost was not run, so the default is the only rival here."
    return Headline(changes, about, [verdict] + [alone] * (results.study["method"] != "random"))


def _change(name: str, before: Interval, after: Interval, show: Show) -> Change:
    old, new = written(before, show), written(after, show)
    finite = math.isfinite(before.mean) and math.isfinite(after.mean)
    verb = "went" if not finite else "fell" if after.mean < before.mean else "rose"
    return Change(name, "stayed" if old.mean == new.mean else verb, old, new)


def _verdict(before: Interval, after: Interval, higher: bool, learned: bool) -> str:
    """Judge the test set, which tuning has not seen."""
    sign, overlap = _ahead(before, after, higher), _overlap(before, after)
    if sign is None:
        return "The test metric is not known for both, so nothing can be said about new data."
    if sign == 0:
        return "On the test set the two are level."
    if sign > 0 and overlap is False:
        return "The test intervals do not overlap: the gain holds on data that tuning has not seen."
    if sign > 0:
        said = "The test metric improved" + (" too" if learned else "")
    else:
        why = ": the gain on validation did not carry over" if learned else ""
        said = f"On the test set the tuned hyperparameters are worse than the default{why}"
    if overlap is None:
        return f"{said}; without intervals this may be chance."
    if not overlap:
        return f"{said}."
    size = f"{after.num} examples" if after.num else "one test set"
    return (
        f"{said}; the intervals overlap, so {size} cannot settle whether that is more than chance."
    )


def _rival(results: Results) -> Rival:
    random, tuned = results.configurations["random"], results.configurations["tuned"]
    cost = _cost(results.trace)
    spent = _cost(results.random_trace) if results.random_trace else math.nan
    budget = f" with {four_digits(spent)} trainings" if math.isfinite(spent) else ""
    if abs(spent - cost) <= 0.1 * cost:
        budget = f" at equal cost ({four_digits(spent)} trainings)"
    if math.isfinite(random.draws_std):
        budget += (
            f", in expectation over its draws (standard deviation {four_digits(random.draws_std)}),"
        )
    places = {1: "ahead", 0: "level", -1: "behind", None: "not comparable"}
    valid = places[_ahead(random.valid, tuned.valid, False)]
    test = places[_ahead(random.test, tuned.test, results.higher_is_better)]
    both = f"{valid} on validation and on test"
    standing = both if valid == test else f"{valid} on validation and {test} on test"
    overlap = "; the test intervals overlap" if _overlap(random.test, tuned.test) else ""
    return Rival(
        budget,
        written(random.valid, four_digits),
        written(random.test, score_format(results)),
        standing + overlap,
    )


def _ahead(before: Interval, after: Interval, higher: bool) -> int | None:
    gain = (after.mean - before.mean) * (1 if higher else -1)
    return None if math.isnan(gain) else (gain > 0) - (gain < 0)


def _overlap(one: Interval, other: Interval) -> bool | None:
    """Return whether two intervals overlap, None if one is unknown."""
    if math.isnan(one.low + one.high + other.low + other.high):
        return None
    return one.low <= other.high and other.low <= one.high


def _cost(trace: Mapping[str, np.ndarray]) -> float:
    cost = trace["trainings"][np.isfinite(trace["trainings"])]
    return float(cost.max()) if cost.size else math.nan


def score_format(results: Results) -> Show:
    """Return how the metric is written: an accuracy in percent, to 0.01 % where n deserves it."""
    known = [found.test for found in results.configurations.values()]
    means = [test.mean for test in known if math.isfinite(test.mean)]
    if "accuracy" not in results.metric.lower() or not all(0 <= mean <= 1 for mean in means):
        return four_digits
    decimals = 2 if max((test.num or 0 for test in known), default=0) >= 5000 else 1
    return lambda value: (
        f"{100 * value:.{decimals}f}\u00a0%" if math.isfinite(value) else "not finite"
    )


def written(value: Interval, show: Show) -> Value:
    """Write a mean and its interval; a unit is not repeated within the interval."""
    if not (math.isfinite(value.low) and math.isfinite(value.high)):
        return Value(show(value.mean))
    low, high = (show(end).removesuffix("\u00a0%") for end in (value.low, value.high))
    return Value(show(value.mean), f"[{low}, {high}]")


def four_digits(value: float) -> str:
    """Write a number in four significant digits."""
    return number(value, 4)
