"""Estimates of ‖H‖_F from products with random vectors, with an interval that keeps its confidence."""

from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hypergrad.core.checks import check_share, check_whole
from hypergrad.core.types import Array, Batch, Key, Params
from hypergrad.curvature.columns import root
from hypergrad.curvature.memory import VECTORS, check_vectors, size_of
from hypergrad.curvature.models import Model, check_positive_or_traced
from hypergrad.curvature.products import Operator, Product, check_product, hvp, operator

FEWEST = 30
"""Number of products below which no interval is given: it would cover far less than it claims."""

ROUNDING = 10
"""Number of machine epsilons of the sum by which an interval is widened on both sides."""


class NormInterval(NamedTuple):
    """Interval that holds ‖H‖_F with the requested confidence.

    Attributes:
        low: Lower end `[]`.
        high: Upper end `[]`.
    """

    low: Array
    high: Array


class FrobeniusEstimate(NamedTuple):
    """An estimate of ‖H‖_F.

    Attributes:
        value: Estimate `[]`.
        std_error: Standard error of the value, `[]`; from few probes it is itself uncertain.
        interval: Interval of ‖H‖_F; None from fewer than 30 products.
        num_products: Number of products with H that were made, int32 `[]`.
        converged: Whether the interval is within the requested tolerance, bool `[]`; true without a tolerance.
    """

    value: Array
    std_error: Array
    interval: NormInterval | None
    num_products: Array
    converged: Array


class Moments(NamedTuple):
    """Moments of the terms seen so far.

    Attributes:
        count: Number of terms `[]`.
        mean: Mean of the terms `[]`.
        spread: Sum of their squared deviations from the mean `[]`.
    """

    count: Array
    mean: Array
    spread: Array


