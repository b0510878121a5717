"""Flatness-guided search with every measure, against plain halving and its paper's searches, at equal cost.

Every method searches the grid that `configurations` has trained, by the library's own schedulers and
searchers, and pays an epoch for an epoch: N_1 = 50 settings for one epoch and N_2 = 10 of them to the
twentieth, 240 in all. It chooses by the AUC on the validation set and is judged by that on the test set.
Twenty repeats draw other settings, half of them on each of two splits. Methods are compared by pairwise
Mann-Whitney tests, with Benjamini and Hochberg's procedure at 5 % over all pairs of a data set. Repeats share
the trained networks, so that their spread is that of the search, not of training. Resumable by data set and
method.
"""

import argparse
from collections.abc import Callable
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import configurations as grid
from benchmarks.configurations import EPOCHS, READ, SIZES, column
from benchmarks.networks import MEASURES
from benchmarks.record import Figure, Results, markdown
from benchmarks.tables import load
from hypergrad.populations import Population
from hypergrad.schedulers import (
    Rung,
    blended,
    flatness,
    flattest,
    full,
    hyperband,
    lowest_value,
    matched,
    pareto,
)
from hypergrad.schedulers.base import spent
from hypergrad.schedulers.hyperband import brackets
from hypergrad.searchers import TrustRegion, bayes, random, tpe
from hypergrad.space import Integer
from hypergrad.tuners import search

FIRST, KEPT = 50, 10
"""N_1 and N_2 of the paper."""
BUDGET = FIRST + KEPT * (EPOCHS - 1)
"""Number of epochs that each method may train."""
TRIALS = BUDGET // EPOCHS
REPEATS = 20
LEVEL = 0.05
SPACE = {
    "depth": Integer(0, len(grid.DEPTHS) - 1), "width": Integer(0, len(grid.WIDTHS) - 1),
    "batch": Integer(0, len(grid.BATCHES) - 1), "rate": Integer(0, len(grid.RATES) - 1),
}  # fmt: skip
"""Places in the grid, in the order of its columns."""
CONTROL, SCORE = "plain halving", "test AUC"
OTHERS = "on other sets"
"""Head of the column of intervals in which data sets are drawn again too."""
INTERVALS = (
    "The interval of the mean gap draws repeats again, the same for all data sets, and speaks of these data "
    f'sets; the one "{OTHERS}" draws the data sets again too.'
)

Table = dict[str, Any]
"""Columns of one data set and seed, `[settings]`; `curve` `[len(READ), settings]` is 1 − AUC."""


def place(hparams: Any) -> Any:
    """Return the row of the table for settings: their place in the grid, or the given row."""
    if "row" in hparams:
        return hparams["row"]
    sizes = [len(x) for x in (grid.DEPTHS, grid.WIDTHS, grid.BATCHES, grid.RATES)]
    return jnp.ravel_multi_index([hparams[name] for name in SPACE], sizes, mode="clip")


def members(table: Table) -> Population:
    """Return the grid as a population whose training is a look into the table; a step is an epoch."""

    def init(keys, hparams):
        return jnp.zeros_like(jax.tree.leaves(hparams)[0], jnp.int32)

    def judge(hparams, epochs):
        level = jnp.searchsorted(jnp.asarray(READ), epochs)
        return table["curve"][level, place(hparams)], {}

    def measure(function, hparams, epochs):
        return function(epochs, hparams)

    return Population(
        init,
        lambda hparams, epochs, num: epochs + num,
        lambda hparams, epochs: judge(hparams, epochs)[0],
        judge,
        lambda epochs, index: epochs[index],
        measure=measure,
    )


def by_measure(name: str, ranking: Callable = flattest, *, space: Any = None) -> Callable:
    """Return Algorithm 1 with this column as the measure: (table, key) -> trials."""
    drawn = random(SPACE if space is None else space)

    def run(table, key):
        def measure(_, hparams):
            return table[name][place(hparams)]

        scheduler = flatness(measure, EPOCHS, num_kept=KEPT, ranking=ranking)
        return searched(table, key, drawn, scheduler, FIRST, 1)

    return run


