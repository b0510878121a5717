"""Which labels are wrong? A weight for every training example, tuned by implicit hypergradients.

Half the training labels are flipped to another class. Softmax regression is trained on the weighted examples,
the weights descend the loss on a clean validation set, and examples whose weight falls below one half are
thrown out. The same regression is then fitted to the remaining examples and the validation set. It is judged
against fits to the validation set alone, to all examples with their noise, and to all examples with the true
labels.
"""

import argparse
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.record import Figure, Results, markdown
from hypergrad import study
from hypergrad.core.solve import cg
from hypergrad.estimators import implicit
from hypergrad.problem import Examples, Problem
from hypergrad.space import Real
from hypergrad.train import init_state, unroll
from hypergrad.tuners import descent
from tasks import images
from tasks.supervised import Splits, cross_entropy, take

NUM_SEEDS = 5
PENALTY = 1e-2
"""Penalty of the regression that is cleaned; a lower one lets it learn the wrong labels by heart."""
FIT_PENALTY = 1e-3
"""Penalty of the regressions that are compared."""
METHODS = ("cleaned", "validation only", "noisy", "oracle")


def run(results: Results, options: argparse.Namespace) -> None:
    """Measure every data set that is not in the results yet."""
    num_seeds, budget = (2, 20) if options.quick else (NUM_SEEDS, 100)
    cases: dict[str, Callable[[int], Splits]] = {"digits": digits}
    if options.data:
        sizes = (250, 250, 500) if options.quick else (2500, 2500, 5000)
        cases["MNIST-10k"] = lambda seed: flat(images.load(options.data, *sizes, seed))
    else:
        print("MNIST-10k is left out: name the folder of its files with --data DIR")
    for name, load in cases.items():
        if name not in results.cases:
            print(f"{name} ...", flush=True)
            figures = [
                figure for seed in range(num_seeds) for figure in measure(load(seed), budget, seed)
            ]
            results.add(name, [*figures, Figure("cleaned", "hypergradients", budget, "count")])


def digits(seed: int) -> Splits:
    """Split the 8x8 digits into 600, 600 and 597."""
    from sklearn.datasets import load_digits

    x, y = map(np.asarray, load_digits(return_X_y=True))
    order = np.random.default_rng(seed).permutation(len(y))
    parts = np.split(order, [600, 1200])
    return take((x / 16).astype(np.float32), y.astype(np.int32), parts)


def flat(splits: Splits) -> Splits:
    """Make one row of every image."""
    return Splits(*((x.reshape(len(x), -1), y) for x, y in splits))


def flip(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Give half of the labels another class; return the labels, and which were changed."""
    random = np.random.default_rng(seed + 1000)
    flipped = np.zeros(len(labels), bool)
    flipped[random.permutation(len(labels))[: len(labels) // 2]] = True
    other = (labels + random.integers(1, 10, len(labels))) % 10
    return np.where(flipped, other, labels).astype(np.int32), flipped


def make_problem(train, valid, penalty: float) -> Problem:
    """Build weighted softmax regression by gradient descent with momentum, on all examples at a time."""
    x, y = map(jnp.asarray, train)
    # the largest curvature of a weighted example's loss is at most half its squared length
    rate = 1.0 / (0.5 * float(np.linalg.norm(train[0], 2) ** 2 / len(train[1])) + 0.5 + penalty)

    def loss(params, h, batch):
        inputs, targets, index = batch
        logits = inputs @ params["w"] + params["b"]
        each = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return jnp.mean(h["weight"][index] * each) + 0.5 * penalty * jnp.sum(params["w"] ** 2)

    examples = Examples(len(y), lambda index: (x[index], y[index], index))
    everything = jnp.arange(len(y))
    return Problem(
        init=lambda key, h: {"w": jnp.zeros((x.shape[1], 10)), "b": jnp.zeros(10)},
        loss=loss,
        objective=lambda params, h, batch: cross_entropy(
            batch[0] @ params["w"] + params["b"], batch[1]
        ),
        optimizer=lambda h: optax.sgd(rate, momentum=0.9),
        train_batch=lambda key, step: (x, y, everything),
        valid_batch=lambda key: tuple(map(jnp.asarray, valid)),
        train_set=examples,
    )


def clean(train, valid, budget: int, seed: int) -> np.ndarray:
    """Tune a weight in [0, 1] for every example; return the weights."""
    problem = make_problem(train, valid, PENALTY)
    estimator = implicit(problem, 20, solve=cg(20), warm_start=True)
    space = {"weight": Real(0.0, 1.0, default=0.5, shape=(len(train[1]),))}
    tuner = descent(estimator, space, optimizer=optax.adam(0.2))
    last = study.run(tuner, jax.random.key(seed), budget).trials[-1]
    return np.asarray(last.hparams["weight"][0])


def accuracy(fitted, test) -> float:
    """Fit the same regression to (inputs, labels), and judge it on the test set."""
    problem = make_problem(fitted, test, FIT_PENALTY)
    hparams = {"weight": jnp.ones(len(fitted[1]))}

    @jax.jit
    def train():
        return unroll(
            problem, hparams, init_state(problem, jax.random.key(0), hparams), 1000
        ).params

    params = train()
    found = jnp.argmax(jnp.asarray(test[0]) @ params["w"] + params["b"], -1)
    return float(jnp.mean(found == jnp.asarray(test[1])))


def measure(splits: Splits, budget: int, seed: int) -> list[Figure]:
    """Flip, clean and judge; the test set is read only at the end."""
    labels, flipped = flip(splits.train[1], seed)
    noisy = (splits.train[0], labels)
    began = time.perf_counter()
    weights = clean(noisy, splits.valid, budget, seed)
    seconds = time.perf_counter() - began
    thrown = weights < 0.5
    hits = float(np.sum(thrown & flipped))
    f1 = 2 * hits / max(float(np.sum(thrown) + np.sum(flipped)), 1.0)
    kept = (splits.train[0][~thrown], labels[~thrown])
    fits = {
        "cleaned": join(kept, splits.valid),
        "validation only": splits.valid,
        "noisy": join(noisy, splits.valid),
        "oracle": join(splits.train, splits.valid),
    }
    figures = [
        Figure(name, "test accuracy", accuracy(fitted, splits.test), "fraction", seed)
        for name, fitted in fits.items()
    ]
    figures.append(Figure("cleaned", "F1", f1, "of the flipped labels", seed))
    figures.append(Figure("cleaned", "time", seconds, "s", seed))
    return figures


def join(left, right) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([left[0], right[0]]), np.concatenate([left[1], right[1]])


def table(results: Results) -> str:
    """Write the results as Markdown."""
    parts = []
    for name, methods in results.cases.items():
        rows = []
        for method in METHODS:
            found = methods[method]
            f1 = spread(found["F1"]) if "F1" in found else ""
            seconds = f"{np.median(found['time']):.0f}" if "time" in found else ""
            rows.append([method, spread(found["test accuracy"]), f1, seconds])
        num = len(methods["oracle"]["test accuracy"])
        head = (
            f"**{name}**, half the training labels flipped, {methods['cleaned']['hypergradients']} "
            f"hypergradients; mean and standard deviation over {num} seeds"
        )
        header = ["fitted to", "test accuracy", "F1 of the flipped", "seconds to clean"]
        parts.append(f"{head}\n\n{markdown(header, rows)}")
    return "\n\n".join(parts)


def spread(values: list[float]) -> str:
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


summary = table
