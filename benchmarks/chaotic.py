"""Hypergradient descent from a start where training is chaotic: which estimators make progress, and why.

The case is a small tanh network on digits, trained by gradient descent on full batches, with learning rates
through five knots. The start is a rate so large that training bounces: neighbouring rates end far apart, and
the adjoint grows by a factor at every step on its way back. All estimators descend from there with the same
tuner, with several seeds, and every iterate is judged by the same trainings. The full run takes about two
minutes.
"""

import argparse
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.record import Figure, Results, markdown
from hypergrad.estimators import Estimator, advice, es, nres, pes, reverse, truncated
from hypergrad.estimators.advice import exploded_step
from hypergrad.problem import Problem
from hypergrad.report import style as plots
from hypergrad.space import LogReal, Sequence, constrain, default, schedule, unconstrain
from hypergrad.train import init_state, unroll
from hypergrad.tuners import descent

HORIZON, WINDOW = 50, 10
PENALTY = 1e-2
"""Penalty without which the network would saturate at large rates, and stay saturated."""
RATES = LogReal(1e-2, 30.0, default=4.0)
SPACE = {"lr": Sequence(RATES, HORIZON, knots=5)}
NUM_SEEDS, NUM_STEPS = 5, 100
NUM_JUDGE = 4
"""Number of trainings, the same at every step, whose mean objective is drawn."""
SIGMA = 0.2
NUM_LANDSCAPE = 400
STYLES: dict[str, dict[str, Any]] = {
    "reverse": {"color": "#D55E00", "linewidth": 1.5, "linestyle": (0, (5, 1.5))},
    "truncated": {"color": "#6e6e6e", "linewidth": 1.4, "linestyle": (0, (1.5, 1.5))},
    "es": {"color": "#CC79A7", "linewidth": 1.3},
    "pes": {"color": "#0072B2", "linewidth": 1.8, "zorder": 3},
    "nres": {"color": "#007D5C", "linewidth": 1.6},
}


def run(results: Results, options: argparse.Namespace) -> None:
    """Measure every case that is not in the results yet."""
    num_seeds, num_steps = (2, 3) if options.quick else (NUM_SEEDS, NUM_STEPS)
    problem = make_problem()
    cases = {
        "landscape": lambda: landscape(problem, 20 if options.quick else NUM_LANDSCAPE),
        **{
            f"descent by {name}": lambda e=estimator, n=name: descend(
                problem, e, n, num_seeds, num_steps
            )
            for name, estimator in estimators(problem).items()
        },
        "adjoint": lambda: adjoint(problem, results),
    }
    for name, measure in cases.items():
        if name not in results.cases:
            print(f"{name} ...", flush=True)
            results.add(name, measure())


