"""Small networks at every setting of a grid, trained and measured once: what the searches of `fghpo` look up.

The grid is Table 3 of the paper on flatness-guided search, thinned so that it can be trained whole on one
core: depth 1 to 4, width 16 to 64, batch 4 to 256, learning rate 1e-5 to 1. Each network is a ReLU MLP
trained by Adam, on a split of its own for each seed (60 % training, 20 % validation, 20 % test). Widths and
depths are masks: networks of one batch size are one program. After epoch 1 and after the last, the measures
of flatness are taken on the same minibatches of training samples, and their suprema kept. Half an hour for
the eight smallest sets on one core; resumable by data set, the smallest first.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.record import Figure, Results, markdown
from hypergrad import curvature as cv
from hypergrad.curvature.base import dense, loss_of
from tasks import data as files

SIZES = {
    "iris": 150, "wine": 178, "breast_cancer": 569, "australian": 690, "blood-transfusion": 748, "vehicle": 846,
    "credit-g": 1000, "car": 1728, "digits": 1797, "kc1": 2109, "segment": 2310, "phoneme": 5404,
}  # fmt: skip
"""The data sets of the paper that are tables, the smallest first; those of scikit-learn need no files."""
BUNDLED = ("iris", "wine", "breast_cancer", "digits")
DEPTHS, WIDTHS, BATCHES = (1, 2, 3, 4), (16, 32, 64), (4, 16, 64, 256)
RATES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
GRID = np.array(list(product(DEPTHS, WIDTHS, BATCHES, RATES)))
"""The settings `[288, 4]`, in the order of every column of the results."""
NUM_SEEDS = 2
EPOCHS = 20
READ = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, EPOCHS)
"""Epochs after which the validation set is read."""
NUM_PARTS, PART = 4, 16
"""Minibatches that measures are taken on, and the samples in each."""


class Split(NamedTuple):
    """Inputs `[n, D]` and labels `[n]` of one part of a data set."""

    inputs: np.ndarray
    labels: np.ndarray


class Member(NamedTuple):
    """A network on its way; every leaf `[N, ...]`."""

    params: Any
    moments: Any


def run(results: Results, options: argparse.Namespace) -> None:
    """Train and measure the grid on every data set that is not in the results yet."""
    for name in names(options):
        if name not in results.cases:
            print(f"{name} ...", flush=True)
            began = time.process_time()
            num_seeds, num = (1, 24) if options.quick else (NUM_SEEDS, len(GRID))
            figures = [
                figure
                for seed in range(num_seeds)
                for figure in measure_grid(load(name, options.data, seed), seed, num)
            ]
            results.add(
                name, [*figures, Figure("all", "seconds", time.process_time() - began, "s")]
            )


def names(options: argparse.Namespace) -> list[str]:
    """List the data sets that can be read, the smallest first."""
    if options.quick:
        return ["iris"]
    if not options.data:
        print("data sets of OpenML are left out: name the folder of their files with --data DIR")
        return list(BUNDLED)
    have = {path.stem for path in Path(options.data).glob("*.csv")} | set(BUNDLED)
    return [name for name in SIZES if name in have]


def load(name: str, folder: str | None, seed: int) -> tuple[list[Split], int]:
    """Read a data set; return its three splits, encoded by the first, and the number of classes."""
    if name in BUNDLED:
        from sklearn import datasets

        bunch = getattr(datasets, f"load_{name}")()
        columns = [column.astype(np.float64) for column in bunch.data.T]
        table = files.Table(
            list(map(str, range(len(columns)))), columns, "y", bunch.target.astype(str)
        )
    else:
        table = files.read_csv(Path(str(folder)) / f"{name}.csv", None)
    labels, classes = files.encode_labels(table, "classification")
    parts = files.split(len(labels), (0.2, 0.2), seed, labels)
    inputs = files.encode(table, parts[0]).astype(np.float32)
    return [Split(inputs[part], labels[part].astype(np.int32)) for part in parts], len(
        classes or ()
    )


def network(width: Any, depth: Any) -> cv.Layered:
    """Return the ReLU MLP whose units beyond `width` and layers beyond `depth` do not count."""

    def forward(dense, params, example):
        signal = example[0]
        for k, layer in enumerate(params[:-1]):
            live = (jnp.arange(WIDTHS[-1]) < width) & (k < depth)
            made = jnp.where(live, jax.nn.relu(dense(layer, signal)), 0)
            signal = made if k == 0 else jnp.where(k < depth, made, signal)
        return dense(params[-1], signal)

    return cv.Layered(forward, lambda z, example: cv.cross_entropy(z, example[1]))


def first_params(
    key: Any, width: Any, depth: Any, inputs: int, classes: int
) -> list[dict[str, Any]]:
    """Draw weights of variance 2 / (inputs that count); those that do not count are zero and stay so."""
    params, most = [], WIDTHS[-1]
    for k in range(len(DEPTHS) + 1):
        last = k == len(DEPTHS)
        shape = (inputs if k == 0 else most, classes if last else most)
        count = inputs if k == 0 else width
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
def train_epoch(members: Member, settings: Any, key: Any, train: Split, batch: int) -> Member:
    """Train N networks of one batch size for an epoch; all see the same order of the samples."""
    samples = len(train.labels)
    size = min(batch, samples)
    order = jax.random.permutation(key, samples)[: samples // size * size].reshape(-1, size)
    optimizer = optax.scale_by_adam()

    def step(members, index):
        part = jax.tree.map(lambda x: x[index], train)

        def one(member, width, depth, rate):
            gradient = jax.grad(loss_of(network(width, depth)))(member.params, part)
            moves, moments = optimizer.update(gradient, member.moments)
            return Member(jax.tree.map(lambda w, d: w - rate * d, member.params, moves), moments)

        return jax.vmap(one)(members, *settings), None

    return jax.lax.scan(step, members, order)[0]


@jax.jit
def begin(keys: Any, settings: Any, like: Any) -> Member:
    """Draw the first weights; `like` `[inputs, classes]` has the shapes of the data."""

    def one(key, width, depth, rate):
        params = first_params(key, width, depth, *like.shape)
        return Member(params, optax.scale_by_adam().init(params))

    return jax.vmap(one)(keys, *settings)


def auc(scores: Any, labels: Any) -> Any:
    """Return the area under the ROC curve, the mean over classes against the rest; ties count half."""
    classes = scores.shape[1]

    def one(c):
        s, positive = scores[:, c], labels == c
        above = (s[:, None] > s) + 0.5 * (s[:, None] == s)
        pairs = positive[:, None] & ~positive
        return jnp.sum(jnp.where(pairs, above, 0)) / jnp.maximum(jnp.sum(pairs), 1)

    return one(1) if classes == 2 else jnp.mean(jnp.stack([one(c) for c in range(classes)]))


@jax.jit
def judge(members: Member, settings: Any, part: Split) -> dict[str, Any]:
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
def measure_cheap(members: Member, settings: Any, parts: Split) -> dict[str, Any]:
    """Return the values that need a few passes of the network on each minibatch, `[N, NUM_PARTS]`."""
    return _each(
        members, settings, parts, lambda model, p, b: {n: f(model, p, b) for n, f in CHEAP.items()}
    )


@jax.jit
def measure_theorem(members: Member, settings: Any, parts: Split) -> dict[str, Any]:
    """Return Theorem 1's value alone."""
    return _each(
        members, settings, parts, lambda model, p, b: {"theorem_1": cv.theorem_1(model, p, b)}
    )


