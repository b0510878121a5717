"""Policies with heads: one for each leaf of a space, over a state that all of them share.

A network goes through the leaves, real leaves first. A head emits the mean and the width of a normal, or the
logits of a choice, and reads the drawn value before the next head emits. So architecture and optimizer are one
policy, and the shared state represents how they interact (Adam and Lorraine).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad import space as spaces
from hypergrad.core import tree
from hypergrad.core.checks import check_kind, check_share
from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.estimators.policies.baselines import mean_of_others
from hypergrad.estimators.policies.policy import (
    MAX_LOGIT,
    Policy,
    check_drawable,
    combinations,
)

NUM_PATHS = 32
"""Number of draws from which the entropy of a policy of several choices is estimated."""

MASKED_LOGIT = -1e9
"""Logit of options that a leaf does not have."""

MAX_COORDINATE = 16.0
"""Bound of unconstrained values read back from hparams; at a bound of the range they would be infinite."""

Settle: TypeAlias = Callable[[Array, Array, Array], Array]
"""(input of a real head, mean, width), each `[D]` -> unconstrained value `[D]`."""

Choose: TypeAlias = Callable[[Array, Array], Array]
"""(input of a discrete head, log-probabilities `[K]`) -> option, int32 `[]`."""


class Network(NamedTuple):
    """Heads over a shared state, as pure functions; `models/policies.py` has a recurrent one in flax.

    The heads are numbered, those of the real leaves first. Their outputs have one size (`Sizes`), and each head
    uses as many of the first entries as it needs. Outputs of zero stand for the default of the space, or for
    uniform choices.

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
    """Sizes of the outputs that a network must emit.

    Attributes:
        reals: Normals of each real leaf: the free steps of a schedule, the entries of an array.
        options: Logits of each discrete leaf.
    """

    reals: tuple[int, ...]
    options: tuple[int, ...]

    @property
    def num_heads(self) -> int:
        """Return the number of heads, one for each leaf."""
        return len(self.reals) + len(self.options)

    @property
    def size(self) -> int:
        """Return the size of the outputs: the most options, or twice the most normals."""
        return max(2 * max(self.reals, default=0), max(self.options))


def sizes(space: PyTree) -> Sizes:
    """Count the heads that a space asks for.

    Raises:
        ValueError: for a static dimension, one of more than 256 options, or a space without discrete ones.
    """
    check_drawable(space)
    dims = jax.tree.leaves(space)
    reals = tuple(spaces.num_coordinates({"": dim}) for dim in dims if not spaces.is_discrete(dim))
    return Sizes(reals, tuple(dim.num_levels for dim in dims if spaces.is_discrete(dim)))


def independent(space: PyTree) -> Network:
    """Make the simplest network: every head is a separate parameter, and reads nothing."""
    counts = sizes(space)
    return Network(
        init=lambda key: jnp.zeros((counts.num_heads, counts.size), jnp.result_type(float)),
        start=lambda phi: (),
        emit=lambda phi, state, index: phi[index],
        read=lambda phi, state, index, value: state,
    )


class _Heads(NamedTuple):
    """A network over the leaves of a space: L real and C discrete leaves, padded to D entries and K options.

    Attributes:
        network: Network that emits and reads.
        width: Standard deviation of the normals where the network emits zero.
        counts: Outputs of the heads.
        dims: Dimensions of all leaves, in the order of the space.
        treedef: Tree structure of the space.
        reals: Places of the real leaves among all, `L` of them.
        choices: Places of the discrete leaves, `C` of them.
        names: Names of the real leaves.
        middle: Offsets of the outputs of a real head, so that zero gives the default, `[L, D]`.
        entries: Mask of the entries that a real leaf has, bool `[L, D]`.
        known: Mask of the options that a discrete leaf has, bool `[C, K]`.
    """

    network: Network
    width: float
    counts: Sizes
    dims: list[Any]
    treedef: Any
    reals: list[int]
    choices: list[int]
    names: list[str]
    middle: Array
    entries: np.ndarray
    known: Array


