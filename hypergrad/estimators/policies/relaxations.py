"""Relaxations: differentiable stand-ins for a categorical draw."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from hypergrad.core.checks import check_positive
from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.estimators.policies.policy import is_discrete
from hypergrad.space import Choice

Relaxation: TypeAlias = Callable[[Key, Array], Array]
"""(key, logits `[K]`) -> weights `[K]` that sum to 1, differentiable in the logits."""


def softmax(temperature: float = 1.0) -> Relaxation:
    """Mix all options by their probabilities, without noise, as DARTS does.

    y = softmax(φ/τ)

    Reference:
        Liu, Simonyan, Yang, 2019, arXiv:1806.09055, equation 2.
    """
    check_positive("temperature", temperature, example=0.5)
    return lambda key, logits: jax.nn.softmax(logits / temperature)


def gumbel_softmax(temperature: float = 1.0) -> Relaxation:
    """Mix the options by a relaxed sample: y = softmax((φ + g)/τ), g standard Gumbel noise.

    At τ → 0 a sample of softmax(φ) in one-hot form; the lower τ, the less bias and the more variance.

    Reference:
        Jang, Gu, Poole, 2017, arXiv:1611.01144; Maddison, Mnih, Teh, 2017, arXiv:1611.00712.
    """
    check_positive("temperature", temperature, example=0.5)

    def relax(key, logits):
        return jax.nn.softmax(
            (logits + jax.random.gumbel(key, logits.shape, logits.dtype)) / temperature
        )

    return relax


def straight_through(temperature: float = 1.0) -> Relaxation:
    """Use a true sample, in one-hot form, with the derivative of `gumbel_softmax`.

    Reference:
        Bengio, Leonard, Courville, 2013, arXiv:1308.3432; Jang, Gu, Poole, 2017, arXiv:1611.01144, section 2.2.
    """
    soft = gumbel_softmax(temperature)

    def relax(key, logits):
        weights = soft(key, logits)
        hard = jax.nn.one_hot(jnp.argmax(weights), logits.size, dtype=logits.dtype)
        return hard + (weights - jax.lax.stop_gradient(weights))

    return relax


def relax(space: PyTree, relaxation: Relaxation, key: Key, phi: PyTree) -> HParams:
    """Make hparams of φ whose choices are weights `[K]` and whose integers are weighted means.

    A problem reads them with `space.select`, which takes indices and weights alike.
    """
    dims, treedef = jax.tree.flatten(space)
    keys = jax.random.split(key, len(dims))

    def one(dim, k, leaf):
        if not is_discrete(dim):
            return leaf
        weights = relaxation(k, leaf)
        if isinstance(dim, Choice):
            return weights
        return weights @ jnp.arange(dim.low, dim.high + 1, dtype=weights.dtype)

    leaves = zip(dims, keys, jax.tree.leaves(phi), strict=True)
    return treedef.unflatten([one(*each) for each in leaves])
