"""Trials a second: a population in one compiled program, beside Optuna with one jitted training a trial.

The trial is the same for all: an MLP on digits with 8, 32 or 64 hidden units, 200 steps of Adam, six
hyperparameters, which are traced. In turn, in one process, on one core: (a) Optuna's TPE with its SQLite
storage, (b) the same in memory, (c) a Python loop of the jitted training alone, (d) ours, a study of
cross-entropy search whose trials are on disk when they count. Optuna's TPE slows down as a study grows: it is
timed in the middle of a study of N trials, a dozen at a time, where its rate is steady; the loop is timed over
64 trials.

The second part measures the cost of a search besides training: a generation of cross-entropy search (and
evosax's nearest), suggestions of a Gaussian process, and generations that stay on the device. The full run
takes seven minutes.
"""

import argparse
import functools
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.record import Figure, Results, accelerator, interleave, markdown, timed
from hypergrad import study
from hypergrad.populations import Layout, chunked, fastest_layout, population
from hypergrad.problem import Problem
from hypergrad.schedulers import full, halving
from hypergrad.searchers import Searcher, Trials, bayes, cross_entropy
from hypergrad.space import LogReal, Real, from_units
from hypergrad.train import init_state, unroll
from hypergrad.tuners import Tuner, search

WIDTHS = (8, 32, 64)
SIZES = (64, 256, 1024, *((4096,) if accelerator() else ()))
HORIZON, BATCH_SIZE = 200, 32
REPEATS = 5
NUM_OPTUNA, NUM_LOOP, LEAST = 12, 64, 256
"""Number of trials in one timed turn of Optuna, of the loop and (at least) of ours."""
SPACE = {
    "lr": LogReal(1e-4, 1e-1),
    "b1": Real(0.0, 0.99),
    "b2_gap": LogReal(1e-4, 1e0),
    "eps": LogReal(1e-10, 1e-2),
    "decay": LogReal(1e-6, 1e0),
    "smoothing": Real(0.0, 0.3),
}
KEY = jax.random.key(0)
A, B, C, D = (
    "(a) Optuna, SQLite",
    "(b) Optuna, memory",
    "(c) loop of the jitted training",
    "(d) ours",
)


def run(results: Results, options: argparse.Namespace) -> None:
    """Measure every case that is not in the results yet."""
    quick = options.quick
    repeats = 1 if quick else REPEATS
    cases: dict[str, Callable[[], list[Figure]]] = {
        "recompilation": lambda: recompilation(128 if quick else 1024),
        "generation": lambda: generation(64 if quick else 1024, repeats),
        "Gaussian process": lambda: gaussian_process(20 if quick else 100, repeats),
        "on the device": lambda: on_device(2 if quick else 16, repeats),
    }
    for width, num in [(8, 64)] if quick else itertools.product(WIDTHS, SIZES):
        cases[f"{width} units, {num} members"] = lambda w=width, n=num: rates(w, n, repeats)
    for name, measure in cases.items():
        if name not in results.cases:
            print(f"{name} ...", flush=True)
            results.add(name, measure())


