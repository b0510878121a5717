"""Networks that emit a search space leaf by leaf: the controller of an architecture search."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


class Recurrent(nn.Module):
    """A GRU over the leaves of a space, with a head for each, that reads what it has emitted before.

    Real leaves come first and have two outputs an entry, mean and log width; then the choices, with a logit
    an option. All heads are small at first: near the defaults, and near uniform.

    Attributes:
        num_reals: entries of each real leaf.
        num_options: options of each choice.
        width: size of the state.
    """

    num_reals: tuple[int, ...]
    num_options: tuple[int, ...]
    width: int = 24

    @nn.compact
    def __call__(
        self,
        fill: Callable[[int, jax.Array, jax.Array], jax.Array],
        choose: Callable[[int, jax.Array], jax.Array],
    ) -> None:
        """Walk the leaves.

        Args:
            fill: (index, mean `[D]`, log width `[D]`) -> the value drawn, `[D]` in [−1, 1].
            choose: (index, logits `[K]`) -> the option drawn, int32 `[]`.
        """
        cell, small = nn.GRUCell(self.width), nn.initializers.normal(0.01)
        state = jnp.zeros(self.width)
        seen = self.param("start", nn.initializers.normal(0.1), (self.width,))
        for index, num in enumerate(self.num_reals):
            state, _ = cell(state, seen)
            out = nn.Dense(2 * num, kernel_init=small, name=f"real_{index}")(state)
            value = fill(index, out[:num], out[num:])
            seen = nn.Dense(self.width, name=f"read_{index}")(value)
        for index, num in enumerate(self.num_options):
            state, _ = cell(state, seen)
            logits = nn.Dense(num, kernel_init=small, name=f"choice_{index}")(state)
            seen = nn.Embed(num, self.width, name=f"embed_{index}")(choose(index, logits))


def walker(module: nn.Module) -> tuple[Callable[..., Any], Callable[..., None]]:
    """Return a module's (init, walk), as `hypergrad.heads.Network` takes them."""

    def init(key, fill, choose):
        return module.init(key, fill, choose)["params"]

    def walk(params, fill, choose):
        module.apply({"params": params}, fill, choose)

    return init, walk
