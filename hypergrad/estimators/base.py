"""The contract of every hypergradient estimator, and helpers that the family shares."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from hypergrad.core import tree
from hypergrad.core.types import Array, Batch, HParams, Key, Params, PyTree
from hypergrad.problem import Problem
from hypergrad.train import carried, evaluate_loss, with_parts


class Estimate(NamedTuple):
    """A hypergradient, with diagnostics of how far to trust it.

    Attributes:
        value: Objective `[]`.
        hypergrad: Derivative d objective / d hparams, a pytree like `hparams`.
        info: Method's own diagnostics, e.g. `UnrollInfo`.
    """

    value: Array
    hypergrad: HParams
    info: Any


class Estimator(NamedTuple):
    """A way to differentiate a training run, as a value.

    Attributes:
        init: (key, hparams) -> state. Warm starts, accumulators and windows live in the state.
        estimate: (key, state, hparams) -> (state, Estimate). Pure and traceable; the key decides the
            initial weights and every minibatch, so the same key gives the same bits.
    """

    init: Callable[[Key, HParams], PyTree]
    estimate: Callable[[Key, PyTree, HParams], tuple[PyTree, Estimate]]


Through: TypeAlias = Callable[[Problem, int], Estimator]
"""(problem, horizon) -> an estimator of real hyperparameters, such as `reverse`."""

Precondition: TypeAlias = Callable[[PyTree, PyTree], PyTree]
"""(hparams, gradient) -> gradient, linear in the gradient."""


def no_state(key: Key, hparams: HParams) -> tuple[()]:
    """Return the state of an estimator that carries nothing from one estimate to the next."""
    return ()


def inner_loss(
    problem: Problem, params: Params, batch: Batch
) -> Callable[[PyTree, HParams], Array]:
    """Return L as a function (weights, hparams) -> `[]`, with the carried state of `params` held."""

    def loss(weights: PyTree, hparams: HParams) -> Array:
        whole = with_parts(params, weights, carried(params))
        return evaluate_loss(problem, whole, hparams, batch)[0]

    return loss


def first_nonfinite(losses: Array, value: Array) -> Array:
    """Return the first step with a non-finite loss, `len(losses)` if only `value` is, or -1; int32 `[]`."""
    bad = ~jnp.isfinite(jnp.append(losses, value.astype(losses.dtype)))
    return jnp.where(jnp.any(bad), jnp.argmax(bad), -1).astype(jnp.int32)


def mean_and_error(each: PyTree, counted: Array | None = None) -> tuple[PyTree, PyTree]:
    """Return the mean over the leading axis `[S]` and its standard error, std / √S with S − 1 in std.

    Args:
        each: Values, a pytree of arrays `[S, ...]`.
        counted: Values to count `[S]`, bool; None: all of them.

    Returns:
        The means, NaN where none counts; the standard errors, NaN for S = 1, infinite where only one counts.
    """

    def mean(leaf: Array) -> Array:
        return jnp.mean(leaf, 0, where=_along(counted, leaf))

    def error(leaf: Array) -> Array:
        if counted is None:
            return jnp.std(leaf, 0, ddof=1) / jnp.sqrt(leaf.shape[0])
        num = jnp.sum(counted)
        spread = jnp.std(leaf, 0, ddof=1, where=_along(counted, leaf))
        return jnp.where(num > 1, spread / jnp.sqrt(num), jnp.inf).astype(leaf.dtype)

    return jax.tree.map(mean, each), jax.tree.map(error, each)


NOISE = "mostly noise"
"""Words for an estimate that its standard error drowns."""


def noise_advice(hypergrad: HParams, std_error: HParams, cure: str) -> list[str]:
    """Name the leaves of a hypergradient that are mostly noise, with their norm and its standard error.

    Args:
        hypergrad: Hypergradient.
        std_error: Standard error of its entries, a pytree like it.
        cure: What to raise.
    """
    names = tree.leaf_names(hypergrad)
    pairs = zip(names, *map(jax.tree.leaves, (hypergrad, std_error)), strict=True)
    sizes = [(name, float(tree.norm(one)), float(tree.norm(error))) for name, one, error in pairs]
    return [
        f"the hypergradient of hparams[{name!r}] has the norm {size:.1e} and the standard error {noise:.1e}: "
        f"{NOISE}; raise {cure}"
        for name, size, noise in sizes
        if size < 1.5 * noise
    ]


def _along(counted: Array | None, leaf: Array) -> Array | None:
    """Give a mask `[S]` the dimensions of a leaf `[S, ...]`."""
    return None if counted is None else counted.reshape((-1,) + (1,) * (leaf.ndim - 1))


def temporary_bytes(compiled: Any) -> int:
    """Return the temporary memory of a compiled program in bytes, as the compiler states it."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        raise ValueError(
            "this backend states no memory of its programs, expected memory_analysis(); choose the backward "
            "pass by hand: reverse(..., backward=mixed_mode(checkpoint))"
        )
    return int(analysis.temp_size_in_bytes)