def searched(table, key, searcher, scheduler, num, generations):
    """Return the trials of some generations, as one program."""
    tuner = search(members(table), searcher, scheduler, num)

    def body(state, key):
        return tuner.step(key, state)

    first, later = jax.random.split(key)
    keys = jax.random.split(later, generations)
    return jax.lax.scan(body, tuner.init(first), keys)[1]


def one_by_one(searcher: Callable) -> Callable:
    """Return a search of whole trainings, each suggested when the results of all earlier ones are known."""

    def run(table, key):
        return searched(table, key, searcher(), full(EPOCHS), 1, TRIALS)

    return run


def bohb_brackets() -> tuple[tuple[Rung, ...], ...]:
    """Return the rungs of BOHB's brackets, of as many trials as the budget allows."""
    ladders = [brackets(EPOCHS, min_steps=2, eta=3.0, num=num) for num in range(3, 60)]
    return [ladder for ladder in ladders if sum(map(spent, ladder)) <= BUDGET][-1]


def bohb(first: Callable, later: Callable) -> Callable:
    """Return hyperband whose first bracket is drawn, and whose others are suggested from earlier trials."""

    def run(table, key):
        num = sum(rungs[0].num for rungs in bohb_brackets())
        scheduler = hyperband(EPOCHS, min_steps=2, eta=3.0, searcher=later())
        return searched(table, key, first(), scheduler, num, 1)

    return run


def sharpest(ranking: Callable) -> Callable:
    """Turn a ranking round: of two settings it prefers the sharper, and still discards a measure of 0."""
    return lambda measures, values: ranking(1 / measures, values)


def drawing(space: Any) -> dict[str, Callable]:
    """Return the methods that draw all their settings at random, those of Algorithm 1 first."""
    made = partial(by_measure, space=space)
    return {
        CONTROL: made("auc_valid_1", lowest_value),
        "validation loss": made("loss_valid_1"),
        "training loss": made("loss_train_1"),
        **{f"FGHPO {name}": made(f"{name}_1") for name in MEASURES},
        "Pareto full": made("full_1", pareto),
        "Pareto rescaled": made("rescaled_1", pareto),
        "matched full": made("full_1", matched(0.4)),
        "matched rescaled": made("rescaled_1", matched(0.4)),
        "matched theorem_1": made("theorem_1_1", matched(0.4)),
        "blended full": made("full_1", blended(0.2)),
        "blended rescaled": made("rescaled_1", blended(0.2)),
        "Pareto sharp theorem_1": made("theorem_1_1", sharpest(pareto)),
        "matched sharp theorem_1": made("theorem_1_1", sharpest(matched(0.4))),
        "blended sharp theorem_1": made("theorem_1_1", sharpest(blended(0.2))),
        "random": lambda table, key: searched(table, key, random(space), full(EPOCHS), TRIALS, 1),
    }


def learning(space: Any, given: Callable = lambda searcher: searcher) -> dict[str, Callable]:
    """Return the methods that learn from their trials; `given` may wrap their searchers."""

    def made(searcher, **options):
        return lambda: given(searcher(space, **options))

    return {
        "TPE": one_by_one(made(tpe, capacity=16, num_initial=4)),
        "BOHB": bohb(made(random), made(tpe, capacity=64, num_initial=8)),
        "HEBO-like": one_by_one(made(bayes, capacity=16, num_initial=4, warp=True)),
        "TuRBO-like": one_by_one(
            made(bayes, capacity=16, num_initial=4, trust_region=TrustRegion())
        ),
    }


METHODS: dict[str, Callable] = drawing(SPACE) | learning(SPACE)
"""Name -> (table, key) -> trials."""
COLUMNS = (
    "auc_valid_1", "loss_valid_1", "loss_train_1", *(f"{name}_1" for name in MEASURES),
)  # fmt: skip


