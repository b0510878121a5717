"""Slices through the landscape of a loss, along directions that can be compared between networks."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from hypergrad.core.abstract import traced
from hypergrad.core.checks import check_whole
from hypergrad.core.types import Array, Batch, Key, Params, PyTree
from hypergrad.curvature.models import (
    Model,
    check_model,
    check_params,
    check_positive_or_traced,
    loss_of,
    widen,
)


class Landscape(NamedTuple):
    """Values of a loss on a line or a plane through the weights.

    Attributes:
        steps: Distances along each direction `[num]`, from −radius to radius.
        values: L(w + a d_1) `[num]`, or L(w + a d_1 + b d_2) `[num, num]` with a along the first axis.
    """

    steps: Array
    values: Array


def filter_direction(params: Params, key: Key) -> PyTree:
    """Draw a random direction whose filters are as long as those of the weights.

    d_f ← d_f ‖w_f‖ / ‖d_f‖ for the weights w_f into each unit (last axis of a kernel); biases and other
    vectors do not move. Otherwise a network with larger weights would look flatter than it is. Where the params
    have vectors and numbers alone, each of them is one filter.

    Args:
        params: Weights w.
        key: Key of the direction.

    Returns:
        A pytree like the params.

    Reference:
        Li, Xu, Taylor, Studer, Goldstein, 2018, arXiv:1712.09913, section 4.
    """
    check_params(params)
    leaves, treedef = jax.tree.flatten(widen(params))
    kernels = any(leaf.ndim >= 2 for leaf in leaves)
    drawn = [
        _normalize(jax.random.normal(k, leaf.shape, leaf.dtype), leaf, kernels)
        for k, leaf in zip(jax.random.split(key, len(leaves)), leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, drawn)


def _normalize(direction: Array, weights: Array, kernels: bool) -> Array:
    """Scale a direction as the weights, zero for a vector among kernels."""
    if weights.ndim < 2:
        if kernels:
            return jnp.zeros_like(weights)
        got = jnp.linalg.norm(direction)
        return direction * jnp.linalg.norm(weights) / jnp.where(got > 0, got, 1)
    axes = tuple(range(weights.ndim - 1))
    wanted, got = (
        jnp.sqrt(jnp.sum(jnp.square(x), axes, keepdims=True)) for x in (weights, direction)
    )
    return direction * wanted / jnp.where(got > 0, got, 1)


def landscape(
    loss: Model,
    params: Params,
    batch: Batch,
    directions: Sequence[PyTree],
    *,
    radius: float = 1.0,
    num: int = 51,
    chunk: int = 16,
) -> Landscape:
    """Return the loss on a line or a plane through the weights, which lie at its middle.

    `report.diagrams.landscape_figure` draws it. With `filter_direction`, a step of 1 moves each filter by its
    own length.

    **Cost:** `num` losses for one direction, num² for two, `chunk` side by side.

    Args:
        loss: Any model.
        params: Weights w.
        batch: Batch of the loss.
        directions: List of one or two pytrees like the params.
        radius: Distance from the weights to each end.
        num: Number of points a direction; an odd number puts one on the weights themselves.
        chunk: Number of points side by side.

    Raises:
        ValueError: unless there are one or two directions like the params, none of them zero.

    Reference:
        Li, Xu, Taylor, Studer, Goldstein, 2018, arXiv:1712.09913; Goodfellow, Vinyals, Saxe, 2015.
    """
    check_model(loss, params, batch)
    check_positive_or_traced("radius", radius)
    check_whole("num", num, 2)
    check_whole("chunk", chunk)
    if len(directions) not in (1, 2):
        raise ValueError(
            f"directions has {len(directions)} entries, expected one for a line or two for a plane"
        )
    wide = widen(params)
    for i, direction in enumerate(directions):
        if jax.tree.map(jnp.shape, direction) != jax.tree.map(jnp.shape, wide):
            raise ValueError(
                "directions has a pytree unlike the params, expected the same arrays; make it with "
                "filter_direction(params, key)"
            )
        if not traced(direction) and not any(
            np.asarray(x).any() for x in jax.tree.leaves(direction)
        ):
            raise ValueError(
                f"directions[{i}] is zero, expected one that moves a weight: along it the loss is constant; "
                "pass another (a filter of zeros has no length, and its direction none)"
            )
    function = loss_of(loss)
    flat, unravel = ravel_pytree(wide)
    basis = jnp.stack([ravel_pytree(d)[0].astype(flat.dtype) for d in directions])
    steps = jnp.linspace(-radius, radius, num, dtype=flat.dtype)
    mesh = jnp.meshgrid(*[steps] * len(directions), indexing="ij")
    points = jnp.stack([m.reshape(-1) for m in mesh], 1)

    def value(point: Array) -> Array:
        return function(unravel(flat + point @ basis), batch)

    values = jax.lax.map(value, points, batch_size=min(chunk, len(points)))
    return Landscape(steps, values.reshape([num] * len(directions)))
