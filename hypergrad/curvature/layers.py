"""Layered networks: the params of their layers, and the signals between the layers, sample by sample."""

import enum
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import get_opaque_trace_state

from hypergrad.core.abstract import abstract
from hypergrad.core.autodiff import equations, uses
from hypergrad.core.checks import describe
from hypergrad.core.flow import elementwise
from hypergrad.core.types import Array, Batch, Params, PyTree
from hypergrad.curvature.models import Dense, Layered, names, num_samples, one_of, parts


class Layer(NamedTuple):
    """One affine layer z = ã W̃, as the forward pass calls it.

    Attributes:
        name: Name of its part of the params.
        call: Index of its call of `dense`.
        kernel: Index of the matrix among the leaves of the params; None where it is frozen.
        bias: Index of the vector; None where it is frozen or there is none.
        num_inputs: Length of ã, the inputs that meet trained weights: those of the kernel, then a 1 for
            the bias.
        num_units: Length of z.
    """

    name: str
    call: int
    kernel: int | None
    bias: int | None
    num_inputs: int
    num_units: int

    @property
    def size(self) -> int:
        """Return the number of trained weights."""
        return self.num_inputs * self.num_units


class Link(enum.Enum):
    """Dependence of the inputs ã_k of a layer on z_l: none, unit by unit, or each on many."""

    NONE = enum.auto()
    DIAGONAL = enum.auto()
    FULL = enum.auto()


class Unservable(ValueError):
    """A model that does not use each weight exactly once per sample in an affine layer; see `reason`."""

    def __init__(self, reason: str, expected: str):
        self.reason = reason
        super().__init__(
            f"{reason}, expected {expected}; use frobenius_columns, which takes any loss"
        )


def softmax_cross_entropy(logits: Array, label: Array) -> Array:
    """Return −log softmax(z)_y of one sample, with derivatives that do not cancel where p is near one-hot.

    With M = argmax z, −log p_y = log(1 + Σ_{c≠M} e^{z_c − z_M}) + z_M − z_y. The derivatives
    of that are sums of the *small* probabilities; 1 − p_M, which rounding spoils, never occurs.

    **Limits:** the value and all its derivatives are NaN where y is not from 0 to classes − 1. A class whose
    logit is −∞ (masked) does not contribute.

    Args:
        logits: Logits z `[classes]`.
        label: Label y, a whole number `[]`.

    Raises:
        ValueError: for fewer than two classes, and for a label that is not the index of a class.
    """
    if jnp.shape(label) != () or not jnp.issubdtype(jnp.result_type(label), jnp.integer):
        raise ValueError(
            f"label is {describe(jnp.asarray(label))}, expected the index of a class, one integer a "
            "sample; pass jnp.argmax(labels, -1) of one-hot labels, labels.astype(int) of others"
        )
    if logits.shape[-1] < 2:
        raise ValueError(
            f"logits has shape {logits.shape}, expected at least two classes; use squared_error for one output"
        )
    classes = logits.shape[-1]
    logits = logits * jnp.where((label >= 0) & (label < classes), 1, jnp.nan)
    top = jnp.arange(classes) == jnp.argmax(logits)
    largest = jnp.sum(jnp.where(top, logits, 0))
    others = jnp.sum(jnp.where(top, 0, jnp.exp(logits - largest)))
    # exactly zero, with its derivative, where the largest logit is that of the label
    own = jnp.arange(classes) == label
    margin = jnp.sum(jnp.where(top & ~own, logits, jnp.where(own & ~top, -logits, 0)))
    return jnp.log1p(others) + margin


def squared_error(outputs: Array, target: Array) -> Array:
    """Return ½ ‖z − t‖² of one sample.

    Raises:
        ValueError: where the target does not have as many entries as the outputs.
    """
    if jnp.size(outputs) != jnp.size(target):
        raise ValueError(
            f"target has shape {jnp.shape(target)}, expected that of the outputs, {jnp.shape(outputs)}; give "
            "each sample as many targets as the network has outputs"
        )
    target = jnp.reshape(target, jnp.shape(outputs))
    return 0.5 * jnp.sum(jnp.square(outputs - target))


