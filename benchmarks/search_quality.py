"""The quality of searches at the same budget: our searchers and schedulers beside Optuna's samplers.

The cases are six functions with known minima (some with logarithmic, whole and optional dimensions) and an MLP
on four data sets. Its objective is the validation loss after a fixed training, with the same weights and
minibatches for all. Each search has 20 seeds. A budget is 512 evaluations; 64 for Gaussian processes. Ours have
the settings of the command line: generations of 16, a quarter of them elite. Schedulers spend as many training
steps as the others, and their best is among the trials trained to the end. The full run takes an hour on a
separate core; finished cases are not run again.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from itertools import zip_longest
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.functions import HORIZON, NETWORKS, SYNTHETIC, Function, members, trained
from benchmarks.record import Figure, Results, markdown
from hypergrad.report import style as plots
from hypergrad.report.text import number
from hypergrad.schedulers import Scheduler, hyperband, pbt, perturb
from hypergrad.schedulers.base import spent
from hypergrad.schedulers.hyperband import brackets, num_trials
from hypergrad.searchers import (
    Searcher,
    Trials,
    bayes,
    cma_es,
    cross_entropy,
    evolution,
    grid,
    random,
    sobol,
    tpe,
)
from hypergrad.searchers.grid import levels_within
from hypergrad.space import Choice, Integer, LogReal
from hypergrad.tuners import search

BUDGET, SMALL_BUDGET = 512, 64
"""Numbers of evaluations in general, and of Gaussian processes."""
CHECKPOINTS = (16, 32, 64, 128, 256, 512)
NUM_SEEDS = 20
WORST = 1e6
"""Value of a training that diverged, and of checkpoints before the first training that did not."""
SHORTEST = 3
"""Training steps of hyperband's shortest runs."""
PBT_MEMBERS = 64
RIVALS = ("Optuna random", "Optuna TPE", "Optuna CMA-ES", "Optuna GP")
ALPHA = 0.05
"""Share of false discoveries among the differences that are called wins or losses."""


def run(results: Results, options: argparse.Namespace) -> None:
    """Measure every case and method that is not in the results yet."""
    pairs = zip_longest(
        NETWORKS.items(), SYNTHETIC.items()
    )  # a run that is cut short has some of both
    cases = dict(item for pair in pairs for item in pair if item is not None)
    if options.quick:
        cases = {name: cases[name] for name in ("Hartmann, 6", "MLP on iris, mixed, 8")}
    for case, make in cases.items():
        function = make()
        for method, search_it in methods(function, options.quick).items():
            if method not in results.cases.get(case, {}):
                print(f"{case}: {method} ...", flush=True)
                results.add(case, measure(method, search_it, function))


Search = Callable[[int], tuple[np.ndarray, list[int]]]
"""(seed) -> the lowest value so far, and the number of evaluations before it."""
_values = jax.jit(jax.vmap(trained, (None, 0)))
_value = jax.jit(trained)


def evaluation(function: Function, many: bool) -> Callable[[Any], jax.Array]:
    """Compile a function of one trial or of many; networks on all data sets share a program."""
    if function.problem is not None:
        program = _values if many else _value
    else:
        program = jax.jit(jax.vmap(function.value, (None, 0)) if many else function.value)
    return lambda hparams: program(function.data, hparams)


