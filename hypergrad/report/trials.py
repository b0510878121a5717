"""The trials of a study as a table: one row per trial, whatever the method."""

from typing import Any

import numpy as np

from hypergrad.core import tree
from hypergrad.core.checks import library
from hypergrad.searchers import Trials


def columns(steps: list[Trials]) -> dict[str, np.ndarray]:
    """Join the trials of all steps into columns with one row per trial, `[N, ...]`.

    `trial` numbers all trials, `step` is the tuner's step and `member` the place of the trial in it; `value`
    is NaN where a trial diverged. Then come the hparams by leaf name, and the entries of `info` that have a
    value for every trial; they are NaN in steps without this entry. A name that is already in use gets an
    underscore at its end.
    """
    sizes = [len(trials.values) for trials in steps]
    table = {
        "trial": np.arange(sum(sizes)),
        "step": np.repeat(np.arange(len(sizes)), sizes),
        "member": np.concatenate([np.arange(n) for n in sizes]) if sizes else np.zeros(0, int),
        "value": _join([trials.values for trials in steps], sizes),
        "steps": _join([trials.steps for trials in steps], sizes),
        "parent": _join([trials.parent for trials in steps], sizes),
    }
    leaves = [_hparam_columns(trials) for trials in steps]
    infos = [_info_columns(trials) for trials in steps]
    for parts in (leaves, infos):
        for name in dict.fromkeys(name for part in parts for name in part):
            free = name
            while free in table:
                free += "_"
            table[free] = _join([part.get(name) for part in parts], sizes)
    return table


def _hparam_columns(trials: Trials) -> dict[str, np.ndarray]:
    """Return the hparams of trials by leaf name, `[N, ...]` each."""
    return {name: np.asarray(leaf) for name, leaf in tree.named(trials.hparams).items()}


def _info_columns(trials: Trials) -> dict[str, np.ndarray]:
    """Return the entries of `info` that have a value for each trial; the others describe the whole step."""
    num = len(trials.values)
    arrays = {name: np.asarray(value) for name, value in trials.info.items()}
    return {name: x for name, x in arrays.items() if x.shape[:1] == (num,) and x.dtype != object}


def _join(parts: list[Any], sizes: list[int]) -> np.ndarray:
    """Concatenate the parts of all steps; a part that is missing or has another shape becomes NaN."""
    there = [np.asarray(part) for part in parts if part is not None]
    if not there:
        return np.zeros(0)
    shape = there[-1].shape[1:]
    full = [
        np.full((n, *shape), np.nan) if part is None or np.shape(part)[1:] != shape else part
        for part, n in zip(parts, sizes, strict=True)
    ]
    return np.concatenate(full)


def frame(steps: list[Trials]) -> Any:
    """Return the columns as a pandas frame where pandas is installed, else as a dict of arrays.

    A column of schedules holds one array a row.
    """
    table = columns(steps)
    try:
        import pandas
    except ImportError:
        return table
    rows = {name: list(x) if x.ndim > 1 else x for name, x in table.items()}
    return pandas.DataFrame(rows).set_index("trial")


def dataset(steps: list[Trials]) -> Any:
    """Return the columns as an `xarray.Dataset` over the dimension `trial`.

    The axes of a leaf `lr` are called `lr_0`, `lr_1`, ...

    Raises:
        ValueError: If xarray is not installed.
    """
    xarray = library("xarray", "xarray", "extra")
    table = columns(steps)
    variables = {
        name: (("trial", *(f"{name}_{axis}" for axis in range(x.ndim - 1))), x)
        for name, x in table.items()
        if name != "trial"
    }
    return xarray.Dataset(variables, coords={"trial": table["trial"]})