@partial(jax.jit, static_argnums=3)
def measure_exact(members: Member, settings: Any, parts: Split, bent: bool) -> dict[str, Any]:
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

    return _each(members, settings, parts, norms)


def _each(members: Member, settings: Any, parts: Split, function: Callable) -> dict[str, Any]:
    def one(x):
        params, width, depth = x
        return jax.lax.map(lambda part: function(network(width, depth), params, part), parts)

    return jax.lax.map(one, (members.params, *settings[:2]), batch_size=4)


def measure_grid(data: tuple[list[Split], int], seed: int, num: int) -> list[Figure]:
    """Train the grid on one split; return a list of numbers, one a setting, for each figure."""
    (train, valid, test), classes = data
    every = np.sort(np.arange(num) * 11 % len(GRID))  # 11 has no factor in common with the grid
    columns: dict[str, np.ndarray] = {}
    clock: dict[str, float] = {}

    def keep(where, found, after=""):
        for name, values in found.items():
            column = columns.setdefault(f"{name}{after}", np.full(len(GRID), np.nan))
            column[where] = np.asarray(values, np.float64)

    def timed(what, function, *args):
        began = time.process_time()
        made = jax.block_until_ready(function(*args))
        clock[what] = clock.get(what, 0.0) + time.process_time() - began
        return made

    order = np.random.default_rng(seed).permutation(len(train.labels))
    size = min(PART, len(order) // NUM_PARTS)
    parts = jax.tree.map(
        lambda x: x[order[: NUM_PARTS * size]].reshape(NUM_PARTS, size, *x.shape[1:]), train
    )
    for batch in BATCHES:
        where = every[GRID[every, 2] == batch]
        settings = (
            jnp.asarray(GRID[where, 1], jnp.int32),
            jnp.asarray(GRID[where, 0], jnp.int32),
            jnp.asarray(GRID[where, 3], jnp.float32),
        )
        key = jax.random.fold_in(jax.random.key(seed), batch)
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed + 1), i))(where)
        members = begin(keys, settings, np.zeros((train.inputs.shape[1], classes)))
        for epoch in range(1, EPOCHS + 1):
            members = timed(
                "training",
                train_epoch,
                members,
                settings,
                jax.random.fold_in(key, epoch),
                train,
                batch,
            )
            if epoch in READ:
                found = timed("judging", judge, members, settings, valid)
                keep(where, {n: found[n] for n in ("auc", "loss")}, f"_valid_{epoch}")
            if epoch in (1, EPOCHS):
                keep(where, timed("judging", judge, members, settings, train), f"_train_{epoch}")
                cheap = timed("surrogates", measure_cheap, members, settings, parts)
                exact = timed("exact norms", measure_exact, members, settings, parts, epoch == 1)
                for name, values in (cheap | exact).items():
                    keep(where, {name: jnp.max(values, 1)}, f"_{epoch}")
                for name in ("full", "last_layer"):
                    violated = jnp.mean(cheap["theorem_1"] > exact[name], axis=1)
                    sound = jnp.isfinite(exact[name]).all(1)
                    keep(
                        where,
                        {f"violated_{name}": jnp.where(sound, violated, jnp.nan)},
                        f"_{epoch}",
                    )
            elif epoch <= 10:
                values = timed("surrogates", measure_theorem, members, settings, parts)
                keep(where, {"theorem_1": jnp.max(values["theorem_1"], 1)}, f"_{epoch}")
        keep(where, timed("judging", judge, members, settings, test), "_test")
    figures = [
        Figure("grid", name, tidy(column[every]), "", seed) for name, column in columns.items()
    ]
    return [*figures, *(Figure("clock", name, s, "s", seed) for name, s in clock.items())]