def methods(function: Function, quick: bool = False) -> dict[str, tuple[int, Search]]:
    """Return every method with the number of its seeds."""
    budget, small = (32, 16) if quick else (BUDGET, SMALL_BUDGET)
    num = 2 if quick else NUM_SEEDS
    space, values = function.space, evaluation(function, many=True)
    made: dict[str, tuple[int, int, int, Callable[[], Searcher]]] = {
        "random": (num, 16, budget, lambda: random(space)),
        "sobol": (num, 16, budget, lambda: sobol(space)),
        "grid": (num, 16, budget, lambda: grid(space, levels_within(space, budget))),
        "cross_entropy": (num, 16, budget, lambda: cross_entropy(space, rho=0.25)),
        "evolution": (num, 16, budget, lambda: evolution(space, 16)),
        "cma_es": (num, 16, budget, lambda: cma_es(space, 16)),
        "tpe": (num, 8, budget, lambda: tpe(space, budget)),
        "bayes, 8 at once": (num, 8, small, lambda: bayes(space, small)),
    }
    found: dict[str, tuple[int, Search]] = {
        name: (seeds, ours(compiled(name, space, size, make), values, size, total))
        for name, (seeds, size, total, make) in made.items()
    }
    if function.problem is not None:
        found |= {name: (num, found_by) for name, found_by in scheduled(function, budget).items()}
    try:
        import optuna  # pyright: ignore[reportMissingImports]

        optuna.logging.set_verbosity(optuna.logging.ERROR)
    except ImportError:
        return found
    samplers = optuna.samplers
    value = evaluation(function, many=False)
    gp = partial(samplers.GPSampler, deterministic_objective=True)
    return found | {
        "Optuna random": (num, theirs(samplers.RandomSampler, space, value, budget)),
        "Optuna TPE": (num, theirs(samplers.TPESampler, space, value, budget)),
        "Optuna CMA-ES": (num, theirs(samplers.CmaEsSampler, space, value, budget)),
        "Optuna GP": (num, theirs(gp, space, value, small)),
    }


def measure(name: str, method: tuple[int, Search], function: Function) -> list[Figure]:
    """Search with every seed; keep the lowest value at each checkpoint."""
    num_seeds, search_it = method
    best, at, seconds = [], [], []
    for seed in range(num_seeds):
        began = time.perf_counter()
        try:
            lowest, at = search_it(seed)
        except ImportError as error:
            return [Figure(name, "absent", str(error), "message")]
        if not at:
            return [Figure(name, "absent", "a generation costs more than the budget", "message")]
        seconds.append(time.perf_counter() - began)
        best.append([float(f"{value:.6g}") for value in lowest])
    figures = [
        Figure(name, "evaluations", at, "count"),
        Figure(name, "best", best, "value, [seeds, checkpoints]"),
        Figure(name, "time", float(np.median(seconds)), "s a search"),
    ]
    if function.least is not None:
        figures.append(Figure(name, "least", function.least, "value"))
    return figures


def at_checkpoints(
    values: np.ndarray, budget: int, cost: float = 1.0
) -> tuple[np.ndarray, list[int]]:
    """Take the lowest of values, each of which cost as much, at every checkpoint within the budget.

    A training that diverged has `WORST`, which is more than any other value.
    """
    lowest = np.minimum.accumulate(np.where(np.isfinite(values), values, WORST))
    at = [c for c in CHECKPOINTS if cost <= c <= budget]
    return lowest[[min(len(values), int(c / cost + 1e-6)) - 1 for c in at]], at


_COMPILED: dict[str, tuple[Callable, Callable, Callable]] = {}


def compiled(
    name: str, space: Any, num: int, make: Callable[[], Searcher]
) -> tuple[Callable, Callable, Callable]:
    """Compile the three functions of a searcher once for all functions over the same space."""
    asked = f"{name} {num} {space}"
    if asked not in _COMPILED:
        searcher = make()
        _COMPILED[asked] = (
            jax.jit(searcher.init),
            jax.jit(lambda key, state: searcher.ask(key, state, num)),
            jax.jit(searcher.tell),
        )
    return _COMPILED[asked]