def make_problem(width: int) -> Problem:
    """Train an MLP on 1,200 digits by Adam; the objective is the loss on the others."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x, y = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels, jnp.int32)

    def init(key, h):
        one, two = jax.random.split(key)
        return {
            "one": jax.random.normal(one, (64, width)) / 8,
            "bias": jnp.zeros(width),
            "two": jax.random.normal(two, (width, 10)) / width**0.5,
        }

    def logits(params, inputs):
        return jnp.tanh(inputs @ params["one"] + params["bias"]) @ params["two"]

    def loss(params, h, batch):
        targets = optax.smooth_labels(jax.nn.one_hot(batch[1], 10), h["smoothing"])
        return optax.softmax_cross_entropy(logits(params, batch[0]), targets).mean()

    def objective(params, h, batch):
        scores = logits(params, batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(scores, batch[1]).mean()

    def optimizer(h):
        return optax.chain(
            optax.scale_by_adam(h["b1"], 1 - h["b2_gap"], h["eps"]),
            optax.add_decayed_weights(h["decay"]),
            optax.scale_by_learning_rate(h["lr"]),
        )

    def train_batch(key, step):
        index = jax.random.randint(key, (BATCH_SIZE,), 0, 1200)
        return x[index], y[index]

    return Problem(init, loss, objective, optimizer, train_batch, lambda key: (x[1200:], y[1200:]))


def rates(width: int, num: int, repeats: int) -> list[Figure]:
    """Time the four in turn."""
    problem = make_problem(width)
    # what a user of Optuna would write: everything that a trial does, compiled once
    train = jax.jit(lambda key, h: objective(problem, key, h))
    layout = layout_of(width)
    members = population(problem, layout=layout, order=KEY)
    tuner = search(members, cross_entropy(SPACE, rho=max(0.1, 4 / num)), full(HORIZON), num)
    with ExitStack() as stack:
        num_steps = max(1, LEAST // num)
        calls = {C: loop(train), D: ours(tuner, num_steps)}
        counts = {A: NUM_OPTUNA, B: NUM_OPTUNA, C: NUM_LOOP, D: num_steps * num}
        figures = []
        try:
            for name, disk in ((A, True), (B, False)):
                calls[name] = stack.enter_context(optuna_study(train, num, disk))
        except ImportError as error:
            figures = [Figure(name, "absent", str(error), "message") for name in (A, B)]
        times = interleave(calls, repeats)
    rate = {name: counts[name] / found["median"] for name, found in times.items()}
    figures += [Figure(name, "rate", value, "trials/s") for name, value in rate.items()]
    for name, found in times.items():
        for which in ("lowest", "highest"):
            figures.append(Figure(name, f"time, {which}", found[which] / counts[name], "s a trial"))
    figures += [Figure(D, f"ratio {n}", rate[D] / rate[n], "times") for n in calls if n != D]
    return [*figures, Figure(D, "layout", layout.label, "layout")]


@functools.cache
def layout_of(width: int) -> Layout:
    """Measure which layout is fastest for a network, as `tune` does before a search."""
    return fastest_layout(make_problem(width), drawn(LEAST), order=KEY).layout


def objective(problem: Problem, key: jax.Array, hparams: Any) -> jax.Array:
    state = unroll(problem, hparams, init_state(problem, key, hparams), HORIZON)
    return problem.objective(state.params, hparams, problem.valid_batch(state.key))


def drawn(num: int) -> Any:
    return from_units(SPACE, jax.random.uniform(KEY, (num, len(SPACE))))


def loop(train: Callable) -> Callable[[], float]:
    """Train one trial after the other, and read each value as a search would."""
    trials = [{n: float(x[i]) for n, x in drawn(NUM_LOOP).items()} for i in range(NUM_LOOP)]
    keys = list(jax.random.split(KEY, NUM_LOOP))

    def call() -> float:
        began = time.perf_counter()
        for key, hparams in zip(keys, trials, strict=True):
            float(train(key, hparams))
        return time.perf_counter() - began

    return call


def ours(tuner: Tuner, num_steps: int) -> Callable[[], float]:
    """Run a study on disk, and time all of it, including the creation of its folder."""

    def call() -> float:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            study.run(tuner, KEY, num_steps, storage=Path(folder) / "study")
            return time.perf_counter() - began

    return call


@contextmanager
def optuna_study(train: Callable, num: int, disk: bool) -> Iterator[Callable[[], float]]:
    """Open a study that has half of `num` trials, and continue it."""
    import optuna  # pyright: ignore[reportMissingImports]

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    asked = distributions()
    with tempfile.TemporaryDirectory() as folder:
        storage = f"sqlite:///{folder}/study.db" if disk else None
        made = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0), storage=storage)
        made.add_trials(finished(num // 2))
        keys = iter(jax.random.split(jax.random.key(1), 100 * NUM_OPTUNA))

        def call() -> float:
            began = time.perf_counter()
            for _ in range(NUM_OPTUNA):
                trial = made.ask(asked)
                made.tell(trial, float(train(next(keys), trial.params)))
            return time.perf_counter() - began

        yield call


def distributions() -> dict[str, Any]:
    import optuna  # pyright: ignore[reportMissingImports]

    return {
        name: optuna.distributions.FloatDistribution(
            dim.low, dim.high, log=isinstance(dim, LogReal)
        )
        for name, dim in SPACE.items()
    }


def finished(num: int) -> list[Any]:
    """Return trials of a bowl, at random settings, in Optuna's form."""
    import optuna  # pyright: ignore[reportMissingImports]

    hparams, values = drawn(num), bowl(jax.random.uniform(KEY, (num, len(SPACE))))
    return [
        optuna.trial.create_trial(
            params={name: float(x[i]) for name, x in hparams.items()},
            distributions=distributions(),
            value=float(values[i]),
        )
        for i in range(num)
    ]


