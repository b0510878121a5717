"""Layered networks: which params their layers hold, and the signals between the layers, sample by sample."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hypergrad.autodiff import uses
from hypergrad.curvature.base import Layered, abstract, names, num_samples, parts
from hypergrad.types import Array, Batch, Params, PyTree


class Layer(NamedTuple):
    """One affine layer z = ã W̃, as the forward pass calls it.

    Attributes:
        name: of its part of the params.
        call: which call of `dense` it is.
        kernel: index of the matrix among the leaves of the params; None where it is frozen.
        bias: index of the vector; None where it is frozen or there is none.
        num_inputs: length of ã, the inputs that meet trained weights: those of the kernel, then a 1 for
            the bias.
        num_units: length of z.
    """

    name: str
    call: int
    kernel: int | None
    bias: int | None
    num_inputs: int
    num_units: int

    @property
    def size(self) -> int:
        """Number of trained weights."""
        return self.num_inputs * self.num_units


class Unservable(ValueError):
    """A model in which a weight is not used exactly once per sample, in an affine layer."""


def cross_entropy(logits: Array, label: Array) -> Array:
    """Return −log softmax(z)_y of one sample, with derivatives that do not cancel where p is near one-hot.

    With M = argmax z and u_c = z_c − z_M, −log p_y = log(1 + Σ_{c≠M} e^{u_c}) − u_y. The derivatives
    of that are sums of the *small* probabilities; 1 − p_M, which rounding spoils, never occurs.

    Args:
        logits: z `[classes]`.
        label: y, a whole number `[]`.
    """
    if logits.shape[-1] < 2:
        raise ValueError(
            f"logits has shape {logits.shape}, expected at least two classes; use squared_error for one output"
        )
    top = jax.nn.one_hot(jnp.argmax(logits), logits.shape[-1], dtype=logits.dtype)
    below = logits - jnp.sum(logits * top)
    others = jnp.sum(jnp.where(top > 0, 0, jnp.exp(below)))
    return jnp.log1p(others) - jnp.sum(below * jax.nn.one_hot(label, logits.shape[-1], dtype=logits.dtype))


def squared_error(outputs: Array, target: Array) -> Array:
    """Return ½ ‖z − t‖² of one sample."""
    return 0.5 * jnp.sum(jnp.square(outputs - target))


def mlp(
    activation: Callable[[Array], Array],
    loss: Callable[[Array, Array], Array] = cross_entropy,
    layers: Sequence[Any] | None = None,
    l2: Any = 0.0,
) -> Layered:
    """Make the model of a plain multilayer network on batches (inputs `[m, in]`, targets `[m, ...]`).

    Args:
        activation: after every layer but the last.
        loss: (outputs, target) -> [], of one sample.
        layers: keys of the layers in the params, first to last; all of a list or tuple where None.
        l2: as in `Layered`.
    """

    def forward(dense, params, example):
        keys = range(len(params)) if layers is None else layers
        *hidden, last = (params[key] for key in keys)
        signal = example[0].reshape(-1)
        for layer in hidden:
            signal = activation(dense(layer, signal))
        return dense(last, signal)

    return Layered(forward, lambda outputs, example: loss(outputs, example[1]), l2)


def trained_layers(model: Layered, params: Params, batch: Batch) -> list[Layer]:
    """List the layers whose weights are in the params, in the order in which the forward pass calls them.

    **Cost:** two traces of the forward pass; nothing is compiled or run.

    Raises:
        Unservable: where a weight is used twice, outside `dense`, or not at all.
    """
    example = one_of(batch)
    leaves, treedef = jax.tree.flatten(params)
    found: list[Layer] = []

    def read(leaves, example):
        found.clear()
        calls = iter(range(10**6))

        def dense(layer, inputs):
            call, (kernel, bias) = next(calls), parts(layer)
            at = [next((i for i, w in enumerate(leaves) if w is p), None) for p in (kernel, bias)]
            if at != [None, None]:
                num_inputs = (0 if at[0] is None else kernel.shape[0]) + (at[1] is not None)
                found.append(Layer("", call, at[0], at[1], num_inputs, kernel.shape[1]))
            return inputs @ kernel if bias is None else inputs @ kernel + bias

        outputs = model.forward(dense, jax.tree.unflatten(treedef, leaves), example)
        return model.loss(outputs, example)

    shapes = [jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)) for x in leaves]
    abstract("loss", read, shapes, example)
    layers = [layer._replace(name=_name(params, layer)) for layer in found]
    _check_use(model, params, example, layers)
    return layers


def _name(params: Params, layer: Layer) -> str:
    """Name a layer by what the paths of its weights share, or by that of its only one."""
    paths = [names(params)[i].split(".") for i in (layer.kernel, layer.bias) if i is not None]
    last = paths[0][:-1] or paths[0]
    return ".".join(last if len(paths) == 1 or paths[0][:-1] == paths[1][:-1] else paths[0])


def _check_use(model: Layered, params: Params, example: Batch, layers: list[Layer]) -> None:
    """Raise `Unservable` unless every weight is used once, as the kernel or the bias of a layer."""
    leaves, treedef = jax.tree.flatten(params)
    count = [sum(i in (at.kernel, at.bias) for at in layers) for i in range(len(leaves))]

    def without(leaves, shifts, example):
        made = iter(shifts)
        by_call = {layer.call: layer for layer in layers}
        calls = iter(range(10**6))

        def dense(layer, inputs):
            kernel, bias = parts(layer)
            record = by_call.get(next(calls))
            if record is None:
                return inputs @ kernel if bias is None else inputs @ kernel + bias
            frozen = 0 if record.kernel is not None else inputs @ kernel
            return frozen + next(made) + (0 if record.bias is not None or bias is None else bias)

        outputs = model.forward(dense, jax.tree.unflatten(treedef, leaves), example)
        return model.loss(outputs, example)

    shapes = [jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)) for x in leaves]
    free = [jax.ShapeDtypeStruct((at.num_units,), shapes[0].dtype) for at in layers]
    elsewhere = uses(without, shapes, free, example)[: len(leaves)]
    for name, times, outside in zip(names(params), count, elsewhere, strict=True):
        if outside or times != 1:
            how = "outside of dense" if outside else f"in {times} layers"
            raise Unservable(
                f"params[{name!r}] is used {how}, expected one call of dense per sample; close over "
                "what is not trained, or use frobenius_columns, which takes any loss"
            )


def one_of(batch: Batch) -> Batch:
    """Return the shapes of one sample of a batch."""
    num_samples(batch)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(jnp.shape(x)[1:], jnp.result_type(x)), batch
    )


def signals(
    model: Layered, params: Params, layers: list[Layer], example: Batch, shifts: list[Array]
) -> tuple[PyTree, list[Array]]:
    """Run the forward pass of one sample with a shift added to every z.

    Returns:
        The outputs, and the inputs ã of every layer.
    """
    by_call = {layer.call: index for index, layer in enumerate(layers)}
    calls = iter(range(10**6))
    inputs: list[Array] = []

    def dense(layer, signal):
        kernel, bias = parts(layer)
        z = signal @ kernel if bias is None else signal @ kernel + bias
        index = by_call.get(next(calls))
        if index is None:
            return z
        kept = [signal] if layers[index].kernel is not None else []
        kept += [jnp.ones((1,), z.dtype)] if layers[index].bias is not None else []
        inputs.append(jnp.concatenate(kept))
        return z + shifts[index]

    return model.forward(dense, params, example), inputs


class Rows(NamedTuple):
    """What one layer l needs for its blocks H_lk, k ≥ l; `push` makes the rows of a unit of it.

    Attributes:
        inputs: ã_k for k ≥ l, each `[m, in]`.
        deltas: δ_k = ∂ℓ/∂z_k for k ≥ l, each `[m, units]`.
        push: units p `[chunk]` of layer l -> (B_lk[p] = ∂²ℓ/∂z_l[p]∂z_k for k ≥ l, each
            `[chunk, m, units]`; P_k[p] = ∂ã_k/∂z_l[p] for k > l, each `[chunk, m, in]`), zeros for p
            past the last unit.
    """

    inputs: list[Array]
    deltas: list[Array]
    push: Callable[[Array], tuple[list[Array], list[Array]]]


def rows_of(
    model: Layered, params: Params, layers: list[Layer], batch: Batch, index: int, gauss_newton: bool
) -> Rows:
    """Linearize all signals of the layers k ≥ l in a shift of z_l, l = `index`, once for the whole batch.

    B_lk[p] is the derivative of δ_k along p, P_k[p] that of ã_k: one forward-over-reverse product of
    the part of the network above l. For Gauss-Newton B = J_lᵀ (∂²ℓ/∂outputs²) J_k, and P is left out.
    """
    units, above = layers[index].num_units, layers[index:]
    dtype = jnp.result_type(*jax.tree.leaves(params))
    size = num_samples(batch)
    zeros = [jnp.zeros((layer.num_units,), dtype) for layer in layers]

    def shifted(upper):
        return zeros[:index] + upper

    def of_sample(shift, example):
        def loss(upper):
            outputs, inputs = signals(model, params, layers, example, shifted(upper))
            return model.loss(outputs, example), inputs[index:]

        upper = [zeros[index] + shift, *zeros[index + 1 :]]
        deltas, inputs = jax.grad(loss, has_aux=True)(upper)
        return deltas, inputs

    def bend(shift, example):
        """Return a function of the shift whose derivative is the row of JᵀSJ, with J held fixed."""

        def outputs(upper):
            return signals(model, params, layers, example, shifted(upper))[0]

        fixed = zeros[index:]
        made, pull = jax.vjp(outputs, fixed)
        first = outputs([zeros[index] + shift, *zeros[index + 1 :]])
        return pull(jax.grad(lambda z: model.loss(z, example))(first))[0]

    start = jnp.zeros((size, units), dtype)
    if gauss_newton:
        deltas, push = jax.linearize(lambda s: jax.vmap(bend)(s, batch), start)
        inputs = jax.vmap(lambda e: signals(model, params, layers, e, zeros)[1][index:])(batch)
        empty: list[Array] = []

        def linear(tangent):
            return push(tangent), empty
    else:
        (deltas, inputs), pushed = jax.linearize(lambda s: jax.vmap(of_sample)(s, batch), start)

        def linear(tangent):
            rows, moved = pushed(tangent)
            return rows, moved[1:]

    def push_units(chosen):
        basis = jax.nn.one_hot(chosen, units, dtype=dtype)
        tangents = jnp.broadcast_to(basis[:, None], (chosen.size, size, units))
        return jax.vmap(linear)(tangents)

    assert len(deltas) == len(above)
    return Rows(inputs, deltas, push_units)
