"""Which training examples made a prediction? Scores of every example, judged by training without some.

A network is trained once, and the loss of each test example is attributed to the training examples: through
the whole of training, by influence functions and by gradient tracing, which may take about the same time. Of
influence functions by Hessian and Gauss-Newton matrix, with four dampings each, the best at 5 % is kept, which
favours them. The network is then trained again, from the same key in the same order of minibatches, on random
subsets that drop 1, 5 and 50 % of the examples. The linear datamodeling score is the mean over test examples of
Spearman's correlation between predicted and true losses over the subsets. On 100 examples, training without
each of them in turn is a method, too.

The digits come in three more ways that tell what decides the score: with ReLU, trained ten times as far, and
trained a tenth as far. Resumable by case.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks.record import Figure, Results, markdown
from hypergrad.core.flax import from_linen, from_nnx
from hypergrad.core.network import PureModel
from hypergrad.estimators import (
    attribution,
    exact_leave_one_out,
    gradient_tracing,
    influence,
    linear_datamodeling_score,
    random_subsets,
    retrained,
    solve,
)
from hypergrad.estimators.implicit.response import gauss_newton, hessian_of_loss
from hypergrad.problem import Examples, Problem
from models.cnn import StridedCNN
from models.mlp import MLP
from tasks import digits, images
from tasks.supervised import Splits

DROPS = (0.01, 0.05, 0.5)
DAMPINGS = (3e-3, 1e-2, 3e-2, 1e-1)
NUM_PRODUCTS = 200
"""Products with the Hessian in the solve of an influence function."""
NUM_CHECKPOINTS = 250
THROUGH = "through training"


class Case(NamedTuple):
    """One training loop, and how much of it is judged.

    Attributes:
        model: Network.
        splits: Training set, a validation set that is not read, and the test examples that are attributed.
        rate: Learning rate of SGD.
        horizon: Number of steps.
        batch_size: Number of examples a step, drawn with replacement.
        num_subsets: Number of subsets for each share dropped.
        leave_one_out: Whether every example is left out in turn, too.
    """

    model: PureModel
    splits: Splits
    rate: float
    horizon: int
    batch_size: int = 128
    num_subsets: int = 200
    leave_one_out: bool = False

    def outputs(self, params: Any, weights: Any, batch: Any) -> jax.Array:
        """Return the logits of a batch of examples and their indices."""
        return self.model.apply(params, batch[0][0], train=True)[0]


def run(results: Results, options: argparse.Namespace) -> None:
    """Measure every case that is not in the results yet."""
    jax.config.update("jax_enable_compilation_cache", False)  # compilations are timed
    made = cases(options)
    if not options.data:
        print("MNIST-10k is left out: name the folder of its files with --data DIR")
    for name, make in made.items():
        if name not in results.cases:
            print(f"{name} ...", flush=True)
            results.add(name, measure(make()))


def cases(options: argparse.Namespace) -> dict[str, Callable[[], Case]]:
    """Return how to make each case."""
    if options.quick:
        few = {"num_train": 100, "num_test": 10}
        small = partial(on_digits, horizon=60, batch_size=32, num_subsets=10, **few)
        return {"digits, 100 examples": partial(small, leave_one_out=True)}
    found = {
        "digits": on_digits,
        "digits, 100 examples": partial(
            on_digits, num_train=100, horizon=300, batch_size=32, leave_one_out=True
        ),
        "digits, ReLU": partial(on_digits, activation=jax.nn.relu),
        "digits, rate .01": partial(on_digits, rate=0.01),
        "digits, rate 1": partial(on_digits, rate=1.0),
    }
    if options.data:
        found["MNIST-10k, CNN"] = partial(on_mnist, options.data)
    return found


def on_digits(
    *,
    activation: Callable = jax.nn.gelu,
    rate: float = 0.1,
    horizon: int = 1000,
    num_train: int = 1000,
    num_test: int = 100,
    **other: Any,
) -> Case:
    """Make an MLP 64-64-10 on the digits."""
    train, valid, test = digits.load(0)
    splits = Splits(cut(train, num_train), valid, cut(test, num_test))
    model = from_linen(MLP((64, 10), activation=activation))
    return Case(model, splits, rate, horizon, **other)


def on_mnist(data: str) -> Case:
    """Make a convolutional network with BatchNorm on 5,000 images."""
    train, valid, test = images.load(data, 5000, 1, 100)
    splits = Splits(*((x.reshape(len(x), 28, 28, 1), y) for x, y in (train, valid, test)))
    model = from_nnx(lambda rngs: StridedCNN((28, 28, 1), 10, 8, activation=nnx.gelu, rngs=rngs))
    return Case(model, splits, 0.05, 200, batch_size=50)


def cut(split: tuple[np.ndarray, np.ndarray], num: int) -> tuple[np.ndarray, np.ndarray]:
    return split[0][:num], split[1][:num]


def make_problem(case: Case) -> tuple[Problem, Callable, Callable]:
    """Return the problem, its weighted loss, and the losses of the test examples."""
    train, _, test = (tuple(map(jnp.asarray, part)) for part in case.splits)
    num = len(train[1])
    each = optax.softmax_cross_entropy_with_integer_labels

    def weighted_loss(params, h, batch, weights):
        logits, state = case.model.apply(params, batch[0], train=True)
        value = jnp.mean(weights * each(logits, batch[1]))
        return value if state is None else (value, state)

    def losses(params, h):
        return each(case.model.apply(params, test[0])[0], test[1])

    def draw(key, step):
        return jax.random.randint(key, (case.batch_size,), 0, num)

    def at(indices):
        return train[0][indices], train[1][indices]

    problem = Problem(
        init=lambda key, h: case.model.init(key, train[0][:1]),
        loss=lambda params, h, batch: weighted_loss(params, h, batch, 1.0),
        objective=lambda params, h, batch: jnp.mean(losses(params, h)),
        optimizer=lambda h: optax.sgd(h["lr"]),
        train_batch=lambda key, step: at(draw(key, step)),
        valid_batch=lambda key: (),
        train_set=Examples(num, at, draw),
    )
    return problem, weighted_loss, losses


def measure(case: Case) -> list[Figure]:
    """Attribute by every method, train again, and compare."""
    problem, loss, of = make_problem(case)
    num, horizon = len(case.splits.train[1]), case.horizon
    h, key = {"lr": jnp.float32(case.rate)}, jax.random.key(0)
    common: dict[str, Any] = {"of": of, "loss": loss}
    again = Costed(lambda h, key, w: retrained(problem, h, key, horizon, w, **common))
    subsets = {
        drop: random_subsets(jax.random.key(1), case.num_subsets, num, drop) for drop in DROPS
    }
    values = {drop: again(h, key, weights) for drop, weights in subsets.items()}
    one = again.seconds / case.num_subsets
    figures = again.figures("retraining", one)

    def judged(found: Any) -> dict[float, Any]:
        return {d: linear_datamodeling_score(found, subsets[d], values[d]) for d in DROPS}

    for method, tried in methods(problem, case, common).items():
        runs = [Costed(make) for make in tried]
        found = [make(h, key) for make in runs]
        scores = [judged(one) for one in found]
        best = int(np.argmax([np.nan_to_num(s[DROPS[1]].mean, nan=-1) for s in scores]))
        figures += runs[best].figures(method, runs[best].seconds)
        for drop, score in scores[best].items():
            for name in ("mean", "low", "high"):
                value = round(float(getattr(score, name)), 4)
                figures.append(Figure(method, f"LDS {drop:.0%} {name}", value, "correlation"))
        if method == THROUGH:
            top = float(jnp.max(found[best].rounding))
            figures.append(Figure(method, "rounding", float(f"{top:.2g}"), "of the scores"))
            loss_now = float(np.mean(found[best].value))
            figures.append(Figure(method, "test loss", round(loss_now, 4), "nats"))
    return figures


def methods(problem: Problem, case: Case, common: dict[str, Any]) -> dict[str, list[Callable]]:
    """Return {method: functions (hparams, key) -> attribution, of which the best counts}."""

    def called(function: Callable, **options: Any) -> Callable:
        return lambda h, key: function(problem, h, key, case.horizon, **common, **options)

    found = {
        THROUGH: [called(attribution)],
        "without certificate": [called(attribution, certified=False)],
        "influence functions": [
            called(influence, solve=solve.damped(solve.cg(NUM_PRODUCTS), d), curvature=curvature)
            for curvature in (hessian_of_loss, gauss_newton(case.outputs, convex))
            for d in DAMPINGS
        ],
        "gradient tracing": [
            called(gradient_tracing, num_checkpoints=min(NUM_CHECKPOINTS, case.horizon))
        ],
    }
    if case.leave_one_out:
        found["leave one out"] = [called(exact_leave_one_out)]
    return found


def convex(logits: jax.Array, weights: jax.Array, batch: Any) -> jax.Array:
    """Return the loss of a batch of examples and their indices at weights of all examples."""
    (_, labels), indices = batch
    each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.mean(weights[indices] * each)


class Costed:
    """A compiled function, and what its last call and its compilation cost on one core."""

    def __init__(self, function: Callable):
        self.function = function
        self.program: Any = None
        self.seconds = self.compile_seconds = 0.0

    def __call__(self, *args: Any) -> Any:
        if self.program is None:
            began = time.process_time()
            self.program = jax.jit(self.function).lower(*args).compile()
            self.compile_seconds = time.process_time() - began
        began = time.process_time()
        found = jax.block_until_ready(self.program(*args))
        self.seconds = time.process_time() - began
        return found

    def figures(self, method: str, seconds: float) -> list[Figure]:
        """Return the CPU seconds of a run, of the compilation, and the megabytes of temporaries."""
        size = self.program.memory_analysis().temp_size_in_bytes / 1e6
        return [
            Figure(method, "time", float(f"{seconds:.3g}"), "CPU s"),
            Figure(method, "compile", float(f"{self.compile_seconds:.3g}"), "CPU s"),
            Figure(method, "memory", float(f"{size:.3g}"), "MB"),
        ]


def table(results: Results) -> str:
    """Write the results as Markdown."""
    parts = []
    for name, found in results.cases.items():
        rows = []
        for method, figures in found.items():
            scores = [
                "{:.3f} ({:.3f} to {:.3f})".format(
                    *(figures[f"LDS {drop:.0%} {part}"] for part in ("mean", "low", "high"))
                )
                if f"LDS {drop:.0%} mean" in figures
                else ""
                for drop in DROPS
            ]
            costs = [f"{figures[metric]:.3g}" for metric in ("time", "compile", "memory")]
            rows.append([method, *scores, *costs])
        through = found[THROUGH]
        head = (
            f"**{name}**, test loss {through['test loss']:.3g}, rounding at most "
            f"{through['rounding']:.0e} of the scores of a test example"
        )
        header = ["method", *(f"LDS, {d:.0%} dropped" for d in DROPS), "s", "compile s", "MB"]
        parts.append(f"{head}\n\n{markdown(header, rows)}")
    return "\n\n".join(parts)


summary = table
