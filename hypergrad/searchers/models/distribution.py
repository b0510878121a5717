"""The distribution of the trials of a space, dimension by dimension, and its shape under a prior."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad.core import tree
from hypergrad.core.checks import check_kind, check_name, check_positive, check_share, is_whole
from hypergrad.core.types import PyTree
from hypergrad.searchers.models import truncnorm
from hypergrad.searchers.models.chains import chains
from hypergrad.searchers.models.families import Family, Smoothing, normals, product, tables
from hypergrad.searchers.models.priors import Priors, in_units
from hypergrad.space import Choice, Integer, Sequence, coordinates, is_discrete

TABLE = 16
"""Largest number of values of an integer with a table; an integer of more values has a normal."""

MAX_ATOMS = 1024
"""Largest number of atoms of a dimension."""

_UNIFORM = (0.5, math.sqrt(1 / 12))


def distribution(
    space: PyTree,
    *,
    atoms: int | Mapping[str, int] | None = None,
    correlated: bool = False,
    prior: Priors | None = None,
    smoothing: Smoothing | None = None,
    floor: float = 0.01,
) -> Family:
    """Build the family of distributions over the unit coordinates of a mixed space.

    Choices and short integers (and a `Real` of few steps) have tables, but for those on a logarithmic scale;
    continuous dimensions have truncated normals. With `atoms`, real dimensions are cut into that many values
    from bound to bound, and have tables, too; sequences that never rise then have Markov tables. Without it,
    such a sequence is continuous: its unit coordinates are (powers of) the ratios of its successive shares of
    the range, log b_{l+1} = log b_l − g_l, g_l ≥ 0.

    Args:
        space: Pytree of traceable dimensions.
        atoms: Number of values that a real dimension is cut into, for all of them or by leaf name; continuous
            where None.
        correlated: Whether the continuous coordinates are joined by their correlation (`families.normals`).
        prior: Dict {leaf name: `Prior(value, spread)`} of the first distribution, which is uniform elsewhere.
        smoothing: Smoothing of every update.
        floor: Share of the first distribution in the draws from a table.

    Raises:
        ValueError: for an invalid space, atoms, prior, smoothing or floor, naming the argument.
    """
    coords = coordinates(space)
    if smoothing is not None:
        _check_smoothing(smoothing)
    floor = check_share("floor", floor, example=0.01)
    smoothing = Smoothing() if smoothing is None else smoothing
    given = in_units(space, prior) if prior else {}
    cuts = {} if atoms is None else _cuts(space, atoms)
    names, dims = tree.leaf_names(space), jax.tree.leaves(space)
    continuous: list[int] = []
    counted: list[int] = []
    start = np.tile(np.array(_UNIFORM), (coords.num, 1))
    first: list[np.ndarray] = []
    table_names: list[str] = []
    ends: list[bool] = []
    parts: list[tuple[np.ndarray, Family]] = []
    for index, (name, dim) in enumerate(zip(names, dims, strict=True)):
        where = np.flatnonzero(coords.leaf == index)
        near, num_atoms = given.get(name), cuts.get(name)
        if num_atoms is not None and isinstance(dim, Sequence) and dim.decreasing:
            length = dim.coordinates_shape[0]
            shape = (length, len(where) // length)
            parts.append((where, chains(name, shape, num_atoms, smoothing, floor, near)))
        elif num_atoms is not None or isinstance(dim, Choice) or _is_short(dim):
            num = int(coords.levels[where[0]]) if num_atoms is None else num_atoms
            counted += where.tolist()
            centres = [None] * len(where) if near is None else near[0]
            spread = None if near is None else near[1]
            first += [_first_table(dim, num, num_atoms is None, c, spread) for c in centres]
            table_names += [name] if len(where) == 1 else [f"{name}.{i}" for i in range(len(where))]
            ends += [num_atoms is not None] * len(where)
        else:
            continuous += where.tolist()
            if near is not None:
                with jax.ensure_compile_time_eval():
                    centre = jnp.asarray(near[0])
                    mean, std = truncnorm.moments(centre, jnp.full_like(centre, near[1]))
                    start[where] = np.stack([mean, std], 1)
    if counted:
        parts.append(
            (np.array(counted), tables(first, table_names, np.array(ends), smoothing, floor))
        )
    if continuous:
        mean, std = start[continuous].T
        parts.append((np.array(continuous), normals(mean, std, smoothing, correlated)))
    return product(parts, coords.num)


def _is_short(dim: object) -> bool:
    logarithmic = isinstance(dim, Integer) and dim.log  # whose cells differ in width
    return is_discrete(dim) and not logarithmic and dim.num_levels <= TABLE


def _first_table(
    dim: object, num: int, middles: bool, centre: float | None, spread: float | None
) -> np.ndarray:
    """Return the first table of one coordinate: uniform, or near the unit coordinate of a prior."""
    if centre is None or spread is None:
        return np.full(num, 1 / num)
    if isinstance(dim, Choice):
        table = np.full(num, spread / (num - 1))
        table[int(centre * num)] = 1 - spread
        return table
    places = (np.arange(num) + 0.5) / num if middles else np.arange(num) / (num - 1)
    # a prior rules no value out
    table = np.exp(-(((places - centre) / spread) ** 2) / 2) + 1e-6
    return table / table.sum()


def _check_smoothing(smoothing: Smoothing) -> None:
    check_kind("smoothing", smoothing, Smoothing, "Smoothing(c=0.9)")
    for name in ("c", "beta", "tables"):
        check_share(f"smoothing.{name}", getattr(smoothing, name), "(0, 1]", example=0.7)
    check_positive("smoothing.q", smoothing.q, example=5.0)


def _cuts(space: PyTree, atoms: int | Mapping[str, int]) -> dict[str, int]:
    """Return {leaf name: number of atoms} of the real dimensions that are cut."""
    dims = tree.named(space)
    counted = {name for name, dim in dims.items() if is_discrete(dim)}
    if not isinstance(atoms, Mapping):
        atoms = {name: atoms for name in dims if name not in counted}
    for name, num in atoms.items():
        check_name("leaf of atoms", name, dims)
        if name in counted:
            raise ValueError(
                f"atoms has {name!r}, which is counted, expected a real dimension; leave it out"
            )
        if not is_whole(num) or not 2 <= num <= MAX_ATOMS:
            raise ValueError(
                f"atoms is {num!r:.80} for {name!r}, expected a whole number from 2 to {MAX_ATOMS}; pass 10"
            )
    return {name: int(num) for name, num in atoms.items()}
