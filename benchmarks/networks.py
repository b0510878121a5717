"""Small networks trained and measured as populations, for `configurations` and `pools`.

The networks are ReLU MLPs, trained by Adam with the softmax cross-entropy. Widths and depths are masks:
networks of one batch size are one program, whatever their sizes.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hypergrad import curvature as cv
from hypergrad.curvature.models import dense, loss_of

NUM_PARTS, PART = 4, 16
"""Number of minibatches of the measures, and of the samples in each."""


class Split(NamedTuple):
    """Inputs `[n, D]` and labels `[n]` of one part of a data set."""

    inputs: np.ndarray
    labels: np.ndarray


class Member(NamedTuple):
    """A network in training; every leaf `[N, ...]`."""

    params: Any
    moments: Any


class Settings(NamedTuple):
    """Settings of N networks and their training; every leaf `[N]`.

    Attributes:
        width: Number of units of each hidden layer.
        depth: Number of hidden layers.
        rate: Learning rate.
        decay: Strength λ of the penalty ½ λ ‖kernels‖².
        beta_1, beta_2, epsilon: Settings of Adam.
    """

    width: Any
    depth: Any
    rate: Any
    decay: Any
    beta_1: Any
    beta_2: Any
    epsilon: Any


def settings(
    width: Any,
    depth: Any,
    rate: Any,
    decay: Any = 0.0,
    beta_1: Any = 0.9,
    beta_2: Any = 0.999,
    epsilon: Any = 1e-8,
) -> Settings:
    """Make settings from arrays `[N]` and from numbers that all networks share."""
    whole = [np.broadcast_to(x, np.shape(rate)).astype(np.int32) for x in (width, depth)]
    real = (rate, decay, beta_1, beta_2, epsilon)
    return Settings(*whole, *(np.broadcast_to(x, np.shape(rate)).astype(np.float32) for x in real))


class Sizes(NamedTuple):
    """Sizes of the largest network: inputs and outputs, hidden layers and their units."""

    inputs: int
    classes: int
    depth: int
    width: int


class Group(NamedTuple):
    """Networks that train together.

    Attributes:
        rows: Places of the networks in the columns of the results `[N]`.
        batch: Number of samples in a minibatch, at most all.
        settings: Settings of each network.
        largest: Most hidden layers and units among all groups.
    """

    rows: np.ndarray
    batch: int
    settings: Settings
    largest: tuple[int, int]


def network(width: Any, depth: Any) -> cv.Layered:
    """Return the ReLU MLP whose units beyond `width` and layers beyond `depth` do not count."""

    def forward(dense, params, example):
        signal = example[0]
        for k, layer in enumerate(params[:-1]):
            live = (jnp.arange(layer["bias"].size) < width) & (k < depth)
            made = jnp.where(live, jax.nn.relu(dense(layer, signal)), 0)
            signal = made if k == 0 else jnp.where(k < depth, made, signal)
        return dense(params[-1], signal)

    return cv.Layered(forward, lambda z, example: cv.softmax_cross_entropy(z, example[1]))


def first_params(key: Any, width: Any, depth: Any, sizes: Sizes) -> list[dict[str, Any]]:
    """Draw weights of variance 2 / (inputs that count); those that do not count are zero and stay so."""
    params, most = [], sizes.width
    for k in range(sizes.depth + 1):
        last = k == sizes.depth
        shape = (sizes.inputs if k == 0 else most, sizes.classes if last else most)
        count = sizes.inputs if k == 0 else width
        rows = jnp.arange(shape[0]) < count
        columns = jnp.ones(shape[1], bool) if last else (jnp.arange(most) < width) & (k < depth)
        drawn = jax.random.normal(jax.random.fold_in(key, k), shape) * jnp.sqrt(2 / count)
        params.append(
            {"kernel": jnp.where(rows[:, None] & columns, drawn, 0), "bias": jnp.zeros(shape[1])}
        )
    return params


def logits(params: Any, width: Any, depth: Any, inputs: Any) -> Any:
    """Return the outputs on many samples, `[n, classes]`."""
    return jax.vmap(lambda x: network(width, depth).forward(dense, params, (x,)))(inputs)


@partial(jax.jit, static_argnums=4)
def train_epoch(members: Member, settings: Settings, key: Any, train: Split, batch: int) -> Member:
    """Train N networks of one batch size for an epoch; all see the same order of the samples."""
    samples = len(train.labels)
    size = min(batch, samples)
    order = jax.random.permutation(key, samples)[: samples // size * size].reshape(-1, size)

    def step(members, index):
        part = jax.tree.map(lambda x: x[index], train)

        def one(member, of):
            gradient = jax.grad(loss_of(network(of.width, of.depth)))(member.params, part)
            gradient = [
                found | {"kernel": found["kernel"] + of.decay * layer["kernel"]}
                for found, layer in zip(gradient, member.params, strict=True)
            ]
            adam = optax.scale_by_adam(of.beta_1, of.beta_2, of.epsilon)
            moves, moments = adam.update(gradient, member.moments)
            return Member(jax.tree.map(lambda w, d: w - of.rate * d, member.params, moves), moments)

        return jax.vmap(one)(members, settings), None

    return jax.lax.scan(step, members, order)[0]


@partial(jax.jit, static_argnums=2)
def begin(keys: Any, settings: Settings, sizes: Sizes) -> Member:
    """Draw the first weights."""

    def one(key, width, depth):
        params = first_params(key, width, depth, sizes)
        return Member(params, optax.scale_by_adam().init(params))

    return jax.vmap(one)(keys, settings.width, settings.depth)


def auc(scores: Any, labels: Any) -> Any:
    """Return the area under the ROC curve, the mean over classes against the rest.

    Ties count half; scores that are not numbers tie as the highest.
    """
    classes = scores.shape[1]

    def one(c):
        s, positive = scores[:, c], labels == c
        ordered, num = jnp.sort(s), jnp.sum(positive)
        sides = [jnp.searchsorted(ordered, s, side) for side in ("left", "right")]
        ranks = (sides[0] + sides[1] + 1) / 2  # from 1, those of ties averaged
        rank = jnp.sum(jnp.where(positive, ranks, 0))
        pairs = num * (len(labels) - num)
        return (rank - num * (num + 1) / 2) / jnp.maximum(pairs, 1)

    return one(1) if classes == 2 else jnp.mean(jnp.stack([one(c) for c in range(classes)]))


@jax.jit
def judge(members: Member, settings: Settings, part: Split) -> dict[str, Any]:
    """Return loss, AUC and accuracy of N networks on one part; NaN for those that diverged."""

    def one(params, width, depth):
        z = logits(params, width, depth, part.inputs)
        loss = optax.softmax_cross_entropy_with_integer_labels(z, part.labels).mean()
        found = {
            "loss": loss,
            "auc": auc(jax.nn.softmax(z), part.labels),
            "accuracy": jnp.mean(jnp.argmax(z, 1) == part.labels),
        }
        return {name: jnp.where(jnp.isfinite(loss), x, jnp.nan) for name, x in found.items()}

    return jax.lax.map(lambda x: one(*x), (members.params, *settings[:2]), batch_size=8)


CHEAP: dict[str, Callable] = {
    "theorem_1": cv.theorem_1, "section_3": cv.section_3, "published": cv.published,
    "sam": lambda model, p, b: cv.sam(loss_of(model), p, b),
}  # fmt: skip
EXACT = ("full", "last_layer", "gauss_newton", "rescaled")
MEASURES = (*CHEAP, *EXACT)


@jax.jit
def measure_cheap(members: Member, settings: Settings, parts: Split) -> dict[str, Any]:
    """Return the values that need a few passes of the network on each minibatch, `[N, NUM_PARTS]`."""
    return each(
        members, settings, parts, lambda model, p, b: {n: f(model, p, b) for n, f in CHEAP.items()}
    )


@jax.jit
def measure_theorem(members: Member, settings: Settings, parts: Split) -> dict[str, Any]:
    """Return Theorem 1's value alone."""
    return each(
        members, settings, parts, lambda model, p, b: {"theorem_1": cv.theorem_1(model, p, b)}
    )


