"""Spaces and trials as Optuna has them.

A parameter of Optuna is a unit coordinate of the space in the user's units: `lr` for a scalar, `scales.0`,
`scales.1`, ... for each entry of an array and each free step of a schedule. The parameters of a sequence that
never rises are its unit coordinates, from 0 to 1: whatever their values, the sequence never rises.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence as Many
from typing import Any, NamedTuple

import jax
import numpy as np

from hypergrad import space as spaces
from hypergrad.core import tree
from hypergrad.core.checks import library
from hypergrad.core.types import PyTree
from hypergrad.space import Choice, Integer, LogReal, Real, Sequence, coordinates


def optuna_module(module: str = "optuna") -> Any:
    """Import Optuna, or a module of it."""
    return library(module, "optuna", "integration")


class Parameter(NamedTuple):
    """A unit coordinate as a parameter of Optuna.

    Attributes:
        name: Name of the leaf, and the place in it where the leaf has several coordinates.
        distribution: Distribution, an `optuna.distributions.BaseDistribution`.
        value: (unit coordinate) -> value of the parameter.
        unit: (value of the parameter) -> unit coordinate.
    """

    name: str
    distribution: Any
    value: Callable[[float], Any]
    unit: Callable[[Any], float]


def parameters(space: PyTree) -> list[Parameter]:
    """Return the parameters that a space has in Optuna, one for each unit coordinate, in their order.

    Raises:
        ValueError: without Optuna, and for an invalid space.
    """
    space = spaces.dynamic(space)
    leaf = coordinates(space).leaf
    found = []
    for index, (name, dim) in enumerate(
        zip(tree.leaf_names(space), jax.tree.leaves(space), strict=True)
    ):
        size = int(np.sum(leaf == index))
        scalar = getattr(dim, "shape", ()) == ()
        names = [name] if scalar else [f"{name}.{i}" for i in range(size)]
        found += [_parameter(each, dim) for each in names]
    return found


def _parameter(name: str, dim: spaces.Dimension) -> Parameter:
    kinds = optuna_module("optuna.distributions")
    if isinstance(dim, Integer):
        make = kinds.IntDistribution(dim.low, dim.high, log=dim.log, step=dim.step)
        return _counted(name, make, dim)
    if isinstance(dim, Real) and dim.step is not None:
        make = kinds.FloatDistribution(dim.low, dim.high, step=dim.step)
        return _counted(name, make, dim)
    if isinstance(dim, Choice):
        num, options = len(dim.options), _options(dim)
        return Parameter(
            name,
            kinds.CategoricalDistribution(options),
            lambda u: options[min(int(u * num), num - 1)],
            lambda x: (options.index(x) + 0.5) / num,
        )
    element = dim.element if isinstance(dim, Sequence) else dim
    if isinstance(dim, Sequence) and dim.decreasing:
        return Parameter(name, kinds.FloatDistribution(0.0, 1.0), float, float)
    low, high = float(element.low), float(element.high)
    if isinstance(element, LogReal):
        span = math.log(high / low)
        return Parameter(
            name,
            kinds.FloatDistribution(low, high, log=True),
            lambda u: _between(low, low * math.exp(u * span), high),
            lambda x: _between(0.0, math.log(x / low) / span, 1.0),
        )
    return Parameter(
        name,
        kinds.FloatDistribution(low, high),
        lambda u: _between(low, low + u * (high - low), high),
        lambda x: _between(0.0, (x - low) / (high - low), 1.0),
    )


def _counted(name: str, distribution: Any, dim: Integer | Real) -> Parameter:
    """Return a whole number, or a number with a step."""
    num, step = dim.num_levels, dim.step or 1
    if isinstance(dim, Integer) and dim.log:
        low, high = dim.low - 0.5, dim.high + 0.5
        span = math.log(high / low)
        return Parameter(
            name,
            distribution,
            lambda u: min(math.floor(low * math.exp(u * span) + 0.5), dim.high),
            lambda x: math.log(math.sqrt((x - 0.5) * (x + 0.5)) / low) / span,
        )
    values = (
        dim.values.tolist() if isinstance(dim, Real) else range(dim.low, dim.high + 1, dim.step)
    )
    return Parameter(
        name,
        distribution,
        lambda u: values[min(int(u * num), num - 1)],
        lambda x: (round((x - dim.low) / step) + 0.5) / num,
    )


def _options(dim: Choice) -> tuple:
    """Return the options of a choice where Optuna can store and tell them apart, else their indices."""
    plain = all(isinstance(x, (str, int, float, bool)) for x in dim.options)
    if plain and len(set(dim.options)) == len(dim.options):
        return tuple(dim.options)
    return tuple(range(len(dim.options)))


def _between(low: float, x: float, high: float) -> float:
    return min(max(x, low), high)


def trial_states(values: np.ndarray, steps: np.ndarray) -> list[Any]:
    """Return Optuna's name for the end of each trial: COMPLETE, PRUNED before the longest, or FAIL."""
    state = optuna_module("optuna.trial").TrialState
    finite = np.isfinite(values)
    longest = steps[finite].max() if finite.any() else 0
    whole = [state.COMPLETE if step == longest else state.PRUNED for step in steps]
    return [one if good else state.FAIL for one, good in zip(whole, finite, strict=True)]


def frozen_trial(
    found: Many[Parameter],
    units: np.ndarray,
    state: Any,
    value: float,
    step: int,
    user_attrs: dict[str, Any] | None = None,
) -> Any:
    """Return a finished trial as `study.add_trial` takes it."""
    make = optuna_module("optuna.trial").create_trial
    return make(
        state=state,
        params={one.name: one.value(float(u)) for one, u in zip(found, units, strict=True)},
        distributions={one.name: one.distribution for one in found},
        value=value if state.name == "COMPLETE" else None,
        intermediate_values={} if state.name == "FAIL" else {step: value},
        user_attrs=user_attrs,
    )


@contextlib.contextmanager
def quiet(optuna: Any) -> Iterator[None]:
    """Keep Optuna from announcing a study that lives in memory."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)