def mlp(
    activation: Callable[[Array], Array],
    loss: Callable[[Array, Array], Array] = softmax_cross_entropy,
    layers: Sequence[Any] | None = None,
    l2: Any = 0.0,
) -> Layered:
    """Make the model of a plain multilayer network on batches (inputs `[m, in]`, targets `[m, ...]`).

    Args:
        activation: Function applied after every layer but the last.
        loss: (outputs, target) -> [], the loss of one sample.
        layers: Keys of the layers in the params, first to last; all of a list or tuple where None.
        l2: Strengths of the penalty, as in `Layered`.
    """

    def forward(dense: Dense, params: Params, example: Batch) -> Array:
        if layers is None and not isinstance(params, (list, tuple)):
            raise ValueError(
                f"params is a {type(params).__name__}, expected a list or tuple of layers; name its layers in "
                "their order, e.g. mlp(jax.nn.relu, layers=['hidden', 'out'])"
            )
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
        Unservable: where a weight is used twice, outside `dense`, or not at all, where it meets inputs that
            are not a vector or is used within another transformation (`jax.vmap`, `lax.scan`, `jax.jit`,
            ...), and where a `jax.custom_vjp` leaves no forward derivatives.
    """
    example, known = one_of(batch), names(params)
    leaves, treedef = jax.tree.flatten(params)
    found: list[Layer] = []

    def read(leaves: list[Array], example: Batch) -> PyTree:
        found.clear()
        calls, outside = itertools.count(), get_opaque_trace_state()

        def listening(layer: PyTree, inputs: Array) -> Array:
            call, (kernel, bias) = next(calls), parts(layer)
            at = [next((i for i, w in enumerate(leaves) if w is p), None) for p in (kernel, bias)]
            if at != [None, None]:
                name = f"params[{known[next(i for i in at if i is not None)]!r}]"
                if get_opaque_trace_state() != outside:
                    inner = "another jax transformation (vmap, scan, jit, checkpoint, grad)"
                    wanted = "a call of dense outside of all of them"
                    raise Unservable(f"{name} meets dense inside {inner}", wanted)
                if jnp.ndim(inputs) != 1:
                    got = f"{name} meets inputs of shape {jnp.shape(inputs)} in one sample"
                    raise Unservable(got, "one vector [in]")
                num_inputs = (0 if at[0] is None else kernel.shape[0]) + (at[1] is not None)
                found.append(Layer("", call, at[0], at[1], num_inputs, kernel.shape[1]))
            return inputs @ kernel if bias is None else inputs @ kernel + bias

        return model.forward(listening, jax.tree.unflatten(treedef, leaves), example)

    shapes = [jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)) for x in leaves]

    def trace(function: Callable, *args: Any) -> Any:
        return jax.make_jaxpr(function)(*args)

    program = abstract("loss", read, shapes, example, given="params", trace=trace)
    if any(eqn.primitive.name.startswith("custom_vjp") for eqn in equations(program.jaxpr)):
        raise Unservable("the forward pass has a jax.custom_vjp in it", "forward derivatives")
    short = [_name(params, layer) for layer in found]
    layers = [
        layer._replace(name=_name(params, layer, whole=short.count(name) > 1))
        for layer, name in zip(found, short, strict=True)
    ]
    count = [sum(i in (at.kernel, at.bias) for at in layers) for i in range(len(leaves))]
    elsewhere = _used_elsewhere(model, params, example, layers)
    for name, times, outside in zip(known, count, elsewhere, strict=True):
        if outside or times != 1:
            how = "outside of dense" if outside else f"in {times} layers"
            wanted = "one call of dense per sample (close over what is not trained)"
            raise Unservable(f"params[{name!r}] is used {how}", wanted)
    return layers


def _name(params: Params, layer: Layer, whole: bool = False) -> str:
    """Name a layer by the shared part of its weights' paths, or by the `whole` path of the first."""
    paths = [names(params)[i].split(".") for i in (layer.kernel, layer.bias) if i is not None]
    if whole:
        return ".".join(paths[0])
    last = paths[0][:-1] or paths[0]
    return ".".join(last if len(paths) == 1 or paths[0][:-1] == paths[1][:-1] else paths[0])


