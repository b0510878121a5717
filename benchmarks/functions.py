"""Objectives of the benchmarks of searchers: functions with known minima, and small networks on real data."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hypergrad.core.types import Array, HParams
from hypergrad.populations import Population, population, vectorized
from hypergrad.problem import Problem
from hypergrad.schedulers import full
from hypergrad.space import Choice, Integer, LogReal, Real, select

CEILING = 5.0
"""Upper bound of the objectives of networks, also in place of those not finite; chance is at most 2.3."""
HORIZON = 27
"""Training steps of a network; a power of 3, as hyperband likes it."""
KEY = jax.random.key(0)
ACTIVATIONS = (jnp.tanh, jax.nn.relu, jax.nn.gelu, jnp.sin)


class Function(NamedTuple):
    """A function to search.

    Attributes:
        space: Flat dict of scalar dimensions.
        value: (data, hparams of one trial) -> the objective to minimise.
        least: Lowest value of the function; None where it is not known.
        data: Data of a network, an argument so that one compiled program serves all data sets.
        problem: (data) -> the training loop of which `value` is the objective after `HORIZON` steps; None
            for others.
    """

    space: dict[str, Any]
    value: Callable[[Any, HParams], Array]
    least: float | None = None
    data: Any = ()
    problem: Callable[[Any], Problem] | None = None


def known(space: dict[str, Any], value: Callable[[HParams], Array], least: float) -> Function:
    """Build a function without data whose minimum is known."""
    return Function(space, lambda _, h: value(h), least)


def cube(num: int) -> dict[str, Any]:
    return {f"x{i:02d}": Real(0.0, 1.0) for i in range(num)}


def vector(hparams: HParams) -> Array:
    """Stack the real and whole numbers of a trial, in the order of their names, `[D]`."""
    return jnp.stack([jnp.asarray(hparams[name], jnp.float32) for name in sorted(hparams)])


def logs(num: int = 8) -> Function:
    """Build a bowl over logarithms, four times as steep in one direction as in another, off the middle."""
    goal, steep = np.linspace(-4.0, 0.0, num), np.linspace(0.25, 1.0, num)
    space = {f"x{i:02d}": LogReal(1e-5, 1e1) for i in range(num)}

    def value(h):
        return jnp.sum(steep * (jnp.log10(vector(h)) - goal) ** 2)

    return known(space, value, 0.0)


def rosenbrock(num: int = 6) -> Function:
    """Build a bent valley within [-2, 2]: coordinates have to move together."""

    def value(h):
        x = 4 * vector(h) - 2
        return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)

    return known(cube(num), value, 0.0)


def hartmann() -> Function:
    """Build four wells in six dimensions."""
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

    return known(cube(6), value, -3.32237)


def levy(num: int = 6) -> Function:
    """Build a bowl with ripples, its minimum at 1 within [-10, 10]."""

    def value(h):
        w = 1 + (20 * vector(h) - 11) / 4
        middle = (w[:-1] - 1) ** 2 * (1 + 10 * jnp.sin(jnp.pi * w[:-1] + 1) ** 2)
        last = (w[-1] - 1) ** 2 * (1 + jnp.sin(2 * jnp.pi * w[-1]) ** 2)
        return jnp.sin(jnp.pi * w[0]) ** 2 + jnp.sum(middle) + last

    return known(cube(num), value, 0.0)


def ackley() -> Function:
    """Build many small wells around a deep one: four reals, two whole numbers, an option that moves it."""
    space = {
        **{f"x{i}": Real(-5.0, 10.0) for i in range(4)},
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

    return known(space, value, 0.0)


def rastrigin(num: int = 6) -> Function:
    """Build a local minimum at every whole number in [-3, 5], the lowest at 1."""

    def value(h):
        x = 8 * vector(h) - 4
        return 10 * num + jnp.sum(x**2 - 10 * jnp.cos(2 * jnp.pi * x))

    return known(cube(num), value, 0.0)


def tuning() -> Function:
    """Build an imitation of training: the rate over 1 - momentum counts, and too high a ratio is fatal.

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
    return known(space, value, float(least))


class Data(NamedTuple):
    """A data set within padded arrays.

    Attributes:
        inputs: Standardized inputs `[ROWS, FEATURES]`; `num_train` rows to train on, then `num_valid`.
        labels: Labels `[ROWS]`.
        num_train, num_valid, num_features, num_classes: Sizes of the parts of the arrays that count.
    """

    inputs: Array
    labels: Array
    num_train: Array
    num_valid: Array
    num_features: Array
    num_classes: Array


ROWS, FEATURES, CLASSES, WIDTH, BATCH_SIZE = 900, 64, 10, 16, 32
NETWORK_SPACE = {
    "lr": LogReal(1e-4, 1e0),
    "b1_gap": LogReal(1e-2, 1e0),
    "b2_gap": LogReal(1e-4, 1e0),
    "decay": LogReal(1e-5, 1e0),
    "scale": LogReal(1e-1, 1e1),
    "smoothing": Real(0.0, 0.3),
    "width": Integer(2, WIDTH),
    "activation": Choice(("tanh", "relu", "gelu", "sin")),
}