def frobenius_estimate(
    loss: Model,
    params: Params,
    batch: Batch,
    key: Key,
    *,
    num_products: int = 60,
    rank: int | None = None,
    tolerance: float | None = None,
    confidence: float = 0.95,
    chunk: int = 10,
    product: Product = hvp,
    memory: int = VECTORS,
) -> FrobeniusEstimate:
    """Estimate ‖H‖_F by Hutch++, or with `rank=0` by Hutchinson's plain mean.

    ‖H‖_F² = ‖H Q‖_F² + E ‖H (I − Q Qᵀ) v‖²,   v of random signs, Q an orthonormal basis of H S

    S has `rank` random columns and costs as many products; H Q costs as many again and is exact. The remaining
    products go to the mean, whose terms are small where few directions hold most of H.

    The interval treats the mean as χ²-distributed, with degrees of freedom from the spread of the terms. It is
    made for the cube root, in which a χ² is nearly normal (Wilson-Hilferty), and with Student's t, because the
    spread is itself an estimate: mean / (1 − h ± t √h)³, h = (standard error / 3 mean)².
    A mean ± t standard errors would cover less where one eigenvalue dominates. Where all terms are equal, or
    Q spans all of H, rounding is the whole error: the interval is at least 10 ε of the value wide on both
    sides.

    With a `tolerance`, probes continue, `chunk` at a time, until the interval is within it on both sides, or
    `num_products` are spent: "to 1 % with 95 %" is `tolerance=0.01`. Stopping where the interval happens to be
    short costs a little of its coverage.

    **Cost:** `num_products` products, memory `rank` vectors and `chunk` products.

    Args:
        loss: Any model that `product` takes.
        params: Weights w, n numbers.
        batch: Batch of the loss.
        key: Key of the random vectors.
        num_products: Number of products, or with a tolerance, the largest number.
        rank: Number of columns of Q; a third of `num_products` where None, but at most 20 with a tolerance.
        tolerance: Relative half-width of the interval of ‖H‖_F to reach.
        confidence: Confidence of the interval.
        chunk: Number of products side by side.
        product: `hvp`, `ggn_vp` or `fisher_vp`.
        memory: Bytes for the vectors.

    Raises:
        ValueError: for a rank that leaves no probes, counts below 1, a tolerance with too few products, and
            vectors that do not fit into memory.

    Reference:
        Hutchinson, 1990; Meyer, Musco, Musco, Woodruff, 2021, arXiv:2010.09649 (Hutch++, of H²); Wilson,
        Hilferty, 1931.
    """
    check_product(product, loss, params, batch)
    most = num_products if tolerance is None else 20
    rank = choose_rank(params, num_products, rank, chunk, memory, most)
    check_share("confidence", confidence, "(0, 1)", what="a number", example=0.95)
    if tolerance is not None:
        check_positive_or_traced("tolerance", tolerance)
        if num_products < FEWEST:
            raise ValueError(
                f"num_products is {num_products}, expected at least {FEWEST} with a tolerance, because no "
                "interval is given for fewer; raise it"
            )
    linear = operator(product, loss, params, batch)
    sketch_key, probe_key = jax.random.split(key)
    basis, images = sketch(linear, sketch_key, rank, chunk)
    exact = jnp.sum(jnp.square(images))

    def probes(index: Array, alive: Array, seen: Moments) -> Moments:
        """Add the live terms of one chunk."""
        signs = jax.random.rademacher(jax.random.fold_in(probe_key, index), (chunk, linear.size))
        vectors = signs.astype(linear.dtype)
        vectors = vectors - (vectors @ basis) @ basis.T
        return merge(seen, jnp.sum(jnp.square(jax.vmap(linear.matvec)(vectors)), 1), alive)

    count, least = num_products - 2 * rank, max(2, FEWEST - 2 * rank)
    zero = jnp.zeros((), linear.dtype)
    start = Moments(zero, zero, zero)
    if tolerance is None:
        seen, converged = _run(probes, start, count, chunk), jnp.asarray(True)
    else:

        def within(seen: Moments) -> Array:
            value, bounds = jnp.sqrt(exact + seen.mean), interval(exact, seen, confidence)
            low, high = (1 - tolerance) * value, (1 + tolerance) * value
            return (bounds.high <= high) & (bounds.low >= low)

        def unfinished(seen: Moments) -> Array:
            return (seen.count < count) & (~within(seen) | (seen.count < least))

        seen = _run_until(probes, start, count, chunk, unfinished)
        converged = within(seen)
    value = root(exact + seen.mean)
    return FrobeniusEstimate(
        value=value,
        std_error=standard_error(seen) / (2 * jnp.where(value > 0, value, 1)),
        interval=interval(exact, seen, confidence) if num_products >= FEWEST else None,
        num_products=(seen.count + 2 * rank).astype(jnp.int32),
        converged=converged,
    )


