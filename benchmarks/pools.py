"""The paper's other spaces, by pools of random settings: Bayesmark's on four tables, and images.

Bayesmark's space of `MLP-adam`, whose optimizer is the paper's: one hidden layer of 50 to 200 units, L2
penalty α from 1e-5 to 10, batch 10 to 250, rate 1e-5 to 0.1, Adam's β_1, β_2 and ε. Its `tol` and
`validation_fraction` concern early stopping and are left out: all networks train twenty epochs, on one split.
Batch sizes are seven, evenly spaced, as often each; the rest is drawn as Bayesmark draws it. MNIST and SVHN
take networks of dense layers (depth 1 to 4, width 16 to 64, rate 1e-5 to 1) where the paper's are
convolutional, on 10,000 images; batches begin at 32 for the sake of time.

Each pool is trained and measured once a split. Searches draw from it, at equal cost as in `fghpo`: Algorithm 1
by each measure, its combinations, plain halving, random search. Those that learn, TPE and others, search the
space itself; a suggestion becomes the nearest setting of the pool that the search has not tried yet, in unit
coordinates, and the search is told of that one. Bayesmark's score is 100 (1 − (f − best) / (middle − best)) of
the validation loss f, with the best and the median of the pool, f at most the median; here of the test loss
too. Ten minutes on one core; resumable by data set.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import fghpo
from benchmarks.configurations import BUNDLED, EPOCHS, READ, load
from benchmarks.fghpo import (
    BUDGET,
    CONTROL,
    FIRST,
    REPEATS,
    SCORE,
    TRIALS,
    bohb_brackets,
    chosen,
    compared,
    drawing,
    learning,
    optuna_study,
)
from benchmarks.networks import Group, Split, settings, tidy, train_and_measure
from benchmarks.record import Figure, Results, markdown
from hypergrad.searchers import Searcher
from hypergrad.space import Integer, LogReal, Real, coordinates, to_units
from tasks.arrays import read_idx
from tasks.data import split

BATCHES, PER_BATCH = (10, 50, 90, 130, 170, 210, 250), 40
IMAGE_BATCHES, PER_IMAGE_BATCH = (32, 64, 128, 256), 25
LOOKS = tuple(sorted({1, EPOCHS} | {rung.steps for rungs in bohb_brackets() for rung in rungs}))
"""Epochs after which a search may look at the validation set."""
NUM_SEEDS = 2
NUM_IMAGES = 10_000
BETAS_1, BETAS_2 = (0.5, 0.99), (0.9, 1 - 1e-6)
IMAGES = {
    "mnist": ("t10k-images-idx3-ubyte*", "t10k-labels-idx1-ubyte*"),
    "svhn": ("test_32x32.mat",),
}
"""Sets of images -> the files that --data must hold."""


def run(results: Results, options: argparse.Namespace) -> None:
    """Train the pools that are not in the results yet, and search them."""
    for name in ["iris"] if options.quick else [*BUNDLED, *IMAGES]:
        if name in results.cases:
            continue
        if name in IMAGES and not files_of(name, options.data):
            print(
                f"{name} is left out: name a folder of {' and '.join(IMAGES[name])} with --data DIR"
            )
            continue
        print(f"{name} ...", flush=True)
        began = time.process_time()
        num_seeds = 1 if options.quick or name in IMAGES else NUM_SEEDS
        figures, pools = [], []
        for seed in range(num_seeds):
            data = images(name, options.data, seed) if name in IMAGES else load(name, None, seed)
            columns, clock = train_and_measure(
                data, seed, groups_of(name, len(data[0][0].labels), options.quick), LOOKS
            )
            pools.append(columns)
            figures += [Figure("pool", n, tidy(x), "", seed) for n, x in columns.items()]
            figures += [Figure("clock", n, s, "s", seed) for n, s in clock.items()]
        figures.append(Figure("all", "seconds", time.process_time() - began, "s"))
        results.add(name, [*figures, *searches(name, pools, options.quick)])


def files_of(name: str, folder: str | None) -> list[Path]:
    """Return the files of a set of images; none where one is missing."""
    found = [sorted(Path(folder).glob(file)) for file in IMAGES[name]] if folder else []
    return [paths[0] for paths in found] if all(found) else []


def images(name: str, folder: str, seed: int) -> tuple[list[Split], int]:
    """Read ten thousand images; return three splits and the number of classes."""
    paths = files_of(name, folder)
    pixels, labels = map(read_idx, paths) if name == "mnist" else read_svhn(paths[0])
    pixels, labels = pixels[:NUM_IMAGES], labels[:NUM_IMAGES]
    inputs = pixels.reshape(len(pixels), -1).astype(np.float32) / 255
    labels = labels.astype(np.int32)
    parts = split(len(labels), (0.2, 0.2), seed, labels)
    return [Split(inputs[part], labels[part]) for part in parts], 10


def read_svhn(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the cropped digits of SVHN, `X` [32, 32, 3, images] and `y`, in which ten is the digit 0."""
    from scipy.io import loadmat  # comes with jax

    try:
        made = loadmat(path, variable_names=["X", "y"])
        pixels, labels = np.moveaxis(made["X"], 3, 0), made["y"].ravel() % 10
    except Exception as error:  # the reader may raise anything at a damaged file
        raise ValueError(
            f"data {str(path)!r} cannot be read as SVHN ({type(error).__name__}), expected its cropped digits "
            "X [32, 32, 3, images] and y; fetch it again"
        ) from error
    return pixels, labels


