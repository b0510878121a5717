"""What every measure of curvature shares: the losses it takes, their checks, and work by chunks."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr
from jax.extend.core.primitives import jit_p

from hypergrad.core import tree
from hypergrad.core.abstract import traced
from hypergrad.core.autodiff import programs
from hypergrad.core.checks import check_bytes
from hypergrad.core.types import Array, Batch, Params, PyTree

BatchLoss: TypeAlias = Callable[[Params, Batch], Array]
"""(params, batch) -> [], the mean over the samples of a batch; hyperparameters are closed over."""

Dense: TypeAlias = Callable[[PyTree, Array], Array]
"""(layer, inputs [in]) -> [units]: inputs @ kernel + bias, of a layer that holds the two."""

MEMORY = 2**29
"""Bytes that one call may use, where the caller does not say."""

VECTORS = 2**32
"""Bytes that the vectors of an estimate or a spectrum may take, where the caller does not say."""


class Composed(NamedTuple):
    """A loss in two parts, L = c(z(w)): what Gauss-Newton products need.

    Attributes:
        outputs: (params, batch) -> z, a floating-point pytree; logits, say.
        convex: (z, batch) -> c `[]`. A penalty belongs into both parts: let the outputs be
            (logits, params), and c add it.
    """

    outputs: Callable[[Params, Batch], PyTree]
    convex: Callable[[PyTree, Batch], Array]


class Layered(NamedTuple):
    """A network of affine layers, each used once per sample, that shows their inputs and takes shifts.

    L(w) = (1/m) Σ_i ℓ(forward(w, x_i), x_i) + ½ Σ_j λ_j w_j²

    The forward pass of *one* sample calls `dense(layer, inputs)` for every affine layer, where `layer` is a
    part of the params with one matrix `[in, units]` and at most one vector `[units]` (a dict as flax
    makes it, a tuple, or the bare matrix). Between the layers anything goes: activations, residuals,
    normalization over units. A layer that is closed over instead of part of the params is frozen. A weight
    that is used at several places of a sample, as in a convolution, falls back to columns.

        def forward(dense, params, example):
            hidden = jax.nn.relu(dense(params["hidden"], example[0]))
            return dense(params["out"], hidden)

        Layered(forward, lambda z, example: cross_entropy(z, example[1]))

    Attributes:
        forward: (dense, params, example) -> outputs.
        loss: (outputs, example) -> [], of one sample.
        l2: λ, one number or a pytree prefix of the params with a number for each.
    """

    forward: Callable[[Dense, Params, Batch], PyTree]
    loss: Callable[[PyTree, Batch], Array]
    l2: Any = 0.0


Model: TypeAlias = BatchLoss | Composed | Layered


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
        shapes = [jnp.shape(leaf) for leaf in leaves]
        raise ValueError(
            f"layer has arrays of shapes {shapes}, expected one matrix [in, units] and at most one "
            "vector [units]; call dense once for each affine layer"
        )
    return kernels[0], biases[0] if biases else None


def loss_of(model: Model) -> BatchLoss:
    """Return the loss (params, batch) -> `[]`, whatever the form in which it was given, computed precisely."""
    if isinstance(model, (Layered, Composed)):
        composed = composed_of(model)
        return lambda params, batch: composed.convex(composed.outputs(params, batch), batch)
    return precise(model)


def precise(function: Callable) -> Callable:
    """Return the same function with matrix products in full precision, those of its derivatives too.

    Accelerators round the factors of float32 products to 10 bits or less where nothing else is asked for.
    """

    @functools.wraps(function)
    def run(*args):
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
            f"loss is {describe_model(model)}, expected its two parts, because Gauss-Newton matrices are made "
            "from the outputs; pass Composed(outputs, convex) or Layered(...)"
        )

    def outputs(params, batch):
        return jax.vmap(lambda example: model.forward(dense, params, example))(batch), params

    def convex(made, batch):
        each = jax.vmap(model.loss)(made[0], batch)
        return jnp.mean(each) + penalty(model, made[1])

    return Composed(precise(outputs), precise(convex))


def penalty(model: Layered, params: Params) -> Array:
    """Return ½ Σ_j λ_j w_j²."""
    strengths = jax.tree.leaves(spread(model.l2, params))
    for strength in strengths:
        if jnp.shape(strength) != ():
            raise ValueError(
                f"l2 has a strength of shape {jnp.shape(strength)}, expected one number for each array of the "
                "params; write a penalty of single weights into a plain loss"
            )
    squares = [
        strength * jnp.sum(jnp.square(leaf))
        for strength, leaf in zip(strengths, jax.tree.leaves(params), strict=True)
    ]
    return 0.5 * sum(squares, jnp.zeros((), jnp.result_type(*squares)))


def spread(l2: Any, params: Params) -> PyTree:
    """Return a strength for every leaf of the params from a number or a prefix of the pytree."""
    for strength in jax.tree.leaves(l2):
        if not traced(strength) and np.isnan(np.asarray(strength, np.float64)).any():
            raise ValueError(f"l2 is {strength!r}, expected numbers; pass e.g. l2=1e-4")
    try:
        return jax.tree.broadcast(l2, params)
    except ValueError as error:
        raise ValueError(
            f"l2 has the structure {jax.tree.structure(l2)}, expected one number or a prefix of the "
            "params with a number for each; pass e.g. l2=1e-4"
        ) from error


def describe_model(value: Any) -> str:
    """Say what a value is, in a few words."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array of shape {tuple(value.shape)} and dtype {value.dtype}"
    return f"a {type(value).__name__}"


