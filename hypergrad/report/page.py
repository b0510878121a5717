"""Read a finished study and write its report: one HTML file that works offline, and its figures."""

import json
import math
import os
import re
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hypergrad.report import figures as plots
from hypergrad.report.results import Interval, Results, load_results
from hypergrad.report.sentences import (
    _ODD,
    _bounds,
    _capital,
    _count,
    _duration,
    _ends,
    _four,
    _headline,
    _score,
    _shown,
    _text,
)
from hypergrad.space import Choice, Dimension, Integer, LogReal, Real, Sequence
from hypergrad.tuners import TUNERS, is_read

MAX_SHOWN = 20_000
"""Numbers that the page shows in full; more are left to `result.json`."""

FIGURES = (
    "objective",
    "architecture",
    "schedules",
    "values",
    "hypergradient",
    "curves",
    "flatness",
)

_METHODS = {
    "descent": "hypergradient descent",
    "bilevel": "stochastic bilevel optimization",
    "controller": "controller of architecture and optimizer",
    "random": "random search",
    "grid": "grid search",
    "sobol": "Sobol search",
    "prior": "search near what is believed",
    "cross_entropy": "cross-entropy search",
    "evolution": "differential evolution",
    "cma_es": "CMA-ES",
    "bayes": "Bayesian optimization",
    "tpe": "tree-structured Parzen estimators",
    "optuna_tpe": "Optuna's TPE",
    "optuna_cma": "Optuna's CMA-ES",
    "optuna_gp": "Optuna's Gaussian process",
}

_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)

_CSS = """
:root { color-scheme: light; --ink: #222; --soft: #666; --rule: #ddd; --blue: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 52rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .6rem; }
p { margin: .6rem 0; overflow-wrap: anywhere; }
.facts { color: var(--soft); margin: .25rem 0 0; }
.headline { font-size: 1.25rem; line-height: 1.45; margin: 1.6rem 0 .8rem; }
.bounds { color: var(--soft); font-size: .85em; white-space: nowrap; }
small { display: block; color: var(--soft); font-weight: normal; font-size: .85em; }
table { border-collapse: collapse; width: 100%; margin: 1.6rem 0;
  font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .45rem .8rem .45rem 0;
  border-bottom: 1px solid var(--rule); overflow-wrap: break-word; }
.about td { overflow-wrap: anywhere; }
thead th { border-bottom: 2px solid var(--ink); font-size: .95rem; }
td b { font-weight: 500; }
.tuned th, .tuned td b { color: var(--blue); font-weight: 700; }
.about { font-size: .9rem; margin-top: 0; }
.about th { width: 9rem; font-weight: 500; color: var(--soft); }
figure { margin: 2.2rem 0; }
figcaption { color: var(--soft); font-size: .92rem; margin-top: .4rem; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: inherit !important; }
.narrow { display: none; }
pre { background: #f6f7f8; border: 1px solid var(--rule); border-radius: 4px; padding: .8rem 1rem;
  overflow: auto; max-height: 30rem; font: .82rem/1.5 ui-monospace, Menlo, Consolas, monospace; }
details pre { white-space: pre-wrap; overflow-wrap: anywhere; }
summary { cursor: pointer; color: var(--blue); }
.warnings { border-left: 4px solid #e69f00; padding: .1rem 0 .1rem 1rem; }
.warnings h2 { margin-top: .2rem; }
ul { padding-left: 1.2rem; overflow-wrap: anywhere; }
@media screen and (max-width: 620px) {
  main { padding: 1.5rem 1rem 3rem; }
  .wide { display: none; }
  .narrow { display: block; }
  .headline { font-size: 1.1rem; }
  table { font-size: .92rem; }
  .about th { width: 6.5rem; }
}
@media print {
  body { font-size: 10.5pt; }
  main { max-width: none; padding: 0; }
  figure, table, .warnings { break-inside: avoid; }
  figure { margin: 1.2rem 0; max-width: 15.5cm; }
  h2 { break-after: avoid; }
  pre { max-height: none; overflow: visible; white-space: pre-wrap; overflow-wrap: anywhere; }
}
"""


