"""What a user believes of a dimension before any trial: "the learning rate is near 1e-3"."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad import space as spaces
from hypergrad.core import tree
from hypergrad.core.checks import check_name, is_number
from hypergrad.core.types import PyTree
from hypergrad.space import Choice, Integer, Sequence

SPREAD = 0.15
"""Of a belief, where none is given: a share of the range."""


class Belief(NamedTuple):
    """A belief about one dimension.

    Attributes:
        value: where its best value is believed to be.
        spread: how far from there it may well be.
    """

    value: Any
    spread: float


Beliefs = Mapping[str, Belief]
"""Leaf name -> belief; other dimensions stay uniform."""


def near(value: Any, spread: float = SPREAD) -> Belief:
    """Believe that a dimension is best near a value.

    Args:
        value: of the dimension: a number, an option of a `Choice`, a number or one for each step of a
            `Sequence`.
        spread: standard deviation as a share of the range (of its logarithm for `LogReal`); for a
            `Choice`, the probability of all other options together.
    """
    if not is_number(spread) or not 0 < spread <= 1:
        raise ValueError(
            f"spread is {spread!r} in near, expected a share of the range in (0, 1]; pass e.g. 0.15"
        )
    return Belief(value, float(spread))


def check_beliefs(
    space: PyTree, beliefs: Beliefs | None, called: str = "beliefs"
) -> dict[str, tuple[np.ndarray, float]]:
    """Return {leaf name: (unit coordinates, spread)} of beliefs about a space.

    Args:
        space: a pytree of traceable dimensions.
        beliefs: to be checked.
        called: what the user calls them.

    Raises:
        ValueError: for a name that is no leaf, with the nearest, and for a value outside its dimension.
    """
    spaces.check_traceable(space)
    dims = dict(zip(tree.leaf_names(space), jax.tree.leaves(space), strict=True))
    if beliefs is not None and not isinstance(beliefs, Mapping):
        raise ValueError(
            f"{called} is {type(beliefs).__name__}, expected a dict of leaf names; "
            "pass e.g. {'lr': near(1e-3)}"
        )
    found = {}
    for name, belief in (beliefs or {}).items():
        check_name(f"leaf of {called}", name, dims)
        if not isinstance(belief, Belief):
            raise ValueError(
                f"{called}[{name!r}] is {belief!r:.80}, expected a belief; pass e.g. near(1e-3)"
            )
        found[name] = (_unit(called, name, dims[name], belief.value), belief.spread)
    return found


def _unit(called: str, name: str, dim: spaces.Dimension, value: Any) -> np.ndarray:
    """Return the unit coordinates of a believed value, flat."""
    called = f"{called}[{name!r}]"
    if isinstance(dim, Choice):
        if value not in dim.options:
            raise ValueError(
                f"{called} is near {value!r:.80}, expected one of {dim.options}; pass one of them"
            )
        value = dim.options.index(value)
    shape = getattr(dim, "shape", ())
    try:
        full = np.broadcast_to(np.asarray(value, float), shape)
    except (TypeError, ValueError):
        raise ValueError(
            f"{called} is near {value!r:.80}, expected a number or an array {shape}; pass one"
        ) from None
    kind = np.int32 if isinstance(dim, (Choice, Integer)) else np.float64
    try:
        spaces.check_value({name: dim}, {name: full})
    except ValueError as error:
        raise ValueError(
            f"{called} is near {value!r:.80}, expected a value of its range: {error}"
        ) from None
    with jax.ensure_compile_time_eval():
        array = jnp.asarray(full.astype(kind))
        return np.asarray(spaces.to_unit({name: dim}, {name: array}))


def decreasing(dim: Any) -> bool:
    """Tell whether a dimension is a sequence that never rises."""
    return isinstance(dim, Sequence) and dim.decreasing
