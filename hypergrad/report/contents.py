"""Content of the page of a report, as plain data for its template."""

from typing import Any

import numpy as np

from hypergrad.report import figures
from hypergrad.report.leaves import plain_text, tuned_leaves
from hypergrad.report.notes import shown_notes
from hypergrad.report.results import Configuration, Interval, Results
from hypergrad.report.sentences import (
    Value,
    ends,
    four_digits,
    headline,
    score_format,
    written,
)
from hypergrad.report.text import (
    capitalized,
    clean,
    counted,
    duration,
    readable_json,
    without_folders,
)
from hypergrad.tuners import METHODS, TUNERS, is_read

MAX_NUMBERS = 20_000
"""Numbers that the page shows in full; more are left to `result.json`."""

MAX_SNIPPET = 200_000
"""Characters of a snippet that the page shows; a longer one is left to `result.json`."""


def page_contents(results: Results) -> dict[str, Any]:
    """Return the data of the page's template, except its figures."""
    study, best = results.study, ends(results)[1]
    by_gradient = study["method"] in TUNERS
    facts = [
        study["method"] if by_gradient else f"{study['method']} search",
        counted(results.trace["trainings"].size, "outer step" if by_gradient else "generation"),
        f"horizon {study.get('horizon', '?')} steps",
        f"seed {study.get('seed', '?')}",
        duration(results.seconds),
        "interrupted" if results.interrupted else "",
    ]
    sizes = [found.test.num for found in results.configurations.values() if found.test.num]
    return {
        "study": {**study, "description": without_folders(study["description"])},
        "facts": [clean(fact, 80) for fact in facts if fact],
        "headline": headline(results),
        "objective": results.objective,
        "metric": results.metric,
        "seeds": _seeds(results),
        "num_examples": sizes[0] if sizes else None,
        "rows": _rows(results),
        "flatness": _flatness(results),
        "warnings": _warnings(results),
        "notes": shown_notes(results.notes),
        "choices": _choices(results),
        "snippet": results.snippet,
        "max_snippet": MAX_SNIPPET,
        "tuned": None if best.raw is None else _tuned(best),
        "about": _about(results),
    }


def captions(results: Results) -> dict[str, str]:
    """Return the description of each figure, by its name."""
    schedules, values, _ = tuned_leaves(results)
    skipped = int(results.trace["skipped"])
    many_columns = any(leaf.after.ndim > 1 for leaf in schedules)
    return {
        "objective": f"{capitalized(results.objective)} against cost; the unit is one full training, counted, "
        "not timed. These values were seen while tuning: a point of a descent is a mean over its seeds, a "
        "point of random search is a single training, so the lowest of many is partly luck. The table "
        "compares all on equal seeds.",
        "architecture": "The tuned architecture, as it was trained again from scratch for the table; arrows "
        "past a layer are skip connections.",
        "schedules": "Learned schedules against the defaults."
        + " Columns run from dark to light." * many_columns
        + _shown(len(schedules)),
        "values": "Other hyperparameters against the defaults, each on its searched range."
        + _shown(len(values)),
        "hypergradient": "Norms of the hypergradient's two terms, and adjoint growth. Skipped, because not "
        f"finite: {counted(skipped, 'step')}.",
        "flatness": "Training loss of one network of each configuration along a random direction, whose "
        "filters are as long as the network's own.",
        "curves": f"Training before and after tuning: mean over {_seeds(results)} with its band.",
    }


def _shown(count: int) -> str:
    most = figures.MAX_PANELS
    return f" The first {most} of {count} are shown." if count > most else ""


def _seeds(results: Results) -> str:
    return counted(results.num_seeds, "seed") if results.num_seeds else "the seeds"


def _rows(results: Results) -> list[tuple[str, Value, Value]]:
    """Return name, validation objective and test metric of each configuration, the known ones first."""
    found, score = results.configurations, score_format(results)
    names = [name for name in ("default", "random", "tuned") if name in found]
    names += [name for name in found if name not in names]
    return [
        (name, written(found[name].valid, four_digits), written(found[name].test, score))
        for name in names[:20]
    ]