def write_report(directory: str | os.PathLike[str]) -> Path:
    """Write `report.html` and `figures/*.svg`, `figures/*.png` into a study's directory.

    Each file appears whole or not at all. The page holds its figures, has no script, loads nothing.

    Args:
        directory: Where the study was written.

    Returns:
        The path of the page.

    Raises:
        ValueError: If the study cannot be read, a file cannot be written or matplotlib is missing.
    """
    results = load_results(directory)
    folder, page = Path(directory) / "figures", Path(directory) / "report.html"
    try:
        folder.mkdir(exist_ok=True)
        wide, narrow = _figures(results, plots.WIDE), _figures(results, plots.NARROW)
        drawn = {
            name: (plots.svg(wide[name], f"{name}-"), plots.svg(narrow[name], f"{name}-narrow-"))
            for name in wide
        }
        for name, figure in wide.items():
            _write(folder / f"{name}.svg", drawn[name][0].encode())
            _write(folder / f"{name}.png", plots.png(figure))
        for name in set(FIGURES) - set(wide):  # an older report may have left one
            for ending in ("svg", "png"):
                (folder / f"{name}.{ending}").unlink(missing_ok=True)
        _write(page, _page(results, drawn).encode())
    except OSError as error:
        where = error.filename or folder
        raise ValueError(
            f"cannot write {plots.clean(str(where), 300)}: {error.strerror or error}; "
            "make the study's directory writable or free some space"
        ) from error
    return page


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: under another name, onto the disk, then renamed."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _figures(results: Results, width: float) -> dict[str, Any]:
    """Draw the figures that have anything to show, by name and in the order of the page."""
    schedules, values, _ = _tuned_leaves(results)
    start, best = _ends(results)
    names = {"train_curve": "training loss", "valid_curve": results.objective}
    figures = {
        "objective": plots.objective(
            results.trace,
            results.random_trace,
            start.valid.mean,
            results.objective,
            method=results.study["method"],
            width=width,
        ),
        "architecture": results.diagram and plots.architecture(results.diagram, width=width),
        "schedules": plots.schedules(schedules, width=width),
        "values": plots.values(values, width=width),
        "hypergradient": plots.hypergradient(results.trace, width=width),
        "curves": plots.curves(start.curves, best.curves, names, width=width),
    }
    if results.flatness is not None:
        steps, slices = results.flatness.steps, results.flatness.slices
        figures["flatness"] = plots.slices(steps, slices, width=width)
    return {name: figure for name, figure in figures.items() if figure is not None}


def _tuned_leaves(results: Results) -> tuple[list[plots.Leaf], list[plots.Leaf], list[str]]:
    """Split the tuned leaves into schedules, other numbers and choices (as sentences)."""
    start, best = _ends(results)
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
        leaf = plots.Leaf(name, before, after, *_range(dim))
        known = after.shape[:1] == (horizon,) if dim is None else isinstance(dim, Sequence)
        (schedules if known and after.ndim and len(after) > 1 else values).append(leaf)
    return schedules, values, choices


def _option(dim: Dimension | None, value: Any) -> str:
    """Name an option; those that are not static are recorded by their place."""
    shown = _plain(value)
    by_place = isinstance(dim, Choice) and not dim.static and not isinstance(value, str)
    if by_place and shown.isdecimal() and int(shown) < len(dim.options):
        return str(dim.options[int(shown)])[:200]
    return shown


def _range(dim: Dimension | None) -> tuple[float, float, bool]:
    """Return the bounds of a dimension and whether its scale is logarithmic; NaN where it has none."""
    element = dim.element if isinstance(dim, Sequence) else dim
    if not isinstance(element, (Real, LogReal, Integer)):
        return math.nan, math.nan, False
    return float(element.low), float(element.high), isinstance(element, LogReal)


