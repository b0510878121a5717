"""The studies that faults are tried on: every method, and every scheduler with random search."""

import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import jax

from hypergrad import study
from hypergrad.problem import Task
from hypergrad.schedulers import SCHEDULERS
from hypergrad.space import Choice
from hypergrad.study.disk import journal
from hypergrad.tuners import METHODS, TUNERS, Tuner
from hypergrad.tuning.build import NAMES, build, most_trials
from hypergrad.tuning.settings import Settings, check_settings
from tasks import quadratic, ridge

NUM_STEPS = 20
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)
"""Signals that end a process: at once, as a batch system asks, and as a terminal that is closed."""


def needs(method: str) -> str:
    """Name the library that a method needs and that is missing; an empty text where none is."""
    libraries = ("optuna", *_NEEDS.get(method, ())) if method.startswith("optuna_") else ()
    return next((name for name in libraries if find_spec(name) is None), "")


_NEEDS = {"optuna_cma": ("cmaes",), "optuna_gp": ("torch",)}

_ALL = (*METHODS, *(f"random-{name}" for name in SCHEDULERS if name != "full"))

MISSING = [name for name in _ALL if needs(name)]
"""Methods that cannot be tried here."""
CASES = tuple(name for name in _ALL if name not in MISSING)


def settings_of(method: str, num_steps: int = NUM_STEPS) -> Settings:
    """Return the settings of a case that takes a number of steps."""
    method, _, scheduler = method.partition("-")
    scheduler = scheduler or "full"
    budget = num_steps * (1 if method in TUNERS else most_trials(method, scheduler))
    prior = {"lr": 0.05} if method == "prior" else None
    settings = Settings(method, budget=budget, num_seeds=1, scheduler=scheduler, prior=prior)
    return check_settings(settings._asdict(), NAMES)


@cache
def make(method: str, num_steps: int = NUM_STEPS) -> Tuner:
    """Build the tuner of a case for a problem that trains in microseconds."""
    return build(task_of(method), settings_of(method, num_steps))[0]


def task_of(method: str) -> Task:
    """Return a problem that trains in microseconds, and that a method can take."""
    if method == "bilevel":  # takes hyperparameters of the loss alone
        return ridge.task(horizon=3, num_features=2)
    task = quadratic.task(horizon=3, num_params=2)
    return with_choice(task) if method == "controller" else task  # which takes a choice


def with_choice(task: Task) -> Task:
    """Add a choice that the loss reads to a task."""
    problem = task.problem

    def loss(params, hparams, batch):
        rest = {name: x for name, x in hparams.items() if name != "kind"}
        return (1 + 0.1 * hparams["kind"]) * problem.loss(params, rest, batch)

    def objective(params, hparams, batch):
        rest = {name: x for name, x in hparams.items() if name != "kind"}
        return problem.objective(params, rest, batch) + 0.1 * hparams["kind"]

    changed = problem._replace(loss=loss, objective=objective)
    return task._replace(problem=changed, space={**task.space, "kind": Choice(("a", "b"))})


@cache
def undisturbed(method: str, num_steps: int = NUM_STEPS) -> str:
    """Return the digest of a run that writes nothing."""
    return study.run(make(method, num_steps), jax.random.key(0), num_steps).digest


def go_on(method: str, folder: Path, num_steps: int = NUM_STEPS, on_step=None) -> study.Run:
    """Run the study in a folder, or continue it."""
    tuner = make(method, num_steps)
    if study.has_begun(folder):
        return study.resume_run(tuner, folder, on_step)
    key = jax.random.key(0)
    return study.run(tuner, key, num_steps, on_step, storage=folder, checkpoint_seconds=0.0)


class Stop(Exception):
    """An error that ends a study from within, as a process that dies would."""


def stopped(method: str, folder: Path, num_steps: int) -> None:
    """Leave a study that ended after `num_steps` steps."""

    def stop(index, trials, best):
        if index + 1 == num_steps:
            raise Stop

    with contextlib.suppress(Stop):
        go_on(method, folder, on_step=stop)


def compiled_programs_are_kept() -> None:
    """Keep compiled programs on the disk, so that a process that is ended costs a second."""
    place = os.path.join(tempfile.gettempdir(), "hypergrad-benchmarks-compiled")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", place)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        text = os.environ[name]
        jax.config.update(name.lower(), float(text) if name.endswith("SECS") else text)


def end(process: Any, number: signal.Signals) -> bool:
    """Send a signal to a process, and tell whether it was there; it may end by itself at the same moment."""
    if not process.is_alive():
        return False
    try:
        os.kill(process.pid, number)
    except ProcessLookupError:
        return False
    return True


def messages(pipe: Connection) -> Iterator[tuple[str, Any]]:
    """Receive until the other end is closed; a message that a signal cut short ends it too."""
    while True:
        try:
            yield pipe.recv()
        except (EOFError, OSError):
            return


def count_records(folder: Path) -> int:
    """Count the whole records of a study before the first damage; none where there is no journal."""
    count = 0
    with contextlib.suppress(FileNotFoundError, ValueError):
        for _ in journal.read_records(folder / "journal.jsonl"):
            count += 1
    return count
