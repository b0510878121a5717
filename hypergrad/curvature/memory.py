"""The memory that a measure may use, and work by chunks to stay within it."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr
from jax.extend.core.primitives import jit_p

from hypergrad.core.autodiff import programs
from hypergrad.core.checks import check_bytes
from hypergrad.core.types import Array, Params, PyTree

MEMORY = 2**29
"""Bytes that one call may use by default."""

VECTORS = 2**32
"""Bytes that the vectors of an estimate or a spectrum may take by default."""


class NotEnoughMemory(ValueError):
    """The work needs more bytes than there are; `reason` is the message without its advice."""

    def __init__(self, what: str, needed: int, memory: int, advice: str):
        self.reason = f"memory is {memory} bytes, expected at least {needed} for {what}"
        super().__init__(f"{self.reason}; {advice}")


def check_memory(what: str, needed: int, memory: int, advice: str) -> None:
    """Raise a `ValueError` where `what` needs more bytes than `memory`, or `memory` is invalid."""
    check_bytes(memory)
    if needed > memory:
        raise NotEnoughMemory(what, needed, memory, advice)


def check_vectors(count: int, params: Params, memory: int, advice: str) -> None:
    """Raise a `ValueError` where that many vectors like the params need more bytes than `memory`."""
    size = size_of(params)
    needed = count * size * itemsize(params)
    check_memory(f"{count} vectors of {size} numbers", needed, memory, advice)


def fitting(what: str, one: int, memory: int, advice: str, *, most: int, beside: int = 0) -> int:
    """Return how many pieces of `one` bytes each fit into memory beside other bytes, at most `most`.

    Raises:
        NotEnoughMemory: where not even one fits, with the bytes that it needs and the advice.
    """
    needed = beside + one
    if needed > memory:
        raise NotEnoughMemory(what, needed, memory, f"pass memory={needed}, {advice}")
    return min(most, (memory - beside) // one)


def size_of(params: Params) -> int:
    """Return the number of parameters."""
    return sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(params))


def itemsize(params: Params) -> int:
    """Return the bytes of one parameter in computations."""
    dtype = jnp.result_type(*jax.tree.leaves(params))
    return jnp.promote_types(dtype, jnp.float32).itemsize


def bytes_of_one(function: Callable, x: PyTree) -> int:
    """Bound the memory of `function` for one of many arguments side by side: half of everything it makes.

    **Cost:** a trace; nothing is run.
    """
    alone = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape), a.dtype), x)
    return num_bytes(jax.make_jaxpr(jax.vmap(function))(alone).jaxpr) // 2 + 1


def num_bytes(jaxpr: Jaxpr) -> int:
    """Add up the bytes that a program makes, with all programs within it; the body of a loop counts once."""
    return sum(
        sum(num_bytes(p.jaxpr) for p in programs(eqn))
        + (0 if eqn.primitive is jit_p else sum(map(_variable_bytes, eqn.outvars)))
        for eqn in jaxpr.eqns
    )


def _variable_bytes(variable: Any) -> int:
    return math.prod(variable.aval.shape) * variable.aval.dtype.itemsize


def sum_chunks(
    body: Callable[[Array], tuple[PyTree, PyTree]], count: int, chunk: int
) -> tuple[PyTree, PyTree]:
    """Add the terms of `body` for the indices 0 … count − 1, `chunk` of them at a time.

    The last chunk runs past the end: `body` must return zeros for an index ≥ count, as `jax.nn.one_hot` does.
    Each chunk is computed again in the backward pass, so that a gradient stores none of them.

    Args:
        body: (indices `[chunk]`) -> (terms to add, rows `[chunk, ...]` to keep).
        count: Number of indices.
        chunk: Number of indices at a time.

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

    def step(total: PyTree, index: Array) -> tuple[PyTree, PyTree]:
        terms, rows = jax.checkpoint(body)(index)
        return jax.tree.map(jnp.add, total, terms), rows

    total, rows = jax.lax.scan(step, zeros, indices)
    flat = jax.tree.map(lambda r: r.reshape((-1, *r.shape[2:]))[:count], rows)
    return total, flat
