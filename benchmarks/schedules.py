"""A learning-rate schedule tuned by gradient against the best constant, the best cosine and random search.

Only the learning rate differs: every way trains the same network for the same number of steps, with the task's
defaults for everything else. The whole comparison is repeated with other splits of the data, other weights and
other minibatches: each way chooses by the validation loss of `NUM_CHOOSE` trainings, and its choice is judged
by `NUM_JUDGE` fresh ones. The full run takes about forty minutes.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.stats import t as student

from benchmarks.record import Figure, Results, markdown
from hypergrad import study
from hypergrad.core.flax import from_linen
from hypergrad.core.types import Array, Key
from hypergrad.estimators import ESTIMATORS, Estimator, average, reverse
from hypergrad.problem import Problem, Task
from hypergrad.space import LogReal, Real, Sequence, default, sample, schedule
from hypergrad.train import init_state, unroll
from hypergrad.tuners import descent
from models.mlp import MLP
from tasks import digits, images
from tasks.supervised import Splits, cross_entropy, supervised

RATES = LogReal(1e-3, 2.0, default=0.1)
NUM_SEEDS = 10
"""Number of repetitions of the whole comparison."""
NUM_CHOOSE = 8
"""Number of trainings on which every way chooses; a hypergradient is averaged over as many."""
NUM_LAST = 20
"""Last iterates of the descent among which it chooses: their own values are of as many different seeds, and
the lowest of noisy values is partly luck."""
NUM_JUDGE = 10
NUM_GRID = 40
"""Number of rates tried for the constant and the cosine, which have one parameter."""
NUM_KNOTS = 5
UNITS = {"validation loss": "nats", "test loss": "nats", "test accuracy": "fraction"}


def run(results: Results, options: argparse.Namespace) -> None:
    """Measure every repetition that is not in the results yet."""
    num_seeds, horizon, budget = (1, 30, 3) if options.quick else (NUM_SEEDS, 200, 60)
    cases: dict[str, Callable[[int], tuple[Task, Splits]]] = {
        "digits": lambda seed: (digits.task(horizon=horizon, seed=seed), digits.load(seed))
    }
    if options.data:
        short = horizon // 2
        cases["MNIST-10k"] = lambda seed: on_images(options.data, short, seed)
    else:
        print("MNIST-10k is left out: name the folder of its files with --data DIR")
    for name, build in cases.items():
        done = results.cases.get(name, {}).get("tuned", {}).get("test loss", [])
        for seed in range(len(done), num_seeds):
            print(f"{name}, seed {seed} ...", flush=True)
            results.add(name, measure(*build(seed), budget, seed))


def on_images(data: str, horizon: int, seed: int) -> tuple[Task, Splits]:
    """Make the task of a small network on images whose SGD has a learning rate for every step."""

    def optimizer(hparams: Any) -> optax.GradientTransformation:
        return optax.chain(
            optax.trace(hparams["momentum"]),
            optax.add_decayed_weights(hparams["decay"]),
            optax.scale_by_learning_rate(schedule(hparams["lr"])),
        )

    splits = images.load(data, 5000, 2500, 2500, seed)
    problem, score = supervised(from_linen(MLP((32, 10))), splits, cross_entropy, optimizer, 50)
    space = {
        "lr": Sequence(RATES, horizon),
        "decay": LogReal(1e-6, 1e-1, default=1e-4),
        "momentum": Real(0.0, 0.99, default=0.9),
        "noise": Real(0.0, 0.5, default=0.05),
    }
    return Task("images", problem, space, horizon, score, "accuracy", True), splits


def rates_only(task: Task) -> Task:
    """Fix all hparams of a task at their defaults, except the learning rates."""
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


def measure(task: Task, splits: Splits, budget: int, seed: int) -> list[Figure]:
    """Tune, search, and judge."""
    task = rates_only(task)
    keys = jax.random.split(jax.random.key(seed), 4)
    estimator = reverse(task.problem, task.horizon)
    start = default(task.space)
    ratio = ESTIMATORS["reverse"].cost(task.problem, task.horizon, task.space)
    num_trials = round(budget * ratio) + NUM_LAST
    began = time.perf_counter()
    iterates = descend(task, estimator, keys[0], budget)
    seconds = {"tuned": time.perf_counter() - began}
    candidates = {
        "tuned": iterates[-NUM_LAST:],
        "constant": constants(NUM_GRID, task.horizon),
        "cosine": cosines(NUM_GRID, task.horizon),
        "random": randoms(keys[1], num_trials, task.horizon),
    }
    validate = validator(task.problem, task.horizon, jax.random.split(keys[2], NUM_CHOOSE))
    schedules = {"default": start["lr"]}
    for name, rates in candidates.items():
        began = time.perf_counter()
        schedules[name] = rates[int(np.nanargmin(validate(rates)))]
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began
    figures = judge(task, splits, schedules, jax.random.split(keys[3], NUM_JUDGE), seed)
    for name, rates in schedules.items():
        found = [float(f"{r:.4g}") for r in rates]
        figures.append(Figure(name, "rates", found, "learning rate a step", seed))
    figures += [Figure(name, "time", took, "s", seed) for name, took in seconds.items()]
    figures += [
        Figure("tuned", "horizon", task.horizon, "steps", seed),
        Figure("tuned", "hypergradients", budget, "count", seed),
        Figure("tuned", "ratio", ratio, "trainings", seed),
        Figure("random", "trials", num_trials, "count", seed),
    ]
    return figures


def descend(task: Task, estimator: Estimator, key: Key, budget: int) -> Array:
    """Descend on the schedule; return its iterates, `[budget, horizon]`.

    Noise in the hypergradients demands a shorter memory of their squares than Adam's own.
    """
    rate = optax.cosine_decay_schedule(0.05, budget)
    optimizer = optax.adam(rate, b2=0.99)
    tuner = descent(average(estimator, NUM_CHOOSE), task.space, optimizer=optimizer)
    told = study.run(tuner, key, budget).trials
    return jnp.stack([jnp.asarray(trials.hparams["lr"][0]) for trials in told])


def constants(num: int, horizon: int) -> Array:
    """Return rates from the lowest to the highest allowed, `[num, horizon]`."""
    return jnp.broadcast_to(jnp.geomspace(RATES.low, RATES.high, num)[:, None], (num, horizon))


def cosines(num: int, horizon: int) -> Array:
    """Return half cosines to zero from the same rates, `[num, horizon]`."""
    return constants(num, horizon) * 0.5 * (1 + jnp.cos(jnp.pi * jnp.arange(horizon) / horizon))


def randoms(key: Key, num: int, horizon: int) -> Array:
    """Draw schedules through a few random knots, `[num, horizon]`; one draw a step would be a straw man."""
    space = {"lr": Sequence(RATES, horizon, knots=NUM_KNOTS)}
    return jax.vmap(lambda k: sample(space, k)["lr"])(jax.random.split(key, num))


def validator(problem: Problem, horizon: int, keys: Array) -> Callable[[Array], np.ndarray]:
    """Make the function that trains schedules `[N, horizon]` and gives their mean validation losses `[N]`."""

    def one(rates, key):
        hparams = {"lr": rates}
        state = unroll(problem, hparams, init_state(problem, key, hparams), horizon)
        return problem.objective(state.params, hparams, problem.valid_batch(key))

    mean = jax.jit(lambda rates: jnp.mean(jax.vmap(lambda key: one(rates, key))(keys)))
    return lambda schedules: np.array([mean(rates) for rates in schedules])


def judge(
    task: Task, splits: Splits, schedules: dict[str, Array], keys: Array, seed: int
) -> list[Figure]:
    """Train each schedule on the same fresh seeds; the test set is read here, once."""
    problem, test = task.problem, tuple(map(jnp.asarray, splits.test))
    scores = task.test
    assert scores is not None

    def one(rates, key):
        hparams = {"lr": rates}
        params = unroll(problem, hparams, init_state(problem, key, hparams), task.horizon).params
        return {
            "validation loss": problem.objective(params, hparams, problem.valid_batch(key)),
            "test loss": problem.objective(params, hparams, test),
            "test accuracy": jnp.mean(scores(params, hparams)),
        }

    @jax.jit
    def every(rates):
        return jax.tree.map(jnp.mean, jax.lax.map(lambda key: one(rates, key), keys))

    return [
        Figure(name, score, float(value), UNITS[score], seed)
        for name, rates in schedules.items()
        for score, value in every(rates).items()
    ]


def interval(values: list[float]) -> tuple[float, float]:
    """Return the mean over seeds, and half its 95 % interval by Student's t; NaN for one seed."""
    if len(values) < 2:
        return float(np.mean(values)), float("nan")
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
        ratio, trials = np.median(tuned["ratio"]), np.median(methods["random"]["trials"])
        head = (
            f"**{name}**, {tuned['horizon'][0]} steps, {len(tuned['test loss'])} seeds; "
            f"{tuned['hypergradients'][0]} hypergradients of {ratio:.1f} trainings each and "
            f"{NUM_LAST} trials cost as much as {trials:.0f} random trials"
        )
        header = ["schedule", *UNITS, "validation loss above tuned"]
        parts.append(f"{head}\n\n{markdown(header, rows)}")
    return "\n\n".join(parts)
