"""Random changes of images, each drawn from a key: functions of it, with derivatives in their sizes."""

from typing import Any

import jax
import jax.numpy as jnp


def shift(key: jax.Array, images: jax.Array, size: Any) -> jax.Array:
    """Move each image by up to `size` pixels in both directions, zeros coming in.

    y = W(d₁) x W(d₂)ᵀ,   W(d)_{ij} = max(0, 1 − |i − j − d|),   d uniform in (−size, size)

    Between pixels the values are interpolated, so that the derivative in `size` is exact.

    Args:
        key: Key of the draws.
        images: `[B, H, W, C]`.
        size: Largest shift in pixels.
    """
    draws = size * jax.random.uniform(key, (2, len(images)), images.dtype, -1, 1)

    def weights(num: int, moved: jax.Array) -> jax.Array:
        at = jnp.arange(num, dtype=images.dtype)
        away = at[:, None] - at[None, :] - moved[:, None, None]
        return jnp.maximum(0, 1 - jnp.abs(away))

    rows, columns = (weights(images.shape[1 + axis], draws[axis]) for axis in (0, 1))
    return jnp.einsum("bij,bjkc,blk->bilc", rows, images, columns)


def flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirror each image `[B, H, W, C]` from left to right with odds of one half."""
    mirrored = jax.random.bernoulli(key, 0.5, (len(images), 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)
