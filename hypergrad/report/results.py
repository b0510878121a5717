"""Read a finished study from its directory, checking every type and shape on the way."""

import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hypergrad.report.diagrams import Diagram
from hypergrad.report.extras import MAX_NODES
from hypergrad.report.style import Curve
from hypergrad.report.text import clean
from hypergrad.space import Dimension, space_from_description
from hypergrad.study.disk.description import check_format
from hypergrad.study.disk.files import read_json
from hypergrad.study.disk.folder import check_folder

FLATNESS_FILE = "flatness.json"
"""What `hypergrad flatness` leaves in a study's folder."""

_ADVICE = "the file is damaged or was edited; restore it or run `hypergrad tune` again"

_KINDS: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
}


class Interval(NamedTuple):
    """Hold a mean with its interval and how many values it stands on; NaN where unknown."""

    mean: float = math.nan
    low: float = math.nan
    high: float = math.nan
    num: int | None = None


class Configuration(NamedTuple):
    """Hold what one choice of hyperparameters reached.

    `raw` is the pytree as the file has it, `leaves` its leaves by dotted name: arrays, or text for
    a choice.
    """

    raw: Any
    leaves: dict[str, np.ndarray | str]
    valid: Interval
    test: Interval
    curves: dict[str, Curve]


class FlatnessTable(NamedTuple):
    """Hold what `hypergrad flatness` measured: values over seeds, and slices through the training loss."""

    measures: dict[str, dict[str, np.ndarray]]
    steps: np.ndarray
    slices: dict[str, np.ndarray]


class Results(NamedTuple):
    """Hold a finished study as its files tell it. `study` is the content of study.json."""

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
    warnings: list[str]
    interrupted: bool
    seconds: float
    num_seeds: int
    digest: str | None = None
    flatness: FlatnessTable | None = None


def load_results(directory: str | os.PathLike[str]) -> Results:
    """Read `study.json` and `result.json` of a study and check every type and shape on the way.

    **Limits:** a file of at most 64 MB, nested at most 32 deep. Null, NaN and infinity become NaN.

    Args:
        directory: Where the study was written.

    Raises:
        ValueError: One line that names the file, says what is wrong with it and what to do.
    """
    folder = check_folder(directory)
    study, where = _read_json(folder / "study.json"), f"{_line(folder / 'study.json')}: "
    check_format(study, where.removesuffix(": "))
    for key in ("task", "method"):
        _field(study, key, str, where)
    study["description"] = _field(study, "description", str, where, "")
    for key in ("space", "settings", "versions", "task_arguments"):
        study[key] = _field(study, key, dict, where, {})
    result = _read_json(folder / "result.json")
    found = _results(study, result, f"{_line(folder / 'result.json')}: ")
    return found._replace(flatness=_flatness(folder / FLATNESS_FILE, found.digest))


def _flatness(path: Path, digest: str | None) -> FlatnessTable | None:
    """Read what was measured of a study; None where nothing was, or the study has gone on since."""
    if not path.exists():
        return None
    data, where = _read_json(path), f"{_line(path)}: "
    if data.get("of") != digest:
        return None
    steps = _array(data.get("steps"), f"{where}steps")
    slices = _field(data, "slices", dict, where, {})
    drawn = {
        name: _array(values, f"{where}slices.{_line(name, 40)}") for name, values in slices.items()
    }
    for name, values in drawn.items():
        _same_length(values, steps, f"{where}slices.{_line(name, 40)}", "steps")
    measures = {}
    for name, found in _field(data, "measures", dict, where).items():
        place = f"{where}measures.{_line(name, 40)}"
        measures[name] = {
            label: _array(values, f"{place}.{_line(label, 60)}")
            for label, values in _typed(found, dict, place).items()
        }
    return FlatnessTable(measures, steps, drawn)


def _results(study: dict[str, Any], data: dict[str, Any], where: str) -> Results:
    metric = _field(data, "metric", dict, where, {})
    configurations = _field(data, "configurations", dict, where)
    trace = _trace(_field(data, "trace", dict, where, {}), f"{where}trace.")
    random_trace = _field(data, "random_trace", dict, where, None)
    notes = _field(data, "warnings", list, where, [])
    return Results(
        study=study,
        space=space_from_description(study["space"], f"{where}space"),
        metric=_line(_field(metric, "name", str, f"{where}metric.", "metric"), 200),
        higher_is_better=_field(metric, "higher_is_better", bool, f"{where}metric.", False),
        objective=_line(_field(data, "objective_name", str, where, "validation loss"), 200),
        configurations={
            name: _configuration(
                _typed(value, dict, f"{where}configurations.{_line(name, 40)}"), where, name
            )
            for name, value in configurations.items()
        },
        trace=trace,
        random_trace=None
        if random_trace is None
        else _trace(random_trace, f"{where}random_trace."),
        snippet=_field(data, "snippet", str, where, None),
        diagram=_diagram(_field(data, "diagram", dict, where, None), f"{where}diagram"),
        warnings=[_typed(note, str, f"{where}warnings[{i}]") for i, note in enumerate(notes)],
        interrupted=_field(data, "interrupted", bool, where, False),
        seconds=_field(data, "seconds", float, where, None),
        num_seeds=_field(data, "num_seeds", int, where, 0),
        digest=_field(data, "final_digest", str, where, None),
    )


