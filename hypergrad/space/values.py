"""What a space may hold, its starting values, and whether a value is one of its own."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad.core import tree
from hypergrad.core.checks import describe
from hypergrad.core.types import HParams, PyTree
from hypergrad.space.dimensions import (
    Choice,
    Dimension,
    Integer,
    Real,
    Sequence,
    is_dimension,
    is_discrete,
)


def check_space(space: PyTree, *, real: bool = False, traceable: bool = False) -> None:
    """Raise a `ValueError` that names the first leaf of `space` that is not a dimension.

    Args:
        space: Space that the user passed.
        real: Whether every dimension must have a hypergradient.
        traceable: Whether the values of every dimension must share one compiled program.
    """
    try:
        names, leaves = tree.leaf_names(space), jax.tree.leaves(space)
    except (TypeError, ValueError):  # jax sorts the keys of a dict
        _check_keys(space)
        raise
    if not leaves:
        raise ValueError(
            "space has no dimensions, expected at least one; pass e.g. {'lr': LogReal(1e-4, 1.0)}"
        )
    for i, (name, leaf) in enumerate(zip(names, leaves, strict=True)):
        if not is_dimension(leaf):
            wrong = f"is {describe(leaf)}, expected a dimension (Real, LogReal, Integer, Choice, Sequence); "
            wrong += _instead_of(name, leaf)
        elif name in names[:i]:
            wrong = "is there twice, expected different names; rename one of them"
        elif real and is_discrete(leaf):
            step = f" with step={leaf.step:g}" if isinstance(leaf, Real) else ""
            wrong = f"is {type(leaf).__name__}{step}, expected a real dimension, because only those have a "
            wrong += (
                "hypergradient; fix its value in the problem, or search it with method 'random'"
            )
        elif traceable and leaf.static:
            wrong = "is static, expected a dimension whose values share one compiled program; fix its value in "
            wrong += "the problem, or search it with tune(method='random')"
        else:
            continue
        raise ValueError(f"space[{name!r}] {wrong}")


def _instead_of(name: str, leaf: Any) -> str:
    """Say what to write in the place of a leaf that is no dimension."""
    if name.rpartition(".")[2].isdigit() or np.ndim(leaf):
        return (
            "write LogReal(low, high) or Real(low, high) for a range, Choice(options) for options"
        )
    return "close over a value that is fixed"


def _check_keys(space: PyTree) -> None:
    """Raise a `ValueError` where a dict of the space has keys of several types, which cannot be sorted."""
    if isinstance(space, dict):
        try:
            sorted(space)
        except TypeError:
            raise ValueError(
                f"space has the keys {describe(list(space))} in one dict, expected keys of one type; "
                "make all of them texts"
            ) from None
    if isinstance(space, (dict, list, tuple)):
        for part in space.values() if isinstance(space, dict) else space:
            _check_keys(part)


def dynamic(space: PyTree) -> PyTree:
    """Return the space with every static dimension traced, as searchers see it."""
    return jax.tree.map(lambda dim: replace(dim, static=False) if dim.static else dim, space)


def paired(
    space: PyTree, values: PyTree, called: str = "hparams"
) -> list[tuple[str, Dimension, Any]]:
    """Pair each dimension with its value: (name, dimension, value) in the order of the leaves.

    Raises:
        ValueError: unless `values` has the structure of `space`.
    """
    names = tree.leaf_names(space)
    if jax.tree.structure(space) != jax.tree.structure(values):
        raise ValueError(
            f"{called} has the leaves {tree.leaf_names(values)}, expected those of the space, {names}; "
            "start from default(space)"
        )
    return list(zip(names, jax.tree.leaves(space), jax.tree.leaves(values), strict=True))


def check_value(space: PyTree, hparams: HParams) -> None:
    """Raise a `ValueError` unless concrete `hparams` have the structure, shapes and bounds of `space`."""
    for name, dim, value in paired(space, hparams):
        wrong = _misfit(dim, value)
        if wrong:
            raise ValueError(f"hparams[{name!r}] {wrong}; start from default(space)")


def _misfit(dim: Dimension, value: Any) -> str:
    """Say why a value is not one of a dimension; nothing where it is."""
    if isinstance(dim, Choice) and dim.static:
        return "" if value in dim.options else f"is {value!r}, expected one of {dim.options}"
    if np.shape(value) != dim.shape:
        return f"has shape {np.shape(value)}, expected {dim.shape}"
    array = np.asarray(value, np.float64)
    if isinstance(dim, (Integer, Choice)) and not np.all(array == np.round(array)):
        return f"holds {array.ravel()[0]:g}, expected whole numbers"
    bounds = dim.element if isinstance(dim, Sequence) else dim
    low, high = bounds.low, bounds.high
    # a bound rounded to float32 may lie just outside the float64 one
    slack = 1e-6 * max(abs(low), abs(high))
    if np.all((array >= low - slack) & (array <= high + slack)):
        return _off_grid(dim, array, slack)
    distance = np.abs(np.nan_to_num(array, nan=np.inf) - (low + high) / 2)
    worst = array.ravel()[np.argmax(distance)]
    return f"holds {worst:g}, expected values in [{low:g}, {high:g}]"


def _off_grid(dim: Dimension, array: np.ndarray, slack: float) -> str:
    """Say which value within the bounds is not low + k step; nothing where all are, or there is no step."""
    if not is_discrete(dim) or isinstance(dim, Choice):
        return ""
    step = dim.step or 1
    off = np.abs(array - (dim.low + np.round((array - dim.low) / step) * step)) > slack
    return (
        f"holds {array[off].ravel()[0]:g}, expected {dim.low:g} + k * {step:g}" if off.any() else ""
    )


def default(space: PyTree) -> HParams:
    """Return the starting value of every dimension.

    Raises:
        ValueError: for a leaf that is not a dimension, by its name.
    """
    check_space(space)
    return starting_values(space)


def starting_values(space: PyTree) -> HParams:
    """Return what `default` returns, of a space that has been checked."""

    def start(dim: Dimension) -> Any:
        if isinstance(dim, (Integer, Choice)):
            return dim.named(dim.start) if dim.static else jnp.asarray(dim.start, jnp.int32)
        return jnp.full(dim.shape, dim.start, jnp.result_type(float))

    return jax.tree.map(start, space)