def choose_rank(
    params: Params, num_products: int, rank: int | None, chunk: int, memory: int, most: int
) -> int:
    """Return the rank of Q: the given one, or a third of the products and at most `most`; n at most.

    Raises:
        ValueError: for counts below 1, a rank that leaves no probes, vectors that do not fit into memory.
    """
    for name, value in (("num_products", num_products), ("chunk", chunk)):
        check_whole(name, value)
    rank = min(most, num_products // 3) if rank is None else rank
    check_whole("rank", rank, 0)
    if num_products - 2 * rank < 2:
        raise ValueError(
            f"rank is {rank}, expected at most {max(0, (num_products - 2) // 2)} for num_products="
            f"{num_products}, because a basis takes 2 rank products and a mean at least 2; lower it"
        )
    rank = min(rank, size_of(params))
    check_vectors(2 * (rank + chunk), params, memory, "lower rank and chunk, or pass more memory")
    return rank


def sketch(linear: Operator, key: Key, rank: int, chunk: int) -> tuple[Array, Array]:
    """Return an orthonormal basis Q `[n, rank]` of the images of random vectors, and (H Q)ᵀ `[rank, n]`."""
    if rank == 0:
        nothing = jnp.zeros((linear.size, 0), linear.dtype)
        return nothing, nothing.T
    signs = jax.random.rademacher(key, (rank, linear.size)).astype(linear.dtype)
    batch_size = min(chunk, rank)
    images = jax.lax.map(linear.matvec, signs, batch_size=batch_size)
    # any Q gives the same result, so its own derivative, infinite where it spans all of H, is left out
    basis = jax.lax.stop_gradient(jnp.linalg.qr(images.T)[0])
    return basis, jax.lax.map(linear.matvec, basis.T, batch_size=batch_size)


def _run(probes: Callable, start: Moments, count: int, chunk: int) -> Moments:
    """Run `count` probes in chunks; the last chunk is filled up with probes that do not count."""

    def step(index: Array, seen: Moments) -> Moments:
        return probes(index, index * chunk + jnp.arange(chunk) < count, seen)

    return jax.lax.fori_loop(0, -(-count // chunk), step, start)


def _run_until(
    probes: Callable, start: Moments, count: int, chunk: int, unfinished: Callable[[Moments], Array]
) -> Moments:
    """Run probes in chunks as long as the moments are unfinished, at most `count`."""

    def step(carry: tuple[Array, Moments]) -> tuple[Array, Moments]:
        index, seen = carry
        return index + 1, probes(index, jnp.arange(chunk) < count - seen.count, seen)

    begin = (jnp.zeros((), jnp.int32), start)
    return jax.lax.while_loop(lambda carry: unfinished(carry[1]), step, begin)[1]


def merge(seen: Moments, values: Array, alive: Array) -> Moments:
    """Add the live ones of the values `[k]` to the moments (Chan, Golub, LeVeque, 1983)."""
    count = jnp.sum(alive).astype(seen.mean.dtype)
    safe = jnp.maximum(count, 1)
    mean = jnp.sum(jnp.where(alive, values, 0)) / safe
    spread = jnp.sum(jnp.where(alive, jnp.square(values - mean), 0))
    total = jnp.maximum(seen.count + count, 1)
    gap = mean - seen.mean
    return Moments(
        seen.count + count,
        seen.mean + gap * count / total,
        seen.spread + spread + jnp.square(gap) * seen.count * count / total,
    )


def standard_error(seen: Moments) -> Array:
    """Return the standard error of the mean."""
    return jnp.sqrt(seen.spread / jnp.maximum(seen.count - 1, 1) / jnp.maximum(seen.count, 1))


def interval(exact: Array, seen: Moments, confidence: float) -> NormInterval:
    """Return the interval of √(exact + mean): see `frobenius_estimate`.

    The interval uses Student's t with half the degrees of freedom of normal terms, because the terms are skewed
    and their spread is less well known. Simulated on spectra from one eigenvalue to many, 95 % then covers 92
    to 97 %.
    """
    quantile = student(confidence, jnp.maximum((seen.count - 1) / 2, 1))
    mean = jnp.where(seen.mean > 0, seen.mean, 1)
    h = jnp.square(standard_error(seen) / (3 * mean))
    step = quantile * jnp.sqrt(h)
    low = seen.mean / (1 - h + step) ** 3
    high = jnp.where(step + h < 1, seen.mean / jnp.maximum(1 - h - step, 1e-6) ** 3, jnp.inf)
    high = jnp.where(seen.mean > 0, high, seen.mean)
    rounding = ROUNDING * jnp.finfo(seen.mean.dtype).eps
    return NormInterval(
        (1 - rounding) * jnp.sqrt(exact + low), (1 + rounding) * jnp.sqrt(exact + high)
    )


def student(confidence: float, freedom: Array | float) -> Array:
    """Return the two-sided quantile of Student's t, from the normal quantile by Cornish and Fisher's series.

    The series is accurate to 2 % from three degrees of freedom on.
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    freedom = jnp.asarray(freedom)
    return z + jnp.sum(jnp.stack([term / freedom ** (i + 1) for i, term in enumerate(terms)]), 0)
