"""An MLP whose width and depth are numbers: padded layers with masks, so that many shapes share a program."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


class MaskedMLP(nn.Module):
    """The MLP `(width,) * depth + (num_outputs,)` within padded layers; width and depth may be traced.

    x_{k+1} = m_k ⊙ φ(x_k W_k + b_k) for k < depth, else x_k;   m_k = 1 for the first `width` units;
    outputs = x W_out + b_out. `[B, D] -> [B, num_outputs]`.

    Weights of padded units and skipped layers are zero from the start and have zero gradients. Whatever the
    optimizer, they neither move nor count in a norm or a penalty. Outputs, gradients and training
    are those of the MLP without padding, to rounding. First weights have the scale of the true width.

    Attributes:
        most_width: Padded width of every hidden layer.
        most_depth: Number of hidden layers, at least 1.
        num_outputs: Number of outputs of the last layer.
        activation: Activation after hidden layers.
    """

    most_width: int
    most_depth: int
    num_outputs: int
    activation: Callable[[jax.Array], jax.Array] = nn.relu

    @nn.compact
    def __call__(self, inputs: jax.Array, width: Any, depth: Any) -> jax.Array:
        """Apply the network.

        Args:
            inputs: Inputs `[B, ...]`, which are flattened.
            width: Number of units of each hidden layer, a whole number or `[most_depth]`.
            depth: Number of hidden layers that count, at least 1.
        """
        x = inputs.reshape(inputs.shape[0], -1)
        widths = jnp.broadcast_to(width, (self.most_depth,))
        units = jnp.arange(self.most_width)
        rows = jnp.ones(x.shape[-1], bool)  # the inputs of a layer that count
        for k in range(self.most_depth):
            live = (units < widths[k]) & (k < depth)
            new = MaskedDense(name=f"dense_{k}")(x, rows, live)
            new = jnp.where(live, self.activation(new), 0)
            # skipped: the layer before passes through, with its padding
            x = new if k == 0 else jnp.where(k < depth, new, x)
            rows = live if k == 0 else jnp.where(k < depth, live, rows)
        return MaskedDense(name="output")(x, rows, jnp.ones(self.num_outputs, bool))


class MaskedDense(nn.Module):
    """A dense layer of which some rows and columns count; `[B, I] -> [B, O]`."""

    @nn.compact
    def __call__(self, inputs: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
        mask = rows[:, None] & columns[None]

        def init(key, shape):
            # flax's own: a normal cut off at two deviations, of variance 1 / fan_in
            scale = 1 / (jnp.sqrt(jnp.maximum(jnp.sum(rows), 1)) * 0.87962566103423978)
            return jnp.where(mask, scale * jax.random.truncated_normal(key, -2, 2, shape), 0)

        kernel = self.param("kernel", init, mask.shape)
        bias = self.param("bias", nn.initializers.zeros_init(), columns.shape)
        # the mask stops the gradient too
        return inputs @ jnp.where(mask, kernel, 0) + jnp.where(columns, bias, 0)[None]


def unpad(params: Any, width: Any, depth: int) -> dict[str, Any]:
    """Cut the params of a `MaskedMLP` down to those of `MLP((width,) * depth + (num_outputs,))`.

    Args:
        params: Params of one network, by the names of its layers.
        width: Width in use, a whole number or one for each layer.
        depth: Depth in use.
    """
    widths = [int(w) for w in jnp.broadcast_to(jnp.asarray(width), (depth,))]
    found, before = {}, params["dense_0"]["kernel"].shape[0]
    for k, after in enumerate(widths):
        layer = params[f"dense_{k}"]
        found[f"dense_{k}"] = {
            "kernel": layer["kernel"][:before, :after],
            "bias": layer["bias"][:after],
        }
        before = after
    last = params["output"]
    return found | {f"dense_{depth}": {"kernel": last["kernel"][:before], "bias": last["bias"]}}


def masked_mean(values: jax.Array, num: Any) -> jax.Array:
    """Return the mean of the first `num` values of `[B, ...]`: a batch size that may be traced.

    The mean is over examples, then over any further axes; examples after `num` have no gradient.
    """
    shape = (-1,) + (1,) * (values.ndim - 1)
    live = (jnp.arange(values.shape[0]) < num).reshape(shape)
    return jnp.mean(jnp.sum(jnp.where(live, values, 0), axis=0) / num)


def mlp_cost(num_inputs: int, num_outputs: int) -> Callable[[tuple[int, ...]], float]:
    """Return the cost of a step, in multiplications, from its padded sizes (width, depth, batch size).

    Sizes that are left out count as 1.
    """

    def cost(sizes: tuple[int, ...]) -> float:
        width, depth, batch = (*sizes, *(1,) * (3 - len(sizes)))
        return float(batch * (num_inputs * width + (depth - 1) * width**2 + width * num_outputs))

    return cost
