"""What the benchmarks of searchers minimise: functions with known minima, and small networks on real data."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hypergrad.layout import Layout, vectorized
from hypergrad.population import population
from hypergrad.problem import Problem
from hypergrad.schedulers import full
from hypergrad.space import Choice, Integer, LogReal, Real, select
from hypergrad.types import Array, HParams

CEILING = 5.0
"""Objectives of networks are cut here, and those that are not finite are set to it: chance is at most 2.3."""
HORIZON = 81
"""Training steps of a network; a power of 3, as hyperband likes it."""
ACTIVATIONS = (jnp.tanh, jax.nn.relu, jax.nn.gelu, jnp.sin)


class Function(NamedTuple):
    """A function to search.

    Attributes:
        space: a flat dict of scalar dimensions.
        value: hparams of one trial -> what is minimised.
        least: its lowest value; None where nobody knows.
        problem: a training loop of which `value` is the objective after `HORIZON` steps; None for others.
    """

    space: dict[str, Any]
    value: Callable[[HParams], Array]
    least: float | None
    problem: Problem | None = None


def reals(num: int, low: float, high: float) -> dict[str, Any]:
    return {f"x{i}": Real(low, high) for i in range(num)}


def vector(hparams: HParams) -> Array:
    """Stack the real and whole numbers of a trial, in the order of their names, `[D]`."""
    return jnp.stack([jnp.asarray(hparams[name], jnp.float32) for name in sorted(hparams)])


def logs(num: int = 8) -> Function:
    """A bowl over logarithms, four times as steep in one direction as in another, away from the middle."""
    goal, steep = np.linspace(-4.0, 0.0, num), np.linspace(0.25, 1.0, num)
    space = {f"x{i}": LogReal(1e-5, 1e1) for i in range(num)}

    def value(h):
        return jnp.sum(steep * (jnp.log10(vector(h)) - goal) ** 2)

    return Function(space, value, 0.0)


def rosenbrock(num: int = 4) -> Function:
    """A bent valley: coordinates have to move together."""

    def value(h):
        x = vector(h)
        return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)

    return Function(reals(num, -2.0, 2.0), value, 0.0)


def hartmann() -> Function:
    """Four wells in six dimensions."""
    alpha = np.array([1.0, 1.2, 3.0, 3.2])
    a = np.array([
        [10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14],
        [3, 3.5, 1.7, 10, 17, 8], [17, 8, 0.05, 10, 0.1, 14],
    ])  # fmt: skip
    p = 1e-4 * np.array([
        [1312, 1696, 5569, 124, 8283, 5886], [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650], [4047, 8828, 8732, 5743, 1091, 381],
    ])  # fmt: skip

    def value(h):
        return -jnp.sum(alpha * jnp.exp(-jnp.sum(a * (vector(h) - p) ** 2, -1)))

    return Function(reals(6, 0.0, 1.0), value, -3.32237)


def levy(num: int = 8) -> Function:
    """A bowl with ripples, its minimum at 1 within [-10, 10]."""

    def value(h):
        w = 1 + (vector(h) - 1) / 4
        middle = (w[:-1] - 1) ** 2 * (1 + 10 * jnp.sin(jnp.pi * w[:-1] + 1) ** 2)
        last = (w[-1] - 1) ** 2 * (1 + jnp.sin(2 * jnp.pi * w[-1]) ** 2)
        return jnp.sin(jnp.pi * w[0]) ** 2 + jnp.sum(middle) + last

    return Function(reals(num, -10.0, 10.0), value, 0.0)


def ackley() -> Function:
    """Many small wells around one deep one: four reals, two whole numbers, and an option that moves it."""
    space = {
        **reals(4, -5.0, 10.0),
        "x4": Integer(-5, 10),
        "x5": Integer(-5, 10),
        "kind": Choice(("a", "b", "c", "d")),
    }
    moves, worse = jnp.array([-2.0, 0.0, 1.0, 3.0]), jnp.array([1.0, 0.0, 2.0, 0.5])

    def value(h):
        kind = jnp.asarray(h["kind"])
        x = vector({name: x for name, x in h.items() if name != "kind"}) - moves[kind]
        root = jnp.sqrt(jnp.mean(x**2))
        wells = jnp.exp(jnp.mean(jnp.cos(2 * jnp.pi * x)))
        return 20 - 20 * jnp.exp(-0.2 * root) + jnp.e - wells + worse[kind]

    return Function(space, value, 0.0)


def rastrigin(num: int = 6) -> Function:
    """A local minimum at every whole number, the lowest at 1."""

    def value(h):
        x = vector(h) - 1
        return 10 * num + jnp.sum(x**2 - 10 * jnp.cos(2 * jnp.pi * x))

    return Function(reals(num, -3.0, 5.0), value, 0.0)


def tuning() -> Function:
    """Made up after training: what counts is the rate over 1 - momentum, and too high a one is fatal.

    Four logarithmic, one real, one whole dimension and two choices.
    """
    space = {
        "lr": LogReal(1e-5, 1e1),
        "decay": LogReal(1e-7, 1e0),
        "warmup": LogReal(1e0, 1e3),
        "eps": LogReal(1e-10, 1e-2),
        "momentum": Real(0.0, 0.99),
        "width": Integer(4, 128),
        "optimizer": Choice(("sgd", "adam", "lion")),
        "activation": Choice(("tanh", "relu", "gelu")),
    }
    best, worse = jnp.array([-0.5, -2.0, -3.0]), jnp.array([0.15, 0.0, 0.05])
    activation = jnp.array([0.1, 0.04, 0.0])

    def value(h):
        kind = jnp.asarray(h["optimizer"])
        rate = jnp.log10(h["lr"] / (1 - h["momentum"])) - best[kind]
        decay = jnp.log10(h["decay"]) + 3 + 0.5 * rate  # a higher rate wants less decay
        rate = jnp.where(rate > 0, jnp.expm1(2 * rate) / 2, rate)
        width = jnp.log2(jnp.asarray(h["width"], jnp.float32))
        size = 0.2 * jnp.exp(-(width - 2) / 2) + 0.01 * jnp.maximum(width - 6, 0)
        late = 0.02 * (jnp.log10(h["warmup"]) - 1.5) ** 2 + 0.002 * (jnp.log10(h["eps"]) + 8) ** 2
        options = worse[kind] + activation[jnp.asarray(h["activation"])]
        value = 0.1 * rate**2 + 0.03 * decay**2 + size + late + options
        return jnp.minimum(value, CEILING)

    widths = np.log2(np.arange(4, 129))
    least = np.min(0.2 * np.exp(-(widths - 2) / 2) + 0.01 * np.maximum(widths - 6, 0))
    return Function(space, value, float(least))


def network(name: str, width: int = 16, batch_size: int = 32, seed: int = 0) -> Function:
    """An MLP on a small data set of scikit-learn, by Adam from the same weights on the same minibatches.

    Nothing is random, so that the lowest value is no luck of the weights. Five logarithmic dimensions, one
    real, the width (units beyond it are zero) and the activation.
    """
    from sklearn import datasets

    loader = {"breast": "breast_cancer"}.get(name, name)
    inputs, labels = getattr(datasets, f"load_{loader}")(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))[:1200]
    train, valid = np.split(order, [2 * len(order) // 3])
    mean, std = inputs[train].mean(0), inputs[train].std(0) + 1e-6
    x = jnp.asarray((inputs - mean) / std, jnp.float32)
    y = jnp.asarray(labels, jnp.int32)
    num_inputs, num_classes = x.shape[1], int(labels.max()) + 1
    key = jax.random.key(seed)
    space = {
        "lr": LogReal(1e-4, 1e0),
        "b1_gap": LogReal(1e-2, 1e0),
        "b2_gap": LogReal(1e-4, 1e0),
        "decay": LogReal(1e-5, 1e0),
        "scale": LogReal(1e-1, 1e1),
        "smoothing": Real(0.0, 0.3),
        "width": Integer(2, width),
        "activation": Choice(("tanh", "relu", "gelu", "sin")),
    }

    def init(_, h):
        one, two = jax.random.split(key)
        live = jnp.arange(width) < h["width"]
        shape = (num_inputs, width)
        first = jax.random.normal(one, shape) / np.sqrt(num_inputs)
        second = jax.random.normal(two, (width, num_classes)) / jnp.sqrt(h["width"])
        return {
            "one": jnp.where(live, h["scale"] * first, 0),
            "bias": jnp.zeros(width),
            "two": jnp.where(live[:, None], h["scale"] * second, 0),
        }

    def logits(params, h, inputs):
        hidden = inputs @ params["one"] + params["bias"]
        hidden = select(h["activation"], jnp.stack([act(hidden) for act in ACTIVATIONS]))
        return jnp.where(jnp.arange(width) < h["width"], hidden, 0) @ params["two"]

    def loss(params, h, batch):
        targets = optax.smooth_labels(jax.nn.one_hot(batch[1], num_classes), h["smoothing"])
        return optax.softmax_cross_entropy(logits(params, h, batch[0]), targets).mean()

    def objective(params, h, batch):
        scores = logits(params, h, batch[0])
        value = optax.softmax_cross_entropy_with_integer_labels(scores, batch[1]).mean()
        return jnp.where(jnp.isfinite(value), jnp.minimum(value, CEILING), CEILING)

    def train_batch(_, step):
        drawn = jax.random.randint(jax.random.fold_in(key, step), (batch_size,), 0, len(train))
        index = jnp.asarray(train)[drawn]
        return x[index], y[index]

    def optimizer(h):
        return optax.chain(
            optax.scale_by_adam(1 - h["b1_gap"], 1 - h["b2_gap"]),
            optax.add_decayed_weights(h["decay"]),
            optax.scale_by_learning_rate(h["lr"]),
        )

    problem = Problem(
        init=init,
        loss=loss,
        objective=objective,
        optimizer=optimizer,
        train_batch=train_batch,
        valid_batch=lambda _: (x[valid], y[valid]),
    )
    one = members(problem)

    def value(h):
        rows = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], h)
        found = full(HORIZON)(one, jax.random.key(0), rows).values[0]
        return jnp.where(jnp.isfinite(found), found, CEILING)

    return Function(space, value, None, problem)


def members(problem: Problem, layout: Layout | None = None) -> Any:
    """Build the population of a network; one order of minibatches for all, drawn once."""
    return population(problem, layout=layout or vectorized(), order=jax.random.key(0))


SYNTHETIC: dict[str, Callable[[], Function]] = {
    "bowl of logarithms, 8": logs,
    "Rosenbrock, 4": rosenbrock,
    "Hartmann, 6": hartmann,
    "Levy, 8": levy,
    "Ackley, mixed, 7": ackley,
    "tuning made up, mixed, 8": tuning,
}
NETWORKS: dict[str, Callable[[], Function]] = {
    f"MLP on {name}, mixed, 8": lambda name=name: network(name)
    for name in ("digits", "breast", "wine", "iris")
}