class _Walk(NamedTuple):
    """Results of the heads.

    Attributes:
        mean, std: Moments of the normals, in unconstrained coordinates, `[L, D]`.
        z: Values drawn or given, `[L, D]`.
        log_probs: Log-probabilities of the options of each choice, `[C, K]`.
        options: Options drawn or given, int32 `[C]`.
    """

    mean: Array
    std: Array
    z: Array
    log_probs: Array
    options: Array

    @property
    def taken(self) -> Array:
        """Return the log-probability of each option, `[C]`."""
        return jnp.take_along_axis(self.log_probs, self.options[:, None], 1)[:, 0]


def multitask(space: PyTree, network: Network | None = None, *, width: float = 0.5) -> Policy:
    """Draw optimizer settings and architectures from one network with a head for each leaf.

    z_l = μ_l(s_l) + σ_l(s_l) ε_l,   λ_l = constrain(z_l)            real leaves, pathwise in φ
    a_l ~ softmax(logits_l(s_l)),    log π_φ(a | λ) = Σ_l log π_φ(a_l | a_1 … a_{l−1}, λ)
    s_l the state of the network after all heads before l

    A `LogReal` is log-normal except at its bounds: the normal is squashed into the logarithm of its range.

    **Cost:** a pass through the heads a draw, its probability included; two loops, which compile once whatever
    the number of leaves.

    **Limits:** the entropy is an estimate over 32 fixed draws where heads read choices.

    Args:
        space: Pytree of dimensions, none of them static, at least one of them Integer or Choice.
        network: Heads over a shared state; `independent(space)`, the factorized policy, where None.
        width: Value of σ where the network emits a log width of zero, in unconstrained coordinates; the emitted
            log width moves σ between e⁻² and e² times that. With 0 there is no noise, and real leaves are their
            means.

    Raises:
        ValueError: for a space that cannot be drawn from, a width below 0, and a network whose outputs do not
            fit the space.

    Reference:
        Adam and Lorraine, "More Efficient Stochastic Hyperparameter Optimization"; Zoph and Le, 2017,
        arXiv:1611.01578.
    """
    counts = sizes(space)
    check_share("width", width, "[0, 10)", what="a number")
    network = independent(space) if network is None else network
    _check_network(network, counts)
    return _policy(_heads(space, counts, network, width), None)


def _heads(space: PyTree, counts: Sizes, network: Network, width: float) -> _Heads:
    """Pad the leaves of a space to one shape for the real and one for the discrete ones."""
    dims, treedef = jax.tree.flatten(space)
    reals = [i for i, dim in enumerate(dims) if not spaces.is_discrete(dim)]
    choices = [i for i, dim in enumerate(dims) if spaces.is_discrete(dim)]
    names = tree.leaf_names(space)
    longest, most = max(counts.reals, default=0), max(counts.options)
    return _Heads(
        network=network,
        width=width,
        counts=counts,
        dims=dims,
        treedef=treedef,
        reals=reals,
        choices=choices,
        names=[names[i] for i in reals],
        middle=jnp.stack([_pad(_middle(dims[i]), longest) for i in reals] or [jnp.zeros(0)]),
        entries=np.arange(longest) < np.array(counts.reals, int).reshape(-1, 1),
        known=jnp.asarray(np.arange(most) < np.array(counts.options)[:, None]),
    )


def _policy(heads: _Heads, held: Key | None) -> Policy:
    """Assemble the policy whose real leaves have the noise of the key `held`, or fresh noise where None."""
    noisy = bool(heads.width) and bool(heads.reals)
    return Policy(
        init=heads.network.init,
        sample=lambda key, phi: _draw(heads, held, key, phi)[0],
        log_prob=lambda phi, hparams: jnp.sum(_read(heads, phi, hparams).taken),
        entropy=partial(_entropy, heads),
        mode=partial(_mode, heads),
        outcomes=partial(_outcomes, heads, held),
        given=partial(_policy, heads) if noisy else None,
        log_density=partial(_log_density, heads) if noisy else None,
        draw=partial(_draw, heads, held),
    )


