"""Acknowledged trials a second, beside the SQLite and journal storages of Optuna on the same disk.

A trial has four real hyperparameters and one value, and is acknowledged when it is on the disk: all three
wait for it (SQLite by its default, the journals by fsync). hypergrad runs a random search of one training
step and writes one record a batch; Optuna asks for a batch of random trials and tells their values one by one,
or adds them finished, which is its closest form of a batch. Both go to its storage trial by trial, so
at most 64 of a batch are timed, which favours it if anything.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.record import Figure, Results, interleave, markdown
from hypergrad import study
from hypergrad.populations import population, vectorized
from hypergrad.problem import Problem
from hypergrad.schedulers import full
from hypergrad.searchers import random
from hypergrad.space import Real
from hypergrad.tuners import Tuner, search

BATCHES = (1, 32, 512)
NUM_TRIALS = {1: 64, 32: 1024, 512: 8192}
MAX_MEMBERS = 64
"""Number of trials of Optuna in one timed turn."""
NAMES = ("a", "b", "c", "d")
REPEATS = 5
OURS = "hypergrad"


def run(results: Results, options) -> None:
    """Measure every batch that is not in the results yet."""
    for batch in BATCHES[:2] if options.quick else BATCHES:
        case = f"batch {batch}"
        if case not in results.cases:
            print(f"{case} ...", flush=True)
            results.add(case, measure(batch, options.quick))


def measure(batch: int, quick: bool) -> list[Figure]:
    """Time all storages in turn."""
    num = NUM_TRIALS[batch] // (4 if quick else 1)
    most = MAX_MEMBERS // (4 if quick else 1)
    figures, calls = [], {OURS: ours(batch, num)}
    try:
        import optuna  # pyright: ignore[reportMissingImports]

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        figures.append(Figure("Optuna", "version", optuna.__version__, "optuna"))
        for name, store in (("SQLite", sqlite), ("journal", journal_file)):
            calls[f"Optuna {name}, ask and tell"] = theirs(store, ask_and_tell, batch, most)
            calls[f"Optuna {name}, add_trials"] = theirs(store, add_trials, batch, most)
    except ImportError as error:
        figures.append(Figure("Optuna", "absent", str(error), "message"))
    times = interleave(calls, 1 if quick else REPEATS)
    rates = {n: (num if n == OURS else most) / t["median"] for n, t in times.items()}
    best = max((rate for name, rate in rates.items() if name != OURS), default=None)
    for name, found in times.items():
        figures += [Figure(name, f"time, {which}", took, "s") for which, took in found.items()]
        figures.append(Figure(name, "rate", rates[name], "trials/s"))
    if best is not None:
        figures.append(Figure(OURS, "ratio", rates[OURS] / best, "times the fastest of Optuna"))
    return figures


def ours(batch: int, num: int) -> Callable[[], float]:
    """Search at random with one record a batch; compiled programs are kept."""
    tuner = make(batch)
    key, steps = jax.random.key(0), num // batch
    study.run(tuner, key, 1)

    def call() -> float:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            study.run(tuner, key, steps, storage=Path(folder) / "study")
            return time.perf_counter() - began

    return call


def make(batch: int) -> Tuner:
    """Build a random search over the sum of four numbers."""
    problem = Problem(
        init=lambda key, h: jnp.zeros(()),
        loss=lambda params, h, data: params**2,
        objective=lambda params, h, data: params + sum(h.values()),
        optimizer=lambda h: optax.sgd(0.1),
        train_batch=lambda key, step: (),
        valid_batch=lambda key: (),
    )
    space = {name: Real(0.0, 1.0) for name in NAMES}
    return search(population(problem, layout=vectorized()), random(space), full(1), batch)


def sqlite(folder: Path):
    return f"sqlite:///{folder / 'study.db'}"


def journal_file(folder: Path):
    from optuna.storages import JournalStorage  # pyright: ignore[reportMissingImports]
    from optuna.storages.journal import JournalFileBackend  # pyright: ignore[reportMissingImports]

    return JournalStorage(JournalFileBackend(str(folder / "journal.log")))


def theirs(store: Callable, work: Callable, batch: int, num: int) -> Callable[[], float]:
    """Do the same with Optuna; the creation of the study does not count, because it is slow and done once."""
    import optuna  # pyright: ignore[reportMissingImports]

    def call() -> float:
        with tempfile.TemporaryDirectory() as folder:
            sampler = optuna.samplers.RandomSampler(seed=0)
            made = optuna.create_study(storage=store(Path(folder)), sampler=sampler)
            began = time.perf_counter()
            for _ in range(-(-num // batch)):
                work(made, min(batch, num))
            return time.perf_counter() - began

    return call


def distributions() -> Any:
    import optuna  # pyright: ignore[reportMissingImports]

    return {name: optuna.distributions.FloatDistribution(0.0, 1.0) for name in NAMES}


def ask_and_tell(made, batch: int) -> None:
    trials = [made.ask(distributions()) for _ in range(batch)]
    for trial in trials:
        made.tell(trial, sum(trial.params.values()))


def add_trials(made, batch: int) -> None:
    import optuna  # pyright: ignore[reportMissingImports]

    params: dict[str, Any] = dict.fromkeys(NAMES, 0.5)
    made.add_trials(
        [
            optuna.trial.create_trial(params=params, distributions=distributions(), value=2.0)
            for _ in range(batch)
        ]
    )


def table(results: Results) -> str:
    """Write the rates as Markdown."""
    methods = list(dict.fromkeys(m for found in results.cases.values() for m in found))
    rows = []
    for method in methods:
        rates = [found.get(method, {}).get("rate") for found in results.cases.values()]
        if any(rates):
            rows.append([method, *("" if r is None else f"{r:,.0f}" for r in rates)])
    ratios = [f"{found[OURS].get('ratio', float('nan')):.1f}" for found in results.cases.values()]
    rows.append([f"{OURS} / fastest of Optuna", *ratios])
    return markdown(["trials a second", *results.cases], rows)
