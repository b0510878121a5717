"""The losses that every measure of curvature takes, and their checks."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad.core import tree
from hypergrad.core.abstract import abstract, traced
from hypergrad.core.checks import check_positive, describe
from hypergrad.core.types import Array, Batch, Params, PyTree
from hypergrad.problem import check_scalar

BatchLoss: TypeAlias = Callable[[Params, Batch], Array]
"""(params, batch) -> [], the mean over the samples of a batch; hyperparameters are closed over."""

Dense: TypeAlias = Callable[[PyTree, Array], Array]
"""(layer, inputs [in]) -> [units]: inputs @ kernel + bias, of a layer that holds the two."""


class Composed(NamedTuple):
    """A loss in two parts, L = c(z(w)), for Gauss-Newton products.

    Attributes:
        outputs: (params, batch) -> z, a floating-point pytree, for example logits.
        convex: (z, batch) -> c `[]`. A penalty belongs to both parts: let the outputs be
            (logits, params), and let c add it.
    """

    outputs: Callable[[Params, Batch], PyTree]
    convex: Callable[[PyTree, Batch], Array]


class Layered(NamedTuple):
    """A network of affine layers, each used once per sample, that shows their inputs and takes shifts.

    L(w) = (1/m) Σ_i ℓ(forward(w, x_i), x_i) + ½ Σ_j λ_j w_j²

    The forward pass of *one* sample calls `dense(layer, inputs)` for every affine layer, where `layer` is a
    part of the params with one matrix `[in, units]` and at most one vector `[units]` (a dict as flax
    makes it, a tuple, or the bare matrix). Anything may happen between the layers: activations, residuals,
    normalization over units. A layer that is closed over instead of part of the params is frozen. A weight with
    several uses in a sample, as in a convolution, falls back to columns.

        def forward(dense, params, example):
            hidden = jax.nn.relu(dense(params["hidden"], example[0]))
            return dense(params["out"], hidden)

        Layered(forward, lambda z, example: softmax_cross_entropy(z, example[1]))

    Attributes:
        forward: (dense, params, example) -> outputs.
        loss: (outputs, example) -> [], the loss of one sample.
        l2: Strengths λ, one number or a pytree prefix of the params with a number for each.
    """

    forward: Callable[[Dense, Params, Batch], PyTree]
    loss: Callable[[PyTree, Batch], Array]
    l2: Any = 0.0


Model: TypeAlias = BatchLoss | Composed | Layered
"""A loss in any of its three forms; `loss_of` makes the first of each, `composed_of` the second."""


def dense(layer: PyTree, inputs: Array) -> Array:
    """Return inputs @ kernel + bias: the plain `Dense`, without shift."""
    kernel, bias = parts(layer)
    return inputs @ kernel if bias is None else inputs @ kernel + bias


def parts(layer: PyTree) -> tuple[Array, Array | None]:
    """Return the matrix of a layer and its vector, None where it has no bias."""
    leaves = jax.tree.leaves(layer)
    kernels = [leaf for leaf in leaves if jnp.ndim(leaf) == 2]
    biases = [leaf for leaf in leaves if jnp.ndim(leaf) == 1]
    if len(kernels) != 1 or len(biases) > 1 or len(leaves) != 1 + len(biases):
        raise ValueError(
            f"layer has arrays of shapes {[*map(jnp.shape, leaves)]}, expected one matrix [in, units] and at "
            "most one vector [units]; call dense once for each affine layer"
        )
    return kernels[0], biases[0] if biases else None


def loss_of(model: Model) -> BatchLoss:
    """Return the loss (params, batch) -> `[]` of any of the three forms, computed precisely."""
    if isinstance(model, (Layered, Composed)):
        composed = composed_of(model)
        return lambda params, batch: composed.convex(composed.outputs(params, batch), batch)
    return precise(model)


def precise(function: Callable) -> Callable:
    """Return the same function with matrix products in full precision, in its derivatives too.

    By default, accelerators round the factors of float32 products to 10 bits or less.
    """

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return function(*args)

    return run


def composed_of(model: Model) -> Composed:
    """Return the two parts of a loss, the penalty of a `Layered` in both, computed precisely.

    Raises:
        ValueError: for a plain function, which has no outputs.
    """
    if isinstance(model, Composed):
        return Composed(precise(model.outputs), precise(model.convex))
    if not isinstance(model, Layered):
        raise ValueError(
            f"loss is {describe(model)}, expected its two parts, because Gauss-Newton matrices are made from "
            "the outputs; pass Composed(outputs, convex) or Layered(...)"
        )

    def outputs(params: Params, batch: Batch) -> tuple[PyTree, Params]:
        return jax.vmap(lambda example: model.forward(dense, params, example))(batch), params

    def convex(made: tuple[PyTree, Params], batch: Batch) -> Array:
        each = jax.vmap(model.loss)(made[0], batch)
        return jnp.mean(each) + penalty(model, made[1])

    return Composed(precise(outputs), precise(convex))


def penalty(model: Layered, params: Params) -> Array:
    """Return ½ Σ_j λ_j w_j²."""
    strengths = jax.tree.leaves(spread(model.l2, params))
    squares = [
        strength * jnp.sum(jnp.square(leaf))
        for strength, leaf in zip(strengths, jax.tree.leaves(params), strict=True)
    ]
    return 0.5 * sum(squares, jnp.zeros((), jnp.result_type(*squares)))


def spread(l2: Any, params: Params) -> PyTree:
    """Return a strength for every leaf of the params from a number or a prefix of the pytree."""
    for strength in jax.tree.leaves(l2):
        if jnp.shape(strength) != () or (not traced(strength) and np.isnan(float(strength))):
            raise ValueError(
                f"l2 holds {describe(strength)}, expected one number for each array of the params, e.g. "
                "l2=1e-4; write a penalty of single weights into a plain loss"
            )
    try:
        return jax.tree.broadcast(l2, params)
    except ValueError as error:
        raise ValueError(
            f"l2 has the structure {jax.tree.structure(l2)}, expected one number or a prefix of the "
            "params with a number for each; pass e.g. l2=1e-4"
        ) from error


def check_model(model: Model, params: Params, batch: Batch) -> None:
    """Raise a one-line `ValueError` where a loss, its params and its batch do not fit, before compiling.

    **Cost:** an abstract evaluation of the loss; outside a trace also a look at every parameter.
    """
    check_params(params)
    if isinstance(model, Layered):

        def one(params: Params, example: Batch) -> Array:
            return model.loss(model.forward(dense, params, example), example)

        each = abstract("loss", one, params, one_of(batch), given="params")
        check_scalar({"loss of one sample": each})
    check_scalar({"loss": abstract("loss", loss_of(model), params, batch, given="params")})


def check_layered(name: str, model: Any, params: Params, batch: Batch, made: str) -> None:
    """Check a model as `check_model` does, if it shows its layers; `made` names their use in the message."""
    if not isinstance(model, Layered):
        raise ValueError(
            f"{name} is {describe(model)}, expected a Layered, because {made} its layers; build one with "
            "curvature.mlp or curvature.Layered, or use frobenius"
        )
    check_model(model, params, batch)


def check_params(params: Params) -> None:
    """Raise a `ValueError` unless the params are finite floating-point arrays of one dtype."""
    leaves, dtypes = jax.tree.leaves(params), {}
    if not leaves:
        raise ValueError("params has no leaves, expected at least one array of weights")
    for name, leaf in zip(names(params), leaves, strict=True):
        dtype = str(jnp.result_type(leaf))
        dtypes.setdefault(dtype, f"{dtype} (params[{name!r}])")
        if not tree.is_float(leaf):
            raise ValueError(
                f"params[{name!r}] has dtype {dtype}, expected floating point; close over what is not trained"
            )
        # numpy, because within a trace jax cannot tell
        if not traced(leaf) and not np.isfinite(np.asarray(leaf).astype(np.float64)).all():
            raise ValueError(
                f"params[{name!r}] is not finite, expected finite weights; training has diverged, lower the "
                "learning rate"
            )
    if len(dtypes) > 1:
        raise ValueError(
            f"params has leaves of {' and '.join(dtypes.values())}, expected one dtype; cast them with "
            "jax.tree.map(lambda w: w.astype(jnp.float32), params)"
        )


def traced_scalar(value: Any) -> bool:
    """Tell whether a value is one number `[]` that is not known yet."""
    return traced(value) and jnp.shape(value) == ()


def number_of(value: Any) -> Any:
    """Return the number that a scalar array of any library holds, and any other value as it is."""
    return value.item() if getattr(value, "shape", None) == () else value


def check_positive_or_traced(name: str, value: Any) -> None:
    """Raise a `ValueError` unless `value` is a positive number of any library, or a traced scalar."""
    if not traced_scalar(value):
        check_positive(name, number_of(value), example=0.05)


def num_samples(batch: Batch) -> int:
    """Return the length of the leading axis that all arrays of a batch share."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(batch)]
    lengths = {shape[0] if shape else 0 for shape in shapes}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            f"batch has arrays of shapes {shapes}, expected at least one sample along a leading axis "
            "that all of them share; give scalars to every sample, or close over them"
        )
    return lengths.pop()


def one_of(batch: Batch) -> Batch:
    """Return the shapes of one sample of a batch."""
    num_samples(batch)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x)[1:], jnp.result_type(x)), batch)


def names(params: Params) -> list[str]:
    """Name every leaf of the params by its path."""
    return tree.leaf_names(params, bare="params")


def widen(params: Params) -> Params:
    """Return the params as arrays of at least float32, for every measure except the products."""

    def cast(leaf: Any) -> Array:
        dtype = jnp.promote_types(jnp.result_type(leaf), jnp.float32)
        return jnp.asarray(leaf, dtype)

    return jax.tree.map(cast, params)
