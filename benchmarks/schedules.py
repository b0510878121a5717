"""Schedules learned by gradient against searches of the best parametric family, at equal cost.

Descent tunes a learning rate for every step, and all else that the task has. Its rivals search peak, warm-up
and final rate of a cosine beside the task's other hyperparameters, held constant: the family that a person
would take. Each way has the same number of trainings, counted as `docs/studies.md` says, and chooses by
validation; its choice is judged by trainings on fresh seeds. All of it is repeated with other splits of the
data. A table takes two core hours or less, and goes on where it was stopped.
"""

import argparse
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.stats import t as student, wilcoxon

import hypergrad as hg
from benchmarks.record import Figure, Results, markdown
from hypergrad.core.flax import from_linen
from hypergrad.core.types import HParams, PyTree
from hypergrad.problem import Problem, Task
from hypergrad.space import LogReal, Real, Sequence, schedule
from hypergrad.train import init_state, unroll
from models.mlp import MLP
from tasks import digits, images
from tasks.supervised import cross_entropy, supervised

NUM_SPLITS = 10
NUM_JUDGE = 48
"""Number of fresh trainings by which a choice is judged."""
RIVALS = ("random", "cross_entropy", "tpe", "bayes", "cma_es", "optuna_tpe", "optuna_gp")
TUNED = "descent"
UNITS = {"validation loss": "nats", "test accuracy": "fraction"}


class Case(NamedTuple):
    """A task to compare on.

    Attributes:
        build: (split) -> task.
        budget: Steps of the descent, its scout included, which decide what the others may cost.
    """

    build: Callable[[int], Task]
    budget: int


def run(results: Results, options: argparse.Namespace) -> None:
    """Measure every split of every case that is not in the results yet."""
    num_splits = 1 if options.quick else NUM_SPLITS
    for name, case in cases(options).items():
        done = results.cases.get(name, {}).get(TUNED, {}).get("validation loss", [])
        for split in range(len(done), num_splits):
            print(f"{name}, split {split} ...", flush=True)
            results.add(name, measure(case, split, options.quick))


def cases(options: argparse.Namespace) -> dict[str, Case]:
    """Return the cases; those on MNIST need its folder."""
    if options.quick:
        return {"digits, T = 20": Case(lambda s: digits.task(horizon=20, width=8, seed=s), 20)}
    found = {
        "digits, T = 200": Case(lambda s: digits.task(seed=s), 60),
        "digits, T = 1000": Case(lambda s: digits.task(horizon=1000, seed=s), 30),
    }
    if options.data:
        found["MNIST-10k, MLP, T = 100"] = Case(lambda s: on_images(options.data, 100, s), 60)
    else:
        print("MNIST-10k is left out: name the folder of its files with --data DIR")
    return found


def on_images(data: str, horizon: int, seed: int) -> Task:
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
        "lr": Sequence(LogReal(1e-3, 2.0, default=0.1), horizon),
        "decay": LogReal(1e-6, 1e-1, default=1e-4),
        "momentum": Real(0.0, 0.99, default=0.9),
        "noise": Real(0.0, 0.5, default=0.05),
    }
    return Task("images", problem, space, horizon, score, "accuracy", True)


def family(task: Task) -> tuple[Task, Callable[[HParams], HParams]]:
    """Return a task over peak, warm-up and final rate of a cosine, and the function to the task's own hparams.

    lr_t = peak min(1, (t + 1) / (w T)) (f + (1 − f) (1 + cos π c_t) / 2),   c_t = (t − w T)₊ / (T − w T)
    """
    rates, horizon = task.space["lr"], task.horizon
    element = rates.element

    def constant(dim: Any) -> Any:
        return dim.element if isinstance(dim, Sequence) else dim

    space: dict[str, Any] = {k: constant(dim) for k, dim in task.space.items() if k != "lr"}
    space |= {
        "peak": element,
        "warmup": Real(0.0, 0.5, default=0.05),
        "final": Real(0.0, 1.0, default=0.1),
    }

    def to_own(hparams: HParams) -> HParams:
        step, rise = jnp.arange(horizon), hparams["warmup"] * horizon
        fallen = jnp.clip((step - rise) / (horizon - rise), 0.0, 1.0)
        shape = hparams["final"] + (1 - hparams["final"]) * (1 + jnp.cos(jnp.pi * fallen)) / 2
        lr = hparams["peak"] * jnp.minimum(1.0, (step + 1) / jnp.maximum(rise, 1.0)) * shape
        own = {
            name: jnp.broadcast_to(hparams[name], dim.shape)
            if isinstance(dim, Sequence)
            else hparams[name]
            for name, dim in task.space.items()
            if name != "lr"
        }
        return {**own, "lr": jnp.clip(lr, element.low, element.high)}

    p, test = task.problem, task.test
    assert test is not None
    problem = p._replace(
        init=lambda key, hparams: p.init(key, to_own(hparams)),
        loss=lambda params, hparams, batch: p.loss(params, to_own(hparams), batch),
        objective=lambda params, hparams, batch: p.objective(params, to_own(hparams), batch),
        optimizer=lambda hparams: p.optimizer(to_own(hparams)),
    )
    new = task._replace(
        problem=problem,
        space=space,
        test=lambda params, hparams: test(params, to_own(hparams)),
        snippet=None,
    )
    return new, to_own


