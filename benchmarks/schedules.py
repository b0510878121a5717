"""A learning-rate schedule tuned by gradient against the best constant, the best cosine and random search.

Only the learning rate differs: each method trains the same network for the same number of steps, with the
task's defaults for everything else. Each chooses by validation loss on its own seeds; all are then judged on
ten fresh ones.
"""

import argparse
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.stats import t as student

from benchmarks.record import Figure, Results, markdown
from hypergrad import study
from hypergrad.estimators import Estimator, average, reverse
from hypergrad.problem import Problem, Task
from hypergrad.space import LogReal, Sequence, default, sample
from hypergrad.train import init_state, unroll
from hypergrad.tune import measure_ratio
from hypergrad.tuners import descent
from hypergrad.types import Array, Key
from tasks import digits, images
from tasks.supervised import Splits

RATES = LogReal(1e-3, 2.0, default=0.1)
NUM_CHOOSE = 8
"""Seeds on which every method chooses; a hypergradient is averaged over as many."""
NUM_LAST = 20
"""Last iterates of the descent among which it chooses: their own values are of as many different seeds, and
the lowest of noisy values is a lucky one."""
NUM_JUDGE = 10
NUM_KNOTS = 5
UNITS = {"validation loss": "nats", "test loss": "nats", "test accuracy": "fraction"}


def run(results: Results, options: argparse.Namespace) -> None:
    """Measure every task that is not in the results yet."""
    horizon, budget = (30, 3) if options.quick else (200, 60)
    cases: dict[str, Callable[[], tuple[Task, Splits]]] = {
        "digits": lambda: (digits.task(horizon=horizon), digits.load())
    }
    if options.data:
        cases["MNIST-10k"] = lambda: (
            images.task(data=options.data, horizon=horizon),
            images.load(options.data, 5000, 2500, 2500),
        )
    else:
        print("MNIST-10k is left out: name the folder of its files with --data DIR")
    for name, build in cases.items():
        if name not in results.cases:
            print(f"{name} ...", flush=True)
            results.add(name, measure(*build(), budget))


def rates_only(task: Task) -> Task:
    """Fix all hparams of a task at their defaults, but for the learning rates."""
    rest = {name: x for name, x in default(task.space).items() if name != "lr"}

    def fixed(function: Callable) -> Callable:
        """Give a function (…, hparams, …) all of them; the dictionary is the argument that has "lr"."""

        def call(*args):
            return function(
                *({**rest, **a} if isinstance(a, dict) and "lr" in a else a for a in args)
            )

        return call

    problem = task.problem
    problem = problem._replace(
        init=fixed(problem.init),
        loss=fixed(problem.loss),
        objective=fixed(problem.objective),
        optimizer=fixed(problem.optimizer),
    )
    return task._replace(problem=problem, space={"lr": Sequence(RATES, task.horizon)})


def measure(task: Task, splits: Splits, budget: int) -> list[Figure]:
    """Tune, search, and judge."""
    task = rates_only(task)
    keys = jax.random.split(jax.random.key(1), 4)
    estimator = reverse(task.problem, task.horizon)
    start = default(task.space)
    ratio = measure_ratio(task, estimator, start, num_repeats=5)
    num_trials = round(budget * ratio) + NUM_LAST
    began = time.perf_counter()
    iterates = descend(task, estimator, keys[0], budget)
    seconds = {"tuned": time.perf_counter() - began}
    candidates = {
        "tuned": iterates[-NUM_LAST:],
        "constant": constants(num_trials, task.horizon),
        "cosine": cosines(num_trials, task.horizon),
        "random": randoms(keys[1], num_trials, task.horizon),
    }
    choose = jax.random.split(keys[2], NUM_CHOOSE)
    schedules = {"default": start["lr"]}
    for name, rates in candidates.items():
        began = time.perf_counter()
        values = np.asarray(validate(task.problem, task.horizon, rates, choose))
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began
        schedules[name] = rates[int(np.nanargmin(values))]
    figures = judge(task, splits, schedules, jax.random.split(keys[3], NUM_JUDGE))
    for name, rates in schedules.items():
        found = [float(f"{r:.4g}") for r in rates]
        figures.append(Figure(name, "rates", found, "learning rate a step"))
    figures += [Figure(name, "time", took, "s") for name, took in seconds.items()]
    figures += [
        Figure("tuned", "horizon", task.horizon, "steps"),
        Figure("tuned", "hypergradients", budget, "count"),
        Figure("tuned", "ratio", ratio, "trainings"),
        Figure("random", "trials", num_trials, "count"),
    ]
    return figures


