"""Maps between a space, the unit cube and unconstrained numbers; schedules and selections."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import core

from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.space.cells import cell_at, cell_middle
from hypergrad.space.dimensions import (
    Choice,
    Dimension,
    Integer,
    LogReal,
    Real,
    Sequence,
)
from hypergrad.space.values import check_space, paired


def num_coordinates(space: PyTree) -> int:
    """Return D, the number of unit coordinates."""
    return sum(math.prod(dim.coordinates_shape) for dim in jax.tree.leaves(space))


def sample(space: PyTree, key: Key) -> HParams:
    """Draw one value, uniform in unit coordinates. `vmap` over keys draws many."""
    return from_unit(space, jax.random.uniform(key, (num_coordinates(space),)))


def sample_constant(space: PyTree, key: Key) -> HParams:
    """Draw one value whose schedules are constant over time, as one would try them without gradients.

    Independent draws for every step would be noise around the middle of the range.
    """

    def one(dim: Dimension) -> Dimension:
        return dim.element if isinstance(dim, Sequence) else dim

    def spread(dim: Dimension, value: Any) -> Any:
        return jnp.broadcast_to(value, dim.shape) if isinstance(dim, Sequence) else value

    return jax.tree.map(spread, space, sample(jax.tree.map(one, space), key))


def from_unit(space: PyTree, unit: Array) -> HParams:
    """Map unit coordinates `[D]` to a value; 0 and 1 give the bounds exactly.

    **Limits:** static dimensions need concrete coordinates (outside `jit` and `vmap`).
    """
    if jnp.shape(unit) != (num_coordinates(space),):
        raise ValueError(
            f"unit has shape {jnp.shape(unit)}, expected ({num_coordinates(space)},), one coordinate for "
            "each free number of the space; vmap over many"
        )
    leaves, treedef = jax.tree.flatten(space)
    values, used = [], 0
    for dim in leaves:
        size = math.prod(dim.coordinates_shape)
        values.append(_from_unit(dim, unit[used : used + size].reshape(dim.coordinates_shape)))
        used += size
    return jax.tree.unflatten(treedef, values)


def to_unit(space: PyTree, hparams: HParams) -> Array:
    """Map a value to unit coordinates `[D]`; inverts `from_unit` to the dtype's precision.

    A whole number or option maps to the middle of its share of [0, 1].
    """
    parts = _leaf_by_leaf(space, hparams, lambda dim, value: jnp.ravel(_to_unit(dim, value)))
    return jnp.concatenate(jax.tree.leaves(parts))


def _from_unit(dim: Dimension, u: Array) -> Any:
    if isinstance(dim, Sequence):
        if dim.decreasing:
            # u^(1/k) is the largest of k uniforms: the products are uniform values sorted downwards
            left = dim.coordinates_shape[0] - jnp.arange(dim.coordinates_shape[0])
            powers = 1 / left.reshape((-1,) + (1,) * (u.ndim - 1))
            u = jnp.cumprod(u**powers, axis=0)
        return _interpolate(dim, u, 1 - u)
    if isinstance(dim, LogReal) or (isinstance(dim, Real) and dim.step is None):
        return dim.value(u, 1 - u)
    value = dim.at(cell_at(dim.num_levels, _first(dim), u))
    if isinstance(dim, Real) or not dim.static:
        return value
    if isinstance(u, core.Tracer):
        raise ValueError(
            f"space holds {dim!r}, which is static, expected traceable dimensions within jit or vmap; "
            "call it outside, or leave static out"
        )
    return dim.named(int(value))


def _to_unit(dim: Dimension, value: Any) -> Array:
    if isinstance(dim, Sequence):
        u = _lower(dim.element, value[dim.free_steps])
        if dim.decreasing:
            left = dim.coordinates_shape[0] - jnp.arange(dim.coordinates_shape[0])
            u = _ratios(u) ** left.reshape((-1,) + (1,) * (u.ndim - 1))
        return u
    if isinstance(dim, LogReal) or (isinstance(dim, Real) and dim.step is None):
        return _lower(dim, value)
    if isinstance(dim, Choice) and dim.static:
        value = dim.options.index(value)
    middle = cell_middle(dim.num_levels, _first(dim), dim.index(value))
    return jnp.asarray(middle, jnp.result_type(float))


def _first(dim: Dimension) -> int:
    """Return the first number of an integer on a logarithmic scale, and 0 for others."""
    return dim.low if isinstance(dim, Integer) and dim.log else 0


def _lower(dim: Real | LogReal, value: Array) -> Array:
    """Share of the range above the lower bound, taken from the nearer bound."""
    lower, upper = dim.lower(value), dim.upper(value)
    return jnp.clip(jnp.where(lower < upper, lower, 1 - upper), 0, 1)


def _ratios(u: Array) -> Array:
    """Ratios of successive values, the first against 1; 1 where both are 0, and never above 1."""
    before = jnp.concatenate([jnp.ones_like(u[:1]), u[:-1]])
    return jnp.clip(jnp.where(before > 0, u / jnp.where(before > 0, before, 1), 1), 0, 1)


def _interpolate(dim: Sequence, lower: Array, upper: Array) -> Array:
    """Spread the free steps' shares of the range over all steps, and map them to values."""
    steps = dim.free_steps
    if len(steps) < dim.length:
        position = np.arange(dim.length)
        right = np.clip(np.searchsorted(steps, position), 1, len(steps) - 1)
        gap = steps[right] - steps[right - 1]
        shares = (position - steps[right - 1]) / gap
        share = shares.reshape((-1,) + (1,) * (lower.ndim - 1))
        weight = jnp.asarray(share, lower.dtype)
        lower, upper = ((1 - weight) * x[right - 1] + weight * x[right] for x in (lower, upper))
    return dim.element.value(lower, upper)