def groups_of(name: str, samples: int, quick: bool) -> list[Group]:
    """Draw the pool of a data set, the same whatever the seed, by batch size."""
    batches, each = (IMAGE_BATCHES, PER_IMAGE_BATCH) if name in IMAGES else (BATCHES, PER_BATCH)
    random = np.random.default_rng(0)
    groups = []
    for i, batch in enumerate(batches):
        size = min(batch, samples)
        drawn = _image_settings(random, each) if name in IMAGES else _bayesmark(random, each, size)
        largest = (4, 64) if name in IMAGES else (1, 200)
        groups.append(Group(np.arange(i * each, (i + 1) * each), size, drawn, largest))
    return groups[:2] if quick else groups


def _image_settings(random: np.random.Generator, num: int) -> Any:
    width = 2 ** random.integers(4, 7, num)
    return settings(width, random.integers(1, 5, num), _log(random, num, 1e-5, 1.0))


def _bayesmark(random: np.random.Generator, num: int, batch: int) -> Any:
    def logit(low, high):
        return 1 / (1 + np.exp(-random.uniform(log_odds(low), log_odds(high), num)))

    return settings(
        width=random.integers(50, 201, num),
        depth=1,
        rate=_log(random, num, 1e-5, 1e-1),
        decay=_log(random, num, 1e-5, 1e1) / batch,  # as scikit-learn: a batch is the set at most
        beta_1=logit(*BETAS_1),
        beta_2=logit(*BETAS_2),
        epsilon=_log(random, num, 1e-9, 1e-6),
    )


def _log(random: np.random.Generator, num: int, low: float, high: float) -> np.ndarray:
    return np.exp(random.uniform(np.log(low), np.log(high), num))


def log_odds(share: Any) -> Any:
    """Return log p / (1 − p)."""
    return np.log(share) - np.log1p(-share)


