"""Small networks at every setting of a grid, trained and measured once, for the searches of `fghpo`.

The grid is Table 3 of the paper on flatness-guided search, thinned so that it can be trained whole on one
core: depth 1 to 4, width 16 to 64, batch 4 to 256, learning rate 1e-5 to 1. Each network is a ReLU MLP
trained by Adam, on a split of its own for each seed (60 % training, 20 % validation, 20 % test). Widths and
depths are masks: networks of one batch size are one program. After epoch 1 and after the last, the measures
of flatness are taken on the same minibatches of training samples, and their suprema kept. Half an hour for
the eight smallest sets on one core; resumable by data set, the smallest first.
"""

import argparse
import time
from itertools import product
from pathlib import Path

import numpy as np

from benchmarks.networks import MEASURES, Group, Split, settings, tidy, train_and_measure
from benchmarks.record import Figure, Results, markdown
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
"""Settings `[288, 4]`, in the order of every column of the results."""
NUM_SEEDS = 2
EPOCHS = 20
READ = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, EPOCHS)
"""Epochs after which the validation set is read."""
LOOKS = 2
"""Epochs after which all measures are taken, the first and the last."""


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


def measure_grid(data: tuple[list[Split], int], seed: int, num: int) -> list[Figure]:
    """Train `num` settings of the grid on one split; return a list of numbers for each figure."""
    every = np.sort(np.arange(num) * 11 % len(GRID))  # 11 has no factor in common with the grid
    groups = []
    for batch in BATCHES:
        rows = every[GRID[every, 2] == batch]
        of = settings(width=GRID[rows, 1], depth=GRID[rows, 0], rate=GRID[rows, 3])
        groups.append(Group(rows, batch, of, (DEPTHS[-1], WIDTHS[-1])))
    columns, clock = train_and_measure(data, seed, groups, READ)
    figures = [
        Figure("grid", name, tidy(column[every]), "", seed)
        for name, column in columns.items()
        if not name.startswith("accuracy_valid")
    ]
    return [*figures, *(Figure("clock", name, s, "s", seed) for name, s in clock.items())]


def column(results: Results, case: str, name: str) -> np.ndarray:
    """Read a column of a data set, `[seeds, settings]`, NaN where a network diverged."""
    return np.array(results.cases[case]["grid"][name], dtype=float)


def table(results: Results) -> str:
    """Write the trained networks, and the processor seconds of the last seed, when everything was compiled."""
    rows = []
    for name, case in results.cases.items():
        best = column(results, name, "auc_test")
        lost = np.mean(~np.isfinite(best))
        clock = {key: value[-1] for key, value in case["clock"].items()}
        epoch = clock["training"] / EPOCHS
        rows.append(
            [
                name, f"{best.shape[0]} x {best.shape[1]}", f"{100 * np.nanmax(best):.1f}",
                f"{100 * np.nanmedian(best):.1f}", f"{100 * lost:.0f} %",
                *(f"{clock[key]:.1f}" for key in ("training", "surrogates", "exact norms")),
                *(f"{clock[key] / LOOKS / epoch:.2g}" for key in ("surrogates", "exact norms")),
            ]
        )  # fmt: skip
    header = [
        "data set", "seeds x networks", "best test AUC", "median", "diverged", "CPU s training", "s surrogates",
        "s exact norms", "epochs a look at surrogates", "at exact norms",
    ]  # fmt: skip
    return markdown(header, rows)


def summary(results: Results) -> str:
    """Write the rates of the flattest fifth after an epoch, and its quality in the end."""
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