def _page(results: Results, drawn: Mapping[str, tuple[str, str]]) -> str:
    study = results.study
    method = _METHODS.get(study["method"], study["method"])
    steps = results.trace["trainings"].size
    step = "outer step" if study["method"] in TUNERS else "generation"
    facts = [method, _count(steps, step), f"horizon {study.get('horizon', '?')} steps"]
    facts += [f"seed {study.get('seed', '?')}", _duration(results.seconds)]
    facts += ["interrupted"] * results.interrupted
    description = study["description"]
    lines = _headline(results)
    body = [
        f"<header><h1>{_text(study['task'])}</h1>",
        f'<p class="facts">{" · ".join(_text(fact, 80) for fact in facts if fact)}</p>',
        f"<p>{_text(description, 1000)}</p>" if description else "",
        "</header>",
        f'<p class="headline">{lines[0]}</p>',
        *(f"<p>{line}</p>" for line in lines[1:]),
        _table(results),
        *_figure_parts(results, drawn),
        _flatness(results),
        _warnings(results),
        _settings(results),
        _about(results),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light">\n'
        f"<title>{_text(study['task'], 80)}: {_text(method, 40)}</title>\n"
        f"<style>{_CSS}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def _table(results: Results) -> str:
    score = _score(results)
    known = [name for name in ("default", "random", "tuned") if name in results.configurations]
    rows = [*known, *(name for name in results.configurations if name not in known)][:20]
    if not rows:
        return ""
    num = next((c.test.num for c in results.configurations.values() if c.test.num), None)
    seeds = (
        f"mean of {_count(results.num_seeds, 'seed')}" if results.num_seeds else "mean over seeds"
    )
    examples = f", n\u00a0=\u00a0{num}" if num else ""
    cells = "".join(
        f'<tr{" class=tuned" if name == "tuned" else ""}><th scope="row">{_text(name, 40)}</th>'
        f"<td>{_cell(found.valid, _four)}</td><td>{_cell(found.test, score)}</td></tr>"
        for name, found in ((name, results.configurations[name]) for name in rows)
    )
    return (
        "<table><thead><tr><th></th>"
        f"<th>{_text(results.objective)} <small>{seeds}</small></th>"
        f"<th>test {_text(results.metric)} <small>bootstrap 95 %{examples}</small></th>"
        f"</tr></thead><tbody>{cells}</tbody></table>"
    )


def _cell(value: Interval, show: Callable[[float], str]) -> str:
    return f"<b>{show(value.mean)}</b><small>{_bounds(value, show)}</small>"


def _figure_parts(results: Results, drawn: Mapping[str, tuple[str, str]]) -> list[str]:
    if not drawn:
        return ["<p>There is nothing to draw: no outer step with a finite value was recorded.</p>"]
    schedules, values, _ = _tuned_leaves(results)
    skipped = int(results.trace["skipped"])
    seeds = _count(results.num_seeds, "seed") if results.num_seeds else "the seeds"
    captions = {
        "objective": f"{_capital(results.objective)} against cost; the unit is one full training. "
        "As seen while tuning: a point of a descent is a mean over its seeds, one of random search a "
        "single training, so the best of many is a lucky one. The table judges all on equal seeds.",
        "architecture": "The tuned architecture, as it was trained again from scratch for the table; arrows "
        "past a layer are skips.",
        "schedules": "Learned schedules against their start."
        + " Columns run from dark to light." * any(leaf.after.ndim > 1 for leaf in schedules)
        + _shown(len(schedules)),
        "values": "Other hyperparameters against their start, each on its searched range."
        + _shown(len(values)),
        "hypergradient": "Norms of the hypergradient's two terms, and adjoint growth; "
        f"{_count(skipped, 'step')} skipped as not finite.",
        "flatness": "Training loss along a random direction whose filters are as long as the network's own, "
        "for one network of each configuration.",
        "curves": f"Training before and after tuning: mean over {seeds} with its band.",
    }
    parts = []
    for name, (wide, narrow) in drawn.items():
        caption = _text(captions[name], 400)
        parts.append(
            f'<figure><div class="wide">{_inline(wide, caption)}</div>'
            f'<div class="narrow">{_inline(narrow, caption)}</div>'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    return parts


def _inline(svg: str, caption: str) -> str:
    """Turn an SVG document into an element of the page that takes the width it is given."""
    head, rest = svg.split(">", 1)
    box = re.search(r'viewBox="[-\d. ]+"', head)
    style = "stroke-linejoin: round; stroke-linecap: butt"
    return f'<svg {box[0] if box else ""} role="img" aria-label="{caption}" style="{style}">{rest}'


def _flatness(results: Results) -> str:
    """Write the measures of flatness, a column a configuration, mean over seeds with their range."""
    if results.flatness is None or not results.flatness.measures:
        return ""
    found = dict(list(results.flatness.measures.items())[:20])
    labels = list(dict.fromkeys(label for values in found.values() for label in values))[:40]
    rows = []
    for label in labels:
        cells = []
        for values in found.values():
            seen = values.get(label, np.zeros(0))
            known = seen[np.isfinite(seen)]
            if len(known) < max(1, len(seen)):  # a network that diverged is no flat one
                cells.append("<td><b>not finite</b></td>")
                continue
            shown = Interval(float(known.mean()), float(known.min()), float(known.max()))
            cells.append(f"<td>{_cell(shown, _four)}</td>")
        rows.append(f'<tr><th scope="row">{_text(label, 60)}</th>{"".join(cells)}</tr>')
    heads = "".join(f"<th>{_text(name, 40)}</th>" for name in found)
    num = max(len(values) for named in found.values() for values in named.values())
    return (
        f"<section><h2>Flatness</h2><p>Of the trained networks, on training examples: mean and range over "
        f"{_count(num, 'seed')}. Lower is flatter. A flat network need not be a good one.</p>"
        f"<table><thead><tr><th></th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></section>"
    )


def _warnings(results: Results) -> str:
    notes = list(results.warnings[:100])
    if len(results.warnings) > 100:
        notes.append(f"and {len(results.warnings) - 100} more, in result.json")
    skipped = int(results.trace["skipped"])
    if skipped:
        notes.append(f"{_count(skipped, 'outer step')} skipped: the hypergradient was not finite.")
    if results.interrupted:
        notes.append(
            "The study was interrupted; these are the best hyperparameters found until then."
        )
    items = "".join(f"<li>{_text(note, 2000)}</li>" for note in notes)
    return f'<section class="warnings"><h2>Warnings</h2><ul>{items}</ul></section>' if notes else ""


def _settings(results: Results) -> str:
    best = _ends(results)[1]
    if best.raw is None and results.snippet is None:
        return ""
    parts = ["<h2>Settings to paste back</h2>"]
    choices = _tuned_leaves(results)[2]
    if choices:
        more = [f"and {len(choices) - 50} more"] if len(choices) > 50 else []
        items = "".join(f"<li>{_text(choice)}</li>" for choice in choices[:50] + more)
        parts.append(f"<ul>{items}</ul>")
    if results.snippet is not None and len(results.snippet) <= 10 * MAX_SHOWN:
        parts.append(f"<pre>{_text(results.snippet, 10 * MAX_SHOWN, lines=True)}</pre>")
    elif results.snippet is not None:
        parts.append(
            "<p>The optax code is too long for a page: it is in result.json under snippet.</p>"
        )
    numbers = sum(leaf.size if isinstance(leaf, np.ndarray) else 1 for leaf in best.leaves.values())
    summary = f"{_count(len(best.leaves), 'hyperparameter')}, {_count(numbers, 'number')}"
    if best.raw is not None and numbers <= MAX_SHOWN:
        shown = _json(best.raw)
        if isinstance(best.raw, dict):
            items = (f"  {_json(key)}: {_json(value)}" for key, value in best.raw.items())
            shown = "{\n" + ",\n".join(items) + "\n}"
        parts.append(
            f"<details><summary>JSON of the tuned hyperparameters ({summary})</summary>"
            f"<pre>{_text(shown, 100 * MAX_SHOWN, lines=True)}</pre></details>"
        )
    elif best.raw is not None:
        parts.append(
            f"<p>The tuned hyperparameters ({summary}) are too long for a page: "
            "they are in result.json under configurations.</p>"
        )
    return f"<section>{''.join(parts)}</section>"


def _about(results: Results) -> str:
    study = results.study
    rows = {
        "command": study.get("command"),
        "started": study.get("started"),
        "took": _duration(results.seconds),
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
    cells = []
    for name, value in rows.items():
        if value is None or value in ({}, ""):
            continue
        if isinstance(value, dict):
            pairs = [
                f"{_text(k, 80)} = {_text(_plain(v), 200)}" for k, v in list(value.items())[:100]
            ]
            shown = "<br>".join(pairs)
        else:
            shown = _text(_plain(value), 1000)
        cells.append(f'<tr><th scope="row">{name}</th><td>{shown}</td></tr>')
    return (
        '<section><h2>How it was made</h2><table class="about"><tbody>'
        f"{''.join(cells)}</tbody></table></section>"
    )


def _plain(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return ", ".join(plots.number(item) for item in value.flat[:20])
    return value if isinstance(value, str) else _json(value)


def _json(value: Any) -> str:
    """Write JSON that survives `_text`: letters as they are, unless one cannot be shown."""
    shown = json.dumps(value, ensure_ascii=False)
    return json.dumps(value) if _ODD.search(shown) else shown