def measure(case: Case, split: int, quick: bool) -> list[Figure]:
    """Tune by every way, and judge what each has chosen."""
    task = case.build(split)
    parametric, to_own = family(task)
    settings: dict[str, Any] = {"seed": split, "eval_seeds": 2}
    found: dict[str, HParams] = {"default": hg.space.default(task.space)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned = hg.tune(task, budget=case.budget, **settings)
        assert tuned.result is not None
        cost = tuned.result["trace"]["trainings"][-1]
        found[TUNED] = tuned.result["configurations"]["tuned"]["hparams"]
        for method in RIVALS[:2] if quick else RIVALS:
            if method.startswith("optuna") and find_spec("optuna") is None:
                continue
            if method == "optuna_gp" and find_spec("torch") is None:
                continue
            study = hg.tune(parametric, method=method, budget=round(cost), **settings)
            assert study.best is not None
            found[method] = to_own(study.best)
    found["descent, smoothed"] = smoothed(task.space, found[TUNED])
    figures = judge(task, found, NUM_JUDGE, split)
    return [*figures, Figure(TUNED, "cost", cost, "trainings", split)]


def smoothed(space: PyTree, hparams: HParams) -> HParams:
    """Return hparams whose schedules are their moving means over a tenth of their length, in the logarithm."""

    def means(dim: Any, value: Any) -> Any:
        if not isinstance(dim, Sequence):
            return value
        value = np.asarray(value)
        reach = max(1, dim.length // 20)
        logs = np.log(value) if isinstance(dim.element, LogReal) else value
        rows = [logs[max(0, t - reach) : t + reach + 1].mean(0) for t in range(dim.length)]
        return np.exp(rows) if isinstance(dim.element, LogReal) else np.array(rows)

    return {name: means(dim, hparams[name]) for name, dim in space.items()}


def judge(task: Task, found: dict[str, HParams], num: int, split: int) -> list[Figure]:
    """Train every choice on the same fresh seeds; the test set is read here, once."""
    problem, score = task.problem, task.test
    assert score is not None
    keys = jax.random.split(jax.random.key(10_000 + split), num)

    def one(hparams: HParams, key: jax.Array) -> dict[str, jax.Array]:
        params = trained(problem, hparams, key, task.horizon)
        return {
            "validation loss": problem.objective(params, hparams, problem.valid_batch(key)),
            "test accuracy": jnp.mean(score(params, hparams)),
        }

    @jax.jit
    def every(hparams: HParams) -> dict[str, jax.Array]:
        return jax.lax.map(lambda key: one(hparams, key), keys)

    figures = []
    for name, hparams in found.items():
        hparams = {k: jnp.asarray(hparams[k], jnp.float32) for k in task.space}
        for metric, values in every(hparams).items():
            figures.append(Figure(name, metric, float(jnp.mean(values)), UNITS[metric], split))
    return figures


def trained(problem: Problem, hparams: HParams, key: jax.Array, horizon: int) -> PyTree:
    """Train from a key; return the parameters."""
    return unroll(problem, hparams, init_state(problem, key, hparams), horizon).params


def interval(values: Any) -> tuple[float, float]:
    """Return the mean, and half its 95 % interval by Student's t; NaN for one value."""
    if len(values) < 2:
        return float(np.mean(values)), float("nan")
    half = student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return float(np.mean(values)), float(half)


def benjamini_hochberg(p: list[float]) -> list[float]:
    """Return p values that are adjusted for their number: at most 5 % of those below .05 are false in the mean.

    q_(i) = min over j >= i of p_(j) n / j

    Reference: Benjamini and Hochberg, 1995, Journal of the Royal Statistical Society B 57.
    """
    order = np.argsort(p)[::-1]
    scaled = np.asarray(p)[order] * len(p) / np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum.accumulate(scaled)
    return list(np.minimum(adjusted, 1.0))


def compared(methods: dict[str, Any], metric: str) -> dict[str, tuple[float, float]]:
    """Return for each rival the mean difference to descent, split by split, and its adjusted p value."""
    own = np.array(methods[TUNED][metric])
    rivals = [name for name in methods if not name.startswith(TUNED)]
    lost = {name: np.array(methods[name][metric]) - own for name in rivals}
    p = benjamini_hochberg([signed_rank(x) for x in lost.values()])
    return {name: (float(x.mean()), q) for (name, x), q in zip(lost.items(), p, strict=True)}


def signed_rank(lost: np.ndarray) -> float:
    """Return the p value of the signed-rank test of paired differences; NaN for a single one."""
    if len(lost) < 2:
        return float("nan")
    test: Any = wilcoxon(lost) if np.any(lost) else None
    return 1.0 if test is None else float(test.pvalue)


def table(results: Results) -> str:
    """Write the results as Markdown: means with 95 % intervals over splits, and differences to descent."""
    parts = []
    for name, methods in results.cases.items():
        by = {metric: compared(methods, metric) for metric in ("validation loss", "test accuracy")}
        rows = []
        for method, found in methods.items():
            means = ["{:.4f} ± {:.4f}".format(*interval(found[metric])) for metric in by]
            against = [difference(*by[metric].get(method, ())) for metric in by]
            rows.append([method, means[0], against[0], means[1], against[1]])
        tuned = methods[TUNED]
        head = (
            f"**{name}**, {len(tuned['validation loss'])} splits, "
            f"{np.median(tuned['cost']):.0f} trainings each"
        )
        header = ["way", "validation loss", "above descent", "test accuracy", "above descent"]
        parts.append(f"{head}\n\n{markdown(header, rows)}")
    return "\n\n".join(parts)


def difference(mean: float = 0.0, p: float = 1.0) -> str:
    """Write a mean difference with its p value; nothing where there is none."""
    return f"{mean:+.4f} (p = {p:.2g})" if mean else ""