def ours(
    parts: tuple[Callable, Callable, Callable],
    values: Callable[[Any], jax.Array],
    num: int,
    budget: int,
) -> Search:
    """Search by generations of `num`; `values` evaluates one."""
    init, ask, tell = parts
    index = jnp.arange(num, dtype=jnp.int32)

    def search_it(seed):
        init_key, *keys = jax.random.split(jax.random.key(seed), 1 + budget // num)
        state, found = init(init_key), []
        for key in keys:
            hparams = ask(key, state)
            found.append(values(hparams))
            state = tell(state, Trials(hparams, found[-1], jnp.ones_like(index), index, {}))
        return at_checkpoints(np.concatenate(found), budget)

    return search_it


def scheduled(function: Function, budget: int) -> dict[str, Search]:
    """Return the schedulers: hyperband with each searcher, and population-based training."""
    space = function.space
    settings: dict[str, Any] = {"num_steps": HORIZON, "min_steps": SHORTEST}
    num = num_trials(**settings)
    cost = sum(map(spent, brackets(**settings))) / HORIZON

    def banded(name, searcher, inside=None):
        # the inner searcher learns between brackets, the outer one between passes over all brackets
        return generations(
            name, searcher, hyperband(**settings, searcher=inside), num, cost, function, budget
        )

    periods = pbt(HORIZON, perturb(space), period=3)
    return {
        "hyperband": banded("hyperband", random(space)),
        "BOHB": banded("BOHB", tpe(space), tpe(space)),
        "DEHB": banded("DEHB", evolution(space, 16), evolution(space, 16)),
        "PBT": generations(
            "PBT", random(space), periods, PBT_MEMBERS, PBT_MEMBERS, function, budget
        ),
    }


_PROGRAMS: dict[str, Callable] = {}


def generations(
    name: str,
    searcher: Searcher,
    scheduler: Scheduler,
    num: int,
    cost: float,
    function: Function,
    budget: int,
) -> Search:
    """Run a searcher times a scheduler; a generation counts when it is over."""
    repeats = max(1, int(budget / cost + 1e-6))

    def run(data, key):
        assert function.problem is not None
        tuner = search(members(function.problem(data)), searcher, scheduler, num)

        def generation(state, key):
            state, trials = tuner.step(key, state)
            return state, jnp.min(jnp.where(trials.steps == HORIZON, trials.values, jnp.inf))

        key, init_key = jax.random.split(key)
        return jax.lax.scan(generation, tuner.init(init_key), jax.random.split(key, repeats))[1]

    program = _PROGRAMS.setdefault(f"{name} {budget}", jax.jit(run))
    return lambda seed: at_checkpoints(
        np.asarray(program(function.data, jax.random.key(seed))), budget, cost
    )


def theirs(make: Callable, space: Any, value: Callable[[Any], jax.Array], budget: int) -> Search:
    """Search by a sampler of Optuna's, one trial after the other, in memory."""
    import optuna  # pyright: ignore[reportMissingImports]

    def distribution(dim):
        if isinstance(dim, Choice):
            return optuna.distributions.CategoricalDistribution(range(len(dim.options)))
        if isinstance(dim, Integer):
            return optuna.distributions.IntDistribution(dim.low, dim.high)
        return optuna.distributions.FloatDistribution(
            dim.low, dim.high, log=isinstance(dim, LogReal)
        )

    asked: dict[str, Any] = {name: distribution(dim) for name, dim in space.items()}

    def search_it(seed):
        study = optuna.create_study(sampler=make(seed=seed))
        values = []
        for _ in range(budget):
            trial = study.ask(asked)
            values.append(float(value(trial.params)))
            study.tell(trial, values[-1])
        return at_checkpoints(np.array(values), budget)

    return search_it


def regrets(found: dict[str, dict[str, Any]]) -> dict[str, np.ndarray]:
    """Return what each method lost at each checkpoint, `[seeds, checkpoints]`, by the lowest value known."""
    best = {name: np.array(of["best"]) for name, of in found.items() if "best" in of}
    least = [of["least"] for of in found.values() if "least" in of]
    lowest = least[0] if least else min(values.min() for values in best.values())
    return {name: np.maximum(values - lowest, 0) for name, values in best.items()}


def at_budget(found: dict[str, dict[str, Any]], name: str, budget: int) -> np.ndarray:
    """Return the regrets of one method at one checkpoint, `[seeds]`."""
    return regrets(found)[name][:, found[name]["evaluations"].index(budget)]


def last(found: dict[str, dict[str, Any]], *names: str) -> int:
    """Return the last checkpoint that all of the methods reached."""
    return min(found[name]["evaluations"][-1] for name in names)


def duels(results: Results) -> dict[tuple[str, str], list[int]]:
    """Count our wins, ties and losses against every rival over the cases.

    The test is two-sided Mann-Whitney over seeds at the last budget of both, with Benjamini-Hochberg over all
    pairs and cases.
    """
    from scipy.stats import false_discovery_control, mannwhitneyu

    pairs, chances, better = [], [], []
    for found in results.cases.values():
        there = [name for name, of in found.items() if "best" in of]
        for rival in set(RIVALS) & set(there):
            for name in there:
                if name in RIVALS:
                    continue
                budget = last(found, name, rival)
                one, other = (at_budget(found, n, budget) for n in (name, rival))
                pairs.append((name, rival))
                chances.append(mannwhitneyu(one, other).pvalue)
                # the share of pairs of seeds that we win gives the sign of a difference
                ours, draws = one[:, None] < other, one[:, None] == other
                better.append(ours.mean() + draws.mean() / 2)
    counts: dict[tuple[str, str], list[int]] = {}
    adjusted = false_discovery_control(np.nan_to_num(chances, nan=1.0)) if chances else []
    for pair, chance, share in zip(pairs, adjusted, better, strict=True):
        verdict = 1 if chance > ALPHA else 0 if share > 0.5 else 2
        counts.setdefault(pair, [0, 0, 0])[verdict] += 1
    return counts


def table(results: Results) -> str:
    """Write wins, ties and losses, then the regrets themselves, as Markdown."""
    counts = duels(results)
    names = list(dict.fromkeys(name for name, _ in counts))
    rivals = [rival for rival in RIVALS if any(rival == other for _, other in counts)]
    rows = []
    for name in names:
        cells = [counts.get((name, rival)) for rival in rivals]
        rows.append([name, *("" if c is None else "-".join(map(str, c)) for c in cells)])
    blocks = []
    if rivals:
        blocks.append(markdown(["wins-ties-losses against", *rivals], rows))
    ends = {
        of["evaluations"][-1] for f in results.cases.values() for of in f.values() if "best" in of
    }
    for budget in sorted(ends, reverse=True):
        rows = []
        for name in dict.fromkeys(n for f in results.cases.values() for n in f):
            cells = []
            for found in results.cases.values():
                has = name in found and budget in found[name].get("evaluations", ())
                values = at_budget(found, name, budget) if has else None
                cells.append("" if values is None else number(float(np.median(values)), 2))
            if any(cells):
                rows.append([name, *cells])
        cases = [case.split(",")[0] for case in results.cases]
        blocks.append(
            f"**Median regret after {budget} evaluations**\n\n" + markdown(["", *cases], rows)
        )
    return "\n\n".join(blocks)


STYLES: dict[str, dict[str, Any]] = {
    "random": {"color": "#9a9a9a", "linewidth": 1.3},
    "cross_entropy": {"color": "#0072B2", "linewidth": 2.0, "zorder": 4},
    "evolution": {"color": "#007D5C", "linewidth": 1.4},
    "cma_es": {"color": "#333333", "linewidth": 1.4},
    "tpe": {"color": "#D55E00", "linewidth": 1.4},
    "bayes, 8 at once": {"color": "#CC79A7", "linewidth": 2.0, "zorder": 4},
    "Optuna TPE": {"color": "#D55E00", "linewidth": 1.4, "linestyle": (0, (3, 1.5))},
    "Optuna CMA-ES": {"color": "#333333", "linewidth": 1.4, "linestyle": (0, (3, 1.5))},
    "Optuna GP": {"color": "#CC79A7", "linewidth": 1.6, "linestyle": (0, (3, 1.5))},
}


def draw(results: Results) -> Any:
    """Draw the median regret by evaluations, one panel a case, from the results alone."""
    columns = 4
    rows = -(-len(results.cases) // columns)
    with plots.styled():
        figure, panels = plots.panels(plots.WIDE, 0.27 * rows, rows, columns)
        for panel, (case, found) in zip(panels, results.cases.items(), strict=False):
            shown = []
            for name, style in STYLES.items():
                if "best" not in found.get(name, {}):
                    continue
                median = np.median(regrets(found)[name], axis=0)
                panel.plot(found[name]["evaluations"], median, label=name, **style)
                shown.append(median)
            # a median at the minimum itself has no place on the axis
            flat = np.concatenate(shown)
            plots.fit_scale(panel, np.maximum(flat, 1e-5), log=True)
            panel.set_xscale("log", base=2)
            panel.set_xticks([16, 64, 256], ["16", "64", "256"])
            panel.set_title(case)
        for panel in panels[len(results.cases) :]:
            panel.set_axis_off()
        for panel in panels[: len(results.cases)][-columns:]:
            panel.set_xlabel("evaluations")
        lines = panels[0].get_legend_handles_labels()
        figure.legend(*lines, loc="lower right", ncols=2)
    return figure