def load(name: str) -> Data:
    """Read a data set of scikit-learn, two thirds of it to train on."""
    from sklearn import datasets

    inputs, labels = getattr(datasets, f"load_{name}")(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))[:ROWS]
    num_train = 2 * len(order) // 3
    train = inputs[order[:num_train]]
    inputs = (inputs[order] - train.mean(0)) / (train.std(0) + 1e-6)
    padding = [(0, ROWS - len(order)), (0, FEATURES - inputs.shape[1])]
    sizes = num_train, len(order) - num_train, inputs.shape[1], int(labels.max()) + 1
    return Data(
        jnp.asarray(np.pad(inputs, padding), jnp.float32),
        jnp.asarray(np.pad(labels[order], padding[0]), jnp.int32),
        *(jnp.asarray(size, jnp.int32) for size in sizes),
    )


def network(name: str) -> Function:
    """Build an MLP on a small data set, by Adam from the same weights on the same minibatches.

    Nothing is random, so that the lowest value is not luck of the weights. Five logarithmic dimensions, one
    real, the width (units beyond it are zero) and the activation.
    """
    return Function(NETWORK_SPACE, trained, None, load(name), network_problem)


def trained(data: Data, h: HParams) -> Array:
    """Train with one setting, and return its objective."""
    rows = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], h)
    return full(HORIZON)(members(network_problem(data)), KEY, rows).values[0]


def network_problem(data: Data) -> Problem:
    """Build the training loop on a data set, which may be traced."""
    shown = jnp.arange(CLASSES) < data.num_classes

    def init(_, h):
        one, two = jax.random.split(KEY)
        live = jnp.arange(WIDTH) < h["width"]
        first = jax.random.normal(one, (FEATURES, WIDTH)) / jnp.sqrt(data.num_features)
        second = jax.random.normal(two, (WIDTH, CLASSES)) / jnp.sqrt(h["width"])
        return {
            "one": jnp.where(live, h["scale"] * first, 0),
            "bias": jnp.zeros(WIDTH),
            "two": jnp.where(live[:, None], h["scale"] * second, 0),
        }

    def logits(params, h, inputs):
        hidden = inputs @ params["one"] + params["bias"]
        hidden = select(h["activation"], jnp.stack([act(hidden) for act in ACTIVATIONS]))
        hidden = jnp.where(jnp.arange(WIDTH) < h["width"], hidden, 0)
        return jnp.where(shown, hidden @ params["two"], -1e9)

    def loss(params, h, batch):
        share = h["smoothing"] / data.num_classes
        targets = (1 - h["smoothing"]) * jax.nn.one_hot(batch[1], CLASSES) + share
        logs = jax.nn.log_softmax(logits(params, h, batch[0]))
        return -jnp.mean(jnp.sum(jnp.where(shown, targets * logs, 0), -1))

    def objective(params, h, batch):
        logs = jax.nn.log_softmax(logits(params, h, data.inputs))
        losses = -jnp.take_along_axis(logs, data.labels[:, None], -1)[:, 0]
        row = jnp.arange(ROWS) - data.num_train
        held_out = (row >= 0) & (row < data.num_valid)
        value = jnp.sum(jnp.where(held_out, losses, 0)) / data.num_valid
        return jnp.where(jnp.isfinite(value), jnp.minimum(value, CEILING), CEILING)

    def train_batch(_, step):
        index = jax.random.randint(jax.random.fold_in(KEY, step), (BATCH_SIZE,), 0, data.num_train)
        return data.inputs[index], data.labels[index]

    def optimizer(h):
        return optax.chain(
            optax.scale_by_adam(1 - h["b1_gap"], 1 - h["b2_gap"]),
            optax.add_decayed_weights(h["decay"]),
            optax.scale_by_learning_rate(h["lr"]),
        )

    return Problem(init, loss, objective, optimizer, train_batch, lambda _: ())


def members(problem: Problem) -> Population:
    """Build the population of a network; one order of minibatches for all, drawn once."""
    return population(problem, layout=vectorized(), order=KEY)


SYNTHETIC: dict[str, Callable[[], Function]] = {
    "bowl of logarithms, 8": logs,
    "Rosenbrock, 6": rosenbrock,
    "Hartmann, 6": hartmann,
    "Levy, 6": levy,
    "Ackley, mixed, 7": ackley,
    "tuning made up, mixed, 8": tuning,
}
NETWORKS: dict[str, Callable[[], Function]] = {
    f"MLP on {name.partition('_')[0]}, mixed, 8": lambda name=name: network(name)
    for name in ("digits", "breast_cancer", "wine", "iris")
}