def make_problem(horizon: int = HORIZON, width: int = 16, num_train: int = 100) -> Problem:
    """Train a small tanh network on digits by full batches; the hparams are its learning rates."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x, y = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels, jnp.int32)
    train, valid = (x[:num_train], y[:num_train]), (x[1000:1400], y[1000:1400])

    def init(key, h):
        one, two = jax.random.split(key)
        return {
            "one": jax.random.normal(one, (64, width)) / 8,
            "two": jax.random.normal(two, (width, 10)) / width**0.5,
        }

    def cross_entropy(params, h, batch):
        logits = jnp.tanh(batch[0] @ params["one"]) @ params["two"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    def loss(params, h, batch):
        squares = jnp.sum(params["one"] ** 2) + jnp.sum(params["two"] ** 2)
        return cross_entropy(params, h, batch) + 0.5 * PENALTY * squares

    return Problem(
        init=init,
        loss=loss,
        objective=cross_entropy,
        optimizer=lambda h: optax.sgd(schedule(h["lr"])),
        train_batch=lambda key, step: train,
        valid_batch=lambda key: valid,
    )


def estimators(problem: Problem) -> dict[str, Estimator]:
    settings: dict[str, Any] = {"space": SPACE, "sigma": SIGMA}
    return {
        "reverse": reverse(problem, HORIZON),
        "truncated": truncated(problem, HORIZON, WINDOW // 2),
        "es": es(problem, HORIZON, num_pairs=4, **settings),
        "pes": pes(problem, HORIZON, WINDOW, num_pairs=20, **settings),
        "nres": nres(problem, HORIZON, WINDOW, num_pairs=20, **settings),
    }


def objective(problem: Problem, hparams: Any, key: jax.Array) -> jax.Array:
    state = unroll(problem, hparams, init_state(problem, key, hparams), HORIZON)
    return problem.objective(state.params, hparams, problem.valid_batch(key))


def landscape(problem: Problem, num: int) -> list[Figure]:
    """Take the objective of one training along constant rates, and its mean over Gaussian moves."""
    rates = jnp.geomspace(0.03, RATES.high * 0.99, num)
    key = jax.random.key(0)

    def at(rate):
        return objective(problem, {"lr": jnp.full(HORIZON, rate)}, key)

    def smoothed(rate):
        z = unconstrain(RATES, rate)
        moved = z + SIGMA * jax.random.normal(key, (64,))
        return jnp.mean(jax.vmap(lambda z: at(constrain(RATES, z)))(moved))

    curves = {
        "one training": (rates, jax.jit(lambda rates: jax.lax.map(at, rates, batch_size=4))),
        "smoothed": (rates[::4], jax.jit(lambda rates: jax.lax.map(smoothed, rates))),
    }
    figures = []
    for name, (along, curve) in curves.items():
        figures.append(Figure(name, "learning rate", rounded(along), "a step"))
        figures.append(Figure(name, "objective", rounded(curve(along)), "nats"))
    return figures


def descend(
    problem: Problem, estimator: Estimator, name: str, num_seeds: int, num_steps: int
) -> list[Figure]:
    """Descend from the default with each seed; judge every iterate by the same trainings."""
    tuner = descent(estimator, SPACE, optimizer=optax.adam(0.1, b2=0.99))
    keys = jax.random.split(jax.random.key(1), NUM_JUDGE)
    mean = jax.jit(
        lambda h: jnp.mean(jax.lax.map(lambda key: objective(problem, h, key), keys, batch_size=4))
    )
    figures = []
    for seed in range(num_seeds):
        outcomes, seconds = [], []
        state = tuner.init(jax.random.key(seed))
        for key in jax.random.split(jax.random.key(100 + seed), num_steps + 1):
            began = time.perf_counter()
            state, outcome = jax.block_until_ready(tuner.step(key, state))
            seconds.append(time.perf_counter() - began)
            outcomes.append(outcome)
        rates = [jax.tree.map(lambda x: x[0], outcome.hparams) for outcome in outcomes]
        norms = [float(outcome.info["hypergrad_norm"][0]) for outcome in outcomes]
        figures += [
            Figure(name, "objective", rounded([mean(h) for h in rates]), "nats", seed),
            Figure(name, "hypergrad norm", rounded(norms), "in coordinates", seed),
            Figure(
                name, "skipped", sum(int(o.info["skipped"][0]) for o in outcomes), "steps", seed
            ),
            Figure(name, "rates", rounded(rates[-1]["lr"]), "a step", seed),
            Figure(name, "time", float(np.median(seconds)), "s a step", seed),
        ]
    return figures


def adjoint(problem: Problem, results: Results) -> list[Figure]:
    """Follow the adjoint of one training back from its end: at the start, and where `nres` arrived."""
    tuned = jnp.asarray(results.cases["descent by nres"]["nres"]["rates"][0], jnp.float32)
    figures = []
    estimate = jax.jit(reverse(problem, HORIZON).estimate)
    for name, hparams in {"start": default(SPACE), "tuned": {"lr": tuned}}.items():
        found = estimate(jax.random.key(0), (), hparams)[1]
        figures += [
            Figure(name, "sensitivity", rounded(found.info.sensitivity), "norm"),
            Figure(name, "growth", float(found.info.growth), "a step"),
            Figure(name, "exploded at", exploded_step(found.info.sensitivity), "step"),
            Figure(name, "advice", advice(found), "lines"),
        ]
    return figures


def rounded(values: Any) -> list[float | None]:
    """Round to four digits; a number that is not finite becomes None."""
    return [float(f"{v:.4g}") if np.isfinite(v) else None for v in np.asarray(values, float)]


def table(results: Results) -> str:
    """Write the results as Markdown."""
    rows = []
    for name in STYLES:
        found = results.cases[f"descent by {name}"][name]
        traces = np.array(found["objective"], float)
        last = traces[:, -1]
        first = np.median(np.array(found["hypergrad norm"], float)[:, 0])
        rows.append(
            [
                name,
                f"{np.mean(traces[:, 0]):.2f}",
                f"{np.mean(last):.2f} ({np.min(last):.2f} to {np.max(last):.2f})",
                f"{first:.1e}" if np.isfinite(first) else "not finite",
                f"{sum(found['skipped'])}",
                f"{1e3 * np.median(found['time']):.0f}",
            ]
        )
    start, tuned = (results.cases["adjoint"][name] for name in ("start", "tuned"))
    num_seeds, num_steps = np.shape(results.cases["descent by reverse"]["reverse"]["objective"])
    header = ["descent by", "objective before", f"after {num_steps - 1} steps (range)"]
    header += ["first hypergradient", "steps skipped", "ms a step"]
    return (
        f"{num_seeds} seeds. At the start: {' '.join(start['advice'])}. "
        f"Where `nres` arrived it grows {tuned['growth']:.2f}x a step.\n\n{markdown(header, rows)}"
    )


summary = table


def draw(results: Results) -> Any:
    """Draw the landscape, the descents and the adjoint, from the results alone."""
    with plots.styled():
        figure, (land, walk, back) = plots.panels(plots.WIDE, 0.4, 1, 3)
        scene = results.cases["landscape"]
        lines = {
            name: (np.array(found["learning rate"], float), np.array(found["objective"], float))
            for name, found in scene.items()
        }
        rates, jagged = lines["one training"]
        land.plot(rates, jagged, color="#9a9a9a", linewidth=0.7, label="one training")
        land.plot(*lines["smoothed"], color="#333333", linewidth=1.4, label="smoothed")
        land.axvline(RATES.start, color="#333333", linewidth=0.8, linestyle=(0, (1.5, 1.5)))
        land.set_xscale("log")
        plots.log_ticks(land.xaxis, math.log10(rates[-1] / rates[0]))
        plots.fit_scale(land, jagged, log=True)
        land.set(title="objective along the rate", xlabel="learning rate, constant")
        land.legend(loc="upper left")
        shown = []
        for name, style in STYLES.items():
            traces = np.array(results.cases[f"descent by {name}"][name]["objective"], float)
            steps = np.arange(traces.shape[1])
            curve = plots.Curve(steps, *np.quantile(traces, [0.5, 0, 1], axis=0))
            plots.draw_band(walk, curve, style["color"])
            walk.plot(steps, curve.mean, label=name, **style)
            shown.append(traces.ravel())
        plots.fit_scale(walk, np.concatenate(shown), log=True)
        walk.set(title="objective, descending", xlabel="step of the descent")
        shown = []
        ends = {"start": ("at the start", "#333333"), "tuned": ("where nres arrived", "#007D5C")}
        for name, (label, color) in ends.items():
            norms = np.array(results.cases["adjoint"][name]["sensitivity"], float)
            back.plot(np.arange(norms.size), norms, color=color, linewidth=1.4, label=label)
            shown.append(norms[np.isfinite(norms)])
        plots.fit_scale(back, np.concatenate(shown), log=True)
        back.set(title="norm of the adjoint", xlabel="step of training")
        back.legend(loc="upper right")
        plots.legend_above(figure, walk, plots.WIDE)
        return figure