def _configuration(data: dict[str, Any], where: str, name: str) -> Configuration:
    where = f"{where}configurations.{_line(name, 40)}."
    leaves: dict[str, np.ndarray | str] = {}
    raw = data.get("hparams")
    if raw is not None:
        flatten(raw, "", leaves)
    curves = {}
    for key in ("train_curve", "valid_curve"):
        fields = _field(data, key, dict, where, None)
        if fields is not None:
            curves[key] = Curve(*_columns(fields, Curve._fields, f"{where}{key}."))
    valid, test = (
        _interval(_field(data, key, dict, where, {}), f"{where}{key}.") for key in ("valid", "test")
    )
    return Configuration(raw, leaves, valid, test, curves)


def _diagram(data: dict[str, Any] | None, where: str) -> Diagram | None:
    """Read the graph of an architecture: nodes of a few lines each, and pairs of their numbers."""
    if data is None:
        return None
    nodes, edges = (_field(data, key, list, f"{where}.") for key in ("nodes", "edges"))
    texts = all(isinstance(n, list) and all(isinstance(x, str) for x in n) for n in nodes)
    pairs = all(
        isinstance(e, list)
        and len(e) == 2
        and all(type(i) is int and 0 <= i < len(nodes) for i in e)
        for e in edges
    )
    if not (texts and pairs and 1 <= len(nodes) <= MAX_NODES and len(edges) <= MAX_NODES**2):
        raise ValueError(
            f"{where} is no graph of at most {MAX_NODES} nodes, expected lines of text and pairs of their "
            "numbers; write it again with the task's diagram"
        )
    return Diagram([[_line(x, 40) for x in node[:4]] for node in nodes], edges)


def _interval(data: dict[str, Any], where: str) -> Interval:
    mean, low, high = (_field(data, key, float, where, None) for key in ("mean", "low", "high"))
    num = _field(data, "num", int, where, None)
    values = _field(data, "values", list, where, None)
    return Interval(mean, low, high, len(values) if num is None and values is not None else num)


def _trace(data: dict[str, Any], where: str) -> dict[str, np.ndarray]:
    """Read a trace; a column that a method does not have is NaN throughout."""
    cost = _array(data.get("trainings"), f"{where}trainings")
    trace = {"trainings": cost}
    for key in ("value", "best", "direct_norm", "response_norm", "adjoint_growth"):
        trace[key] = _array(data.get(key) or [None] * cost.size, f"{where}{key}")
        _same_length(trace[key], cost, f"{where}{key}", "trainings")
    skipped = _field(data, "skipped", int, where, 0)
    return {**trace, "skipped": np.array(skipped)}


def _columns(data: dict[str, Any], keys: tuple[str, ...], where: str) -> list[np.ndarray]:
    arrays = [_array(data.get(key), f"{where}{key}") for key in keys]
    for key, array in zip(keys, arrays, strict=True):
        _same_length(array, arrays[0], f"{where}{key}", keys[0])
    return arrays


def _same_length(array: np.ndarray, other: np.ndarray, where: str, name: str) -> None:
    if array.size != other.size:
        raise ValueError(
            f"{where} has {array.size} values, expected {other.size} as in {name}: {_ADVICE}"
        )


def _array(value: Any, where: str) -> np.ndarray:
    """Read a flat list of numbers and nulls; null itself is an empty list."""
    array = _numbers(_typed([] if value is None else value, list, where))
    if array is None or array.ndim != 1:
        raise ValueError(f"{where} holds something else than numbers and nulls: {_ADVICE}")
    return array


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


def flatten(value: Any, name: str, leaves: dict[str, np.ndarray | str]) -> None:
    """Collect the leaves of a pytree by dotted name; lists of numbers are leaves, too."""
    array = None if isinstance(value, dict | str | bool) else _numbers(value)
    if array is not None:
        leaves[name or "value"] = array
    elif isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            flatten(item, f"{name}.{key}" if name else str(key), leaves)
    else:
        leaves[name or "value"] = value if isinstance(value, str) else json.dumps(value)


def _field(data: dict[str, Any], key: str, kind: type, where: str, *default: Any) -> Any:
    """Return a field of the type `kind`; absent or null is the default, if there is one."""
    value = data.get(key)
    if value is None and default:
        return math.nan if kind is float else default[0]
    return _typed(value, kind, where + key)


def _typed(value: Any, kind: type, where: str) -> Any:
    if kind is float and type(value) in (int, float):
        return _finite(value)
    if type(value) is not kind:
        found = "missing or null" if value is None else _KINDS.get(type(value), "something else")
        raise ValueError(f"{where} is {found}, expected {_KINDS[kind]}: {_ADVICE}")
    return value


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except FileNotFoundError:
        raise ValueError(
            f"{_line(path)} does not exist: give the directory of a finished study, "
            "or finish this one with `hypergrad resume`"
        ) from None


def _line(value: Any, limit: int = 300) -> str:
    return clean(str(value), limit)