def _walk(
    heads: _Heads, phi: PyTree, reals: Array, choices: Array, settle: Settle, choose: Choose
) -> _Walk:
    """Go through the heads, of which each is given its row of `reals` `[L, D]` or `choices` `[C, ...]`."""
    network, (num, longest) = heads.network, heads.entries.shape
    most, size = heads.known.shape[1], heads.counts.size

    def real(state: PyTree, x: tuple[Array, ...]) -> tuple[PyTree, tuple[Array, Array, Array]]:
        index, start, live, given = x
        out = network.emit(phi, state, index)
        mean = MAX_LOGIT * jnp.tanh((start + out[:longest]) / MAX_LOGIT)
        std = heads.width * jnp.exp(2 * jnp.tanh(out[longest : 2 * longest] / 2))
        z = jnp.where(live, settle(given, mean, std), 0)
        state = network.read(phi, state, index, _pad(jnp.tanh(z / 2), size))
        return state, (mean, std, z)

    def discrete(state: PyTree, x: tuple[Array, ...]) -> tuple[PyTree, tuple[Array, Array]]:
        index, live, given = x
        out = network.emit(phi, state, index)[:most]
        log_probs = jax.nn.log_softmax(jnp.where(live, out, MASKED_LOGIT))
        option = choose(given, log_probs)
        value = _pad(jax.nn.one_hot(option, most, dtype=out.dtype), size)
        return network.read(phi, state, index, value), (log_probs, option)

    state = network.start(phi)
    mean = std = z = jnp.zeros((0, longest))
    if num:
        inputs = (jnp.arange(num, dtype=jnp.int32), heads.middle, jnp.asarray(heads.entries), reals)
        state, (mean, std, z) = jax.lax.scan(real, state, inputs)
    after = jnp.arange(num, heads.counts.num_heads, dtype=jnp.int32)
    _, (log_probs, options) = jax.lax.scan(discrete, state, (after, heads.known, choices))
    return _Walk(mean, std, z, log_probs, options)


def _drawn(heads: _Heads, phi: PyTree, real_key: Key | None, choice_key: Key) -> _Walk:
    """Draw everything; real leaves are their means where their key is None."""
    noise = jnp.zeros(heads.entries.shape)
    if real_key is not None and heads.width:
        noise = jax.random.normal(jax.random.clone(real_key), noise.shape)  # which may be held
    gumbels = jax.random.gumbel(choice_key, heads.known.shape)
    return _walk(
        heads,
        phi,
        noise,
        gumbels,
        lambda noise, mean, std: mean + std * noise,
        lambda gumbel, log_probs: jnp.argmax(jax.lax.stop_gradient(log_probs) + gumbel).astype(
            jnp.int32
        ),
    )


def _read(heads: _Heads, phi: PyTree, hparams: HParams) -> _Walk:
    """Go through the heads along hparams that were drawn."""
    leaves, longest = jax.tree.leaves(hparams), heads.entries.shape[1]
    rows = []
    for index in heads.reals:
        z = spaces.unconstrain({"": heads.dims[index]}, {"": leaves[index]})[""]
        rows.append(_pad(jnp.clip(jnp.ravel(z), -MAX_COORDINATE, MAX_COORDINATE), longest))
    indices = [heads.dims[i].index(leaves[i]) for i in heads.choices]
    options = jnp.stack([jnp.asarray(index, jnp.int32) for index in indices])
    z = jnp.stack(rows) if rows else jnp.zeros((0, 0))
    return _walk(heads, phi, z, options, lambda z, mean, std: z, lambda option, log_probs: option)


def _assemble(heads: _Heads, found: _Walk) -> HParams:
    """Make hparams from a walk."""
    leaves: list[Array] = [jnp.zeros(())] * len(heads.dims)
    for row, (index, num) in enumerate(zip(heads.reals, heads.counts.reals, strict=True)):
        dim = heads.dims[index]
        z = found.z[row, :num].reshape(dim.coordinates_shape)
        leaves[index] = spaces.constrain({"": dim}, {"": z})[""]
    for row, index in enumerate(heads.choices):
        leaves[index] = heads.dims[index].at(found.options[row])
    return heads.treedef.unflatten(leaves)