def check_model(model: Model, params: Params, batch: Batch) -> None:
    """Raise a one-line `ValueError` where a loss, its params and its batch do not fit, before compiling.

    **Cost:** an abstract evaluation of the loss; outside a trace also a look at every parameter.
    """
    check_params(params)
    if isinstance(model, Layered):
        num_samples(batch)
        check_each(model, params, batch)
    value = abstract_model("loss", loss_of(model), params, batch)
    if getattr(value, "shape", None) != () or not tree.is_float(value):
        raise ValueError(
            f"loss returned {describe_model(value)}, expected one real number of shape (), the mean over the "
            "samples; reduce it, for example with jnp.mean(...)"
        )


def check_each(model: Layered, params: Params, batch: Batch) -> None:
    """Raise a `ValueError` unless the loss of one sample of a layered model is one number."""

    def one(params, example):
        return model.loss(model.forward(dense, params, example), example)

    value = abstract_model("loss", one, params, one_of(batch))
    if getattr(value, "shape", None) != () or not tree.is_float(value):
        raise ValueError(
            f"loss of one sample returned {describe_model(value)}, expected one real number of shape (); add "
            "up its entries, for example with jnp.sum(...)"
        )


def check_layered(name: str, model: Any, made: str) -> None:
    """Raise a `ValueError` unless a model shows its layers; `made` says what is made from them."""
    if not isinstance(model, Layered):
        raise ValueError(
            f"{name} is {type(model).__name__}, expected a Layered, because {made} its layers; build one with "
            "curvature.mlp or curvature.Layered, or use frobenius"
        )


def check_params(params: Params) -> None:
    """Raise a `ValueError` unless the params are finite floating-point arrays of one dtype."""
    leaves = jax.tree.leaves(params)
    if not leaves:
        raise ValueError("params has no leaves, expected at least one array of weights")
    dtypes = {}
    for name, leaf in zip(names(params), leaves, strict=True):
        if not tree.is_float(leaf):
            raise ValueError(
                f"params[{name!r}] has dtype {jnp.result_type(leaf)}, expected floating point; close "
                "over what is not trained"
            )
        dtypes.setdefault(str(jnp.result_type(leaf)), name)
        # numpy, because within a trace jax would not tell
        if not traced(leaf) and not np.isfinite(np.asarray(leaf).astype(np.float64)).all():
            raise ValueError(
                f"params[{name!r}] is not finite, expected finite weights; training has diverged, lower "
                "the learning rate"
            )
    if len(dtypes) > 1:
        got = " and ".join(f"{dtype} (params[{name!r}])" for dtype, name in dtypes.items())
        raise ValueError(
            f"params has leaves of {got}, expected one dtype; cast them with "
            "jax.tree.map(lambda w: w.astype(jnp.float32), params)"
        )


def bytes_of_one(function: Callable, x: PyTree) -> int:
    """Bound the memory of `function` for one of many arguments side by side: half of all that it makes.

    **Cost:** a trace; nothing is run.
    """
    alone = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape), a.dtype), x)
    return num_bytes(jax.make_jaxpr(jax.vmap(function))(alone).jaxpr) // 2 + 1


def num_bytes(jaxpr: Jaxpr) -> int:
    """Add up the bytes of all that a program makes, what is within it included: the body of a loop once."""
    return sum(
        sum(map(num_bytes, inner))
        + (0 if eqn.primitive is jit_p else sum(_bytes_of(v) for v in eqn.outvars))
        for eqn in jaxpr.eqns
        for inner in [programs(eqn)]
    )


def _bytes_of(variable: Any) -> int:
    return math.prod(variable.aval.shape) * variable.aval.dtype.itemsize


def _shapes(function: Callable) -> Callable:
    return lambda *args: jax.eval_shape(function, *args)


def abstract_model(name: str, function: Callable, *args, trace: Callable = _shapes) -> Any:
    """Evaluate a user's function abstractly; put its name before what it raises."""
    try:
        return trace(function)(*args)
    except Exception as error:
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if isinstance(error, ValueError) and ", expected " in text:
            raise
        raise ValueError(
            f"{name} failed on these params and batch: {text} ({type(error).__name__}), expected a "
            "traceable function of (params, batch); run it once by itself to see where"
        ) from error