def run(results: Results, options: argparse.Namespace) -> None:
    """Run every method on every data set that `configurations` has, the smallest first."""
    trained = trained_grid(options.quick)
    repeats = 2 if options.quick else REPEATS
    cases = sorted(trained.cases, key=lambda name: SIZES[name])
    seeds = np.arange(repeats) % column(trained, cases[0], "auc_test").shape[0]
    keys = jax.vmap(jax.random.key)(jnp.arange(repeats))
    tables = {case: tables_of(trained, case) for case in cases}
    tests = {case: column(trained, case, "auc_test") for case in cases}
    for case in cases:
        if "overlap" not in results.cases.get(case, {}):
            results.add(case, overlap(trained, case, seeds))
    for name, method in METHODS.items():  # each compiles once, for all data sets
        program = jax.jit(jax.vmap(partial(chosen, method)))
        for case in cases:
            if name in results.cases[case]:
                continue
            print(f"{name} on {case} ...", flush=True)
            rows = {n: jnp.asarray(values[seeds]) for n, values in tables[case].items()}
            found, epochs = map(np.asarray, program(rows, keys))
            keep(results, case, name, found, epochs, seeds, tables[case], tests[case])
    for case in cases:
        curve = tables[case]["curve"]
        if "TPE (Optuna)" not in results.cases[case]:
            found = [optuna_tpe(curve[s], i) for i, s in enumerate(seeds)]
            if None not in found:
                epochs = np.full(repeats, TRIALS * EPOCHS)
                keep(results, case, "TPE (Optuna)", found, epochs, seeds, tables[case], tests[case])


def trained_grid(quick: bool) -> Results:
    """Open the results of `configurations`."""
    path = Path(__file__).parent / "results" / f"configurations{'-quick' * quick}.jsonl"
    if not path.exists():
        raise ValueError(
            f"results/{path.name} is not there, expected the trained grid; run "
            f"`python -m benchmarks configurations{' --quick' * quick}` first"
        )
    return load(path)


def tables_of(trained: Results, case: str) -> dict[str, np.ndarray]:
    """Return the columns that methods look up, `[seeds, ...]`; a quick grid is repeated to its full size."""
    curves = [1 - column(trained, case, f"auc_valid_{epoch}") for epoch in READ]
    made = {"curve": np.stack(curves, 1)} | {n: column(trained, case, n) for n in COLUMNS}
    repeat = -(-len(grid.GRID) // made["curve"].shape[-1])
    return {
        n: np.tile(x, repeat)[..., : len(grid.GRID)].astype(np.float32) for n, x in made.items()
    }


def chosen(method: Callable, table: Table, key: Any) -> tuple[Any, Any]:
    """Return the row of the best setting that was trained to the end, and the epochs it took."""
    trials = method(table, key)
    ends = jnp.where(trials.steps == EPOCHS, trials.values, jnp.inf).reshape(-1)
    best = jnp.argmin(jnp.where(jnp.isfinite(ends), ends, jnp.inf))
    return place(trials.hparams).reshape(-1)[best], jnp.sum(trials.steps)


def keep(results, case, name, found, epochs, seeds, tables, test) -> None:
    """Keep the test and validation AUC of the choice, repeat by repeat, and its cost."""
    metrics = {
        SCORE: [test[seed, row % test.shape[1]] for row, seed in zip(found, seeds, strict=True)],
        "validation AUC": [
            1 - tables["curve"][seed, -1, row] for row, seed in zip(found, seeds, strict=True)
        ],
    }
    figures = [
        Figure(name, metric, [float(f"{x:.6g}") for x in values], "")
        for metric, values in metrics.items()
    ]
    results.add(case, [*figures, Figure(name, "epochs", float(np.mean(epochs)), "")])


def optuna_study(seed: int) -> Any:
    """Return a silent study of Optuna's TPE, whose first four trials are random; None without Optuna."""
    try:
        import optuna
    except ImportError:
        return None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=4))


def optuna_tpe(curve: np.ndarray, seed: int) -> int | None:
    """Return the row that Optuna's TPE chooses with as many whole trainings; None without Optuna."""
    study = optuna_study(seed)
    if study is None:
        return None

    def objective(trial):
        given = {n: trial.suggest_int(n, d.low, d.high) for n, d in SPACE.items()}
        sizes = [d.high + 1 for d in SPACE.values()]
        row = int(np.ravel_multi_index([given[n] for n in SPACE], sizes))
        trial.set_user_attr("row", row)
        return float(np.nan_to_num(curve[-1, row], nan=1.0))

    study.optimize(objective, n_trials=TRIALS)
    return study.best_trial.user_attrs["row"]


