"""Read a finished study from its folder, and check every type and shape on the way."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from hypergrad.core.files import read_json
from hypergrad.report.diagrams import MAX_NODES, Diagram, is_graph
from hypergrad.report.notes import is_notes
from hypergrad.report.style import Curve
from hypergrad.report.text import clean
from hypergrad.space import Dimension, space_from_description
from hypergrad.study.disk.description import check_format, read_either
from hypergrad.study.disk.folder import check_folder

FLATNESS_FILE = "flatness.json"
"""What `hypergrad flatness` leaves in a study's folder."""

_ADVICE = "the file is damaged or was edited; restore it or run `hypergrad tune` again"

_MADE_AGAIN = {
    "result.json": "the file is damaged or was edited; `hypergrad resume` makes it again",
    FLATNESS_FILE: "the file is damaged or was edited; `hypergrad flatness` makes it again",
}
"""{file that a study can make again: what to do where it is damaged}; `study.json` has a copy instead."""

_KINDS: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
}


class Interval(NamedTuple):
    """A mean with its interval, and the number of values it was taken over; NaN where unknown."""

    mean: float = math.nan
    low: float = math.nan
    high: float = math.nan
    num: int | None = None


class Configuration(NamedTuple):
    """What one choice of hyperparameters reached.

    Attributes:
        raw: The hparams as the file has them.
        leaves: The hparams by dotted name: arrays, or text for a choice.
        valid: The validation objective over seeds.
        test: The test metric over examples.
        curves: Training and validation curves, by "train_curve" and "valid_curve".
        draws_std: Standard deviation of the validation objective from draw to draw; NaN without draws.
    """

    raw: Any
    leaves: dict[str, np.ndarray | str]
    valid: Interval
    test: Interval
    curves: dict[str, Curve]
    draws_std: float = math.nan


class Flatness(NamedTuple):
    """How flat the networks of a study are.

    Attributes:
        measures: Configuration -> measure -> values over seeds `[S]`, NaN where training diverged.
        steps: Steps along the slices, in lengths of the filters, `[P]`.
        slices: Configuration -> training loss along a direction through its first network, `[P]`.
    """

    measures: dict[str, dict[str, np.ndarray]]
    steps: np.ndarray
    slices: dict[str, np.ndarray]


class Results(NamedTuple):
    """A finished study as its files tell it.

    Attributes:
        study: The content of `study.json`.
        space: The dimensions of its space by name.
        metric: Name of the test metric.
        higher_is_better: Whether a higher test metric is better.
        objective: Name of the validation objective.
        configurations: What "default", "tuned" and "random" reached on fresh seeds.
        trace: Columns with one value per step: "trainings", "value", "best", ...; "skipped" is one number.
        random_trace: The same for random search; None where it was not run.
        snippet: The task's code for the tuned hparams.
        diagram: The tuned architecture, for tasks that search for one.
        notes: Tables that the task adds, by title: lists of dicts with the same names.
        warnings: Sentences about the study.
        interrupted: Whether Ctrl-C ended the study.
        seconds: Wall-clock time; NaN where unknown.
        clock: Wall-clock time of each search for hyperparameters, by the name of its method.
        num_seeds: Fresh seeds that every configuration was judged on; zero where unknown.
        digest: SHA-256 of all that was trained.
        flatness: What `hypergrad flatness` measured of this result.
    """

    study: dict[str, Any]
    space: dict[str, Dimension]
    metric: str
    higher_is_better: bool
    objective: str
    configurations: dict[str, Configuration]
    trace: dict[str, np.ndarray]
    random_trace: dict[str, np.ndarray] | None
    snippet: str | None
    diagram: Diagram | None
    notes: dict[str, list[dict[str, Any]]]
    warnings: list[str]
    interrupted: bool
    seconds: float
    num_seeds: int
    digest: str | None = None
    flatness: Flatness | None = None
    clock: Mapping[str, float] = MappingProxyType({})


