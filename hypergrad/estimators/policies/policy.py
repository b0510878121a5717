"""Policies: distributions over the integers and choices of a space, differentiable where values are not.

A policy has parameters φ, a pytree of real arrays, and makes hparams from them. Integer and categorical
leaves are drawn, and their gradient comes from ∇_φ log π_φ (the score function); real leaves are a
differentiable function of φ (pathwise).
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad import space as spaces
from hypergrad.core import tree
from hypergrad.core.checks import check_least
from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.space import is_discrete

MAX_OPTIONS = 256
"""Largest number of options of one leaf, each of which has a logit."""

MAX_OUTCOMES = 1024
"""Largest number of combinations that are enumerated."""

MAX_LOGIT = 8.0
"""Bound of the logits in a policy's space: no option falls below a probability of about e⁻¹⁶."""


class Policy(NamedTuple):
    """A distribution over hparams, as a value; every function is pure and traceable.

    Attributes:
        init: (key) -> φ.
        sample: (key, φ) -> hparams. Real leaves are differentiable in φ, the others drawn.
        log_prob: (φ, hparams) -> log π_φ of the drawn leaves, `[]`.
        entropy: (φ) -> entropy of the drawn leaves in nats, `[]`.
        mode: (φ) -> the most probable hparams.
        outcomes: (φ) -> all hparams that can be drawn, leading axis `[N]`; raises where they are too many.
        space: Space of φ, a pytree of real dimensions, for `tuners.descent`; None for networks.
        given: (key) -> the same policy with the noise of its real leaves fixed, so that all draws share them;
            None where real leaves have no noise.
        log_density: (φ, hparams) -> {leaf name: log density of that real leaf, `[]`} at constant values; None
            where real leaves have no noise.
        draw: (key, φ) -> (hparams, their log_prob), the results of `sample` and `log_prob`, in one pass; None
            where that takes the two of them.
    """

    init: Callable[[Key], PyTree]
    sample: Callable[[Key, PyTree], HParams]
    log_prob: Callable[[PyTree, HParams], Array]
    entropy: Callable[[PyTree], Array]
    mode: Callable[[PyTree], HParams]
    outcomes: Callable[[PyTree], HParams]
    space: PyTree = None
    given: Callable[[Key], "Policy"] | None = None
    log_density: Callable[[PyTree, HParams], dict[str, Array]] | None = None
    draw: Callable[[Key, PyTree], tuple[HParams, Array]] | None = None


def factorized(space: PyTree) -> Policy:
    """Draw every integer and choice independently, from logits of its own; pass real leaves through.

    π_φ(a) = Π_l softmax(φ_l)_{a_l}

    φ has the structure of the space: logits `[num_levels]` for each Integer (one for each value) and Choice,
    the value itself for a real leaf. It starts uniform, and real leaves at their defaults.

    Args:
        space: Pytree of dimensions, none of them static, at least one of them Integer or Choice.

    Raises:
        ValueError: for a static dimension, one of more than 256 options, or a space without discrete ones.
    """
    check_drawable(space)
    dims, treedef = jax.tree.flatten(space)

    def init(key: Key) -> PyTree:
        return jax.tree.map(_first, space, spaces.default(space))

    def sample(key: Key, phi: PyTree) -> HParams:
        keys = treedef.unflatten(list(jax.random.split(jax.random.clone(key), len(dims))))
        return jax.tree.map(_draw, space, keys, phi)

    def log_prob(phi: PyTree, hparams: HParams) -> Array:
        return _total(jax.tree.map(_log_prob, space, phi, hparams))

    def entropy(phi: PyTree) -> Array:
        return _total(jax.tree.map(_entropy, space, phi))

    def mode(phi: PyTree) -> HParams:
        return jax.tree.map(_likeliest, space, phi)

    def outcomes(phi: PyTree) -> HParams:
        index = combinations([dim.num_levels for dim in dims if is_discrete(dim)])
        columns = iter(index.T)

        def leaf(dim: spaces.Dimension, x: Array) -> Array:
            if is_discrete(dim):
                return dim.at(jnp.asarray(next(columns)))
            return jnp.broadcast_to(x, (len(index), *jnp.shape(x)))

        return jax.tree.map(leaf, space, phi)

    return Policy(init, sample, log_prob, entropy, mode, outcomes, jax.tree.map(_range, space))