def descend(task: Task, estimator: Estimator, key: Key, budget: int) -> Array:
    """Descend on the schedule; return its iterates, `[budget, horizon]`.

    Noise in the hypergradients asks for a shorter memory of their squares than Adam's own.
    """
    rate = optax.cosine_decay_schedule(0.05, budget)
    optimizer = optax.adam(rate, b2=0.99)
    tuner = descent(average(estimator, NUM_CHOOSE), task.space, optimizer=optimizer)
    outcomes = study.run(tuner, key, budget).outcomes
    return jnp.stack([jnp.asarray(outcome.hparams["lr"][0]) for outcome in outcomes])


def constants(num: int, horizon: int) -> Array:
    """Rates from the lowest to the highest allowed, `[num, horizon]`."""
    return jnp.broadcast_to(jnp.geomspace(RATES.low, RATES.high, num)[:, None], (num, horizon))


def cosines(num: int, horizon: int) -> Array:
    """Half cosines to zero from the same rates, `[num, horizon]`."""
    return constants(num, horizon) * 0.5 * (1 + jnp.cos(jnp.pi * jnp.arange(horizon) / horizon))


def randoms(key: Key, num: int, horizon: int) -> Array:
    """Schedules through a few random knots, `[num, horizon]`; one draw a step would be a straw man."""
    space = {"lr": Sequence(RATES, horizon, knots=NUM_KNOTS)}
    return jax.vmap(lambda k: sample(space, k)["lr"])(jax.random.split(key, num))


def validate(problem: Problem, horizon: int, rates: Array, keys: Array) -> Array:
    """Mean validation loss over seeds of each schedule, `[num]`; NaN where one diverged."""

    def one(rates, key):
        hparams = {"lr": rates}
        state = unroll(problem, hparams, init_state(problem, key, hparams), horizon)
        return problem.objective(state.params, hparams, problem.valid_batch(key))

    @jax.jit
    def every(rates):
        return jax.lax.map(lambda r: jnp.mean(jax.vmap(lambda k: one(r, k))(keys)), rates)

    return every(rates)


def judge(task: Task, splits: Splits, schedules: dict[str, Array], keys: Array) -> list[Figure]:
    """Train each schedule on the same fresh seeds; the test set is read here, once."""
    problem, test = task.problem, tuple(map(jnp.asarray, splits.test))
    correct = task.test
    assert correct is not None

    def one(rates, key):
        hparams = {"lr": rates}
        params = unroll(problem, hparams, init_state(problem, key, hparams), task.horizon).params
        return {
            "validation loss": problem.objective(params, hparams, problem.valid_batch(key)),
            "test loss": problem.objective(params, hparams, test),
            "test accuracy": jnp.mean(correct(params, hparams)),
        }

    every = jax.jit(lambda rates: jax.lax.map(lambda key: one(rates, key), keys))
    return [
        Figure(name, score, float(value), UNITS[score], seed)
        for name, rates in schedules.items()
        for score, values in every(rates).items()
        for seed, value in enumerate(values)
    ]


def interval(values: list[float]) -> tuple[float, float]:
    """Mean over seeds, and half its 95 % interval by Student's t."""
    half = student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return float(np.mean(values)), float(half)


def table(results: Results) -> str:
    """Write the results as Markdown; the last column is paired by seed."""
    parts = []
    for name, methods in results.cases.items():
        tuned = methods["tuned"]
        rows = []
        for method, found in methods.items():
            scores = ["{:.4f} ± {:.4f}".format(*interval(found[score])) for score in UNITS]
            paired = np.subtract(found["validation loss"], tuned["validation loss"])
            more = "" if method == "tuned" else "{:+.4f} ± {:.4f}".format(*interval(list(paired)))
            rows.append([method, *scores, more])
        head = (
            f"**{name}**, {tuned['horizon']} steps; {tuned['hypergradients']} hypergradients of "
            f"{tuned['ratio']:.1f} trainings each and {NUM_LAST} trials = "
            f"{methods['random']['trials']} trials of each other way; every one is a mean over "
            f"{NUM_CHOOSE} seeds"
        )
        header = ["schedule", *UNITS, "validation loss above tuned"]
        parts.append(f"{head}\n\n{markdown(header, rows)}")
    return "\n\n".join(parts)
