"""Relaxations: differentiable stand-ins for a categorical draw."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad.core.checks import check_function, check_positive
from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.estimators.policies.policy import Policy, factorized
from hypergrad.space import Choice, Dimension, is_discrete

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

    As τ → 0 this becomes a sample of softmax(φ) in one-hot form; the lower τ, the less bias and the more
    variance.

    Reference:
        Jang, Gu, Poole, 2017, arXiv:1611.01144; Maddison, Mnih, Teh, 2017, arXiv:1611.00712.
    """
    check_positive("temperature", temperature, example=0.5)

    def relax(key: Key, logits: Array) -> Array:
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

    def relax(key: Key, logits: Array) -> Array:
        weights = soft(key, logits)
        hard = jax.nn.one_hot(
            jnp.argmax(jax.lax.stop_gradient(weights)), logits.size, dtype=logits.dtype
        )
        return hard + (weights - jax.lax.stop_gradient(weights))

    return relax


def concrete(key: Key, prob: Array, shape: tuple[int, ...], temperature: float = 0.1) -> Array:
    """Draw a mask of weights near 0 and 1 whose derivative sees their odds: a smooth `jax.random.bernoulli`.

    m = sigmoid((log p − log(1 − p) + log u − log(1 − u))/τ),   u uniform in (0, 1)

    **Limits:** biased for τ > 0: training sees masks between 0 and 1, and their mean is not p. The lower τ, the
    less bias and the more variance. Measure it at several τ, against `evolved`.

    Args:
        key: Key of the draw.
        prob: Probability p of a one, within (0, 1), of a shape that broadcasts to `shape`.
        shape: Shape of the mask.
        temperature: Temperature τ.

    Returns:
        Weights in (0, 1) of shape `shape`.

    Reference:
        Maddison, Mnih, Teh, 2017, arXiv:1611.00712; Gal, Hron, Kendall, 2017, arXiv:1705.07832, equation 5.
    """
    check_positive("temperature", temperature)
    noise = jax.random.logistic(key, shape, jnp.result_type(prob, jnp.float32))
    odds = jnp.log(prob) - jnp.log1p(-prob)
    return jax.nn.sigmoid((odds + noise) / temperature)


def relax(space: PyTree, relaxation: Relaxation, key: Key, phi: PyTree) -> HParams:
    """Make hparams from φ whose choices are weights `[K]` and whose integers are weighted means.

    A problem reads them with `space.select`, which takes indices and weights alike.
    """
    dims, treedef = jax.tree.flatten(space)
    keys = jax.random.split(key, len(dims))

    def one(dim: Dimension, k: Key, leaf: Array) -> Array:
        if not is_discrete(dim):
            return leaf
        weights = relaxation(k, leaf)
        if isinstance(dim, Choice):
            return weights
        return weights @ dim.at(np.arange(dim.num_levels)).astype(weights.dtype)

    leaves = zip(dims, keys, jax.tree.leaves(phi), strict=True)
    return treedef.unflatten([one(*each) for each in leaves])


def mixture(space: PyTree, relaxation: Relaxation | None = None) -> Policy:
    """Mix all options instead of drawing one: DARTS as a policy, differentiable pathwise.

    The hparams hold weights softmax(φ_l) `[K]` for a Choice, which `hypergrad.select` reads, and the weighted
    mean for an Integer. Nothing is drawn, so one sample is enough: `sampled(1)`.

    **Limits:** the objective at mixed options is not its expectation over options; `mode` picks the likeliest.

    Args:
        space: Pytree of dimensions, none of them static, at least one of them Integer or Choice.
        relaxation: Relaxation of a choice; `softmax()` where None, as in DARTS; `gumbel_softmax(τ)` draws.

    Reference:
        Liu, Simonyan, Yang, 2019, arXiv:1806.09055.
    """
    plain = factorized(space)
    relaxation = softmax() if relaxation is None else relaxation
    check_function("relaxation", relaxation, "policies.softmax()")

    def outcomes(phi: PyTree) -> HParams:
        raise ValueError(
            "policy is a mixture, which has no outcomes, expected draws=sampled(1); pass it, or another policy"
        )

    return plain._replace(
        sample=lambda key, phi: relax(space, relaxation, key, phi),
        log_prob=lambda phi, hparams: jnp.zeros(()),
        outcomes=outcomes,
    )