def _first(dim: spaces.Dimension, default: Array) -> Array:
    """Return the first value of a leaf of φ."""
    return jnp.zeros(dim.num_levels, jnp.result_type(float)) if is_discrete(dim) else default


def _draw(dim: spaces.Dimension, key: Key, leaf: Array) -> Array:
    if not is_discrete(dim):
        return leaf
    index = jax.random.categorical(key, jax.lax.stop_gradient(leaf))
    return dim.at(index.astype(jnp.int32))


def _log_prob(dim: spaces.Dimension, leaf: Array, value: Array) -> Array:
    return jax.nn.log_softmax(leaf)[dim.index(value)] if is_discrete(dim) else jnp.zeros(())


def _entropy(dim: spaces.Dimension, leaf: Array) -> Array:
    if not is_discrete(dim):
        return jnp.zeros(())
    return jnp.sum(jax.scipy.special.entr(jax.nn.softmax(leaf)))


def _likeliest(dim: spaces.Dimension, leaf: Array) -> Array:
    return dim.at(jnp.argmax(leaf).astype(jnp.int32)) if is_discrete(dim) else leaf


def _range(dim: spaces.Dimension) -> spaces.Dimension:
    """Return the dimension of a leaf of φ."""
    if not is_discrete(dim):
        return dim
    return spaces.Real(-MAX_LOGIT, MAX_LOGIT, 0.0, (dim.num_levels,))


def _total(each: PyTree) -> Array:
    return sum(jax.tree.leaves(each), jnp.zeros(()))


def combinations(counts: Sequence[int]) -> np.ndarray:
    """Return every combination of options as indices, int32 `[N, len(counts)]`.

    Raises:
        ValueError: where they are too many to enumerate.
    """
    num = math.prod(counts)
    if num > MAX_OUTCOMES:
        raise ValueError(
            f"space has {num} combinations of integers and choices, expected at most {MAX_OUTCOMES} to "
            "enumerate; draw some: sampled(num_samples)"
        )
    return np.indices(counts).reshape(len(counts), -1).astype(np.int32).T


def check_drawable(space: PyTree) -> None:
    """Raise a `ValueError` for a space from which a policy cannot draw, or need not."""
    spaces.check_space(space, traceable=True)
    dims = tree.named(space)
    if not any(map(is_discrete, dims.values())):
        raise ValueError(
            f"space has only real leaves ({', '.join(dims)}), expected an Integer or a Choice; "
            "use estimators.reverse(...), which differentiates real leaves"
        )
    for name, dim in dims.items():
        if is_discrete(dim) and dim.num_levels > MAX_OPTIONS:
            raise ValueError(
                f"space[{name!r}] has {dim.num_levels} values, expected at most {MAX_OPTIONS}, because each "
                "has a logit; use fewer, or a Real that the problem rounds, searched with method 'random'"
            )


def natural(space: PyTree, damping: float = 0.0) -> Callable[[PyTree, PyTree], PyTree]:
    """Precondition the gradient of each leaf's logits by its Fisher matrix, in closed form.

    F = diag(p) − p pᵀ,   F⁺ g = P (P g / p),   P = I − 11ᵀ/K
    (F + ρI)⁻¹ g = y + u (p·y) / (ρ Σu),   y = g / (p + ρ),   u = p / (p + ρ)       for damping ρ > 0

    The natural gradient does not depend on how the probabilities are parametrized: an option of small
    probability moves as fast as its advantage demands.

    **Cost:** K operations a leaf. **Limits:** without damping an option of probability p adds noise of the
    order of 1/p.

    Args:
        space: Space of a `factorized` policy.
        damping: Damping ρ, at least 0.

    Returns:
        (φ, gradient) -> gradient, linear in the gradient; real leaves pass unchanged.

    Reference:
        Amari, "Natural gradient works efficiently in learning", Neural Computation 10, 1998.
    """
    spaces.check_space(space, traceable=True)
    check_least("damping", damping, example=0.01)

    def solve(dim: spaces.Dimension, logits: Array, g: Array) -> Array:
        if not is_discrete(dim):
            return g
        p = jax.nn.softmax(logits)
        if damping == 0:
            x = (g - jnp.mean(g)) / jnp.maximum(p, jnp.finfo(p.dtype).tiny)
            return x - jnp.mean(x)
        y, u = g / (p + damping), p / (p + damping)
        return y + u * jnp.sum(p * y) / (damping * jnp.sum(u))

    return lambda phi, gradient: jax.tree.map(solve, space, phi, gradient)