def bowl(units: jax.Array) -> jax.Array:
    return jnp.sum((units - 0.3) ** 2, -1)


def recompilation(num: int) -> list[Figure]:
    """Count the compilations while `num` trials with other hyperparameters are trained."""
    problem = make_problem(8)
    size = num // 16
    members = population(problem, layout=chunked(), order=KEY)
    tuner = search(members, cross_entropy(SPACE, rho=0.25), full(HORIZON), size)
    compiled: list[str] = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    study.run(tuner, KEY, 1)
    first = len(compiled)
    study.run(tuner, jax.random.key(1), 16)
    return [
        Figure(D, "trials", 16 * size, "count"),
        Figure(D, "compiled at first", first, "programs"),
        Figure(D, "compiled after that", len(compiled) - first, "programs"),
    ]


def told(searcher: Searcher, num: int) -> tuple[Any, Trials]:
    """Return a searcher's first state, and `num` trials of a bowl."""
    units = jax.random.uniform(KEY, (num, len(SPACE)))
    index = jnp.arange(num, dtype=jnp.int32)
    trials = Trials(from_units(SPACE, units), bowl(units), jnp.ones_like(index), index, {})
    return searcher.init(KEY), trials


def generation(num: int, repeats: int) -> list[Figure]:
    """Time ask and tell of a generation, without any training."""
    searcher = cross_entropy(SPACE)
    state, trials = told(searcher, num)
    both = jax.jit(lambda k, s, v: _turn(searcher, k, s, v, num))
    calls = {"hypergrad": timed(lambda: both(KEY, state, trials.values))}
    figures = []
    try:
        calls["evosax SimpleES"] = timed(evosax_step(num))
    except ImportError as error:
        figures.append(Figure("evosax SimpleES", "absent", str(error), "message"))
    times = interleave(calls, 10 * repeats)
    figures += [Figure(n, "ask and tell", 1e3 * t["median"], "ms") for n, t in times.items()]
    return [*figures, Figure("hypergrad", "members", num, "count")]


def _turn(searcher: Searcher, key, state, values, num: int):
    hparams = searcher.ask(key, state, num)
    index = jnp.arange(num, dtype=jnp.int32)
    return hparams, searcher.tell(state, Trials(hparams, values, index * 0 + 1, index, {}))


def evosax_step(num: int) -> Callable[[], Any]:
    """Return one generation of evosax's nearest strategy: mean and deviation of the elites."""
    from evosax.algorithms import SimpleES  # pyright: ignore[reportMissingImports]

    strategy = SimpleES(population_size=num, solution=jnp.zeros(len(SPACE)))
    params = strategy.default_params
    state = strategy.init(KEY, jnp.full(len(SPACE), 0.5), params)
    values = bowl(jax.random.uniform(KEY, (num, len(SPACE))))

    @jax.jit
    def both(key, state):
        solutions, state = strategy.ask(key, state, params)
        return solutions, strategy.tell(key, solutions, values, state, params)[0]

    return lambda: both(KEY, state)


def gaussian_process(num: int, repeats: int) -> list[Figure]:
    """Time a fit and the suggestions that follow it, per suggestion, after `num` trials."""
    searcher = bayes(SPACE, 128)
    state, trials = told(searcher, num)
    state = jax.jit(searcher.tell)(state, trials)
    calls, figures = {}, []
    for q in (1, 8):
        both = jax.jit(lambda k, s, v, q=q: _turn(searcher, k, s, v, q))
        values = trials.values[:q]
        calls[f"hypergrad, {q} at once"] = timed(lambda b=both, v=values: b(KEY, state, v))
    try:
        calls["Optuna GPSampler"] = optuna_gp(num)
    except ImportError as error:
        figures.append(Figure("Optuna GPSampler", "absent", str(error), "message"))
    times = interleave(calls, repeats)
    for name, found in times.items():
        share = 8 if "8 at once" in name else 1
        figures.append(Figure(name, "a suggestion", 1e3 * found["median"] / share, "ms"))
    return [*figures, Figure("hypergrad, 8 at once", "trials", num, "count")]


