"""Trace and diagonal of a curvature matrix, exact and estimated."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hypergrad.core.checks import check_bytes, check_whole
from hypergrad.core.types import Array, Batch, Key, Params, PyTree
from hypergrad.curvature.estimate import (
    FEWEST,
    ROUNDING,
    Moments,
    choose_rank,
    merge,
    sketch,
    standard_error,
    student,
)
from hypergrad.curvature.memory import MEMORY, VECTORS, fitting, sum_chunks
from hypergrad.curvature.models import Model
from hypergrad.curvature.products import Product, bytes_of_product, check_product, hvp, operator


class TraceEstimate(NamedTuple):
    """An estimate of tr H.

    Attributes:
        value: Estimate `[]`.
        std_error: Standard error of the value, `[]`.
        interval: (low, high), which hold tr H between them in 95 % of all cases; None from fewer than 30
            products.
    """

    value: Array
    std_error: Array
    interval: tuple[Array, Array] | None


class DiagonalEstimate(NamedTuple):
    """An estimate of diag H.

    Attributes:
        value: Estimate, a pytree like the params.
        std_error: Standard error of each entry, likewise.
    """

    value: PyTree
    std_error: PyTree


def diagonal(
    loss: Model,
    params: Params,
    batch: Batch,
    *,
    product: Product = hvp,
    memory: int = MEMORY,
    chunk: int | None = None,
) -> PyTree:
    """Return diag H exactly, a pytree like the params: H_jj = e_jᵀ H e_j.

    **Cost:** one product a parameter, as many at a time as fit into memory (64 at most).

    Args:
        loss: Any model that `product` takes.
        params: Weights w, n numbers.
        batch: Batch of the loss.
        product: `hvp`, `ggn_vp` or `fisher_vp`.
        memory: Bytes to use; they decide the chunk where that is None.
        chunk: Number of products side by side, whatever their memory.

    Raises:
        ValueError: where loss, params and batch do not fit, or a product does not fit into memory.
    """
    check_product(product, loss, params, batch)
    check_bytes(memory)
    if chunk is None:
        one = bytes_of_product(product, loss, params, batch)
        part = ", chunked_loss(loss, size)" if product is hvp else ""
        advice = f"a smaller batch{part}, or use an estimate"
        chunk = fitting("one product", one, memory, advice, most=64)
    check_whole("chunk", chunk)
    linear = operator(product, loss, params, batch)

    def entry(index: Array) -> Array:
        unit = jax.nn.one_hot(index, linear.size, dtype=linear.dtype)
        return jnp.vdot(unit, linear.matvec(unit))

    def body(indices: Array) -> tuple[tuple[()], Array]:
        return (), jax.vmap(entry)(indices)

    return linear.unravel(sum_chunks(body, linear.size, chunk)[1])


def trace(
    loss: Model,
    params: Params,
    batch: Batch,
    *,
    product: Product = hvp,
    memory: int = MEMORY,
    chunk: int | None = None,
) -> Array:
    """Return tr H exactly, the sum of `diagonal`; arguments and cost are the same."""
    entries = diagonal(loss, params, batch, product=product, memory=memory, chunk=chunk)
    return sum((jnp.sum(x) for x in jax.tree.leaves(entries)), jnp.zeros(()))


def trace_estimate(
    loss: Model,
    params: Params,
    batch: Batch,
    key: Key,
    *,
    num_products: int = 60,
    rank: int | None = None,
    chunk: int = 10,
    product: Product = hvp,
    memory: int = VECTORS,
) -> TraceEstimate:
    """Estimate tr H by Hutch++, or with `rank=0` by Hutchinson's mean of vᵀ H v.

    tr H = tr(Qᵀ H Q) + E vᵀ (I − Q Qᵀ) H (I − Q Qᵀ) v

    The interval is mean ± t standard errors, because vᵀ H v has both signs and nothing better is known of
    its shape. Student's t has half the degrees of freedom of normal terms, because these are skewed where few
    eigenvalues dominate: simulated on spectra from one eigenvalue to many, 95 % then covers 92 to 98 %. It is
    wider by 10 ε Σ|v_i (H v)_i| on both sides for rounding, the whole error where Q spans all of H.

    **Cost:** `num_products` products, memory `rank` vectors and `chunk` products.

    Args:
        loss: Any model that `product` takes.
        params: Weights w, n numbers.
        batch: Batch of the loss.
        key: Key of the random signs.
        num_products: Number of products.
        rank: Number of columns of Q; a third of `num_products` where None.
        chunk: Number of products side by side.
        product: `hvp`, `ggn_vp` or `fisher_vp`.
        memory: Bytes for the vectors.

    Raises:
        ValueError: for a rank that leaves no probes, counts below 1, vectors that do not fit into memory.

    Reference:
        Hutchinson, 1990; Meyer, Musco, Musco, Woodruff, 2021, arXiv:2010.09649.
    """
    check_product(product, loss, params, batch)
    rank = choose_rank(params, num_products, rank, chunk, memory, most=num_products)
    linear = operator(product, loss, params, batch)
    sketch_key, probe_key = jax.random.split(key)
    basis, images = sketch(linear, sketch_key, rank, chunk)
    exact = basis.T * images
    count = num_products - 2 * rank

    def term(key: Key) -> tuple[Array, Array]:
        signs = jax.random.rademacher(key, (linear.size,)).astype(linear.dtype)
        vector = signs - basis @ (signs @ basis)
        products = vector * linear.matvec(vector)
        return jnp.sum(products), jnp.sum(jnp.abs(products))

    keys = jax.random.split(probe_key, count)
    terms, sizes = jax.lax.map(term, keys, batch_size=min(chunk, count))
    zero = jnp.zeros((), linear.dtype)
    seen = merge(Moments(zero, zero, zero), terms, jnp.ones(count, bool))
    value, error = jnp.sum(exact) + seen.mean, standard_error(seen)
    size = jnp.sum(jnp.abs(exact)) + jnp.mean(sizes)
    half = student(0.95, jnp.maximum((seen.count - 1) / 2, 1)) * error
    half = half + ROUNDING * jnp.finfo(linear.dtype).eps * size
    bounds = (value - half, value + half) if num_products >= FEWEST else None
    return TraceEstimate(value, error, bounds)


def diagonal_estimate(
    loss: Model,
    params: Params,
    batch: Batch,
    key: Key,
    *,
    num_products: int = 60,
    product: Product = hvp,
) -> DiagonalEstimate:
    """Estimate diag H = E v ⊙ H v, v of random signs.

    **Cost:** `num_products` products one after another, memory of four vectors.

    **Limits:** the variance of entry j is Σ_{k≠j} H_jk²: small entries beside large ones drown.

    Args:
        loss: Any model that `product` takes.
        params: Weights w, n numbers.
        batch: Batch of the loss.
        key: Key of the random signs.
        num_products: Number of products.
        product: `hvp`, `ggn_vp` or `fisher_vp`.

    Reference:
        Bekas, Kokiopoulou, Saad, 2007, "An estimator for the diagonal of a matrix".
    """
    check_product(product, loss, params, batch)
    check_whole("num_products", num_products, 2)
    linear = operator(product, loss, params, batch)

    def step(index: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        mean, spread = carry
        signs = jax.random.rademacher(jax.random.fold_in(key, index), (linear.size,))
        vector = signs.astype(linear.dtype)
        term = vector * linear.matvec(vector)
        gap = term - mean
        mean = mean + gap / (index + 1)
        return mean, spread + gap * (term - mean)

    zero = jnp.zeros(linear.size, linear.dtype)
    mean, spread = jax.lax.fori_loop(0, num_products, step, (zero, zero))
    error = jnp.sqrt(spread / (num_products - 1) / num_products)
    return DiagonalEstimate(linear.unravel(mean), linear.unravel(error))
