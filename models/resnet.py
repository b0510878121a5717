"""A small residual network with BatchNorm, as an nnx module: ResNet-8 by default."""

from collections.abc import Callable, Sequence

import jax
from flax import nnx

Activation = Callable[[jax.Array], jax.Array]


class Block(nnx.Module):
    """Two convolutions with BatchNorm beside a shortcut, which is a convolution where shapes change."""

    def __init__(
        self, num_in: int, num_out: int, stride: int, activation: Activation, rngs: nnx.Rngs
    ):
        def conv(a: int, size: int, stride: int) -> nnx.Conv:
            return nnx.Conv(a, num_out, (size, size), strides=stride, use_bias=False, rngs=rngs)

        self.first, self.second = conv(num_in, 3, stride), conv(num_out, 3, 1)
        self.first_norm = nnx.BatchNorm(num_out, momentum=0.9, rngs=rngs)
        self.second_norm = nnx.BatchNorm(num_out, momentum=0.9, rngs=rngs)
        changes = stride > 1 or num_in != num_out
        self.shortcut = conv(num_in, 1, stride) if changes else None
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.activation(self.first_norm(self.first(x)))
        h = self.second_norm(self.second(h))
        return self.activation(h + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(nnx.Module):
    """A first convolution, stages of blocks that halve the image and double the channels, mean, dense.

    `[B, H, W, C] -> [B, num_classes]`

    Args:
        num_channels: Number of channels C of the inputs.
        num_classes: Number of outputs.
        width: Number of channels of the first stage.
        num_blocks: Number of blocks in each stage.
        activation: Activation after BatchNorm.
        rngs: Random streams; `params` alone is read.

    Reference:
        He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", 2016, arXiv:1512.03385.
    """

    def __init__(
        self,
        num_channels: int,
        num_classes: int,
        width: int = 8,
        num_blocks: Sequence[int] = (1, 1, 1),
        activation: Activation = nnx.relu,
        *,
        rngs: nnx.Rngs,
    ):
        self.stem = nnx.Conv(num_channels, width, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(width, momentum=0.9, rngs=rngs)
        blocks, before = [], width
        for stage, count in enumerate(num_blocks):
            for index in range(count):
                after, stride = width * 2**stage, 2 if stage and not index else 1
                blocks.append(Block(before, after, stride, activation, rngs))
                before = after
        self.blocks = nnx.List(blocks)
        self.dense = nnx.Linear(before, num_classes, rngs=rngs)
        self.activation = activation

    def __call__(self, inputs: jax.Array) -> jax.Array:
        x = self.activation(self.norm(self.stem(inputs)))
        for block in self.blocks:
            x = block(x)
        return self.dense(x.mean((1, 2)))
