"""A supernet: the layers of many architectures in one set of weights, traced once for all of them."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

OPERATIONS = ("dense", "bottleneck", "scale")
ACTIVATIONS = {"tanh": jnp.tanh, "silu": jax.nn.silu, "relu": jax.nn.relu, "linear": lambda x: x}
SKIPS = ("none", "add")


class Supernet(nn.Module):
    """Layers that choose operation, width, activation and skip, and share their weights between the choices.

    x_0 = tanh(x W_in + b_in)
    x_{l+1} = m_l ⊙ φ_l(o_l(x_l)) + s_l x_l,   o_l: x W_l | x U_l V_l | x ⊙ g_l, plus b_l
    outputs = x_L W_out + b_out.  `[B, ...] -> [B, num_outputs]`

    m_l is 1 for the first units of the layer's width and 0 for the others, s_l is 0 or 1. A choice is the
    index of an option, int32 `[]`, or weights `[K]` over all of them, which mix (DARTS). Either way all options
    are computed, and one product with their weights picks or mixes. So another architecture is only another
    input of the same program, and `jax.vmap` runs many. Weights that no choice reads have zero gradients.

    Attributes:
        num_layers: Number L of layers.
        widths: Widths to choose from; the last and largest is that of the shared weights.
        num_outputs: Number of outputs of the last layer.
        rank: Rank of the bottleneck.
    """

    num_layers: int = 3
    widths: tuple[int, ...] = (4, 12, 32)
    num_outputs: int = 10
    rank: int = 4

    @nn.compact
    def __call__(self, inputs: jax.Array, architecture: Mapping[str, Any]) -> jax.Array:
        """Apply the network.

        Args:
            inputs: Inputs `[B, ...]`, which are flattened.
            architecture: Choices `operation_l`, `width_l`, `activation_l` and `skip_l` of each layer l from 0.
        """
        size = max(self.widths)
        units = jnp.arange(size)
        masks = jnp.stack([(units < width).astype(jnp.float32) for width in self.widths])
        x = jnp.tanh(nn.Dense(size, name="input")(inputs.reshape(inputs.shape[0], -1)))
        for layer in range(self.num_layers):
            choice = {
                kind: _weights(architecture[f"{kind}_{layer}"], num)
                for kind, num in (
                    ("operation", len(OPERATIONS)),
                    ("width", len(self.widths)),
                    ("activation", len(ACTIVATIONS)),
                    ("skip", len(SKIPS)),
                )
            }
            gain = self.param(f"gain_{layer}", nn.initializers.ones, (size,))
            bias = self.param(f"bias_{layer}", nn.initializers.zeros, (size,))
            dense = nn.Dense(size, use_bias=False, name=f"dense_{layer}")(x)
            narrow = nn.Dense(self.rank, use_bias=False, name=f"down_{layer}")(x)
            bottleneck = nn.Dense(size, use_bias=False, name=f"up_{layer}")(narrow)
            operated = jnp.stack([dense, bottleneck, x * gain[None]])
            made = jnp.tensordot(choice["operation"], operated, 1) + bias[None]
            active = jnp.stack([activation(made) for activation in ACTIVATIONS.values()])
            new = jnp.tensordot(choice["activation"], active, 1) * (choice["width"] @ masks)
            x = new + choice["skip"][1] * x
        return nn.Dense(self.num_outputs, name="output")(x)


def _weights(choice: Any, num: int) -> jax.Array:
    """Return a choice as weights `[num]`: one-hot for an index, weights unchanged."""
    return jax.nn.one_hot(choice, num) if jnp.ndim(choice) == 0 else choice


def diagram(
    architecture: Mapping[str, Any], num_layers: int, widths: tuple[int, ...]
) -> dict[str, Any]:
    """Describe an architecture as a graph, the result of `hypergrad.Task.diagram`.

    Args:
        architecture: Architecture as the network takes it, in indices.
        num_layers: Number of layers of the network.
        widths: Widths of the network.

    Returns:
        `nodes`, one list of lines each, and `edges`, pairs of nodes; an edge past a node is a skip.
    """
    nodes, edges = [["input", f"{max(widths)} tanh"]], []
    for layer in range(num_layers):
        operation, width, activation, skip = (
            int(architecture[f"{kind}_{layer}"])
            for kind in ("operation", "width", "activation", "skip")
        )
        name = list(ACTIVATIONS)[activation]
        nodes.append([f"layer {layer}", OPERATIONS[operation], f"{widths[width]} {name}"])
        edges.append([layer, layer + 1])
        if skip:
            edges.append([layer, layer + 2])
    nodes.append(["output", "softmax"])
    edges.append([num_layers, num_layers + 1])
    return {"nodes": nodes, "edges": edges}
