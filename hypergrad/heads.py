"""Policies with heads: one for each leaf of a space, over a state that all of them share.

A network walks the leaves, real ones first: each head emits the mean and the width of a normal, or the logits
of a choice, and what comes of it may be read by the heads after it. So architecture and optimizer are one
policy, whose interactions the shared state represents (Adam and Lorraine).
"""

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad import space as spaces, tree
from hypergrad.policies import (
    MAX_OUTCOMES,
    Policy,
    Relaxation,
    factorized,
    is_discrete,
    num_options,
    relax,
    softmax,
)
from hypergrad.types import Array, Key, PyTree

NUM_PATHS = 32
"""Draws from which the entropy of a policy of several choices is estimated."""
EDGE = 6.9
"""Bound of a mean's start in unconstrained coordinates: a thousandth of the range from a bound."""
FARTHEST = 16.0
"""Bound of unconstrained values read back from hparams; at a bound of the range they would be infinite."""

Fill: TypeAlias = Callable[[int, Array, Array], Array]
"""(number of the real leaf, mean `[D]`, log width `[D]`) -> the drawn value in [−1, 1], `[D]`."""
Choose: TypeAlias = Callable[[int, Array], Array]
"""(number of the discrete leaf, logits `[K]`) -> the option drawn, int32 `[]`."""


class Network(NamedTuple):
    """Heads over a shared state, as two pure functions; `models/policies.py` has them in flax.

    A network calls `fill` once for each real leaf, then `choose` once for each discrete leaf, in the order of
    the space, and may compute each head from what the calls before returned. Outputs near zero mean: the
    space's defaults, and uniform choices.

    Attributes:
        init: (key, fill, choose) -> φ.
        walk: (φ, fill, choose) -> None.
    """

    init: Callable[[Key, Fill, Choose], PyTree]
    walk: Callable[[PyTree, Fill, Choose], None]


class Sizes(NamedTuple):
    """What a network must emit.

    Attributes:
        reals: number of normals of each real leaf: the free steps of a schedule, the entries of an array.
        options: number of logits of each discrete leaf.
    """

    reals: tuple[int, ...]
    options: tuple[int, ...]


def sizes(space: PyTree) -> Sizes:
    """Count the heads that a space asks for.

    Raises:
        ValueError: for a static dimension, one of more than 256 options, or a space without discrete ones.
    """
    factorized(space)  # refuses what cannot be drawn
    dims = jax.tree.leaves(space)
    reals = tuple(spaces.num_coordinates({"": dim}) for dim in dims if not is_discrete(dim))
    return Sizes(reals, tuple(num_options(dim) for dim in dims if is_discrete(dim)))


def independent(space: PyTree) -> Network:
    """Make the simplest network: every head is a parameter of its own, and reads nothing."""
    counts = sizes(space)

    def init(key, fill, choose):
        return {
            "normals": [jnp.zeros((2, num), jnp.result_type(float)) for num in counts.reals],
            "logits": [jnp.zeros(num, jnp.result_type(float)) for num in counts.options],
        }

    def walk(phi, fill, choose):
        for index, (mean, log_width) in enumerate(phi["normals"]):
            fill(index, mean, log_width)
        for index, logits in enumerate(phi["logits"]):
            choose(index, logits)

    return Network(init, walk)


