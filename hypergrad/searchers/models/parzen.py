"""Parzen densities over unit coordinates: the mean of kernels around trials and of one uniform."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad.core.types import Array, Key
from hypergrad.searchers.models import truncnorm
from hypergrad.space import Coordinates, snap, widths

OTHER = 0.2
"""Probability that a kernel around an option gives to all options alike."""

SHARE_OF_SCOTT = 0.7
"""Width of a joint kernel relative to Scott's rule, n^(-1 / (D + 4)) standard deviations."""


class Parzen(NamedTuple):
    """A mixture of kernels around n rows, of which some are empty, and of the uniform distribution.

    Attributes:
        units: Centres of the kernels, `[n, D]`.
        mask: Whether each row holds a kernel, `[n]`.
        width: Bandwidths, `[n, D]`.
    """

    units: Array
    mask: Array
    width: Array


def parzen_around(coords: Coordinates, units: Array, mask: Array, joint: bool) -> Parzen:
    """Build the density around the rows of a mask; `joint` kernels are products over all coordinates."""
    num = jnp.sum(mask, dtype=units.dtype)
    width = (_scott if joint else _neighbours)(units, mask, num)
    # a kernel narrower than a cell could not leave it, and more trials may agree by chance
    narrowest = jnp.where(coords.levels > 0, 0.5 * widths(coords, units), 1e-3)
    least = jnp.maximum(narrowest, 1 / jnp.minimum(100, 2 + num))
    return Parzen(units, mask, jnp.clip(width, least, 1))


def _scott(units: Array, mask: Array, num: Array) -> Array:
    """Return seven tenths of Scott's rule, by the spread of each coordinate; 0 for a single trial."""
    spread = jnp.where(num > 1, jnp.std(units, 0, where=mask[:, None], ddof=1), 0)
    scott = spread * jnp.maximum(num, 1) ** (-1 / (units.shape[1] + 4))
    return jnp.broadcast_to(SHARE_OF_SCOTT * scott, units.shape)


def _neighbours(units: Array, mask: Array, num: Array) -> Array:
    """Return the distance of each row's farther neighbour; for a single trial, that of the farther bound."""
    order = jnp.argsort(jnp.where(mask[:, None], units, jnp.inf), axis=0)
    gaps = jnp.diff(jnp.take_along_axis(units, order, 0), axis=0)
    gaps = jnp.where(jnp.arange(1, len(units))[:, None] < num, gaps, 0)
    farther = jnp.maximum(jnp.pad(gaps, ((1, 0), (0, 0))), jnp.pad(gaps, ((0, 1), (0, 0))))
    width = jnp.zeros_like(units).at[order, np.arange(units.shape[1])].set(farther)
    return jnp.where(num > 1, width, jnp.maximum(units, 1 - units))


def log_parzen(coords: Coordinates, parzen: Parzen, x: Array, joint: bool) -> Array:
    """Return the log-density at x, `[M, D]`: of all coordinates, `[M, 1]`, or of each, `[M, D]`."""
    kernels = truncnorm.log_density(x[:, None], parzen.units, parzen.width)
    same = jnp.abs(x[:, None] - parzen.units) < 1e-4
    levels = np.maximum(coords.levels, 1)
    chance = jnp.where(same, 1 - OTHER + OTHER / levels, OTHER / levels)
    # densities over [0, 1]: an option takes up 1 / K of it
    kernels = jnp.where(~coords.ordered, jnp.log(chance * levels), kernels)
    if joint:
        kernels = jnp.sum(kernels, -1, keepdims=True)
    kernels = jnp.where(parzen.mask[:, None], kernels, -jnp.inf)
    uniform = jnp.zeros_like(kernels[:, :1])
    total = jax.nn.logsumexp(jnp.concatenate([kernels, uniform], 1), axis=1)
    return total - jnp.log(jnp.sum(parzen.mask) + 1.0)


def draw_parzen(coords: Coordinates, key: Key, parzen: Parzen, num: int, joint: bool) -> Array:
    """Draw from a density, `[num, D]`; where not `joint`, draw a kernel for each coordinate."""
    which_key, value_key, option_key, free_key = jax.random.split(key, 4)
    shape = (num, coords.num)
    odds = jnp.append(jnp.where(parzen.mask, 0.0, -jnp.inf), 0.0)
    which = jax.random.categorical(which_key, odds, shape=(num, 1) if joint else shape)
    free = which == len(parzen.mask)
    row = jnp.minimum(which, len(parzen.mask) - 1), np.arange(coords.num)
    centre, width = parzen.units[row], parzen.width[row]
    uniform = jax.random.uniform(value_key, shape, centre.dtype, minval=1e-6)
    other = jax.random.bernoulli(option_key, OTHER, shape)
    near = jnp.where(
        ~coords.ordered,
        jnp.where(other, uniform, centre),
        truncnorm.quantile(uniform, centre, width),
    )
    anywhere = jax.random.uniform(free_key, shape, centre.dtype)
    return snap(coords, jnp.where(free, anywhere, near))