def optuna_gp(num: int) -> Callable[[], float]:
    """Ask for a trial and tell its value, in a study in memory of `num` trials."""
    import optuna  # pyright: ignore[reportMissingImports]
    import torch  # noqa: F401  # pyright: ignore[reportMissingImports]

    made = optuna.create_study(sampler=optuna.samplers.GPSampler(seed=0))
    made.add_trials(finished(num))
    asked = distributions()

    def call() -> float:
        began = time.perf_counter()
        trial = made.ask(asked)
        made.tell(trial, float(np.sum(np.square(list(trial.params.values())))))
        return time.perf_counter() - began

    return call


def on_device(num_generations: int, repeats: int) -> list[Figure]:
    """Time generations as one program, against one call a generation that is read by the host."""
    problem, num = make_problem(8), 64
    members = population(problem, layout=chunked(), order=KEY)
    keys = jax.random.split(KEY, num_generations)
    calls = {}
    schedules = {"full": full(HORIZON), "halving": halving(HORIZON, min_steps=HORIZON // 9)}
    for name, scheduler in schedules.items():
        tuner = search(members, cross_entropy(SPACE), scheduler, num)
        state = tuner.init(KEY)

        def one_by_one(tuner=tuner, state=state):
            values = []
            for key in keys:
                state, trials = tuner.step(key, state)
                values.append(np.asarray(trials.values))
            return np.stack(values)

        scan = jax.jit(
            lambda state, tuner=tuner: jax.lax.scan(
                lambda s, k: (lambda r: (r[0], r[1].values))(tuner.step(k, s)), state, keys
            )[1]
        )
        calls[f"{name}, a call a generation"] = timed(one_by_one)
        calls[f"{name}, one program"] = timed(lambda scan=scan, state=state: scan(state))
    times = interleave(calls, repeats)
    figures = [
        Figure(name, "a generation", 1e3 * found["median"] / num_generations, "ms")
        for name, found in times.items()
    ]
    return [*figures, Figure("full, one program", "generations", num_generations, "count")]


def table(results: Results) -> str:
    """Write the rates, their ratios, and the cost of a search besides training, as Markdown."""
    rows = []
    for case, found in results.cases.items():
        if "units" not in case:
            continue
        mine = found[D]
        cells = [
            f"{found[n]['rate']:,.0f}" if "rate" in found[n] else "absent" for n in (A, B, C, D)
        ]
        ratios = [f"{mine[f'ratio {n}']:.2f}" if f"ratio {n}" in mine else "" for n in (A, B, C)]
        rows.append([case, *cells, *ratios, mine["layout"]])
    header = ["trials a second", A, B, C, D, "d/a", "d/b", "d/c", "layout of (d)"]
    blocks = [markdown(header, rows)] if rows else []
    lines = []
    if "recompilation" in results.cases:
        found = results.cases["recompilation"][D]
        lines.append(
            f"{found['compiled after that']} programs were compiled in {found['trials']} trials with other "
            "hyperparameters, after the first generation."
        )
    for case, metric in (
        ("generation", "ask and tell"),
        ("Gaussian process", "a suggestion"),
        ("on the device", "a generation"),
    ):
        found = results.cases.get(case, {})
        count = next(
            (f"{v} {k}" for of in found.values() for k, v in of.items() if k in COUNTS), ""
        )
        said = [
            f"{name} {of[metric]:.2f} ms" if metric in of else f"{name}: {of['absent']}"
            for name, of in found.items()
            if metric in of or "absent" in of
        ]
        if said:
            lines.append(f"**{case}**, {metric} ({count}): " + "; ".join(said))
    return "\n\n".join(blocks + lines)


COUNTS = ("members", "trials", "generations")