def tidy(values: np.ndarray) -> list[float | None]:
    """Round to five digits; what is not finite is null."""
    return [float(f"{v:.5g}") if np.isfinite(v) else None for v in values]


def column(results: Results, case: str, name: str) -> np.ndarray:
    """Read a column of a data set, `[seeds, settings]`, NaN where a network diverged."""
    return np.array(results.cases[case]["grid"][name], dtype=float)


def table(results: Results) -> str:
    """Write what was trained, and the processor seconds that the last seed took, when all was compiled."""
    rows = []
    for name, case in results.cases.items():
        best = column(results, name, "auc_test")
        lost = np.mean(~np.isfinite(best))
        clock = {key: value[-1] for key, value in case["clock"].items()}
        rows.append(
            [
                name, f"{best.shape[0]} x {best.shape[1]}", f"{100 * np.nanmax(best):.1f}",
                f"{100 * np.nanmedian(best):.1f}", f"{100 * lost:.0f} %",
                *(f"{clock[key]:.1f}" for key in ("training", "surrogates", "exact norms")),
            ]
        )  # fmt: skip
    header = [
        "data set", "seeds x networks", "best test AUC", "median", "diverged", "CPU s training", "s surrogates",
        "s exact norms",
    ]  # fmt: skip
    return markdown(header, rows)


def summary(results: Results) -> str:
    """Write which rates the flattest fifth after an epoch was trained with, and how good it is in the end."""
    rows = []
    for measure in MEASURES:
        shares, gaps = [], []
        for case in results.cases:
            flat, best = column(results, case, f"{measure}_1"), column(results, case, "auc_test")
            for values, auc in zip(flat, best, strict=True):
                flattest = np.argsort(values)[: len(values) // 5]  # NaN comes last
                shares.append([np.mean(GRID[flattest, 3] == rate) for rate in RATES])
                gaps.append(np.nanmean(auc[flattest]) - np.nanmean(auc))
        cells = [f"{100 * share:.0f} %" for share in np.mean(shares, 0)]
        rows.append([measure, *cells, f"{100 * np.mean(gaps):+.1f}"])
    header = ["flattest fifth by", *(f"rate {rate:g}" for rate in RATES), "test AUC against all"]
    return markdown(header, rows)