def overlap(trained: Results, case: str, seeds: np.ndarray) -> list[Figure]:
    """Compare the ten best of 50 after epoch 1 with those after epochs 2 to 10: the paper's Figure 3."""
    figures = []
    for method, label, sign in (
        ("overlap", "theorem_1_{}", 1),
        ("overlap of AUC", "auc_valid_{}", -1),
    ):
        shares = []
        for i, seed in enumerate(seeds):
            drawn = np.random.default_rng(i).permutation(column(trained, case, "auc_test").shape[1])
            tops = []
            for epoch in range(1, 11):
                values = sign * column(trained, case, label.format(epoch))[seed][drawn[:FIRST]]
                tops.append(set(np.argsort(np.where(np.isfinite(values), values, np.inf))[:KEPT]))
            shares.append([len(tops[0] & top) / len(tops[0] | top) for top in tops])
        means = [float(f"{x:.4g}") for x in np.mean(shares, 0)]
        figures.append(Figure(method, "intersection over union, epochs 1 to 10", means, ""))
    return figures


def methods_in(case: dict[str, Any]) -> list[str]:
    """List the methods whose test scores a data set has."""
    return [name for name in case if SCORE in case[name]]


def differences(case: dict[str, Any]) -> dict[tuple[str, str], int]:
    """Return for each pair of methods 1 where the first is significantly better, −1 where worse, else 0.

    Mann-Whitney, Benjamini-Hochberg over all pairs. The direction is that of the test, U against the half of
    all pairs of repeats: a mean of few repeats that went far astray may point the other way.
    """
    from scipy.stats import false_discovery_control, mannwhitneyu  # comes with jax

    pairs = list(combinations(methods_in(case), 2))
    tests = [mannwhitneyu(case[a][SCORE], case[b][SCORE]) for a, b in pairs]
    chances = false_discovery_control([np.nan_to_num(test.pvalue, nan=1.0) for test in tests])
    found = {}
    for (a, b), test, chance in zip(pairs, tests, chances, strict=True):
        half = len(case[a][SCORE]) * len(case[b][SCORE]) / 2
        found[a, b] = int(np.sign(test.statistic - half)) if chance <= LEVEL else 0
        found[b, a] = -found[a, b]
    return found


def gaps_to_control(case: dict[str, Any], method: str) -> np.ndarray:
    """Return how far a method is above the control x 100, repeat by repeat."""
    return 100 * np.subtract(case[method][SCORE], case[CONTROL][SCORE])


