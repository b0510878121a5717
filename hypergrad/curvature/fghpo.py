"""Values that stand in for the Hessian's norm in flatness-guided search, as its paper has them."""

import jax
import jax.numpy as jnp

from hypergrad.core.types import Array, Batch, Params
from hypergrad.curvature.columns import LeafGroup, column_norms
from hypergrad.curvature.frobenius import block_leaves, frobenius
from hypergrad.curvature.layers import Unservable, trained_layers
from hypergrad.curvature.models import (
    MEMORY,
    Layered,
    abstract_model,
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

    **Cost:** a forward pass. **Limits:** no lower bound of ‖H‖: the proof drops a term that is not positive,
    and as a network grows confident H goes to 0 and this to 1 / ‖W‖ (`docs/flatness.md`).

    Args:
        model: a network whose last affine layer makes the logits.
        params: its weights.
        batch: of m samples.

    Reference:
        "Flatness-guided hyper-parameter optimization", Theorem 1.
    """
    _, outputs, kernel = _last(model, params, batch)
    squares = jnp.sum(jnp.square(jax.nn.softmax(outputs)), -1)
    return jnp.sqrt(jnp.mean(squares)) / jnp.linalg.norm(kernel)


def section_3(model: Layered, params: Params, batch: Batch) -> Array:
    """Return the form of the paper's section 3, (1/m) inf_i ‖a_i^[L−1]‖ / ‖W^[L]‖; arguments as `theorem_1`.

    **Limits:** zero where the last hidden layer is dead on a sample: no information, says the paper.
    """
    inputs, _, kernel = _last(model, params, batch)
    least = jnp.min(jnp.linalg.norm(inputs, axis=-1))
    return least / (num_samples(batch) * jnp.linalg.norm(kernel))


def published(model: Layered, params: Params, batch: Batch) -> Array:
    """Return what the authors' public code computes, ‖A^[L−1]‖ ‖A^[L]‖ / ‖W^[L]‖; arguments as `theorem_1`.

    **Limits:** of the whole stacked batch, and so in proportion to its size.
    """
    inputs, outputs, kernel = _last(model, params, batch)
    probabilities = jax.nn.softmax(outputs)
    return jnp.linalg.norm(inputs) * jnp.linalg.norm(probabilities) / jnp.linalg.norm(kernel)


def last_layer(model: Layered, params: Params, batch: Batch) -> Array:
    """Return the exact ‖H_LL‖_F of the last layer, of which Theorem 1 speaks; arguments as `theorem_1`.

    (1/m²) Σ_ij (ã_i·ã_j)² ⟨S_i, S_j⟩ with S = diag(p) − p pᵀ, for softmax cross-entropy.
    """
    check_layered("model", model, "the norm is that of the last of")
    check_model(model, params, batch)
    try:
        name = trained_layers(model, params, batch)[-1].name
    except Unservable:
        last = LeafGroup("last", _last_leaves(model, params, batch))
        return column_norms(model, params, batch, [last], gauss_newton=False, memory=MEMORY).value
    return frobenius(model, params, batch, layers=[name]).value


def rescaled(model: Layered, params: Params, batch: Batch) -> Array:
    """Return (Σ_lk ‖W_l‖² ‖H_lk‖² ‖W_k‖²)^½, which weighs each block by the weights it bends.

    A ReLU network without biases whose layers are multiplied by numbers of product 1 is the same function,
    and has the same value.

    **Cost:** that of `frobenius`.

    Args:
        model: any that `frobenius` takes.
        params: its weights.
        batch: of m samples.
    """
    check_model(model, params, batch)
    leaves = [jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(widen(params))]
    groups = block_leaves(model, params, batch)
    squares = jnp.stack([sum(leaves[i] for i in group.leaves) for group in groups])
    blocks = frobenius(model, params, batch).blocks
    return jnp.sqrt(squares @ blocks @ squares)


def _last_leaves(model: Layered, params: Params, batch: Batch) -> list[int]:
    """Return which leaves of the params the last call of `dense` has."""
    found = []

    def one(params, example):
        leaves = jax.tree.leaves(params)

        def listening(layer, inputs):
            held = {id(part) for part in parts(layer)}
            own = [i for i, leaf in enumerate(leaves) if id(leaf) in held]
            found[:] = own or found
            return dense(layer, inputs)

        return model.forward(listening, params, example)

    abstract_model("model", one, params, one_of(batch))
    return found


def _last(model: Layered, params: Params, batch: Batch) -> tuple[Array, Array, Array]:
    """Return inputs `[m, in]`, outputs `[m, classes]` and the matrix of the last affine layer."""
    check_layered("model", model, "the value is made from the inputs of")
    check_model(model, params, batch)
    params = widen(params)

    def one(example):
        calls = []

        def listening(layer, inputs):
            calls.append((parts(layer)[0], inputs))
            return dense(layer, inputs)

        outputs = model.forward(listening, params, example)
        kernel, inputs = calls[-1]
        if getattr(outputs, "shape", None) != kernel.shape[-1:]:
            raise ValueError(
                f"model returned outputs of shape {getattr(outputs, 'shape', None)}, expected the "
                f"{kernel.shape[-1]} logits of its last affine layer; leave out what comes after"
            )
        return inputs, outputs, kernel

    return jax.vmap(one, out_axes=(0, 0, None))(batch)
