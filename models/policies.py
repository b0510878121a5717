"""Networks that emit a search space leaf by leaf: the controller of an architecture search."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


class Recurrent(nn.Module):
    """A recurrent network with a head for each leaf of a space, which reads its earlier emissions.

    outputs_l = h_l W_l + b_l,   h_{l+1} = tanh(h_l U + value_l V_l + c_l)

    The methods are those of `policies.Network`; each head has its own matrices, and all share U and the state.
    Outputs are small at first, near the defaults and near uniform choices.

    Attributes:
        num_heads: Number of leaves of the space.
        size: Size of the outputs of a head.
        width: Size of the state.
    """

    num_heads: int
    size: int
    width: int = 24

    def setup(self):
        heads, size, width = self.num_heads, self.size, self.width
        normal = nn.initializers.normal
        self.first = self.param("first", normal(1.0), (width,))
        self.out = self.param("out", normal(0.1 / width**0.5), (heads, width, size))
        self.out_bias = self.param("out_bias", nn.initializers.zeros, (heads, size))
        self.mix = self.param("mix", nn.initializers.orthogonal(), (width, width))
        self.seen = self.param("seen", normal(0.5), (heads, size, width))
        self.place = self.param("place", normal(0.5), (heads, width))

    def __call__(self) -> jax.Array:
        """Return the state before the first head, `[width]`."""
        return jnp.tanh(self.first)

    def emit(self, state: jax.Array, index: jax.Array) -> jax.Array:
        """Return the outputs of a head, `[size]`."""
        return state @ self.out[index] + self.out_bias[index]

    def read(self, state: jax.Array, index: jax.Array, value: jax.Array) -> jax.Array:
        """Return the state after a head, whose drawn value is `[size]`."""
        return jnp.tanh(state @ self.mix + value @ self.seen[index] + self.place[index])


def functions(module: nn.Module) -> tuple[Callable[..., Any], ...]:
    """Return a module's (init, start, emit, read), as `policies.Network` takes them."""

    def method(name):
        return lambda params, *args: module.apply({"params": params}, *args, method=name)

    init = lambda key: module.init(key)["params"]  # noqa: E731
    return init, method("__call__"), method("emit"), method("read")