def interval(gaps: np.ndarray, other_sets: bool = False) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean of `[data sets, repeats]`.

    Repeat i draws the same settings on every data set, so that the sets are no independent evidence: repeats
    are drawn again for all of them at once. That speaks of these data sets; with `other_sets` the sets are
    drawn again too, which speaks of others like them and is rather too wide than too narrow.

    Reference:
        Owen, 2007, "The pigeonhole bootstrap".
    """
    random = np.random.default_rng(0)
    sets, repeats = gaps.shape
    columns = random.integers(repeats, size=(2000, 1, repeats))
    rows = random.integers(sets, size=(2000, sets, 1)) if other_sets else np.arange(sets)[:, None]
    low, high = np.quantile(gaps[rows, columns].mean((1, 2)), [0.025, 0.975])
    return float(low), float(high)


def written(ends: tuple[float, float]) -> str:
    """Write the ends of an interval."""
    return f"{ends[0]:+.2f} to {ends[1]:+.2f}"


def with_interval(gaps: np.ndarray) -> str:
    """Write the mean of `[data sets, repeats]` with its interval."""
    return f"{gaps.mean():+.2f} ({written(interval(gaps))})"


def leaving_one_out(cases: dict[str, Any]) -> str:
    """Write what is left of each mean gap whose interval lies above zero, without the set that gives most."""
    rows = []
    for method in methods_in(next(iter(cases.values()))):
        gaps = np.array([gaps_to_control(case, method) for case in cases.values()])
        if method != CONTROL and interval(gaps)[0] > 0:
            most = int(np.argmax(gaps.mean(1)))
            rest = np.delete(gaps, most, 0)
            cells = [with_interval(rest), written(interval(rest, other_sets=True))]
            rows.append([method, with_interval(gaps), list(cases)[most], *cells])
    if not rows:
        return "No mean gap has an interval above zero."
    header = ["gap above zero", "mean gap", "most of it from", "without that set", OTHERS]
    return markdown(header, rows)


def table(results: Results) -> str:
    """Write the median test AUC of every method, and how often it differs from the others and the control."""
    cases = {name: case for name, case in results.cases.items() if CONTROL in case}
    repeats = len(next(iter(cases.values()))[CONTROL][SCORE])
    told = (
        f"{len(cases)} of {len(SIZES)} tables of the paper, on a thinned grid. Median test AUC x 100 of "
        f"{repeats} repeats. A win: significantly better than every other method; a loss: significantly "
        f"worse than some. {INTERVALS}"
    )
    return f"{told}\n\n{compared(cases)}\n\n{leaving_one_out(cases)}"


def compared(cases: dict[str, Any], alike: list[str] | None = None) -> str:
    """Write the median of 100 x SCORE of every method on every data set, and how often methods differ.

    Gaps are averaged over the data sets of `alike`, whose scores mean the same, over all where None.
    """
    signs = {name: differences(case) for name, case in cases.items()}
    methods = methods_in(next(iter(cases.values()), {}))
    rows = []
    for method in methods:
        score = [0, 0, 0]
        control = [0, 0, 0]
        for name in cases:
            found = [signs[name][method, m] for m in methods if m != method]
            score[0 if min(found) == 1 else 2 if min(found) == -1 else 1] += 1
            control[1 - signs[name].get((method, CONTROL), 0)] += 1
        same = [cases[name] for name in (cases if alike is None else alike)]
        gaps = np.array([gaps_to_control(case, method) for case in same])
        rows.append(
            [
                method,
                *(f"{100 * np.median(case[method][SCORE]):.1f}" for case in cases.values()),
                " / ".join(map(str, score)),
                "" if method == CONTROL else " / ".join(map(str, control)),
                "" if method == CONTROL else with_interval(gaps),
                "" if method == CONTROL else written(interval(gaps, other_sets=True)),
                f"{np.mean([case[method]['epochs'] for case in cases.values()]):.0f}",
            ]
        )
    against = "better / same / worse than plain halving"
    gap = "mean gap to it (95 %)"
    header = ["method", *cases, "wins / ties / losses", against, gap, OTHERS, "epochs"]
    return markdown(header, rows)


def summary(results: Results) -> str:
    """Write how far the ten best after epoch 1 are still the ten best after epochs 2 to 10."""
    rows = []
    for label, method in (("Theorem 1", "overlap"), ("validation AUC", "overlap of AUC")):
        lines = [
            case[method]["intersection over union, epochs 1 to 10"]
            for case in results.cases.values()
            if method in case
        ]
        rows.append([label, *(f"{x:.2f}" for x in np.mean(lines, 0)[1:])])
    return markdown(["ten of fifty by", *(f"epoch {i}" for i in range(2, 11))], rows)


def draw(results: Results) -> Any:
    """Draw how far the ten best after epoch 1 stay the ten best: a line a data set, and the mean."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(8, 3.2), layout="constrained")
    axes = canvas.subplots(1, 2, sharey=True)
    labels = {"overlap": "by Theorem 1's value", "overlap of AUC": "by validation AUC"}
    for axis, (method, label) in zip(axes, labels.items(), strict=True):
        lines = [
            next(iter(case[method].values())) for case in results.cases.values() if method in case
        ]
        epochs = np.arange(1, len(lines[0]) + 1)
        for line in lines:
            axis.plot(epochs, line, color="0.7", linewidth=1)
        axis.plot(epochs, np.mean(lines, 0), color="black", linewidth=2)
        axis.set_title(f"ten of fifty {label}", fontsize=10)
        axis.set_xlabel("epoch")
        axis.set_xticks(epochs)
        axis.set_ylim(0, 1.02)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("intersection over union with epoch 1")
    return canvas