def _used_elsewhere(
    model: Layered, params: Params, example: Batch, layers: list[Layer]
) -> list[bool]:
    """Tell for every leaf whether the loss uses it besides the layers: with each z free, it must use none."""
    leaves, treedef = jax.tree.flatten(params)
    by_call = {layer.call: layer for layer in layers}

    def without(leaves: list[Array], free: list[Array], example: Batch) -> Array:
        made, calls = iter(free), itertools.count()

        def freed(layer: PyTree, inputs: Array) -> Array:
            kernel, bias = parts(layer)
            at = by_call.get(next(calls))
            if at is None:
                return inputs @ kernel if bias is None else inputs @ kernel + bias
            frozen = 0 if at.kernel is not None else inputs @ kernel
            return frozen + next(made) + (0 if at.bias is not None or bias is None else bias)

        outputs = model.forward(freed, jax.tree.unflatten(treedef, leaves), example)
        return model.loss(outputs, example)

    shapes = [jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)) for x in leaves]
    free = [jax.ShapeDtypeStruct((at.num_units,), shapes[0].dtype) for at in layers]
    return uses(without, shapes, free, example)[: len(leaves)]


def signals(
    model: Layered, params: Params, layers: list[Layer], example: Batch, shifts: list[Array]
) -> tuple[PyTree, list[Array]]:
    """Run the forward pass of one sample with a shift added to every z.

    Returns:
        The outputs, and the inputs that meet the kernel of every layer, without entries where it is frozen.
    """
    by_call = {layer.call: index for index, layer in enumerate(layers)}
    calls = itertools.count()
    inputs: list[Array] = []

    def shifted(layer: PyTree, signal: Array) -> Array:
        kernel, bias = parts(layer)
        z = signal @ kernel if bias is None else signal @ kernel + bias
        index = by_call.get(next(calls))
        if index is None:
            return z
        inputs.append(signal if layers[index].kernel is not None else signal[:0])
        return z + shifts[index]

    return model.forward(shifted, params, example), inputs


def augment(layer: Layer, signal: Array) -> Array:
    """Return ã: the inputs of a layer, and a 1 where it has a trained bias."""
    return signal if layer.bias is None else jnp.append(signal, jnp.ones((), signal.dtype))


class Rows(NamedTuple):
    """Inputs to the blocks H_lk, k ≥ l, of a layer l; `push` makes the rows of some of its units.

    Attributes:
        inputs: Inputs ã_k for k ≥ l, each `[m, in]`.
        deltas: Derivatives δ_k = ∂ℓ/∂z_k for k ≥ l, each `[m, units]`.
        links: Dependence of ã_k on z_l, for k ≥ l.
        slopes: Derivatives ∂ã_k[p]/∂z_l[p] `[m, units]` for the diagonal links, in their order.
        push: (units p `[chunk]` of layer l) -> (B_lk[p] = ∂²ℓ/∂z_l[p]∂z_k for k ≥ l, each
            `[m, chunk, units]`; P_k[p] = ∂ã_k/∂z_l[p] for the full links, each `[m, chunk, in]`), zeros
            for p past the last unit.
    """

    inputs: list[Array]
    deltas: list[Array]
    links: list[Link]
    slopes: list[Array]
    push: Callable[[Array], tuple[list[Array], list[Array]]]