def multitask(space: PyTree, network: Network | None = None, *, width: float = 0.5) -> Policy:
    """Draw optimizer settings and architectures from one network with a head for each leaf.

    z_l = μ_l(s_l) + σ_l(s_l) ε_l,   λ_l = constrain(z_l)            real leaves, pathwise in φ
    a_l ~ softmax(logits_l(s_l)),    log π_φ(a | λ) = Σ_l log π_φ(a_l | a_1 … a_{l−1}, λ)
    s_l the state of the network after all heads before l

    A `LogReal` is log-normal but for its bounds: the normal is squashed into the logarithm of its range.

    **Cost:** a walk through the network a draw, and another one for its probability.

    **Limits:** the entropy of networks that read their own choices is an estimate over 32 fixed draws; its
    derivative is unbiased.

    Args:
        space: a pytree of dimensions, none static, at least one of them Integer or Choice.
        network: the heads; `independent(space)`, the factorized policy, where None.
        width: σ where the network emits a log width of zero, in unconstrained coordinates; the emitted one
            moves it between e⁻² and e² times that. 0: no noise, the real leaves are the means.

    Raises:
        ValueError: for a space that cannot be drawn from, a width below 0 and, when called, for a network that
            does not emit what the space needs.

    Reference:
        Adam and Lorraine, "More Efficient Stochastic Hyperparameter Optimization"; Zoph and Le, 2017,
        arXiv:1611.01578.
    """
    counts = sizes(space)
    network = independent(space) if network is None else network
    if not isinstance(network, Network):
        raise ValueError(
            f"network is {type(network).__name__}, expected a Network; pass e.g. heads.independent(space)"
        )
    if isinstance(width, bool) or not isinstance(width, (int, float)) or not 0 <= width < 10:
        raise ValueError(f"width is {width!r}, expected a number in [0, 10); pass e.g. 0.5")
    dims, treedef = jax.tree.flatten(space)
    names = tree.leaf_names(space)
    reals = [i for i, dim in enumerate(dims) if not is_discrete(dim)]
    choices = [i for i, dim in enumerate(dims) if is_discrete(dim)]
    middle = [jnp.ravel(_middle(dims[i])) for i in reals]

    def normal(index, mean, log_width):
        """Mean and width of a head in unconstrained coordinates."""
        return middle[index] + mean, width * jnp.exp(2 * jnp.tanh(log_width / 2))

    def walk(phi, value_of, choose):
        """Walk the network; return the leaves, the normals and the log-probabilities of the choices."""
        leaves, normals, scores, count = [None] * len(dims), [], [], [0, 0]

        def fill(index, mean, log_width):
            _check_head("fill", index, count, 0, (mean, log_width), counts.reals)
            dim = dims[reals[index]]
            normals.append(normal(index, mean, log_width))
            leaves[reals[index]] = value_of(index, *normals[-1])
            return 2 * spaces.to_unit({"": dim}, {"": leaves[reals[index]]}) - 1

        def pick(index, logits):
            _check_head("choose", index, count, 1, (logits,), counts.options)
            option = choose(index, logits)
            scores.append((jax.nn.log_softmax(logits), option))
            leaves[choices[index]] = _lowest(dims[choices[index]]) + option
            return option

        network.walk(phi, fill, pick)
        if count != [len(reals), len(choices)]:
            raise ValueError(
                f"network emitted {count[0]} real and {count[1]} discrete heads, expected {len(reals)} and "
                f"{len(choices)}, one for each leaf of the space; build it with heads.sizes(space)"
            )
        return leaves, normals, scores

    def value(index, z):
        dim = dims[reals[index]]
        shaped = z.reshape(_coordinates(dim))
        return spaces.constrain({"": dim}, {"": shaped})[""]

    def drawn(key):
        keys = None if key is None else jax.random.split(key, max(len(reals), 1))

        def value_of(index, mean, std):
            if keys is None:
                return value(index, mean)
            return value(index, mean + std * jax.random.normal(keys[index], mean.shape))

        return value_of

    def pick_from(key):
        keys = jax.random.split(key, len(choices))
        return lambda index, logits: jax.random.categorical(keys[index], logits).astype(jnp.int32)

    def taken(hparams):
        leaves = jax.tree.leaves(hparams)
        return (
            lambda index, mean, std: leaves[reals[index]],
            lambda index, logits: leaves[choices[index]] - _lowest(dims[choices[index]]),
        )

    def init(key):
        def fill(index, mean, log_width):
            return jnp.zeros(counts.reals[index])

        return network.init(key, fill, lambda index, logits: jnp.zeros((), jnp.int32))

    def log_prob(phi, hparams):
        scores = walk(phi, *taken(hparams))[2]
        return sum((log[option] for log, option in scores), jnp.zeros(()))

    def log_density(phi, hparams):
        held = jax.lax.stop_gradient(hparams)
        normals, found = walk(phi, *taken(held))[1], {}
        for index, (mean, std) in enumerate(normals):
            dim, leaf = dims[reals[index]], jax.tree.leaves(held)[reals[index]]
            z = jnp.ravel(spaces.unconstrain({"": dim}, {"": leaf})[""])
            z = jnp.clip(z, -FARTHEST, FARTHEST)
            found[names[reals[index]]] = jnp.sum(-(((z - mean) / std) ** 2) / 2 - jnp.log(std))
        return found

    def entropy(phi):
        def one(key):
            real_key, choice_key = jax.random.split(key)
            total, before = jnp.zeros(()), jnp.zeros(())
            values = drawn(real_key if width else None)
            for log, option in walk(phi, values, pick_from(choice_key))[2]:
                # the box carries the derivative of how likely the choices before were
                box = jnp.exp(before - jax.lax.stop_gradient(before))
                total = total - box * jnp.sum(jnp.exp(log) * log)
                before = before + log[option]
            return total

        return jnp.mean(jax.vmap(one)(jax.random.split(jax.random.key(0), NUM_PATHS)))

    def mode(phi):
        def likeliest(index, logits):
            return jnp.argmax(logits).astype(jnp.int32)

        return treedef.unflatten(walk(phi, drawn(None), likeliest)[0])

    def made(held):
        """The policy whose real leaves have the noise of the key `held`, or fresh noise where None."""

        def sample(key, phi):
            real_key, choice_key = jax.random.split(key)
            values = drawn((real_key if held is None else held) if width else None)
            return treedef.unflatten(walk(phi, values, pick_from(choice_key))[0])

        def outcomes(phi):
            num = math.prod(counts.options)
            if num > MAX_OUTCOMES:
                raise ValueError(
                    f"space has {num} combinations of integers and choices, expected at most {MAX_OUTCOMES} to "
                    "enumerate; draw some: sampled(num_samples)"
                )
            index = np.indices(counts.options).reshape(len(counts.options), -1).astype(np.int32)

            def one(options):
                values = drawn(held if width else None)
                return treedef.unflatten(walk(phi, values, lambda i, logits: options[i])[0])

            return jax.vmap(one)(jnp.asarray(index.T))

        noisy = bool(width) and bool(reals)
        return Policy(
            init,
            sample,
            log_prob,
            entropy,
            mode,
            outcomes,
            given=made if noisy else None,
            log_density=log_density if noisy else None,
        )

    return made(None)