class _Entries(NamedTuple):
    """An object of a JSON file, and its place in the file, which errors name."""

    found: dict[str, Any]
    where: str

    def get(self, key: str, kind: type, *default: Any) -> Any:
        """Return an entry of the type `kind`; an absent one or null is the default, if there is one."""
        value = self.found.get(key)
        if value is None and default:
            return math.nan if kind is float else default[0]
        return _typed(value, kind, self.place(key))

    def entries(self, key: str, *default: Any) -> "_Entries":
        """Return an entry that is an object itself."""
        return _Entries(self.get(key, dict, *default), f"{self.place(key)}.")

    def array(self, key: str, like: np.ndarray | None = None) -> np.ndarray:
        """Return a flat list of numbers and nulls as an array, as long as `like`; null is an empty list."""
        array, place = _numbers(self.get(key, list, [])), self.place(key)
        if array is None or array.ndim != 1:
            raise ValueError(f"{place} holds something other than numbers and nulls: {_ADVICE}")
        if like is not None and array.size != like.size:
            found = f"{array.size} values, expected {like.size} as in the column before it"
            raise ValueError(f"{place} has {found}: {_ADVICE}")
        return array

    def place(self, key: str) -> str:
        return self.where + clean(key, 60)


def load_results(directory: str | os.PathLike[str]) -> Results:
    """Read `study.json` (or its copy where it is damaged), `result.json` and `flatness.json` of a study.

    **Limits:** a file of at most 64 MB, nested at most 32 deep. Null, NaN and infinity become NaN.

    Args:
        directory: Folder that the study was written to.

    Raises:
        ValueError: If a file is missing, damaged or of another version; the line names the file.
    """
    folder = check_folder(directory)
    study = _read(folder / "study.json")
    check_format(study.found, study.where.removesuffix(": "))
    whole = {key: study.get(key, str) for key in ("task", "method")}
    whole["description"] = study.get("description", str, "")
    whole |= {
        k: study.get(k, dict, {}) for k in ("space", "settings", "versions", "task_arguments")
    }
    space = space_from_description(whole["space"], study.place("space"))
    results = read_result(study.found | whole, space, _read(folder / "result.json"))
    return results._replace(flatness=_flatness(folder / FLATNESS_FILE, results.digest))


def _read(path: Path) -> _Entries:
    try:
        found = (
            read_json(path, _MADE_AGAIN[path.name])
            if path.name in _MADE_AGAIN
            else read_either(path)
        )
        return _Entries(found, f"{clean(str(path), 300)}: ")
    except FileNotFoundError:
        raise ValueError(
            f"{clean(str(path), 300)} does not exist: give the directory of a finished study, or finish this "
            "one with `hypergrad resume`"
        ) from None


def read_result(study: dict[str, Any], space: dict[str, Dimension], result: _Entries) -> Results:
    """Read the content of `result.json`."""
    metric, configurations = result.entries("metric", {}), result.entries("configurations")
    clock = result.entries("clock", {})
    random_trace = result.get("random_trace", dict, None)
    troubles = result.get("warnings", list, [])
    return Results(
        study=study,
        space=space,
        metric=clean(metric.get("name", str, "metric"), 200),
        higher_is_better=metric.get("higher_is_better", bool, False),
        objective=clean(result.get("objective_name", str, "validation loss"), 200),
        configurations={
            name: _configuration(configurations.entries(name)) for name in configurations.found
        },
        trace=_trace(result.entries("trace", {})),
        random_trace=None if random_trace is None else _trace(result.entries("random_trace")),
        snippet=result.get("snippet", str, None),
        diagram=_diagram(result),
        notes=_tables(result),
        warnings=[_typed(x, str, result.place(f"warnings[{i}]")) for i, x in enumerate(troubles)],
        interrupted=result.get("interrupted", bool, False),
        seconds=result.get("seconds", float, None),
        num_seeds=result.get("num_seeds", int, 0),
        digest=result.get("final_digest", str, None),
        clock={clean(k, 40): clock.get(k, float, None) for k in list(clock.found)[:20]},
    )


def _configuration(data: _Entries) -> Configuration:
    leaves: dict[str, np.ndarray | str] = {}
    raw = data.found.get("hparams")
    if raw is not None:
        _flatten(raw, "", leaves)
    curves = {
        key: _curve(data.entries(key))
        for key in ("train_curve", "valid_curve")
        if data.found.get(key) is not None
    }
    valid, test = (_interval(data.entries(key, {})) for key in ("valid", "test"))
    return Configuration(raw, leaves, valid, test, curves, data.get("draws_std", float, None))


