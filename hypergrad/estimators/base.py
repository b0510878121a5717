"""The contract of every hypergradient estimator, and what those that unroll training share."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.problem import Problem
from hypergrad.validation import check_floating, check_step, validate


class Estimate(NamedTuple):
    """A hypergradient and how far it can be trusted.

    Attributes:
        value: the objective `[]`.
        hypergrad: d objective / d hparams, a pytree like `hparams`.
        info: the method's own diagnostics, e.g. `UnrollInfo`.
    """

    value: Array
    hypergrad: HParams
    info: Any


class Estimator(NamedTuple):
    """A way to differentiate a training run, as a value.

    Attributes:
        init: (key, hparams) -> state. Warm starts, accumulators and windows live there.
        estimate: (key, state, hparams) -> (state, Estimate). Pure and traceable; the key decides the
            initial weights and every minibatch, so the same key gives the same bits.
    """

    init: Callable[[Key, HParams], PyTree]
    estimate: Callable[[Key, PyTree, HParams], tuple[PyTree, Estimate]]


Through: TypeAlias = Callable[[Problem, int], Estimator]
"""(problem, horizon) -> how a run is differentiated in real hyperparameters, such as `reverse`."""

Precondition: TypeAlias = Callable[[PyTree, PyTree], PyTree]
"""(hparams, gradient) -> gradient, linear in the gradient."""


def check_real(problem: Problem, hparams: HParams) -> None:
    """Raise a one-line `ValueError` where problem and hparams do not fit, or a leaf has no hypergradient.

    **Cost:** abstract evaluation of one step, once a trace.
    """
    check_floating(hparams)
    validate(problem, hparams)
    check_step(problem, hparams)


def growth_rate(first: Array, norms: Array) -> Array:
    """Return the geometric mean growth a step along `first` and `norms`.

    From the first that is not zero up to where they overflow; 1 where there was nothing to grow.
    """
    norms = jnp.append(first, norms)
    begin, end = jnp.argmax(norms > 0), jnp.sum(jnp.cumprod(jnp.isfinite(norms[1:])))
    alive = (norms[begin] > 0) & (norms[end] > 0) & (end > begin)
    ratio = jnp.log(jnp.where(alive, norms[end], 1)) - jnp.log(jnp.where(alive, norms[begin], 1))
    return jnp.exp(ratio / jnp.maximum(end - begin, 1))


def first_nonfinite(losses: Array, value: Array) -> Array:
    """Return the first step with a non-finite loss, `len(losses)` if only `value` is, or -1; int32 `[]`."""
    bad = ~jnp.isfinite(jnp.append(losses, value.astype(losses.dtype)))
    return jnp.where(jnp.any(bad), jnp.argmax(bad), -1).astype(jnp.int32)


def mean_and_error(each: PyTree) -> tuple[PyTree, PyTree]:
    """Return the mean over the leading axis `[S]` and its standard error, NaN where S = 1."""

    def error(x):
        return jnp.std(x, 0, ddof=1) / jnp.sqrt(x.shape[0])

    return jax.tree.map(lambda x: jnp.mean(x, 0), each), jax.tree.map(error, each)
