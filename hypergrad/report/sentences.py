"""The sentences of a report, made from its numbers."""

import html
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hypergrad.report import figures as plots
from hypergrad.report.results import Configuration, Interval, Results

_ODD = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)


def _ends(results: Results) -> tuple[Configuration, Configuration]:
    """Return where the study started and the best it found, empty where the file has none."""
    empty = Configuration(None, {}, Interval(), Interval(), {})
    found = results.configurations
    return found.get("default", empty), found.get("tuned", found.get("random", empty))


def _headline(results: Results) -> list[str]:
    """Say in sentences what tuning changed, and what the numbers do not show."""
    start, best = _ends(results)
    found, score = results.configurations, _score(results)
    if not {"default", "tuned"} <= set(found) and not {"default", "random"} <= set(found):
        return ["No tuned configuration was recorded, so there is nothing to compare."]
    test = _change(f"test {results.metric}", start.test, best.test, score, _bounds)
    kind = "bootstrap 95 % intervals" if math.isfinite(best.test.low) else ""
    size = f"n = {best.test.num}" if best.test.num else ""
    about = ", ".join(part for part in (kind, size) if part)
    lines = [
        f"{_change(_capital(results.objective), start.valid, best.valid, _four)}; {test}"
        + (f' <span class="bounds">({about})</span>.' if about else ".")
    ]
    if not results.trace["trainings"].size:
        return [*lines, "No outer step was finished, so there is no descent to show."]
    learned = _ahead(start.valid, best.valid, False) == 1 or (
        math.isfinite(best.valid.mean) and math.isnan(start.valid.mean)
    )
    verdict = _verdict(start.test, best.test, results.higher_is_better, learned)
    if not learned:
        verdict = f"Tuning did not improve the {_text(results.objective)}. {verdict}"
    lines.append(verdict)
    if "random" in found and "tuned" in found:
        lines.append(_against_random(results))
    elif results.study["method"] != "random":
        lines.append(
            "Random search at equal cost was not run, so the default is the only rival here."
        )
    return lines


def _change(
    name: str,
    before: Interval,
    after: Interval,
    show: Callable[[float], str],
    bounds: Callable[..., str] = lambda *_: "",
) -> str:
    old, new = show(before.mean), show(after.mean)
    if old == new:
        return f"{_text(name)} stayed at <b>{old}</b>{bounds(after, show)}"
    finite = math.isfinite(before.mean) and math.isfinite(after.mean)
    verb = "went" if not finite else "fell" if after.mean < before.mean else "rose"
    start = f"{_text(name)} {verb} from <b>{old}</b>{bounds(before, show)}"
    return f"{start} to <b>{new}</b>{bounds(after, show)}"


def _verdict(before: Interval, after: Interval, higher: bool, learned: bool) -> str:
    """Judge the test set, which tuning has not seen."""
    sign, overlap = _ahead(before, after, higher), _overlap(before, after)
    if sign is None:
        return "The test metric is not known for both, so nothing can be said about new data."
    if sign == 0:
        return "On the test set nothing was won or lost."
    size = f"{after.num} examples" if after.num else "one test set"
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
    return (
        f"{said}; the intervals overlap, so {size} cannot settle whether that is more than chance."
    )


def _against_random(results: Results) -> str:
    random, tuned = results.configurations["random"], results.configurations["tuned"]
    score, cost = _score(results), _cost(results.trace)
    spent = _cost(results.random_trace) if results.random_trace else math.nan
    equal = abs(spent - cost) <= 0.1 * cost
    budget = f" with {_four(spent)} trainings" if math.isfinite(spent) else ""
    budget = f" at equal cost ({_four(spent)} trainings)" if equal else budget
    places = {1: "ahead", 0: "level", -1: "behind", None: "not comparable"}
    valid = places[_ahead(random.valid, tuned.valid, False)]
    test = places[_ahead(random.test, tuned.test, results.higher_is_better)]
    joined = (
        f"{valid} on validation and on test"
        if valid == test
        else f"{valid} on validation and {test} on test"
    )
    reached = f"{_text(results.objective)} <b>{_four(random.valid.mean)}</b>"
    tested = f"test {_text(results.metric)} <b>{score(random.test.mean)}</b>"
    overlap = "; the test intervals overlap" if _overlap(random.test, tuned.test) else ""
    return (
        f"Random search{budget} reached {reached} and {tested}{_bounds(random.test, score)}. "
        f"Against it the tuned hyperparameters are {joined}{overlap}."
    )


def _ahead(before: Interval, after: Interval, higher: bool) -> int | None:
    gain = (after.mean - before.mean) * (1 if higher else -1)
    return None if math.isnan(gain) else (gain > 0) - (gain < 0)


def _overlap(one: Interval, other: Interval) -> bool | None:
    """Return whether two intervals overlap, None if one is unknown."""
    if math.isnan(one.low + one.high + other.low + other.high):
        return None
    return one.low <= other.high and other.low <= one.high


def _shown(count: int) -> str:
    return (
        f" The first {plots.MAX_PANELS} of {count} are shown." if count > plots.MAX_PANELS else ""
    )


def _score(results: Results) -> Callable[[float], str]:
    """Return how the metric is written: an accuracy in percent, to 0.01 % where n deserves it."""
    known = [found.test for found in results.configurations.values()]
    means = [test.mean for test in known if math.isfinite(test.mean)]
    if "accuracy" not in results.metric.lower() or not all(0 <= mean <= 1 for mean in means):
        return _four
    decimals = 2 if max((test.num or 0 for test in known), default=0) >= 5000 else 1
    return lambda value: (
        f"{100 * value:.{decimals}f}\u00a0%" if math.isfinite(value) else "not finite"
    )


def _bounds(value: Interval, show: Callable[[float], str]) -> str:
    if not (math.isfinite(value.low) and math.isfinite(value.high)):
        return ""
    low, high = show(value.low), show(value.high)
    if low.endswith("\u00a0%") and high.endswith("\u00a0%"):
        low, high = low[:-2], high[:-2]
    return f' <span class="bounds">[{low}, {high}]</span>'


def _four(value: float) -> str:
    return plots.number(value, 4)


def _cost(trace: Mapping[str, np.ndarray]) -> float:
    cost = trace["trainings"][np.isfinite(trace["trainings"])]
    return float(cost.max()) if cost.size else math.nan


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds) or seconds < 0:
        return ""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.0f} min" if minutes < 120 else f"{hours:.1f} h"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _text(value: Any, limit: int = 200, *, lines: bool = False) -> str:
    """Escape anything for a page; with `lines`, keep its line breaks and its spaces."""
    text = str(value)
    if lines:
        text = "\n".join(_ODD.sub("\ufffd", line) for line in text[:limit].splitlines())
    else:
        text = plots.clean(text, limit)
    return html.escape(text, quote=True)