def mixture(space: PyTree, relaxation: Relaxation | None = None) -> Policy:
    """Mix all options instead of drawing one: DARTS as a policy, differentiable pathwise.

    The hparams hold weights softmax(φ_l) `[K]` for a Choice, which `hypergrad.select` reads, and the weighted
    mean for an Integer. Nothing is drawn, so one sample is enough: `sampled(1)`.

    **Limits:** the objective at mixed options is not its expectation over options; `mode` picks the likeliest.

    Args:
        space: a pytree of dimensions, none static, at least one of them Integer or Choice.
        relaxation: `policies.softmax()` where None, as in DARTS; `gumbel_softmax(τ)` draws.

    Reference:
        Liu, Simonyan, Yang, 2019, arXiv:1806.09055.
    """
    plain = factorized(space)
    relaxation = softmax() if relaxation is None else relaxation

    def outcomes(phi):
        raise ValueError(
            "policy is a mixture, which has no outcomes, expected draws=sampled(1); pass it, or another policy"
        )

    return plain._replace(
        sample=lambda key, phi: relax(space, relaxation, key, phi),
        log_prob=lambda phi, hparams: jnp.zeros(()),
        outcomes=outcomes,
    )


def _middle(dim: spaces.Dimension) -> Array:
    z = spaces.unconstrain({"": dim}, spaces.default({"": dim}))[""]
    return jnp.clip(z, -EDGE, EDGE)


def _coordinates(dim: spaces.Dimension) -> tuple[int, ...]:
    return dim.coordinates_shape if isinstance(dim, spaces.Sequence) else dim.shape  # pyright: ignore


def _lowest(dim: spaces.Dimension) -> int:
    return dim.low if isinstance(dim, spaces.Integer) else 0


def _check_head(
    name: str, index: int, count: list[int], kind: int, emitted: tuple, wanted: tuple[int, ...]
) -> None:
    """Raise a `ValueError` unless a head comes in its turn and has the size of its leaf."""
    got = [jnp.shape(x) for x in emitted]
    turn = index == count[kind] and index < len(wanted) and (kind == 1 or count[1] == 0)
    if not turn or any(shape != (wanted[index],) for shape in got):
        size = wanted[index] if 0 <= index < len(wanted) else "none"
        raise ValueError(
            f"network called {name}({index}, ...) with shapes {got}, expected head {count[kind]} of size "
            f"{size}, real leaves first; build it with heads.sizes(space)"
        )
    count[kind] += 1