def _curve(data: _Entries) -> Curve:
    step = data.array("step")
    return Curve(step, *(data.array(key, step) for key in ("mean", "low", "high")))


def _interval(data: _Entries) -> Interval:
    num, values = data.get("num", int, None), data.get("values", list, None)
    if num is None and values is not None:
        num = len(values)
    mean, low, high = (data.get(key, float, None) for key in ("mean", "low", "high"))
    return Interval(mean, low, high, num)


def _trace(data: _Entries) -> dict[str, np.ndarray]:
    """Read a trace; a column that a method does not have is NaN throughout."""
    cost = data.array("trainings")
    trace = {"trainings": cost}
    for key in ("value", "best", "direct_norm", "response_norm", "adjoint_growth"):
        trace[key] = data.array(key, cost) if data.found.get(key) else np.full(cost.shape, np.nan)
    return {**trace, "skipped": np.array(data.get("skipped", int, 0))}


def _diagram(result: _Entries) -> Diagram | None:
    """Read the graph of an architecture: nodes of a few lines each, and pairs of their numbers."""
    if result.found.get("diagram") is None:
        return None
    data = result.entries("diagram")
    nodes, edges = data.get("nodes", list), data.get("edges", list)
    texts = all(isinstance(n, list) and all(isinstance(x, str) for x in n) for n in nodes)
    if not (texts and is_graph(nodes, edges)):
        raise ValueError(
            f"{result.place('diagram')} is not a graph of at most {MAX_NODES} nodes, expected lines of text "
            "and pairs of their numbers; write it again with the task's diagram"
        )
    return Diagram([[clean(line, 40) for line in node[:4]] for node in nodes], edges)


def _tables(result: _Entries) -> dict[str, list[dict[str, Any]]]:
    notes = result.get("notes", dict, {})
    if not is_notes(notes):
        raise ValueError(f"{result.place('notes')} holds something other than tables: {_ADVICE}")
    return notes


def _flatness(path: Path, digest: str | None) -> Flatness | None:
    """Read what was measured of a study; None where nothing was, or the study has gone on since."""
    if not path.exists():
        return None
    data = _read(path)
    if data.found.get("of") != digest:
        return None
    steps, slices = data.array("steps"), data.entries("slices", {})
    measures = data.entries("measures")
    named = {name: measures.entries(name) for name in measures.found}
    return Flatness(
        {name: {x: found.array(x) for x in found.found} for name, found in named.items()},
        steps,
        {name: slices.array(name, steps) for name in slices.found},
    )


def _typed(value: Any, kind: type, where: str) -> Any:
    if kind is float and type(value) in (int, float):
        return _finite(value)
    if type(value) is not kind:
        found = "missing or null" if value is None else _KINDS.get(type(value), "something else")
        raise ValueError(f"{where} is {found}, expected {_KINDS[kind]}: {_ADVICE}")
    return value


def _numbers(value: Any) -> np.ndarray | None:
    """Return nested lists of numbers and nulls as an array, None if ragged or of anything else."""
    array = np.array(value, dtype=object)
    if not all(item is None or type(item) in (int, float) for item in array.flat):
        return None
    try:
        array = array.astype(float)
    except OverflowError:  # an integer beyond the floats
        array = np.vectorize(_finite, otypes=[float])(array)
    return np.where(np.isfinite(array), array, np.nan)


def _finite(value: float | None) -> float:
    try:
        return float(value) if value is not None and math.isfinite(value) else math.nan
    except OverflowError:
        return math.nan


def _flatten(value: Any, name: str, leaves: dict[str, np.ndarray | str]) -> None:
    """Collect the leaves of a pytree by dotted name; lists of numbers are leaves, too."""
    array = None if isinstance(value, dict | str | bool) else _numbers(value)
    if array is not None:
        leaves[name or "value"] = array
    elif isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            _flatten(item, f"{name}.{key}" if name else str(key), leaves)
    else:
        leaves[name or "value"] = value if isinstance(value, str) else json.dumps(value)
