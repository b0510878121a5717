"""Multilayer perceptrons, in both of flax's interfaces."""

import itertools
from collections.abc import Callable, Sequence

import jax
from flax import linen as nn, nnx


class MLP(nn.Module):
    """Dense layers with an activation between them.

    `[B, D] -> [B, features[-1]]`; layers are called `dense_0`, `dense_1`, ...

    Attributes:
        features: Width of each layer, the outputs last.
        activation: Activation between layers.
        dropout: Share of hidden units dropped in training.
    """

    features: Sequence[int]
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    dropout: float = 0.0

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool = False) -> jax.Array:
        x = inputs.reshape(inputs.shape[0], -1)
        for index, width in enumerate(self.features):
            x = nn.Dense(width, name=f"dense_{index}")(x)
            if index + 1 < len(self.features):
                x = self.activation(x)
                if self.dropout:
                    x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return x


class NnxMLP(nnx.Module):
    """The same network as an nnx module.

    Args:
        features: Width of the inputs, of each layer, the outputs last.
        activation: Activation between layers.
        dropout: Share of hidden units dropped in training.
        rngs: Random streams `params` and `dropout`.
    """

    def __init__(
        self,
        features: Sequence[int],
        activation: Callable[[jax.Array], jax.Array] = nnx.relu,
        dropout: float = 0.0,
        *,
        rngs: nnx.Rngs,
    ):
        pairs = itertools.pairwise(features)
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in pairs])
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.activation = activation

    def __call__(self, inputs: jax.Array) -> jax.Array:
        x = inputs.reshape(inputs.shape[0], -1)
        for layer in self.layers[:-1]:
            x = self.dropout(self.activation(layer(x)))
        return self.layers[-1](x)