def num_samples(batch: Batch) -> int:
    """Return the length of the leading axis that all arrays of a batch share."""
    lengths = {jnp.shape(leaf)[0] if jnp.ndim(leaf) else 0 for leaf in jax.tree.leaves(batch)}
    if len(lengths) != 1 or 0 in lengths:
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(batch)]
        raise ValueError(
            f"batch has arrays of shapes {shapes}, expected at least one sample along a leading axis "
            "that all of them share; give scalars to every sample, or close over them"
        )
    return lengths.pop()


def one_of(batch: Batch) -> Batch:
    """Return the shapes of one sample of a batch."""
    num_samples(batch)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x)[1:], jnp.result_type(x)), batch)


def check_positive_or_traced(name: str, value: Any) -> None:
    """Raise a `ValueError` unless `value` is a positive number, or traced."""
    if getattr(value, "shape", ()) != ():
        raise ValueError(
            f"{name} is {describe_model(value)}, expected one positive number of shape ()"
        )
    if traced(value):
        return
    number = isinstance(value, (int, float)) or hasattr(value, "shape")
    if isinstance(value, (bool, np.bool_)) or not number or not 0 < value < math.inf:
        raise ValueError(f"{name} is {value!r}, expected a positive number; pass e.g. {name}=0.05")


class NotEnoughMemory(ValueError):
    """More bytes are needed than there are."""


def check_memory(what: str, needed: float, memory: int, advice: str) -> None:
    """Raise `NotEnoughMemory`, a `ValueError`, where `what` needs more bytes than `memory`."""
    check_bytes(memory)
    if needed > memory:
        raise NotEnoughMemory(
            f"memory is {memory} bytes, expected at least {math.ceil(needed)} for {what}; {advice}"
        )


def fitting(what: str, one: int, memory: int, advice: str, *, most: int, beside: int = 0) -> int:
    """Return how many pieces of `one` bytes each fit into memory beside other bytes, `most` at most.

    Raises:
        ValueError: where not one does, with the bytes that it needs and the advice.
    """
    needed = beside + one
    check_memory(what, needed, memory, f"pass memory={needed}, {advice}")
    return min(most, (memory - beside) // one)


def check_vectors(count: int, params: Params, memory: int, advice: str) -> None:
    """Raise a `ValueError` where that many vectors like the params need more bytes than `memory`."""
    size = size_of(params)
    what = f"{count} vectors of {size} numbers"
    check_memory(what, float(count) * size * itemsize(params), memory, advice)


def names(params: Params) -> list[str]:
    """Name every leaf of the params by its path."""
    return ["params" if n == "hparams" else n for n in tree.leaf_names(params)]


def widen(params: Params) -> Params:
    """Return the params as arrays of at least float32, in which every measure but the products is computed."""

    def cast(leaf):
        dtype = jnp.promote_types(jnp.result_type(leaf), jnp.float32)
        return jnp.asarray(leaf, dtype)

    return jax.tree.map(cast, params)


def size_of(params: Params) -> int:
    """Return the number of parameters."""
    return sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(params))


def itemsize(params: Params) -> int:
    """Return the bytes of one parameter as it is computed with."""
    dtype = jnp.result_type(*jax.tree.leaves(params))
    return jnp.promote_types(dtype, jnp.float32).itemsize


def sum_chunks(
    body: Callable[[Array], tuple[PyTree, PyTree]], count: int, chunk: int
) -> tuple[PyTree, PyTree]:
    """Add what `body` makes of the indices 0 … count − 1, `chunk` of them at a time.

    The last chunk runs over the end: `body` must make zeros of an index ≥ count, as `jax.nn.one_hot` does.
    Each chunk is computed again on the way back, so that a gradient stores none of them.

    Args:
        body: indices `[chunk]` -> (terms to add, rows `[chunk, ...]` to keep).
        count: how many indices.
        chunk: how many at a time.

    Returns:
        The sums, and the rows `[count, ...]`.
    """
    chunk = max(1, min(chunk, count))
    num_chunks = max(1, -(-count // chunk))
    indices = jnp.arange(num_chunks * chunk, dtype=jnp.int32).reshape(num_chunks, chunk)
    if num_chunks == 1:
        total, rows = body(indices[0])
        return total, jax.tree.map(lambda r: r[:count], rows)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(body, indices[0])[0])

    def step(total, index):
        terms, rows = jax.checkpoint(body)(index)
        return jax.tree.map(jnp.add, total, terms), rows

    total, rows = jax.lax.scan(step, zeros, indices)
    flat = jax.tree.map(lambda r: r.reshape((-1, *r.shape[2:]))[:count], rows)
    return total, flat
