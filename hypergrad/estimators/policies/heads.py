"""Policies with heads: one for each leaf of a space, over a state that all of them share.

A network goes through the leaves, real ones first: a head emits the mean and the width of a normal, or the
logits of a choice, and reads what came of it before the next one emits. So architecture and optimizer are one
policy, whose interactions the shared state represents (Adam and Lorraine).
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
from hypergrad.core.types import Array, Key, PyTree
from hypergrad.estimators.policies.baselines import mean_of_others
from hypergrad.estimators.policies.policy import (
    EDGE,
    MAX_OUTCOMES,
    Policy,
    factorized,
    is_discrete,
    num_options,
)
from hypergrad.estimators.policies.relaxations import Relaxation, relax, softmax

NUM_PATHS = 32
"""Draws from which the entropy of a policy of several choices is estimated."""

MASKED = -1e9
"""Logit of the options that a leaf does not have."""

FARTHEST_LOGIT = 16.0
"""Bound of unconstrained values read back from hparams; at a bound of the range they would be infinite."""


class Network(NamedTuple):
    """Heads over a shared state, as pure functions; `models/policies.py` has a recurrent one in flax.

    The heads are numbered, those of the real leaves first, and have outputs of one size (`Sizes`), of which
    each uses the first it needs. Outputs of zero mean: the space's default, or uniform choices.

    Attributes:
        init: (key) -> φ.
        start: (φ) -> state before the first head, a pytree of arrays.
        emit: (φ, state, number of the head, int32 `[]`) -> outputs `[size]`.
        read: (φ, state, number, value `[size]`) -> the next state. The value is in [−1, 1] for real leaves, and
            one-hot for choices.
    """

    init: Callable[[Key], PyTree]
    start: Callable[[PyTree], PyTree]
    emit: Callable[[PyTree, PyTree, Array], Array]
    read: Callable[[PyTree, PyTree, Array, Array], PyTree]


class Sizes(NamedTuple):
    """What a network must emit.

    Attributes:
        reals: normals of each real leaf: the free steps of a schedule, the entries of an array.
        options: logits of each discrete leaf.
    """

    reals: tuple[int, ...]
    options: tuple[int, ...]

    @property
    def num_heads(self) -> int:
        """One for each leaf."""
        return len(self.reals) + len(self.options)

    @property
    def size(self) -> int:
        """Of the outputs: the most options, or twice the most normals (means, then log widths)."""
        return max(2 * max(self.reals, default=0), max(self.options))


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
    return Network(
        init=lambda key: jnp.zeros((counts.num_heads, counts.size), jnp.result_type(float)),
        start=lambda phi: (),
        emit=lambda phi, state, index: phi[index],
        read=lambda phi, state, index, value: state,
    )


class _Walk(NamedTuple):
    """What came of the heads: L real and C discrete leaves, padded to D entries and K options.

    Attributes:
        mean, std: of the normals, in unconstrained coordinates, `[L, D]`.
        z: drawn or given, `[L, D]`.
        log_probs: of the options of each choice, `[C, K]`.
        options: drawn or given, int32 `[C]`.
    """

    mean: Array
    std: Array
    z: Array
    log_probs: Array
    options: Array

    @property
    def taken(self) -> Array:
        """Log-probability of each option, `[C]`."""
        return jnp.take_along_axis(self.log_probs, self.options[:, None], 1)[:, 0]


def multitask(space: PyTree, network: Network | None = None, *, width: float = 0.5) -> Policy:
    """Draw optimizer settings and architectures from one network with a head for each leaf.

    z_l = μ_l(s_l) + σ_l(s_l) ε_l,   λ_l = constrain(z_l)            real leaves, pathwise in φ
    a_l ~ softmax(logits_l(s_l)),    log π_φ(a | λ) = Σ_l log π_φ(a_l | a_1 … a_{l−1}, λ)
    s_l the state of the network after all heads before l

    A `LogReal` is log-normal but for its bounds: the normal is squashed into the logarithm of its range.

    **Cost:** a pass through the heads a draw, its probability included; two loops, which compile once whatever
    the number of leaves.

    **Limits:** the entropy is an estimate over 32 fixed draws where heads read choices.

    Args:
        space: a pytree of dimensions, none static, at least one of them Integer or Choice.
        network: the heads; `independent(space)`, the factorized policy, where None.
        width: σ where the network emits a log width of zero, in unconstrained coordinates; the emitted one
            moves it between e⁻² and e² times that. 0: no noise, the real leaves are the means.

    Raises:
        ValueError: for a space that cannot be drawn from, a width below 0, and a network that does not emit
            what the space needs.

    Reference:
        Adam and Lorraine, "More Efficient Stochastic Hyperparameter Optimization"; Zoph and Le, 2017,
        arXiv:1611.01578.
    """
    counts = sizes(space)
    network = independent(space) if network is None else network
    if not is_number(width) or not 0 <= width < 10:
        raise ValueError(f"width is {width!r}, expected a number in [0, 10); pass e.g. 0.5")
    _check_network(network, counts)
    dims, treedef = jax.tree.flatten(space)
    reals = [i for i, dim in enumerate(dims) if not is_discrete(dim)]
    choices = [i for i, dim in enumerate(dims) if is_discrete(dim)]
    names = [tree.leaf_names(space)[i] for i in reals]
    lowest = jnp.asarray([_lowest(dims[i]) for i in choices], jnp.int32)
    longest, most, size = max(counts.reals, default=0), max(counts.options), counts.size
    middle = jnp.stack([_pad(_middle(dims[i]), longest) for i in reals] or [jnp.zeros(0)])
    entries = np.arange(longest) < np.array(counts.reals, int).reshape(-1, 1)
    known = jnp.asarray(np.arange(most) < np.array(counts.options)[:, None])

    def walk(phi, settle, noise, choose, drawn):
        """Go through the heads; `settle(noise_l, mean, std)` is z, `choose(drawn_l, log_probs)` an option."""

        def real(state, x):
            index, start, live, noise = x
            out = network.emit(phi, state, index)
            mean = EDGE * jnp.tanh((start + out[:longest]) / EDGE)
            std = width * jnp.exp(2 * jnp.tanh(out[longest : 2 * longest] / 2))
            z = jnp.where(live, settle(noise, mean, std), 0)
            state = network.read(phi, state, index, _pad(jnp.tanh(z / 2), size))
            return state, (mean, std, z)

        def discrete(state, x):
            index, live, drawn = x
            out = network.emit(phi, state, index)[:most]
            log_probs = jax.nn.log_softmax(jnp.where(live, out, MASKED))
            option = choose(drawn, log_probs)
            value = _pad(jax.nn.one_hot(option, most, dtype=out.dtype), size)
            return network.read(phi, state, index, value), (log_probs, option)

        state, num = network.start(phi), len(reals)
        mean = std = z = jnp.zeros((0, longest))
        if reals:
            inputs = (jnp.arange(num, dtype=jnp.int32), middle, jnp.asarray(entries), noise)
            state, (mean, std, z) = jax.lax.scan(real, state, inputs)
        after = jnp.arange(num, counts.num_heads, dtype=jnp.int32)
        _, (log_probs, options) = jax.lax.scan(discrete, state, (after, known, drawn))
        return _Walk(mean, std, z, log_probs, options)

    def walk_drawn(phi, real_key, choice_key):
        """Draw everything; real leaves are their means where their key is None, as is the likeliest option."""

        def settle(noise, mean, std):
            return mean + std * noise

        def choose(gumbel, log_probs):
            return jnp.argmax(log_probs + gumbel).astype(jnp.int32)

        noise = jnp.zeros((len(reals), longest))
        if real_key is not None and width:
            noise = jax.random.normal(real_key, noise.shape)
        gumbels = jax.random.gumbel(choice_key, (len(choices), most))
        return walk(phi, settle, noise, choose, gumbels)

    def walk_taken(phi, hparams):
        z, options = coordinates(hparams)
        return walk(phi, lambda z, mean, std: z, z, lambda option, log_probs: option, options)

    def coordinates(hparams):
        """Return the unconstrained values `[L, D]` and the options `[C]` of hparams."""
        leaves = jax.tree.leaves(hparams)
        rows = []
        for index in reals:
            z = spaces.unconstrain({"": dims[index]}, {"": leaves[index]})[""]
            rows.append(_pad(jnp.clip(jnp.ravel(z), -FARTHEST_LOGIT, FARTHEST_LOGIT), longest))
        options = jnp.stack([jnp.asarray(leaves[i], jnp.int32) for i in choices]) - lowest
        return jnp.stack(rows) if rows else jnp.zeros((0, 0)), options

    def assemble(found):
        """Make hparams of a walk."""
        leaves: list = [None] * len(dims)
        options = found.options + lowest
        for row, (index, num) in enumerate(zip(reals, counts.reals, strict=True)):
            z = found.z[row, :num].reshape(_coordinates(dims[index]))
            leaves[index] = spaces.constrain({"": dims[index]}, {"": z})[""]
        for row, index in enumerate(choices):
            leaves[index] = options[row]
        return treedef.unflatten(leaves)

    def log_prob(phi, hparams):
        return jnp.sum(walk_taken(phi, hparams).taken)

    def log_density(phi, hparams):
        found = walk_taken(phi, jax.lax.stop_gradient(hparams))
        each = -(((found.z - found.mean) / found.std) ** 2) / 2 - jnp.log(found.std)
        return {name: jnp.sum(jnp.where(entries[i], each[i], 0)) for i, name in enumerate(names)}

    def entropy(phi):
        def one(key):
            found = walk_drawn(phi, *jax.random.split(key))
            # of each choice given those before it, and how likely these were
            each = -jnp.sum(jnp.exp(found.log_probs) * found.log_probs, 1)
            return each, jnp.cumsum(found.taken) - found.taken

        each, before = jax.vmap(one)(jax.random.split(jax.random.key(0), NUM_PATHS))
        box = jnp.exp(before - jax.lax.stop_gradient(before))
        return jnp.mean(jnp.sum(each + (box - 1) * (each - mean_of_others(each)), 1))

    def mode(phi):
        def likeliest(_, log_probs):
            return jnp.argmax(log_probs).astype(jnp.int32)

        nothing = jnp.zeros((len(reals), longest))
        mean = lambda noise, mean, std: mean  # noqa: E731
        return assemble(walk(phi, mean, nothing, likeliest, jnp.zeros(len(choices))))

    def made(held):
        """The policy whose real leaves have the noise of the key `held`, or fresh noise where None."""

        def draw(key, phi):
            real_key, choice_key = jax.random.split(key)
            found = walk_drawn(phi, real_key if held is None else held, choice_key)
            return assemble(found), jnp.sum(found.taken)

        def sample(key, phi):
            return draw(key, phi)[0]

        def outcomes(phi):
            num = math.prod(counts.options)
            if num > MAX_OUTCOMES:
                raise ValueError(
                    f"space has {num} combinations of integers and choices, expected at most {MAX_OUTCOMES} to "
                    "enumerate; draw some: sampled(num_samples)"
                )
            index = np.indices(counts.options).reshape(len(counts.options), -1).astype(np.int32)
            reals_alone = walk_drawn(phi, held, jax.random.key(0))

            def one(options):
                return assemble(reals_alone._replace(options=options))

            return jax.vmap(one)(jnp.asarray(index.T))

        noisy = bool(width) and bool(reals)
        density = log_density if noisy else None
        given = made if noisy else None
        parts = (network.init, sample, log_prob, entropy, mode, outcomes)
        return Policy(*parts, given=given, log_density=density, draw=draw)

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
    """Return what the outputs of a head are added to, so that zero gives the default."""
    z = jnp.ravel(spaces.unconstrain({"": dim}, spaces.default({"": dim}))[""])
    inside = 0.86 * EDGE  # a thousandth of the range from a bound
    return EDGE * jnp.arctanh(jnp.clip(z, -inside, inside) / EDGE)


def _pad(x: Array, size: int) -> Array:
    return jnp.pad(x, (0, size - x.shape[0]))


def _coordinates(dim: spaces.Dimension) -> tuple[int, ...]:
    return dim.coordinates_shape if isinstance(dim, spaces.Sequence) else dim.shape  # pyright: ignore


def _lowest(dim: spaces.Dimension) -> int:
    return dim.low if isinstance(dim, spaces.Integer) else 0


def _check_network(network: Network, counts: Sizes) -> None:
    """Raise a `ValueError` unless a network emits what a space needs, and keeps the shapes of its state."""
    if not isinstance(network, Network):
        raise ValueError(
            f"network is {type(network).__name__}, expected a Network; pass e.g. heads.independent(space)"
        )

    def once(key, index):
        phi = network.init(key)
        state = network.start(phi)
        out = network.emit(phi, state, index)
        return state, out, network.read(phi, state, index, jnp.zeros(counts.size))

    index = jax.ShapeDtypeStruct((), jnp.int32)
    state, out, after = jax.eval_shape(once, jax.eval_shape(jax.random.key, 0), index)
    if getattr(out, "shape", None) != (counts.size,):
        raise ValueError(
            f"network emits {getattr(out, 'shape', type(out).__name__)}, expected outputs of shape "
            f"({counts.size},) from each of its {counts.num_heads} heads; build it with heads.sizes(space)"
        )
    if jax.tree.map(jnp.shape, state) != jax.tree.map(jnp.shape, after):
        raise ValueError(
            f"network reads into a state of shapes {jax.tree.map(jnp.shape, after)}, expected "
            f"{jax.tree.map(jnp.shape, state)} as it starts with; keep its shapes"
        )
