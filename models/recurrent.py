"""A recurrent classifier of sequences."""

import jax
import jax.numpy as jnp
from flax import linen as nn


class RNN(nn.Module):
    """A simple recurrent cell over time, then a dense layer on its last state.

    `[B, T, D] -> [B, num_classes]`

    Attributes:
        num_classes: Number of outputs.
        width: Size of the state.
    """

    num_classes: int
    width: int = 16

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        states = jnp.asarray(nn.RNN(nn.SimpleCell(self.width))(inputs))
        return nn.Dense(self.num_classes)(states[:, -1])
