"""The cost of a search in seconds, method by method, on one data set: the paper's Figure 2.

Measured on the training set of `vehicle` (breast cancer without --data), in processor seconds on one core:
an epoch of networks one at a time and as populations of 10 and 50, each measure on 50 networks after an
epoch, and all that a searcher and a scheduler compute in a whole search of `fghpo`. These are combined by
counts of epochs and of validations: every method trains 240 epochs, BOHB ten fewer. The networks are of depth
2, width 64 and batch 64, computed under the masks of `configurations`. Compiling is not counted.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import fghpo, networks
from benchmarks.configurations import DEPTHS, EPOCHS, WIDTHS, load
from benchmarks.fghpo import BUDGET, CONTROL, FIRST, KEPT, METHODS, TRIALS, chosen
from benchmarks.record import Figure, Results, interleave, markdown, timed
from hypergrad import curvature as cv
from hypergrad.schedulers import Rung
from hypergrad.schedulers.base import spent

DEPTH, WIDTH, BATCH, RATE = 2, 64, 64, 1e-3
REPEATS = 5
POPULATIONS = (1, KEPT, FIRST)
BY_ONE = ("TPE", "HEBO-like", "TuRBO-like", "TPE (Optuna)")
"""Methods that train one setting after another, because each waits for the earlier ones."""
OURS = "FGHPO theorem_1"
"""The paper's own search, with whose seconds the others are compared."""
SEARCHES = (CONTROL, "random", "BOHB", "TPE", "HEBO-like", "TuRBO-like")


def one_norm(name: str) -> Callable:
    """Return an exact norm alone, as (model, params, batch) -> []."""
    if name == "full":
        return lambda model, p, b: cv.frobenius(model, p, b).value
    if name == "gauss_newton":
        return lambda model, p, b: cv.frobenius(model, p, b, gauss_newton=True).value
    if name == "last_layer":
        last = str(DEPTHS[-1])
        return lambda model, p, b: cv.frobenius(model, p, b, layers=[last]).value

    def rescaled(model, params, batch):
        squares = jnp.stack([sum(jnp.sum(w**2) for w in layer.values()) for layer in params])
        return jnp.sqrt(squares @ cv.frobenius(model, params, batch).blocks @ squares)

    return rescaled


ALL = networks.CHEAP | {name: one_norm(name) for name in networks.EXACT}
"""{measure: (model, params, batch) -> []}."""


def run(results: Results, options: argparse.Namespace) -> None:
    """Measure every case that is not in the results yet."""
    name = "vehicle" if options.data else "breast_cancer"
    if name not in results.cases:
        print(f"{name} ...", flush=True)
        calls = {**training(name, options.data), **searching()}
        found = interleave(calls, 2 if options.quick else REPEATS)
        results.add(
            name,
            [
                Figure(part, f"time, {n}", took, "s")
                for part, times in found.items()
                for n, took in times.items()
            ],
        )


seconds = partial(timed, clock=time.process_time)
"""Processor seconds: other work on the machine hardly matters."""


def training(name: str, folder: str | None) -> dict[str, Callable[[], float]]:
    """Return the trainings of an epoch and the measures as functions that work and return the seconds."""
    (train, valid, _), classes = load(name, folder, 0)
    sizes = networks.Sizes(train.inputs.shape[1], classes, DEPTHS[-1], WIDTHS[-1])
    parts, key = networks.measured_parts(train, 0), jax.random.key(0)
    made: dict[str, Callable[[], float]] = {}

    def population(num):
        of = networks.settings(WIDTH, DEPTH, np.full(num, RATE))
        return networks.begin(jax.random.split(key, num), of, sizes), of

    for num in POPULATIONS:
        members, of = population(num)
        epoch = partial(networks.train_epoch, members, of, key, train, BATCH)
        made[f"epoch of {num}"] = seconds(epoch)
        made[f"validation of {num}"] = seconds(partial(networks.judge, members, of, valid))
    members, of = population(FIRST)
    for measure, function in ALL.items():
        program = jax.jit(
            lambda m, of, p, function=function: networks.each(
                m, of, p, lambda model, params, b: {"": function(model, params, b)}
            )
        )
        made[measure] = seconds(partial(program, members, of, parts))
    return made


def searching() -> dict[str, Callable[[], float]]:
    """Return whole searches of a table, in which training costs nothing."""
    random = np.random.default_rng(0)
    num = len(fghpo.grid.GRID)
    curve = random.uniform(size=(len(fghpo.READ), num)).astype(np.float32)
    columns = random.uniform(size=(len(fghpo.COLUMNS), num)).astype(np.float32)
    table = {"curve": jnp.asarray(curve)} | dict(
        zip(fghpo.COLUMNS, map(jnp.asarray, columns), strict=True)
    )
    made = {
        f"search by {name}": seconds(
            partial(jax.jit(partial(chosen, METHODS[name])), table, jax.random.key(0))
        )
        for name in SEARCHES
    }
    if fghpo.optuna_tpe(curve, 0) is not None:
        made["search by TPE (Optuna)"] = seconds(lambda: fghpo.optuna_tpe(curve, 0))
    return made