def drawn_from(name: str, quick: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the space from which a pool was drawn, and the settings of the pool there, `[settings]`.

    Batch sizes count by their place among those of the pool, betas by their log-odds.
    """
    groups = groups_of(name, max(*BATCHES, *IMAGE_BATCHES), quick)  # no batch is cut to the samples
    of = jax.tree.map(lambda *parts: np.concatenate(parts), *[group.settings for group in groups])
    place = np.repeat(np.arange(len(groups)), [len(group.rows) for group in groups])
    if name in IMAGES:
        space = {
            "batch": Integer(0, len(IMAGE_BATCHES) - 1), "log2_width": Integer(4, 6),
            "depth": Integer(1, 4), "rate": LogReal(1e-5, 1.0),
        }  # fmt: skip
        log2_width = np.round(np.log2(of.width)).astype(int)
        found = {"batch": place, "log2_width": log2_width, "depth": of.depth, "rate": of.rate}
        return space, jax.tree.map(jnp.asarray, found)
    space = {
        "batch": Integer(0, len(BATCHES) - 1), "width": Integer(50, 200), "rate": LogReal(1e-5, 1e-1),
        "alpha": LogReal(1e-5, 1e1), "odds_1": Real(*map(log_odds, BETAS_1)),
        "odds_2": Real(*map(log_odds, BETAS_2)), "epsilon": LogReal(1e-9, 1e-6),
    }  # fmt: skip
    batch = np.concatenate([np.full(len(group.rows), group.batch) for group in groups])
    odds = [log_odds(np.float64(beta)).astype(np.float32) for beta in (of.beta_1, of.beta_2)]
    found = {
        "batch": place, "width": of.width, "rate": of.rate, "alpha": of.decay * batch,
        "odds_1": odds[0], "odds_2": odds[1], "epsilon": of.epsilon,
    }  # fmt: skip
    return space, jax.tree.map(jnp.asarray, found)


def nearest(units: Any, wanted: Any, tried: Any) -> Any:
    """Return the row of `units` [rows, D] nearest to `wanted` [D] of those not tried yet, `tried` [rows]."""
    return jnp.argmin(jnp.where(tried, jnp.inf, jnp.sum((units - wanted) ** 2, 1)))


def on_pool(space: Any, settings: Any) -> Callable[[Searcher], Searcher]:
    """Make a searcher of `space` ask for the rows of a pool nearest to its suggestions, none twice."""
    units = to_units(space, settings)

    def given(searcher):
        def ask(key, state, num):
            inner, tried = state

            def take(tried, wanted):
                row = nearest(units, wanted, tried)
                return tried.at[row].set(True), row

            wanted = to_units(space, searcher.ask(key, inner, num))
            return {"row": jax.lax.scan(take, tried, wanted)[1]}

        def tell(state, trials):
            inner, tried = state
            rows = trials.hparams["row"]
            trained = trials._replace(hparams=jax.tree.map(lambda x: x[rows], settings))
            return searcher.tell(inner, trained), tried.at[rows].set(True)

        return Searcher(lambda key: (searcher.init(key), jnp.zeros(len(units), bool)), ask, tell)

    return given


def optuna_on_pool(space: Any, settings: Any, values: np.ndarray, seed: int) -> list[int] | None:
    """Return the rows that Optuna's TPE tries in unit coordinates, one by one; None without Optuna."""
    study = optuna_study(seed)
    if study is None:
        return None
    import optuna

    units, levels = np.asarray(to_units(space, settings)), coordinates(space).levels
    ways: dict[str, Any] = {
        f"{d}": optuna.distributions.IntDistribution(0, int(num) - 1)
        if num
        else optuna.distributions.FloatDistribution(0.0, 1.0)
        for d, num in enumerate(levels)
    }
    rows: list[int] = []
    for _ in range(TRIALS):
        trial = study.ask(ways)
        given = np.array([trial.params[name] for name in ways])
        study.tell(trial, state=optuna.trial.TrialState.FAIL)  # another row is trained instead
        wanted = np.where(levels > 0, (given + 0.5) / np.maximum(levels, 1), given)
        row = int(nearest(units, wanted, np.isin(np.arange(len(units)), rows)))
        trained = [int(u * n) if n else float(u) for u, n in zip(units[row], levels, strict=True)]
        params = dict(zip(ways, trained, strict=True))
        value = float(np.nan_to_num(values[row], nan=1e30, posinf=1e30))  # only its rank matters
        study.add_trial(optuna.trial.create_trial(params=params, distributions=ways, value=value))
        rows.append(row)
    return rows


def searches(name: str, pools: list[dict[str, np.ndarray]], quick: bool) -> list[Figure]:
    """Search the pools by every method; return the scores of its choices, repeat by repeat."""
    num = len(pools[0]["loss_test"])
    space, settings = drawn_from(name, quick)
    methods = drawing({"row": Integer(0, num - 1)}) | learning(space, on_pool(space, settings))
    repeats = 2 if quick else REPEATS
    seeds = np.arange(repeats) % len(pools)
    keys = jax.vmap(jax.random.key)(jnp.arange(repeats))
    tables = [table_of(name, pool) for pool in pools]
    rows = {n: jnp.stack([tables[s][n] for s in seeds]) for n in tables[0]}
    chosen_by = {
        method: jax.jit(jax.vmap(partial(chosen, search)))(rows, keys)
        for method, search in methods.items()
    }
    ends = [np.asarray(table["curve"][-1]) for table in tables]
    tried = [optuna_on_pool(space, settings, ends[s], i) for i, s in enumerate(seeds)]
    best = [
        found[np.argmin(np.nan_to_num(ends[s][found], nan=np.inf))]
        for s, found in zip(seeds, tried, strict=True)
        if found
    ]
    if best:
        chosen_by["TPE (Optuna)"] = best, np.full(repeats, BUDGET)
    figures = []
    for method, (found, epochs) in chosen_by.items():
        for metric, part in ((SCORE, "test"), ("validation score", f"valid_{EPOCHS}")):
            scores = [
                score(name, pools[s], part)[row]
                for s, row in zip(seeds, np.asarray(found), strict=True)
            ]
            figures.append(Figure(method, metric, [float(f"{x:.5g}") for x in scores], ""))
        figures.append(Figure(method, "epochs", float(np.mean(epochs)), ""))
    return figures


def table_of(name: str, pool: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the table for the searches of `fghpo`: objectives after some epochs, measures."""
    curve = np.full((len(READ), len(pool["loss_test"])), np.nan)
    for epoch in LOOKS:
        curve[READ.index(epoch)] = (
            1 - pool[f"accuracy_valid_{epoch}"] if name in IMAGES else pool[f"loss_valid_{epoch}"]
        )
    made = {"curve": curve} | {n: pool[n] for n in fghpo.COLUMNS}
    return {n: jnp.asarray(x, jnp.float32) for n, x in made.items()}


def score(name: str, pool: dict[str, np.ndarray], part: str) -> np.ndarray:
    """Return the score of each setting of a pool, from 0 to 1: accuracy, or Bayesmark's normalized score."""
    if name in IMAGES:
        return np.nan_to_num(pool[f"accuracy_{part}"])
    return normalized(pool[f"loss_{part}"])


def normalized(losses: np.ndarray) -> np.ndarray:
    """Return 1 − (f − best) / (middle − best), f at most the middle: the median of one random setting."""
    losses = np.where(np.isfinite(losses), losses, np.inf)
    best, middle = np.min(losses), np.median(losses)
    return 1 - (np.minimum(losses, middle) - best) / (middle - best)


def table(results: Results) -> str:
    """Write the median scores of every method, and how often methods differ."""
    cases = results.cases
    repeats = len(next(iter(cases.values()))[CONTROL][SCORE])
    told = (
        f"Pools of {sizes(results)} settings, of which Algorithm 1 draws {FIRST}. Medians of {repeats} repeats "
        "x 100: the normalized score of the test loss, for images the test accuracy; the mean gap is that of "
        "the scores. "
        f"{fghpo.INTERVALS}"
    )
    return f"{told}\n\n{compared(cases, [name for name in cases if name not in IMAGES])}"


def sizes(results: Results) -> str:
    """Return the number of settings of the pools."""
    found = sorted({len(case["pool"]["loss_test"][0]) for case in results.cases.values()})
    return " or ".join(map(str, found))


def summary(results: Results) -> str:
    """Write Bayesmark's score of the validation loss, as the mean over the repeats."""
    cases = {name: case for name, case in results.cases.items() if name not in IMAGES}
    methods = fghpo.methods_in(next(iter(cases.values())))
    rows = []
    for method in methods:
        means = [100 * np.mean(case[method]["validation score"]) for case in cases.values()]
        rows.append([method, *(f"{x:.1f}" for x in means), f"{np.mean(means):.1f}"])
    return markdown(["method", *cases, "mean"], rows)
