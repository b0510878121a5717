"""Random moves of hyperparameters: their coordinates and size, and slopes as gradients in hparams."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad import space as spaces
from hypergrad.core import tree
from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.space import Dimension, Sequence


class Perturbation(NamedTuple):
    """Gaussian moves of hparams, z ± σ u with u ~ N(0, I), in some coordinates z.

    Attributes:
        draw: (key, hparams) -> u, a pytree of the coordinates; independent for every leaf and entry.
        move: (hparams, u) -> the hparams at z + σ u.
        slope: (hparams, u, change `[]`) -> change · u / (2σ) as a gradient in hparams.
    """

    draw: Callable[[Key, HParams], PyTree]
    move: Callable[[HParams, PyTree], HParams]
    slope: Callable[[HParams, PyTree, Array], HParams]


def gaussian(sigma: float | PyTree | None, space: PyTree | None = None) -> Perturbation:
    """Build the moves: in the unconstrained coordinates of `space`, or of the hparams themselves.

    With a space, z = unconstrain(λ): no move leaves the bounds, and a rate is moved by a factor. A slope
    g_z in z becomes the shortest g with (∂λ/∂z)ᵀ g = g_z, so that `descent` pulls it back to g_z itself;
    for a dimension without knots or order that is g_z / (∂λ/∂z), the chain rule.

    **Limits:** with a space, a value at a bound has z = ±∞ and cannot be moved: its slope is zero. Without one,
    moves have no bounds: a learning rate may become negative.

    Args:
        sigma: Standard deviation σ in z: a number, or a pytree like hparams of numbers or arrays that
            broadcast to the coordinates; 0.1 where None with a space.
        space: Real dimensions in the structure of the hparams.

    Raises:
        ValueError: for a sigma that is not positive, for neither sigma nor space, for a dimension that is not
            real and, when traced, where sigma or space do not fit the hparams.
    """
    if space is not None:
        spaces.check_space(space, real=True)
        sigma = 0.1 if sigma is None else sigma
    _check_sigma(sigma)

    def coordinates(hparams: HParams) -> PyTree:
        return hparams if space is None else spaces.unconstrain(space, hparams)

    def draw(key: Key, hparams: HParams) -> PyTree:
        leaves, treedef = jax.tree.flatten(coordinates(hparams))
        keys = jax.random.split(key, len(leaves))
        units = [
            jax.random.normal(k, jnp.shape(leaf), jnp.result_type(leaf))
            for k, leaf in zip(keys, leaves, strict=True)
        ]
        return jax.tree.unflatten(treedef, units)

    def move(hparams: HParams, unit: PyTree) -> HParams:
        z = coordinates(hparams)
        moved = jax.tree.map(lambda x, s, u: x + s * u, z, _spread(sigma, z), unit)
        return moved if space is None else spaces.constrain(space, moved)

    def slope(hparams: HParams, unit: PyTree, change: Array) -> HParams:
        z = coordinates(hparams)
        grads = jax.tree.map(
            lambda s, u: (change / 2 * u / s).astype(u.dtype), _spread(sigma, z), unit
        )
        return grads if space is None else jax.tree.map(_lift, space, z, grads)

    return Perturbation(draw, move, slope)


def _lift(dim: Dimension, z: Array, grads: Array) -> Array:
    """Return the shortest g with (∂λ/∂z)ᵀ g = grads; zero where λ does not move with z."""
    if not isinstance(dim, Sequence) or (dim.knots is None and not dim.decreasing):
        derivative = jax.jvp(lambda z: spaces.constrain(dim, z), (z,), (jnp.ones_like(z),))[1]
        return _divide(grads, derivative)
    one = dataclasses.replace(dim, element=dataclasses.replace(dim.element, shape=()))

    def column(z: Array, grads: Array) -> Array:
        """Solve for one element of the schedule: ∂λ/∂z = QR, g = Q R⁻ᵀ grads."""
        q, r = jnp.linalg.qr(jax.jacfwd(lambda z: spaces.constrain(one, z))(z))
        alive = jnp.diag(r) != 0
        r = jnp.where(alive[:, None] & alive[None], r, jnp.eye(len(z), dtype=r.dtype))
        return q @ jax.scipy.linalg.solve_triangular(r, jnp.where(alive, grads, 0), trans=1)

    columns = jax.vmap(column, in_axes=1, out_axes=1)
    flat = columns(z.reshape(len(z), -1), grads.reshape(len(z), -1))
    return flat.reshape(dim.shape)


def _divide(numerator: Array, denominator: Array) -> Array:
    alive = denominator != 0
    return jnp.where(alive, numerator / jnp.where(alive, denominator, 1), 0)


def _spread(sigma: Any, like: PyTree) -> PyTree:
    """Give every leaf of `like` its σ."""
    if jax.tree.structure(sigma) == jax.tree.structure(0.0) and np.ndim(sigma) == 0:
        return jax.tree.map(lambda leaf: jnp.asarray(sigma, jnp.result_type(leaf)), like)
    if jax.tree.structure(sigma) != jax.tree.structure(like):
        raise ValueError(
            f"sigma has the leaves {tree.leaf_names(sigma)}, expected those of hparams, "
            f"{tree.leaf_names(like)}; pass one number for all, or one for each leaf"
        )
    pairs = zip(jax.tree.leaves(sigma), jax.tree.leaves(like), strict=True)
    for name, (s, leaf) in zip(tree.leaf_names(like), pairs, strict=True):
        shape, size = np.shape(s), jnp.shape(leaf)
        fits = (a in (1, b) for a, b in zip(shape[::-1], size[::-1], strict=False))
        if len(shape) > len(size) or not all(fits):
            raise ValueError(
                f"sigma[{name!r}] has shape {shape}, expected one that broadcasts to {size}; pass a number"
            )
    return jax.tree.map(lambda s, leaf: jnp.asarray(s, jnp.result_type(leaf)), sigma, like)


def _check_sigma(sigma: Any) -> None:
    """Raise a `ValueError` unless every leaf of `sigma` holds positive finite numbers."""
    if sigma is None or not jax.tree.leaves(sigma):
        raise ValueError(
            f"sigma is {sigma!r}, expected how far to move the hparams, because only coordinates of a space "
            "have a natural scale; pass sigma=..., a number or one for each leaf, or space=..."
        )
    for path, leaf in zip(tree.leaf_names(sigma), jax.tree.leaves(sigma), strict=True):
        number = not isinstance(leaf, (bool, str)) and np.asarray(leaf).dtype.kind in "fiu"
        if not number or not np.all(np.isfinite(leaf) & (np.asarray(leaf) > 0)):
            name = "sigma" if leaf is sigma else f"sigma[{path!r}]"
            raise ValueError(f"{name} is {leaf!r}, expected positive finite numbers; pass e.g. 0.1")