def unconstrain(space: PyTree, hparams: HParams) -> PyTree:
    """Map a value to unconstrained coordinates, z = log(lower) − log(upper) of its shares of the range.

    A value at a bound maps to ±∞, and back to that bound exactly. A decreasing sequence has one z for
    each ratio of successive values: equal ones give +∞.

    Returns:
        A pytree of the space's structure with float arrays; `Sequence` leaves have one row for each
        free step.

    Raises:
        ValueError: where a dimension is not real, by its name.
    """
    check_space(space, real=True)

    def leaf(dim: Real | LogReal | Sequence, value: Array) -> Array:
        if isinstance(dim, (Real, LogReal)):
            return _logit(dim.lower(value), dim.upper(value))
        value = value[dim.free_steps]
        if not dim.decreasing:
            return _logit(dim.element.lower(value), dim.element.upper(value))
        ratios = _ratios(_lower(dim.element, value))
        return _logit(ratios, 1 - ratios)

    return _leaf_by_leaf(space, hparams, leaf)


def constrain(space: PyTree, unconstrained: PyTree) -> HParams:
    """Map unconstrained coordinates to a value; inverts `unconstrain` to the dtype's precision."""

    def leaf(dim: Real | LogReal | Sequence, z: Array) -> Array:
        lower, upper = jax.nn.sigmoid(z), jax.nn.sigmoid(-z)
        if isinstance(dim, (Real, LogReal)):
            return dim.value(lower, upper)
        if dim.decreasing:
            lower = jnp.cumprod(lower, axis=0)
            upper = 1 - lower
        return _interpolate(dim, lower, upper)

    return _leaf_by_leaf(space, unconstrained, leaf, "unconstrained")


def _leaf_by_leaf(
    space: PyTree, values: PyTree, function: Callable[..., Any], called: str = "hparams"
) -> PyTree:
    """Map `function(dimension, value)` over a space, or raise a `ValueError` for a leaf of another shape."""
    found = []
    for name, dim, value in paired(space, values, called):
        shape = dim.shape if called == "hparams" else dim.coordinates_shape
        if np.shape(value) != shape and not dim.static:
            raise ValueError(
                f"{called}[{name!r}] has shape {np.shape(value)}, expected {shape}; start from default(space)"
            )
        found.append(function(dim, value))
    return jax.tree.unflatten(jax.tree.structure(space), found)


def _logit(lower: Array, upper: Array) -> Array:
    return jnp.log(jnp.maximum(lower, 0)) - jnp.log(jnp.maximum(upper, 0))


def schedule(values: Array) -> Callable[..., Any]:
    """Return an `optax.Schedule` that reads `values[count]`, and the last one past the end.

    Args:
        values: `[length, ...]`, for example the value of a `Sequence`.
    """

    def at(count: Array) -> Any:
        return values[jnp.minimum(count, values.shape[0] - 1)]

    return at


def select(choice: Array, options: PyTree) -> PyTree:
    """Pick one of several values by a choice, or mix them where the choice is relaxed.

    options[a] for an index a;   Σ_k y_k options[k] for weights y `[K]`, which `estimators.relaxed` passes.

    Args:
        choice: The value of a `Choice`, int32 `[]`, or weights `[K]`.
        options: A pytree of arrays with a leading axis `[K]`.
    """
    if jnp.ndim(choice) == 0:
        return jax.tree.map(lambda x: jnp.asarray(x)[choice], options)
    return jax.tree.map(lambda x: jnp.tensordot(choice, jnp.asarray(x), 1), options)
