"""The trials of a study as a table: one row a trial, whatever the method."""

from typing import Any

import jax
import numpy as np

from hypergrad.core import tree
from hypergrad.searchers import Trials


def columns(outcomes: list[Trials]) -> dict[str, np.ndarray]:
    """Join outcomes into columns with one row a trial, `[N, ...]`.

    `trial` counts all of them, `step` is the tuner's and `member` the place in it; `value` is NaN where a
    trial diverged. Then come the hparams by leaf name, and what `info` has for every trial; NaN for steps
    that have none of it. A name that is taken gets an underscore behind it.
    """
    sizes = [len(outcome.values) for outcome in outcomes]
    table = {
        "trial": np.arange(sum(sizes)),
        "step": np.repeat(np.arange(len(sizes)), sizes),
        "member": np.concatenate([np.arange(n) for n in sizes]) if sizes else np.zeros(0, int),
        "value": _join([outcome.values for outcome in outcomes], sizes),
        "steps": _join([outcome.steps for outcome in outcomes], sizes),
        "parent": _join([outcome.parent for outcome in outcomes], sizes),
    }
    leaves = [hparam_columns(outcome) for outcome in outcomes]
    infos = [_info_columns(outcome) for outcome in outcomes]
    for parts in (leaves, infos):
        for name in dict.fromkeys(name for part in parts for name in part):
            free = name
            while free in table:
                free += "_"
            table[free] = _join([part.get(name) for part in parts], sizes)
    return table


def hparam_columns(outcome: Trials) -> dict[str, np.ndarray]:
    """Return the hparams of an outcome by leaf name, `[N, ...]` each."""
    names, leaves = tree.leaf_names(outcome.hparams), jax.tree.leaves(outcome.hparams)
    return {name: np.asarray(leaf) for name, leaf in zip(names, leaves, strict=True)}


def _info_columns(outcome: Trials) -> dict[str, np.ndarray]:
    """Return what `info` has for each trial by itself; the rest is of the step as a whole."""
    num = len(outcome.values)
    arrays = {name: np.asarray(value) for name, value in outcome.info.items()}
    return {name: x for name, x in arrays.items() if x.shape[:1] == (num,) and x.dtype != object}


def _join(parts: list[Any], sizes: list[int]) -> np.ndarray:
    """Concatenate the parts that are there; those of another shape or missing are NaN, of their size."""
    there = [np.asarray(part) for part in parts if part is not None]
    if not there:
        return np.zeros(0)
    shape = there[-1].shape[1:]
    full = [
        np.full((n, *shape), np.nan) if part is None or np.shape(part)[1:] != shape else part
        for part, n in zip(parts, sizes, strict=True)
    ]
    return np.concatenate(full)


def frame(outcomes: list[Trials]) -> Any:
    """Return `columns` as a pandas frame where pandas is installed, else as they are.

    A column of schedules holds one array a row.
    """
    table = columns(outcomes)
    try:
        import pandas
    except ImportError:
        return table
    rows = {name: list(x) if x.ndim > 1 else x for name, x in table.items()}
    return pandas.DataFrame(rows).set_index("trial")


def dataset(outcomes: list[Trials]) -> Any:
    """Return `columns` as an `xarray.Dataset` over the dimension `trial`.

    The axes of a leaf `lr` are called `lr_0`, `lr_1`, ...

    Raises:
        ValueError: without xarray.
    """
    try:
        import xarray
    except ImportError:
        raise ValueError(
            "to_xarray needs xarray, which is not installed; "
            "install the extra: pip install 'hypergrad-jax[xarray]'"
        ) from None
    table = columns(outcomes)
    variables = {
        name: (("trial", *(f"{name}_{axis}" for axis in range(x.ndim - 1))), x)
        for name, x in table.items()
        if name != "trial"
    }
    return xarray.Dataset(variables, coords={"trial": table["trial"]})
