"""A distribution over the trials of a space: what each dimension is drawn from, and how a prior shapes it."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad.core import tree
from hypergrad.core.checks import check_name, is_number, is_whole
from hypergrad.core.types import PyTree
from hypergrad.searchers.models import truncnorm
from hypergrad.searchers.models.chains import chains
from hypergrad.searchers.models.families import Family, Smoothing, normals, product, tables
from hypergrad.searchers.models.priors import Priors, check_priors
from hypergrad.space import Choice, Integer, Sequence, coordinates

TABLE = 16
"""Integers of at most so many values have a table; of more, a normal over their order."""

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

    Choices and short integers have tables, what is continuous has truncated normals. With `atoms`, real
    dimensions are cut into that many values from bound to bound, and have tables, too; sequences that never
    rise then have Markov tables. Without, such a sequence is continuous: its unit coordinates are
    (powers of) the ratios of its successive shares of the range, log b_{l+1} = log b_l − g_l, g_l ≥ 0.

    Args:
        space: a pytree of traceable dimensions.
        atoms: values a real dimension is cut into, for all of them or by leaf name; None: continuous.
        correlated: join the continuous coordinates by their correlation (`families.normals`).
        prior: {leaf name: `Prior(value, spread)`}, the first distribution; uniform where there is none.
        smoothing: of every update.
        floor: share of the first distribution in what is drawn from a table.

    Raises:
        ValueError: for an invalid space, atoms, prior, smoothing or floor, naming the argument.
    """
    smoothing = Smoothing() if smoothing is None else smoothing
    check_smoothing(smoothing, floor)
    coords = coordinates(space)
    given = check_priors(space, prior)
    names, dims = tree.leaf_names(space), jax.tree.leaves(space)
    cuts = _check_atoms(names, dims, atoms)
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
    return isinstance(dim, Integer) and dim.high - dim.low < TABLE


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


def check_smoothing(smoothing: Smoothing, floor: float) -> None:
    """Raise a `ValueError` unless the numbers are those of a smoothing and a floor."""
    for name, value, low in (
        ("c", smoothing.c, 0),
        ("beta", smoothing.beta, 0),
        ("tables", smoothing.tables, 0),
        ("floor", floor, -1),
    ):
        if not is_number(value) or not low < value <= 1 or value < 0:
            span = "[0, 1]" if low < 0 else "(0, 1]"
            raise ValueError(f"{name} is {value!r}, expected a share in {span}; pass e.g. 0.7")
    if not smoothing.q > 0:
        raise ValueError(f"q is {smoothing.q!r}, expected a positive number; pass e.g. 5.0")


def _check_atoms(
    names: list[str], dims: list, atoms: int | Mapping[str, int] | None
) -> dict[str, int]:
    """Return {leaf name: number of atoms} of the real dimensions that are cut."""
    counted = {n for n, dim in zip(names, dims, strict=True) if isinstance(dim, (Integer, Choice))}
    if atoms is None:
        return {}
    if isinstance(atoms, Mapping):
        for name in atoms:
            check_name("leaf of atoms", name, names)
            if name in counted:
                raise ValueError(
                    f"atoms has {name!r}, which is counted, expected a real dimension; leave it out"
                )
        cuts = dict(atoms)
    else:
        cuts = {name: atoms for name in names if name not in counted}
    for name, num in cuts.items():
        if not is_whole(num) or not 2 <= num <= 1024:
            raise ValueError(
                f"atoms is {num!r} for {name!r}, expected a whole number from 2 to 1024; pass e.g. 10"
            )
    return cuts