@partial(jax.jit, static_argnums=3)
def measure_exact(members: Member, settings: Settings, parts: Split, bent: bool) -> dict[str, Any]:
    """Return the exact norms on each minibatch, `[N, NUM_PARTS]`; with `bent` also that of Gauss-Newton."""

    def norms(model, params, batch):
        found = cv.frobenius(model, params, batch)
        squares = jnp.stack([sum(jnp.sum(w**2) for w in layer.values()) for layer in params])
        norms = {
            "full": found.value,
            "last_layer": jnp.sqrt(found.blocks[-1, -1]),
            "rescaled": jnp.sqrt(squares @ found.blocks @ squares),
        }
        if bent:
            norms["gauss_newton"] = cv.frobenius(model, params, batch, gauss_newton=True).value
        return norms

    return each(members, settings, parts, norms)


def each(members: Member, settings: Settings, parts: Split, function: Callable) -> dict[str, Any]:
    """Return the values of (model, params, batch) -> {name: []} on each minibatch, `[N, NUM_PARTS]`."""

    def one(x):
        params, width, depth = x
        return jax.lax.map(lambda part: function(network(width, depth), params, part), parts)

    return jax.lax.map(one, (members.params, *settings[:2]), batch_size=4)


def tidy(values: np.ndarray) -> list[float | None]:
    """Round to five digits; a number that is not finite becomes null."""
    return [float(f"{v:.5g}") if np.isfinite(v) else None for v in values]


