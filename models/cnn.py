"""A small convolutional network with BatchNorm and dropout, in both of flax's interfaces."""

from collections.abc import Callable

import jax
from flax import linen as nn, nnx


class CNN(nn.Module):
    """Convolution, BatchNorm, activation, mean over pixels, dropout, dense.

    `[B, H, W, C] -> [B, num_classes]`

    Attributes:
        num_classes: Number of outputs.
        width: Number of channels.
        activation: Activation after BatchNorm.
        dropout: Share of channels dropped in training.
    """

    num_classes: int
    width: int = 16
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    dropout: float = 0.0

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool = False) -> jax.Array:
        x = nn.Conv(self.width, (3, 3))(inputs)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        x = self.activation(x).mean((1, 2))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes)(x)


class NnxCNN(nnx.Module):
    """The same network as an nnx module.

    Args:
        num_channels: Number of channels C of the inputs.
        num_classes: Number of outputs.
        width: Number of channels.
        activation: Activation after BatchNorm.
        dropout: Share of channels dropped in training.
        rngs: Random streams `params` and `dropout`.
    """

    def __init__(
        self,
        num_channels: int,
        num_classes: int,
        width: int = 16,
        activation: Callable[[jax.Array], jax.Array] = nnx.relu,
        dropout: float = 0.0,
        *,
        rngs: nnx.Rngs,
    ):
        self.conv = nnx.Conv(num_channels, width, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(width, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.dense = nnx.Linear(width, num_classes, rngs=rngs)
        self.activation = activation

    def __call__(self, inputs: jax.Array) -> jax.Array:
        x = self.activation(self.norm(self.conv(inputs))).mean((1, 2))
        return self.dense(self.dropout(x))


class StridedCNN(nnx.Module):
    """Two convolutions with BatchNorm that halve the image each, dense: it knows where in the image things are.

    `[B, H, W, C] -> [B, num_classes]`

    Args:
        shape: Height, width and number of channels of the inputs.
        num_classes: Number of outputs.
        width: Number of channels of the first layer; the second has twice as many.
        activation: Activation after BatchNorm.
        rngs: Random streams; `params` alone is read.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        num_classes: int,
        width: int = 8,
        activation: Callable[[jax.Array], jax.Array] = nnx.relu,
        *,
        rngs: nnx.Rngs,
    ):
        height, across, num_channels = shape
        pixels = -(-height // 4) * -(-across // 4)
        self.first = nnx.Conv(num_channels, width, (3, 3), strides=2, rngs=rngs)
        self.first_norm = nnx.BatchNorm(width, momentum=0.9, rngs=rngs)
        self.second = nnx.Conv(width, 2 * width, (3, 3), strides=2, rngs=rngs)
        self.second_norm = nnx.BatchNorm(2 * width, momentum=0.9, rngs=rngs)
        self.dense = nnx.Linear(2 * width * pixels, num_classes, rngs=rngs)
        self.activation = activation

    def __call__(self, inputs: jax.Array) -> jax.Array:
        x = self.activation(self.first_norm(self.first(inputs)))
        x = self.activation(self.second_norm(self.second(x)))
        return self.dense(x.reshape(len(x), -1))
