"""Values that replace the norm of the Hessian in flatness-guided search, as in its paper."""

import jax
import jax.numpy as jnp

from hypergrad.core.abstract import abstract
from hypergrad.core.types import Array, Batch, Params, PyTree
from hypergrad.curvature.columns import LeafGroup, column_norms
from hypergrad.curvature.frobenius import block_leaves, cheapest_norm
from hypergrad.curvature.layers import Unservable, trained_layers
from hypergrad.curvature.memory import MEMORY
from hypergrad.curvature.models import (
    Layered,
    check_layered,
    check_model,
    dense,
    num_samples,
    one_of,
    parts,
    widen,
)


def theorem_1(model: Layered, params: Params, batch: Batch) -> Array:
    """Return the bound of the paper's Theorem 1, ‖a^[L]‖ / ‖W^[L]‖, with a^[L] the probabilities.

    √((1/m) Σ_i ‖softmax(z_i)‖²) / ‖W‖_F, W the matrix of the last layer; for one sample it is the theorem's.

    **Cost:** a forward pass. **Limits:** it is not a lower bound of ‖H‖: the proof drops a term that is not
    positive, and as a network grows confident, H goes to 0 and this value to 1 / ‖W‖ (`docs/flatness.md`).

    Args:
        model: Network whose last affine layer makes the logits.
        params: Weights of the network.
        batch: Batch of m samples.

    Reference:
        "Flatness-guided hyper-parameter optimization", Theorem 1.
    """
    _, outputs, kernel = _last(model, params, batch)
    squares = jnp.sum(jnp.square(jax.nn.softmax(outputs)), -1)
    return jnp.sqrt(jnp.mean(squares)) / jnp.linalg.norm(kernel)


def section_3(model: Layered, params: Params, batch: Batch) -> Array:
    """Return the form of the paper's section 3, (1/m) inf_i ‖a_i^[L−1]‖ / ‖W^[L]‖; arguments as `theorem_1`.

    **Limits:** zero where the last hidden layer is dead on a sample; the paper takes this as no information.
    """
    inputs, _, kernel = _last(model, params, batch)
    least = jnp.min(jnp.linalg.norm(inputs, axis=-1))
    return least / (num_samples(batch) * jnp.linalg.norm(kernel))


def published(model: Layered, params: Params, batch: Batch) -> Array:
    """Return the value of the authors' public code, ‖A^[L−1]‖ ‖A^[L]‖ / ‖W^[L]‖; arguments as in `theorem_1`.

    **Limits:** the norms are those of the whole stacked batch, so that the value grows with its size.
    """
    inputs, outputs, kernel = _last(model, params, batch)
    probabilities = jax.nn.softmax(outputs)
    return jnp.linalg.norm(inputs) * jnp.linalg.norm(probabilities) / jnp.linalg.norm(kernel)


def last_layer(model: Layered, params: Params, batch: Batch) -> Array:
    """Return the exact ‖H_LL‖_F of the last layer, which Theorem 1 is about; arguments as `theorem_1`.

    (1/m²) Σ_ij (ã_i·ã_j)² ⟨S_i, S_j⟩ with S = diag(p) − p pᵀ, for softmax cross-entropy.
    """
    check_layered("model", model, params, batch, "the norm is that of the last of")
    try:
        name = trained_layers(model, params, batch)[-1].name
    except Unservable:
        last = LeafGroup("last", _last_leaves(model, params, batch))
        return column_norms(model, params, batch, [last], gauss_newton=False, memory=MEMORY).value
    return cheapest_norm(model, params, batch, [name]).value


def rescaled(model: Layered, params: Params, batch: Batch) -> Array:
    """Return (Σ_lk ‖W_l‖² ‖H_lk‖² ‖W_k‖²)^½, which weighs each block by the weights it bends.

    A ReLU network without biases whose layers are multiplied by numbers of product 1 remains the same
    function, and keeps its value.

    **Cost:** that of `frobenius`.

    Args:
        model: Any model that `frobenius` takes.
        params: Weights of the model.
        batch: Batch of m samples.
    """
    check_model(model, params, batch)
    leaves = [jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(widen(params))]
    groups = block_leaves(model, params, batch)
    squares = jnp.stack([sum(leaves[i] for i in group.leaves) for group in groups])
    blocks = cheapest_norm(model, params, batch).blocks
    return jnp.sqrt(squares @ blocks @ squares)


def _last_leaves(model: Layered, params: Params, batch: Batch) -> list[int]:
    """Return which leaves of the params the last call of `dense` has."""
    found = []

    def one(params: Params, example: Batch) -> PyTree:
        leaves = jax.tree.leaves(params)

        def listening(layer: PyTree, inputs: Array) -> Array:
            held = {id(part) for part in parts(layer)}
            own = [i for i, leaf in enumerate(leaves) if id(leaf) in held]
            found[:] = own or found
            return dense(layer, inputs)

        return model.forward(listening, params, example)

    abstract("model", one, params, one_of(batch), given="params")
    return found


def _last(model: Layered, params: Params, batch: Batch) -> tuple[Array, Array, Array]:
    """Return inputs `[m, in]`, outputs `[m, classes]` and the matrix of the last affine layer."""
    check_layered("model", model, params, batch, "the value is made from the inputs of")
    params = widen(params)

    def one(example: Batch) -> tuple[Array, Array, Array]:
        calls = []

        def listening(layer: PyTree, inputs: Array) -> Array:
            calls.append((parts(layer)[0], inputs))
            return dense(layer, inputs)

        outputs = model.forward(listening, params, example)
        kernel, inputs = calls[-1]
        shape = getattr(outputs, "shape", None)
        if shape != kernel.shape[-1:]:
            raise ValueError(
                f"model returned outputs of shape {shape}, expected the {kernel.shape[-1]} logits of its last "
                "affine layer; leave out what comes after"
            )
        return inputs, outputs, kernel

    return jax.vmap(one, out_axes=(0, 0, None))(batch)
