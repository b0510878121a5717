"""The unit coordinates of a space as searchers use them: many trials at once, some coordinates counted."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad.core import tree
from hypergrad.core.types import Array, HParams, PyTree
from hypergrad.space.cells import cell_at, cell_middle, cell_width
from hypergrad.space.dimensions import Choice, Integer, is_discrete
from hypergrad.space.maps import from_unit, to_unit
from hypergrad.space.values import check_space


class Coordinates(NamedTuple):
    """Description of the D unit coordinates of a space: numpy arrays `[D]`, known before anything compiles.

    Attributes:
        leaf: Index of the dimension that each belongs to, in the order of the tree.
        levels: Number of values; 0 where it is continuous.
        ordered: False for the options of a `Choice`, whose order has no meaning.
        first: First number of an `Integer` on a logarithmic scale, whose cells differ in width; 0 elsewhere.
    """

    leaf: np.ndarray
    levels: np.ndarray
    ordered: np.ndarray
    first: np.ndarray

    @property
    def num(self) -> int:
        """Return D."""
        return len(self.leaf)

    def of(self, places: np.ndarray) -> "Coordinates":
        """Return the description of some of the coordinates."""
        return Coordinates(*(each[places] for each in self))


def coordinates(space: PyTree) -> Coordinates:
    """Describe the unit coordinates of a space of traceable dimensions.

    Raises:
        ValueError: for an empty space, and for a leaf that is static or not a dimension, by its name.
    """
    check_space(space, traceable=True)
    leaf, levels, ordered, first = [], [], [], []
    for index, dim in enumerate(jax.tree.leaves(space)):
        size = math.prod(dim.coordinates_shape)
        leaf += [index] * size
        levels += [dim.num_levels if is_discrete(dim) else 0] * size
        ordered += [not isinstance(dim, Choice)] * size
        first += [dim.low if isinstance(dim, Integer) and dim.log else 0] * size
    return Coordinates(*map(np.array, (leaf, levels, ordered, first)))


def from_units(space: PyTree, units: Array) -> HParams:
    """Map unit coordinates `[N, D]` to hparams `[N]`."""
    return jax.vmap(lambda unit: from_unit(space, unit))(units)


def to_units(space: PyTree, hparams: HParams) -> Array:
    """Map hparams `[N]` to unit coordinates `[N, D]`; counted ones to the middle of their cell."""
    units = jax.vmap(lambda one: to_unit(space, one))(hparams)
    return units.astype(jnp.result_type(float))


def cell(coords: Coordinates, units: Array) -> Array:
    """Return the index in [0, levels) of the cell that each unit coordinate lies in, int32."""
    return cell_at(*_counts(coords, units), units)


def snap(coords: Coordinates, units: Array) -> Array:
    """Move counted coordinates to the middle of their cell: `to_units(from_units(units))`, `[..., D]`."""
    levels, first = _counts(coords, units)
    middles = cell_middle(levels, first, cell(coords, units))
    return jnp.where(levels > 0, middles.astype(units.dtype), units)


def widths(coords: Coordinates, units: Array) -> Array:
    """Return the width of the cell that each unit coordinate lies in; 0 where it is continuous."""
    levels, first = _counts(coords, units)
    found = cell_width(levels, first, cell(coords, units))
    return jnp.where(levels > 0, found, 0).astype(units.dtype)


def names_of(space: PyTree, coords: Coordinates) -> list[str]:
    """Return the leaf name of every coordinate."""
    names = tree.leaf_names(space)
    return [names[index] for index in coords.leaf]


def _counts(coords: Coordinates, units: Array) -> tuple[np.ndarray, np.ndarray]:
    """Return levels and first numbers with as many dimensions as the units `[..., D]`."""
    shape = (1,) * (units.ndim - 1) + (-1,)
    return coords.levels.reshape(shape), coords.first.reshape(shape)
