"""Policies: distributions over the integers and choices of a space, differentiable where values are not.

A policy has parameters φ, a pytree of real arrays, and makes hparams of them. Integer and categorical
leaves are drawn, and their gradient comes from ∇_φ log π_φ (the score function); real leaves are a
differentiable function of φ (pathwise).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad import space as spaces
from hypergrad.core import tree
from hypergrad.core.checks import is_number
from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.space import Choice, Integer

MAX_OPTIONS = 256
"""Most options of one leaf: each has a logit of its own."""

MAX_OUTCOMES = 1024
"""Most combinations that are enumerated."""

EDGE = 8.0
"""Bound of the logits in a policy's space: no option falls below a probability of about e⁻¹⁶."""


class Policy(NamedTuple):
    """A distribution over hparams, as a value; every function is pure and traceable.

    Attributes:
        init: (key) -> φ.
        sample: (key, φ) -> hparams. Real leaves are differentiable in φ, the others drawn.
        log_prob: (φ, hparams) -> log π_φ of the drawn leaves, `[]`.
        entropy: (φ) -> of the drawn leaves in nats, `[]`.
        mode: (φ) -> the most probable hparams.
        outcomes: (φ) -> all hparams that can be drawn, leading axis `[N]`; raises where they are too many.
        space: the space of φ, a pytree of real dimensions, for `tuners.descent`; None for networks.
        given: (key) -> the same policy with the noise of its real leaves fixed, so that all draws share them;
            None where real leaves have no noise.
        log_density: (φ, hparams) -> {leaf name: log density of that real leaf, `[]`} at constant values; None
            where real leaves have no noise.
        draw: (key, φ) -> (hparams, their log_prob), what `sample` and `log_prob` give, in one pass; None where
            it takes the two of them.
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


def is_discrete(dim: spaces.Dimension) -> bool:
    """Tell whether a dimension has no derivative of its own."""
    return isinstance(dim, (Integer, Choice))


def factorized(space: PyTree) -> Policy:
    """Draw every integer and choice independently, from logits of its own; pass real leaves through.

    π_φ(a) = Π_l softmax(φ_l)_{a_l}

    φ has the structure of the space: logits `[num_options]` for each Integer (one for each value) and Choice,
    the value itself for a real leaf. It starts uniform, and real leaves at their defaults.

    Args:
        space: a pytree of dimensions, none static, at least one of them Integer or Choice.

    Raises:
        ValueError: for a static dimension, one of more than 256 options, or a space without discrete ones.
    """
    spaces.check_space(space, traceable=True)
    dims, treedef = jax.tree.flatten(space)
    names = tree.leaf_names(space)
    if not any(map(is_discrete, dims)):
        raise ValueError(
            f"space has only real leaves ({', '.join(names)}), expected an Integer or a Choice; "
            "use estimators.reverse(...), which differentiates real leaves"
        )
    for name, dim in zip(names, dims, strict=True):
        if is_discrete(dim) and num_options(dim) > MAX_OPTIONS:
            raise ValueError(
                f"space[{name!r}] has {num_options(dim)} values, expected at most {MAX_OPTIONS}, because each "
                "has a logit; use fewer, or a Real that the problem rounds, searched with method 'random'"
            )

    def leafwise(function, *trees):
        return [
            function(*leaves) for leaves in zip(dims, *map(jax.tree.leaves, trees), strict=True)
        ]

    def init(key):
        def start(dim, value):
            return (
                jnp.zeros(num_options(dim), jnp.result_type(float)) if is_discrete(dim) else value
            )

        return treedef.unflatten(leafwise(start, spaces.default(space)))

    def sample(key, phi):
        keys = jax.random.split(key, len(dims))
        leaves = [
            _lowest(dim) + jax.random.categorical(k, leaf).astype(jnp.int32)
            if is_discrete(dim)
            else leaf
            for dim, k, leaf in zip(dims, keys, jax.tree.leaves(phi), strict=True)
        ]
        return treedef.unflatten(leaves)

    def log_prob(phi, hparams):
        def one(dim, leaf, value):
            return (
                jax.nn.log_softmax(leaf)[value - _lowest(dim)]
                if is_discrete(dim)
                else jnp.zeros(())
            )

        return sum(leafwise(one, phi, hparams), jnp.zeros(()))

    def entropy(phi):
        def one(dim, leaf):
            return (
                jnp.sum(jax.scipy.special.entr(jax.nn.softmax(leaf)))
                if is_discrete(dim)
                else jnp.zeros(())
            )

        return sum(leafwise(one, phi), jnp.zeros(()))

    def mode(phi):
        def one(dim, leaf):
            if not is_discrete(dim):
                return leaf
            return _lowest(dim) + jnp.argmax(leaf).astype(jnp.int32)

        return treedef.unflatten(leafwise(one, phi))

    def outcomes(phi):
        sizes = [num_options(dim) for dim in dims if is_discrete(dim)]
        num = math.prod(sizes)
        if num > MAX_OUTCOMES:
            raise ValueError(
                f"space has {num} combinations of integers and choices, expected at most {MAX_OUTCOMES} to "
                "enumerate; draw some: sampled(num_samples)"
            )
        index = iter(np.indices(sizes).reshape(len(sizes), -1).astype(np.int32))

        def one(dim, leaf):
            if is_discrete(dim):
                return _lowest(dim) + jnp.asarray(next(index))
            return jnp.broadcast_to(leaf, (num, *jnp.shape(leaf)))

        return treedef.unflatten(leafwise(one, phi))

    logits = [
        spaces.Real(-EDGE, EDGE, 0.0, (num_options(dim),)) if is_discrete(dim) else dim
        for dim in dims
    ]
    return Policy(init, sample, log_prob, entropy, mode, outcomes, treedef.unflatten(logits))


def num_options(dim: Integer | Choice) -> int:
    """Count the values of a discrete dimension."""
    return dim.high - dim.low + 1 if isinstance(dim, Integer) else len(dim.options)


def _lowest(dim: Integer | Choice) -> int:
    return dim.low if isinstance(dim, Integer) else 0


def natural(space: PyTree, damping: float = 0.0) -> Callable[[PyTree, PyTree], PyTree]:
    """Precondition the gradient of each leaf's logits by its Fisher matrix, in closed form.

    F = diag(p) − p pᵀ,   F⁺ g = P (P g / p),   P = I − 11ᵀ/K
    (F + ρI)⁻¹ g = y + u (p·y) / (ρ Σu),   y = g / (p + ρ),   u = p / (p + ρ)       for damping ρ > 0

    The natural gradient does not depend on how the probabilities are parametrized: an option of small
    probability moves as fast as its advantage says.

    **Cost:** K operations a leaf. **Limits:** without damping an option of probability p adds noise of the
    order of 1/p.

    Args:
        space: of a `factorized` policy.
        damping: ρ, at least 0.

    Returns:
        (φ, gradient) -> gradient, linear in the gradient; real leaves pass.

    Reference:
        Amari, "Natural gradient works efficiently in learning", Neural Computation 10, 1998.
    """
    spaces.check_space(space, traceable=True)
    if not is_number(damping) or not 0 <= damping < math.inf:
        raise ValueError(f"damping is {damping!r}, expected a number of at least 0; pass e.g. 0.01")

    def solve(dim, logits, g):
        if not is_discrete(dim):
            return g
        p = jax.nn.softmax(logits)
        if damping == 0:
            x = (g - jnp.mean(g)) / jnp.maximum(p, jnp.finfo(p.dtype).tiny)
            return x - jnp.mean(x)
        y, u = g / (p + damping), p / (p + damping)
        return y + u * jnp.sum(p * y) / (damping * jnp.sum(u))

    return lambda phi, gradient: jax.tree.map(solve, space, phi, gradient)