def train_and_measure(
    data: tuple[list[Split], int], seed: int, groups: Sequence[Group], read: Sequence[int]
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Train all groups on one split, to the last epoch of `read`.

    After each epoch of `read` the validation set is judged and Theorem 1's value taken; after the first and
    the last, the training set and all measures too, as suprema over the same minibatches for all networks.

    Returns:
        The columns, with a number for each network, NaN where it diverged, and the processor seconds of each
        kind of work.
    """
    (train, valid, test), classes = data
    num, last = 1 + max(max(group.rows) for group in groups), read[-1]
    columns: dict[str, np.ndarray] = {}
    clock: dict[str, float] = {}

    def keep(where, found, after=""):
        for name, values in found.items():
            column = columns.setdefault(f"{name}{after}", np.full(num, np.nan))
            column[where] = np.asarray(values, np.float64)

    def timed(what, function, *args):
        began = time.process_time()
        made = jax.block_until_ready(function(*args))
        clock[what] = clock.get(what, 0.0) + time.process_time() - began
        return made

    parts = measured_parts(train, seed)
    for where, batch, of, (depth, width) in groups:
        key = jax.random.fold_in(jax.random.key(seed), batch)
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed + 1), i))(where)
        members = begin(keys, of, Sizes(train.inputs.shape[1], classes, depth, width))
        for epoch in range(1, last + 1):
            now = jax.random.fold_in(key, epoch)
            members = timed("training", train_epoch, members, of, now, train, batch)
            if epoch in read:
                found = timed("judging", judge, members, of, valid)
                keep(where, found, f"_valid_{epoch}")
            if epoch in (1, last):
                keep(where, timed("judging", judge, members, of, train), f"_train_{epoch}")
                cheap = timed("surrogates", measure_cheap, members, of, parts)
                exact = timed("exact norms", measure_exact, members, of, parts, epoch == 1)
                highest = {name: jnp.max(values, 1) for name, values in (cheap | exact).items()}
                keep(where, highest, f"_{epoch}")
                keep(where, violations(cheap["theorem_1"], exact), f"_{epoch}")
            elif epoch in read:
                values = timed("surrogates", measure_theorem, members, of, parts)
                keep(where, {"theorem_1": jnp.max(values["theorem_1"], 1)}, f"_{epoch}")
        keep(where, timed("judging", judge, members, of, test), "_test")
    return columns, clock


def violations(bound: Any, exact: dict[str, Any]) -> dict[str, Any]:
    """Return the share of minibatches on which the bound exceeds a norm; NaN where one is not finite."""
    return {
        f"violated_{name}": jnp.where(
            jnp.isfinite(exact[name]).all(1), jnp.mean(bound > exact[name], axis=1), jnp.nan
        )
        for name in ("full", "last_layer")
    }


def measured_parts(train: Split, seed: int) -> Split:
    """Return the minibatches of the measures, `[NUM_PARTS, size, ...]`."""
    order = np.random.default_rng(seed).permutation(len(train.labels))
    size = min(PART, len(order) // NUM_PARTS)
    part = order[: NUM_PARTS * size].reshape(NUM_PARTS, size)
    return jax.tree.map(lambda x: x[part], train)