def _flatness(results: Results) -> dict[str, Any] | None:
    """Return the measures of flatness, a column a configuration: mean over seeds with their range."""
    if results.flatness is None or not results.flatness.measures:
        return None
    found = dict(list(results.flatness.measures.items())[:20])
    labels = list(dict.fromkeys(label for values in found.values() for label in values))[:40]
    nothing = np.zeros(0)
    return {
        "names": list(found),
        "rows": [(x, [_range_of(v.get(x, nothing)) for v in found.values()]) for x in labels],
        "seeds": counted(max(len(x) for v in found.values() for x in v.values()), "seed"),
    }


def _range_of(values: np.ndarray) -> Value:
    """Write the mean of values and their range; a network that diverged has neither."""
    if not values.size or not np.isfinite(values).all():
        return Value("not finite")
    mean, low, high = (float(end) for end in (values.mean(), values.min(), values.max()))
    return written(Interval(mean, low, high), four_digits)


def _warnings(results: Results) -> list[str]:
    said = [without_folders(text) for text in results.warnings[:100]]
    if len(results.warnings) > 100:
        said.append(f"and {len(results.warnings) - 100} more, in result.json")
    skipped = int(results.trace["skipped"])
    if skipped:
        said.append(f"{counted(skipped, 'outer step')} skipped: the hypergradient was not finite.")
    if results.interrupted:
        said.append(
            "The study was interrupted; these are the best hyperparameters found until then."
        )
    return said


def _choices(results: Results) -> list[str]:
    choices = tuned_leaves(results)[2]
    return choices[:50] + [f"and {len(choices) - 50} more"] * (len(choices) > 50)


def _tuned(best: Configuration) -> dict[str, str]:
    """Return the tuned hyperparameters as JSON, one a line, and their number."""
    numbers = sum(leaf.size if isinstance(leaf, np.ndarray) else 1 for leaf in best.leaves.values())
    size = f"{counted(len(best.leaves), 'hyperparameter')}, {counted(numbers, 'number')}"
    shown = readable_json(best.raw) if numbers <= MAX_NUMBERS else ""
    if shown and isinstance(best.raw, dict):
        items = (f"  {readable_json(k)}: {readable_json(v)}" for k, v in best.raw.items())
        shown = "{\n" + ",\n".join(items) + "\n}"
    return {"size": size, "json": shown if len(shown) <= 100 * MAX_NUMBERS else ""}


def _about(results: Results) -> list[tuple[str, list[str]]]:
    """Return the origin of the study, as names with lines of text."""
    study = results.study
    method = METHODS.get(study["method"])
    rows = {
        "command": study.get("command"),
        "method": method and f"{method.name}: {method.sentence}",
        "started": study.get("started"),
        "cost of a step": _cost(study),
        "layout": study.get("layout"),
        "data not compared on resume": _joined(study.get("data_unknown")),
        "took": _took(results),
        "seed": study.get("seed"),
        "seeds to compare": results.num_seeds or None,
        "task arguments": study["task_arguments"],
        "settings": {
            name: value
            for name, value in study["settings"].items()
            if value is not None and is_read(name, study["method"])
        },
        "space": {name: repr(dim) for name, dim in results.space.items()},
        "versions": study["versions"],
    }
    return [(name, _lines(value)) for name, value in rows.items() if value not in (None, "", {})]


def _cost(study: dict[str, Any]) -> str:
    """Say how many trainings a step counts, and how they were counted."""
    cost, counted = study.get("cost"), study.get("counted")
    if not isinstance(cost, (int, float)):
        return ""
    return f"{four_digits(cost)} trainings" + (f": {counted}" if counted else "")


def _joined(names: Any) -> str:
    return ", ".join(map(str, names)) if isinstance(names, list) else ""


def _took(results: Results) -> str:
    """Say how long the study took, and each search for hyperparameters in it."""
    parts = [f"{name} {duration(x)}" for name, x in results.clock.items() if duration(x)]
    return duration(results.seconds) + (f" ({', '.join(parts)})" if parts else "")


def _lines(value: Any) -> list[str]:
    if not isinstance(value, dict):
        return [clean(without_folders(plain_text(value)), 1000)]
    pairs = list(value.items())[:100]
    return [
        f"{clean(name, 80)} = {clean(without_folders(plain_text(item)), 200)}"
        for name, item in pairs
    ]
