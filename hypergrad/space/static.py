"""Static dimensions, whose values change the shapes of a compiled program.

Such a value has two forms: the *number* that searchers work with, as `space.dynamic` has it (of a `Choice` the
index), and what the user *named* (the option), as the problem sees it and a study records it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad.core import tree
from hypergrad.core.types import HParams, PyTree
from hypergrad.space.dimensions import Choice, Dimension, Integer
from hypergrad.space.values import starting_values


def static_names(space: PyTree) -> list[str]:
    """Name the static leaves of a space."""
    return [name for name, dim in tree.named(space).items() if dim.static]


def check_recordable(space: PyTree) -> None:
    """Raise a `ValueError` that names the first static dimension whose options a study cannot record."""
    for name, dim in tree.named(space).items():
        if dim.static and isinstance(dim, Choice) and _options(dim) is None:
            raise ValueError(
                f"space[{name!r}] is static and has the options {dim.options!s:.200}, expected numbers only or "
                "texts only, which a study can record; name them, and look them up by name in the problem"
            )


def corners(space: PyTree) -> list[HParams]:
    """List the defaults, and the defaults with each bound or option of one static dimension at a time.

    The user's functions are tried with these before training begins; all combinations may be too many.
    """
    start = starting_values(space)
    dims, structure = jax.tree.flatten(space)
    leaves = structure.flatten_up_to(start)
    found = [start]
    for i, dim in enumerate(dims):
        if dim.static:
            values = (dim.low, dim.high) if isinstance(dim, Integer) else dim.options
            found += [
                jax.tree.unflatten(structure, [*leaves[:i], value, *leaves[i + 1 :]])
                for value in values
                if value != leaves[i]
            ]
    return found


def to_options(space: PyTree, hparams: HParams) -> HParams:
    """Put what the user named in the place of the numbers of static dimensions; arrays of any shape."""

    def leaf(dim: Dimension, x: Any) -> Any:
        if not dim.static:
            return x
        x = np.asarray(x)
        return _options(dim)[x] if isinstance(dim, Choice) else x

    return jax.tree.map(leaf, space, hparams)


def to_numbers(space: PyTree, hparams: HParams) -> HParams:
    """Put numbers in the place of what the user named; inverts `to_options`.

    Raises:
        ValueError: for a value that is not one of the options, by its name.
    """

    def leaf(name: str, dim: Dimension, x: Any) -> Any:
        if not dim.static:
            return x
        x = np.asarray(x)
        if not isinstance(dim, Choice):
            return x.astype(np.int32)
        same = _options(dim) == x[..., None]
        if not np.all(np.any(same, -1)):
            strange = x[~np.any(same, -1)].ravel()[0]
            raise ValueError(
                f"hparams[{name!r}] has {strange.item()!r:.80}, expected one of {dim.options!s:.200}; "
                "pass one of them"
            )
        return np.argmax(same, -1).astype(np.int32)

    names = jax.tree.unflatten(jax.tree.structure(space), tree.leaf_names(space))
    return jax.tree.map(leaf, names, space, hparams)


def split(space: PyTree, hparams: HParams) -> tuple[tuple[int, ...], HParams]:
    """Split one value, as the user named it, into the numbers of the static leaves and the others.

    Returns:
        The label of the program that the value needs, and the hparams that this program is given, which
        are the same where nothing is static.
    """
    if not static_names(space):
        return (), hparams
    dims = jax.tree.leaves(space)
    given = jax.tree.leaves(to_numbers(space, hparams))
    label = tuple(int(x) for dim, x in zip(dims, given, strict=True) if dim.static)
    return label, free_leaves(space, given) or [jnp.zeros(())]


def stacked(space: PyTree, values: list[HParams]) -> HParams:
    """Return the hparams `[N]` of a population, from N values as the user named them."""
    numbers = [to_numbers(space, one) for one in values]
    return jax.tree.map(lambda *xs: jnp.asarray(np.stack(xs)), *numbers)


def free_leaves(space: PyTree, given: list[Any]) -> list[Any]:
    """Return the leaves that are not static."""
    pairs = zip(jax.tree.leaves(space), given, strict=True)
    return [x for dim, x in pairs if not dim.static]


def join(space: PyTree, label: tuple[int, ...], free: HParams) -> HParams:
    """Return hparams as the problem sees them: static leaves are Python's numbers and options."""
    if not label:
        return free
    fixed, others = iter(label), iter(free)
    dims, structure = jax.tree.flatten(space)
    values = [dim.named(next(fixed)) if dim.static else next(others) for dim in dims]
    return jax.tree.unflatten(structure, values)


def restored(space: PyTree, hparams: HParams) -> HParams:
    """Return one value, as it was recorded, as the problem sees it."""
    return join(space, *split(space, hparams))


def _options(dim: Choice) -> Any:
    """Return the options as an array of numbers or of texts, or None where they are something else."""
    try:
        found = np.asarray(dim.options)
    except ValueError:  # sequences of different lengths
        return None
    plain = found.ndim == 1 and found.dtype.kind in "biufU"
    return found if plain and found.tolist() == list(dim.options) else None