def _draw(heads: _Heads, held: Key | None, key: Key, phi: PyTree) -> tuple[HParams, Array]:
    """Return hparams and the log-probability of their choices, `[]`."""
    real_key, choice_key = jax.random.split(jax.random.clone(key))
    found = _drawn(heads, phi, real_key if held is None else held, choice_key)
    return _assemble(heads, found), jnp.sum(found.taken)


def _log_density(heads: _Heads, phi: PyTree, hparams: HParams) -> dict[str, Array]:
    """Return log N(z_l; μ_l, σ_l²) up to a constant for each real leaf."""
    found = _read(heads, phi, jax.lax.stop_gradient(hparams))
    each = -(((found.z - found.mean) / found.std) ** 2) / 2 - jnp.log(found.std)
    sums = [jnp.sum(jnp.where(live, x, 0)) for live, x in zip(heads.entries, each, strict=True)]
    return dict(zip(heads.names, sums, strict=True))


def _entropy(heads: _Heads, phi: PyTree) -> Array:
    """Estimate the entropy of the choices from a few fixed draws, with the derivative of its mean."""

    def along(key: Key) -> tuple[Array, Array]:
        found = _drawn(heads, phi, *jax.random.split(key))
        # the entropy of each choice given the choices before it, and the probability of those
        each = -jnp.sum(jnp.exp(found.log_probs) * found.log_probs, 1)
        return each, jnp.cumsum(found.taken) - found.taken

    each, before = jax.vmap(along)(jax.random.split(jax.random.key(0), NUM_PATHS))
    box = jnp.exp(before - jax.lax.stop_gradient(before))
    return jnp.mean(jnp.sum(each + (box - 1) * (each - mean_of_others(each)), 1))


def _mode(heads: _Heads, phi: PyTree) -> HParams:
    """Follow the means and the likeliest options."""
    found = _walk(
        heads,
        phi,
        jnp.zeros(heads.entries.shape),
        jnp.zeros(len(heads.choices)),
        lambda nothing, mean, std: mean,
        lambda nothing, log_probs: jnp.argmax(log_probs).astype(jnp.int32),
    )
    return _assemble(heads, found)


def _outcomes(heads: _Heads, held: Key | None, phi: PyTree) -> HParams:
    """Return every combination of choices over one draw of the real leaves."""
    index = jnp.asarray(combinations(heads.counts.options))
    reals = _drawn(heads, phi, held, jax.random.key(0))
    return jax.vmap(lambda options: _assemble(heads, reals._replace(options=options)))(index)


def _middle(dim: spaces.Dimension) -> Array:
    """Return the offset of the outputs of a head, so that zero gives the default."""
    z = jnp.ravel(spaces.unconstrain({"": dim}, spaces.default({"": dim}))[""])
    inside = 0.86 * MAX_LOGIT  # a thousandth of the range from a bound
    return MAX_LOGIT * jnp.arctanh(jnp.clip(z, -inside, inside) / MAX_LOGIT)


def _pad(x: Array, size: int) -> Array:
    return jnp.pad(x, (0, size - x.shape[0]))


def _check_network(network: Network, counts: Sizes) -> None:
    """Raise a `ValueError` unless a network's outputs fit a space and its state keeps its shapes."""
    check_kind("network", network, Network, "policies.independent(space)")

    def once(key: Key, index: Array) -> tuple[PyTree, Array, PyTree]:
        phi = network.init(key)
        state = network.start(phi)
        out = network.emit(phi, state, index)
        return state, out, network.read(phi, state, index, jnp.zeros(counts.size))

    key, index = jax.eval_shape(jax.random.key, 0), jax.ShapeDtypeStruct((), jnp.int32)
    begun, emitted, after = jax.tree.map(jnp.shape, jax.eval_shape(once, key, index))
    if emitted != (counts.size,):
        raise ValueError(
            f"network emits {emitted}, expected outputs of shape ({counts.size},) from each of its "
            f"{counts.num_heads} heads; build it with policies.sizes(space)"
        )
    if begun != after:
        raise ValueError(
            f"network reads into a state of shapes {after}, expected {begun} as it starts with; keep its shapes"
        )
