"""A small transformer for sequences of tokens, each predicted from those before it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

Drop = Callable[[jax.Array, jax.Array], jax.Array]
"""(key, values) -> values of which a share is dropped."""


class Transformer(nn.Module):
    """Embeddings of tokens and places, blocks of causal attention and an MLP, LayerNorm, logits.

    `[B, T]` whole numbers -> `[B, T, num_tokens]`

    Attributes:
        num_tokens: Number of different tokens.
        length: Largest number T of tokens in a row.
        width: Size of the state, a multiple of `num_heads`.
        num_layers: Number of blocks.
        num_heads: Number of heads of attention.
        drop: What drops values behind attention and MLP in training; None for nothing.
    """

    num_tokens: int
    length: int
    width: int = 32
    num_layers: int = 2
    num_heads: int = 4
    drop: Drop | None = None

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        def dropped(x: jax.Array) -> jax.Array:
            return self.drop(self.make_rng("dropout"), x) if train and self.drop else x

        places = self.param("places", nn.initializers.normal(0.02), (self.length, self.width))
        x = nn.Embed(self.num_tokens, self.width, name="embed")(tokens) + places[: tokens.shape[1]]
        mask = nn.make_causal_mask(jnp.ones(tokens.shape))
        for index in range(self.num_layers):
            h = nn.LayerNorm(name=f"norm_{index}")(x)
            attend = nn.MultiHeadDotProductAttention(self.num_heads, name=f"attention_{index}")
            x = x + dropped(attend(h, h, mask=mask))
            h = nn.LayerNorm(name=f"mlp_norm_{index}")(x)
            h = nn.gelu(nn.Dense(4 * self.width, name=f"mlp_{index}")(h))
            x = x + dropped(nn.Dense(self.width, name=f"mlp_out_{index}")(h))
        return nn.Dense(self.num_tokens, name="out")(nn.LayerNorm(name="norm")(x))