def ladders() -> dict[str, tuple[tuple[Rung, ...], ...]]:
    """Return what each method trains, one ladder after another: how many networks at once up to which epoch.

    The validation set is read once for every network of every rung, by FGHPO too.
    """
    halving = ((Rung(FIRST, 1), Rung(KEPT, EPOCHS)),)
    return {
        CONTROL: halving,
        **{f"FGHPO {name}": halving for name in networks.MEASURES},
        "random": ((Rung(TRIALS, EPOCHS),),),
        "BOHB": fghpo.bohb_brackets(),
        **{name: TRIALS * ((Rung(1, EPOCHS),),) for name in BY_ONE},
    }


def counted(ladder: tuple[tuple[Rung, ...], ...]) -> tuple[int, int]:
    """Count the epochs and the validations of single networks."""
    return sum(map(spent, ladder)), sum(rung.num for rungs in ladder for rung in rungs)


def costs(case: dict[str, Any]) -> dict[str, tuple[float, float, float, float]]:
    """Return for each method the seconds of training, of training one by one, of measuring, of searching."""
    took = {part: found["time, median"] for part, found in case.items()}

    def price(part: str, num: int) -> float:
        # for a population whose size was not measured, interpolate
        return float(np.interp(num, POPULATIONS, [took[f"{part} of {n}"] for n in POPULATIONS]))

    made = {}
    for method, ladder in ladders().items():
        search = f"search by {CONTROL if method.startswith('FGHPO') else method}"
        if search not in took:
            continue
        together = 0.0
        for rungs in ladder:
            for rung, before in zip(rungs, [0, *(rung.steps for rung in rungs)], strict=False):
                epochs = rung.steps - before
                together += epochs * price("epoch", rung.num) + price("validation", rung.num)
        epochs, validations = counted(ladder)
        alone = epochs * price("epoch", 1) + validations * price("validation", 1)
        measuring = took.get(method.removeprefix("FGHPO "), 0.0)
        made[method] = (together, alone, measuring, took[search])
    return made


def table(results: Results) -> str:
    """Write the seconds of a search, trained as a population where the method allows it, and one by one."""
    parts = []
    for name, case in results.cases.items():
        found = costs(case)
        ours, ours_alone = in_all(found[OURS])
        rows = []
        for method, (training, _, measuring, searching) in found.items():
            together, alone = in_all(found[method])
            epochs, validations = counted(ladders()[method])
            rows.append(
                [
                    method, str(epochs), str(validations), f"{training:.3g}",
                    f"{measuring:.2g}" if measuring else "", f"{searching:.2g}", f"{together:.3g}",
                    f"{100 * ours / together:.0f} %", f"{alone:.3g}", f"{100 * ours_alone / alone:.0f} %",
                ]
            )  # fmt: skip
        header = [
            "method", "epochs", "validations", "s training", "s measuring", "s searching", "s in all",
            f"{OURS} to it", "s one by one", f"{OURS} to it",
        ]  # fmt: skip
        parts.append(f"**{name}**\n\n{markdown(header, rows)}")
    whole = FIRST * EPOCHS
    parts.append(
        f"{FIRST} settings trained to the end would be {whole} epochs, of which {BUDGET} are "
        f"{100 * BUDGET / whole:.0f} %."
    )
    return "\n\n".join(parts)


def in_all(cost: tuple[float, float, float, float]) -> tuple[float, float]:
    """Return the seconds of a whole search, of populations and one by one."""
    together, alone, measuring, searching = cost
    return together + measuring + searching, alone + measuring + searching


def draw(results: Results) -> Any:
    """Draw the seconds of a search as bars: training, measuring, searching."""
    from matplotlib.figure import Figure as Canvas

    case = next(iter(results.cases.values()))
    found = costs(case)
    canvas = Canvas(figsize=(7, 4), layout="constrained")
    axis = canvas.subplots()
    places = np.arange(len(found))[::-1]
    start = np.zeros(len(found))
    parts = {"training": 0, "measuring flatness": 2, "searching": 3}
    for color, (label, index) in zip(("0.75", "tab:red", "tab:blue"), parts.items(), strict=True):
        widths = np.array([row[index] for row in found.values()])
        axis.barh(places, widths, left=start, color=color, label=label, height=0.7)
        start += widths
    axis.set_yticks(places, [name.replace("_", " ") for name in found])
    axis.set_xlabel(
        f"processor seconds of a search ({next(iter(results.cases))}, at most {BUDGET} epochs)"
    )
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    return canvas
