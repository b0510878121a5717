"""A user's beliefs about a dimension before any trial: "the learning rate is near 1e-3"."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad import space as spaces
from hypergrad.core import tree
from hypergrad.core.checks import check_kind, check_name, check_share
from hypergrad.core.types import PyTree
from hypergrad.space import Choice, Integer

SPREAD = 0.15
"""Spread of a prior where none is given: a share of the range."""


class Prior(NamedTuple):
    """The belief that the best value of one dimension is near `value`.

    Attributes:
        value: Value of the dimension: a number, an option of a `Choice`, a number or one for each step of a
            `Sequence`.
        spread: Standard deviation as a share of the range (of its logarithm for `LogReal`), in (0, 1]; for a
            `Choice`, the probability of all other options together.
    """

    value: Any
    spread: float = SPREAD


Priors = Mapping[str, Prior]
"""{leaf name: prior}; dimensions without a prior stay uniform."""


def in_units(space: PyTree, priors: Priors) -> dict[str, tuple[np.ndarray, float]]:
    """Return {leaf name: (value in unit coordinates, spread)} of the priors of a traceable space.

    Raises:
        ValueError: for a name that is not a leaf, a spread that is not a share, and a value outside its
            dimension.
    """
    check_kind("prior", priors, Mapping, "{'lr': Prior(1e-3)}")
    dims, found = tree.named(space), {}
    for name, prior in priors.items():
        check_name("leaf of prior", name, dims)
        called = f"prior[{name!r}]"
        check_kind(called, prior, Prior, "Prior(1e-3)")
        spread = prior.spread
        check_share(f"{called}.spread", spread, "(0, 1]", what="a share of the range", example=0.15)
        found[name] = (_unit(name, dims[name], prior.value), float(spread))
    return found


def _unit(name: str, dim: spaces.Dimension, value: Any) -> np.ndarray:
    """Return the unit coordinates of a prior's value, flat."""
    called = f"prior[{name!r}] is near {value!r:.80}"
    if isinstance(dim, Choice):
        if value not in dim.options:
            raise ValueError(f"{called}, expected one of {dim.options}; pass one of them")
        value = dim.options.index(value)
    shape = getattr(dim, "shape", ())
    try:
        full = np.broadcast_to(np.asarray(value, float), shape)
    except (TypeError, ValueError):
        raise ValueError(f"{called}, expected a number or an array {shape}; pass one") from None
    kind = np.int32 if isinstance(dim, (Choice, Integer)) else np.float64
    try:
        spaces.check_value({name: dim}, {name: full})
    except ValueError as error:
        raise ValueError(f"{called}, expected a value within its range: {error}") from None
    with jax.ensure_compile_time_eval():
        array = jnp.asarray(full.astype(kind))
        return np.asarray(spaces.to_unit({name: dim}, {name: array}))