def links_of(
    model: Layered, params: Params, layers: list[Layer], example: Batch, index: int
) -> list[Link]:
    """Tell how the inputs of each layer k ≥ l = `index` depend on z_l; one trace."""
    dtype = jnp.result_type(*jax.tree.leaves(params))
    zeros = [jnp.zeros((layer.num_units,), dtype) for layer in layers]

    def inputs(shift: Array, example: Batch) -> list[Array]:
        shifts = [*zeros[:index], zeros[index] + shift, *zeros[index + 1 :]]
        return signals(model, params, layers, example, shifts)[1][index:]

    shift = jax.ShapeDtypeStruct((layers[index].num_units,), dtype)
    single = elementwise(inputs, shift, example)
    links = []
    for k, diagonal in enumerate(single):
        frozen = layers[index + k].kernel is None
        reached = not frozen and uses(lambda s, e, k=k: inputs(s, e)[k], shift, example)[0]
        links.append(Link.DIAGONAL if diagonal else Link.FULL if reached else Link.NONE)
    return links


def rows_of(
    model: Layered,
    params: Params,
    layers: list[Layer],
    batch: Batch,
    index: int,
    links: list[Link],
    gauss_newton: bool,
) -> Rows:
    """Linearize all signals of the layers k ≥ l in a shift of z_l, l = `index`, once for the whole batch.

    B_lk[p] is the derivative of δ_k along p, P_k[p] that of ã_k: one forward-over-reverse product of
    the part of the network above l. For Gauss-Newton, B = J_lᵀ (∂²ℓ/∂outputs²) J_k, and P is left out (there
    are no links).
    """
    units, size = layers[index].num_units, num_samples(batch)
    dtype = jnp.result_type(*jax.tree.leaves(params))
    zeros = [jnp.zeros((layer.num_units,), dtype) for layer in layers]

    def forward(upper: list[Array], example: Batch) -> tuple[PyTree, list[Array]]:
        outputs, inputs = signals(model, params, layers, example, zeros[:index] + upper)
        return outputs, inputs[index:]

    def augmented(inputs: list[Array]) -> list[Array]:
        return [augment(layer, a) for layer, a in zip(layers[index:], inputs, strict=True)]

    def shifted(shift: Array) -> list[Array]:
        return [zeros[index] + shift, *zeros[index + 1 :]]

    def curved(shift: Array, example: Batch) -> tuple[list[Array], list[Array]]:
        """Return δ_k and the wanted parts of ã_k as functions of a shift of z_l."""

        def loss(upper: list[Array]) -> tuple[Array, list[Array]]:
            outputs, inputs = forward(upper, example)
            return model.loss(outputs, example), inputs

        deltas, inputs = jax.grad(loss, has_aux=True)(shifted(shift))
        return deltas, [
            a for a, link in zip(augmented(inputs), links, strict=True) if link is Link.FULL
        ]

    def bent(shift: Array, example: Batch) -> tuple[list[Array], list[Array]]:
        """Return a function of the shift whose derivative is a row of JᵀSJ: J is held fixed."""
        pull = jax.vjp(lambda upper: forward(upper, example)[0], zeros[index:])[1]
        outputs = forward(shifted(shift), example)[0]
        return pull(jax.grad(lambda z: model.loss(z, example))(outputs))[0], []

    def diagonal(shift: Array, example: Batch) -> list[Array]:
        inputs = forward(shifted(shift), example)[1]
        return [a for a, link in zip(inputs, links, strict=True) if link is Link.DIAGONAL]

    def over_batch(function: Callable) -> Callable:
        return lambda shift: jax.vmap(function)(shift, batch)

    start = jnp.zeros((size, units), dtype)
    rows = over_batch(bent if gauss_newton else curved)
    (deltas, _), push = jax.linearize(rows, start)
    slopes = jax.jvp(over_batch(diagonal), (start,), (jnp.ones_like(start),))[1]

    def push_units(chosen: Array) -> tuple[list[Array], list[Array]]:
        basis = jax.nn.one_hot(chosen, units, dtype=dtype)
        tangents = jnp.broadcast_to(basis, (size, *basis.shape))
        return jax.vmap(push, in_axes=1, out_axes=1)(tangents)

    inputs = jax.vmap(lambda example: augmented(forward(zeros[index:], example)[1]))(batch)
    return Rows(inputs, deltas, links, slopes, push_units)
