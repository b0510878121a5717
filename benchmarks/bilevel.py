"""Time to the solution of a stochastic quadratic bilevel problem, beside jaxopt's L-BFGS.

The simulated quadratic of benchmark_bilevel, rebuilt from its description: loss and objective are means over
1,024 quadratics each, with Hessians of rank one whose mean has eigenvalues from 0.1 to 1, 100 weights and 10
hyperparameters, and cross terms of size 0.1. With h(λ) = f(w*(λ), λ), the target is ‖∇h‖² <= 1e-9 in float32;
∇h is known in closed form and taken in float64. All methods start where ‖∇h‖² = 12.87, as there. A method that
does not arrive is stopped after `LIMIT` seconds. Compilation is not counted. The full run takes about three
minutes.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.record import Figure, Results, markdown
from hypergrad.core.solve import cg
from hypergrad.estimators import implicit
from hypergrad.problem import Examples, Problem
from hypergrad.space import Real
from hypergrad.tuners import FiniteSum, amigo, bilevel, saba, soba
from hypergrad.tuners.bilevel_methods import BilevelMethod

TARGET = 1e-9
START = 12.87
LIMIT = 6.0
REPEATS = 5
BATCH = 64
BOUND = 20.0
"""Bounds of the hyperparameters; start and solution lie well within."""


class Sizes(NamedTuple):
    """Sizes of a problem."""

    num_examples: int = 1024
    num_weights: int = 100
    num_hparams: int = 10

    @property
    def name(self) -> str:
        return (
            f"{self.num_examples} quadratics, {self.num_weights} weights, "
            f"{self.num_hparams} hyperparameters"
        )


QUICK = Sizes(256, 20, 4)


class Quadratic(NamedTuple):
    """Means over examples, of one level, all float64.

    For example i: ½ (weights_i·w)² + ½ (hparams_i·λ)² + (left_i·λ)(right_i·w) + linear_i·w + offset_i·λ.
    """

    weights: np.ndarray
    hparams: np.ndarray
    left: np.ndarray
    right: np.ndarray
    linear: np.ndarray
    offset: np.ndarray


def make_level(random: np.random.Generator, sizes: Sizes) -> Quadratic:
    """Draw one level."""
    num, dim, outer = sizes

    def root(spectrum: np.ndarray) -> np.ndarray:
        basis = np.linalg.qr(random.normal(size=(len(spectrum),) * 2))[0]
        return basis * np.sqrt(spectrum) @ basis.T

    of_hparams = np.append(0.0, np.logspace(-1, 0, outer - 1))
    basis, _, other = np.linalg.svd(random.normal(size=(outer, dim)), full_matrices=False)
    noise = random.normal(size=(num, dim))
    return Quadratic(
        weights=random.normal(size=(num, dim)) @ root(np.logspace(-1, 0, dim)),
        hparams=random.normal(size=(num, outer)) @ root(of_hparams),
        left=0.1 * noise @ other.T @ basis.T,
        right=noise,
        linear=random.normal(size=(num, dim)),
        offset=random.normal(size=(num, outer)),
    )


class Made(NamedTuple):
    """A problem with its answer.

    Attributes:
        problem: Problem in float32, on minibatches of 64.
        sums: Finite sum of all its minibatches.
        full: Problem on all examples.
        start: First hyperparameters.
        level: (hparams) -> ‖∇h‖², from the closed form in float64.
        rate: 1 / the largest curvature of the mean loss.
        batch_rate: 1 / the largest curvature of the loss of any minibatch.
    """

    problem: Problem
    sums: FiniteSum
    full: Problem
    start: np.ndarray
    level: Callable[[Any], float]
    rate: float
    batch_rate: float


def make(sizes: Sizes) -> Made:
    """Draw the problem, and compute ∇h."""
    random = np.random.default_rng(2442)
    inner, outer = make_level(random, sizes), make_level(random, sizes)
    num = sizes.num_examples
    curvature = inner.weights.T @ inner.weights / num
    cross = inner.left.T @ inner.right / num
    slope = -np.linalg.solve(curvature, cross.T)  # dw*/dλ
    rest = -np.linalg.solve(curvature, inner.linear.mean(0))
    outer_ww = outer.weights.T @ outer.weights / num
    outer_hh = outer.hparams.T @ outer.hparams / num
    outer_hw = outer.left.T @ outer.right / num

    def gradient(hparams: np.ndarray) -> np.ndarray:
        w = slope @ hparams + rest
        pull = outer_ww @ w + outer_hw.T @ hparams + outer.linear.mean(0)
        direct = outer_hh @ hparams + outer_hw @ w + outer.offset.mean(0)
        return direct + slope.T @ pull

    def level(hparams: Any) -> float:
        return float(np.sum(gradient(np.asarray(hparams, np.float64)) ** 2))

    origin, direction = gradient(np.zeros(sizes.num_hparams)), random.normal(size=sizes.num_hparams)
    bend = gradient(direction) - origin
    a, b, c = bend @ bend, 2 * bend @ origin, origin @ origin - START
    start = direction * (np.sqrt(b * b - 4 * a * c) - b) / (2 * a)

    # the blocks are the minibatches of the finite sum
    blocks = [inner.weights[i :: num // BATCH] for i in range(num // BATCH)]
    largest = max(np.linalg.norm(block, 2) ** 2 / len(block) for block in blocks)
    rate, batch_rate = float(1 / np.linalg.eigvalsh(curvature)[-1]), float(1 / largest)
    problem = make_problem(inner, outer, sizes, batch_rate, BATCH)
    full = make_problem(inner, outer, sizes, rate, None)
    tables = [tuple(jnp.asarray(x, jnp.float32) for x in part) for part in (inner, outer)]

    def cut(table):
        stride = num // BATCH
        return lambda index: tuple(x[index + stride * jnp.arange(BATCH)] for x in table)

    sums = FiniteSum(num // BATCH, cut(tables[0]), num // BATCH, cut(tables[1]))
    return Made(problem, sums, full, start, level, rate, batch_rate)


def make_problem(
    inner: Quadratic, outer: Quadratic, sizes: Sizes, rate: float, batch_size: int | None
) -> Problem:
    """Write the problem with minibatches of a size; None: of all examples."""
    levels = [tuple(jnp.asarray(x, jnp.float32) for x in part) for part in (inner, outer)]

    def value(params, hparams, batch):
        weights, own, left, right, linear, offset = batch
        point = hparams["point"]
        return (
            0.5 * jnp.mean((weights @ params) ** 2)
            + 0.5 * jnp.mean((own @ point) ** 2)
            + jnp.mean((left @ point) * (right @ params))
            + jnp.mean(linear, 0) @ params
            + jnp.mean(offset, 0) @ point
        )

    def draw(level, key):
        if batch_size is None:
            return level
        index = jax.random.randint(key, (batch_size,), 0, sizes.num_examples)
        return tuple(x[index] for x in level)

    return Problem(
        init=lambda key, h: jnp.zeros(sizes.num_weights),
        loss=value,
        objective=value,
        optimizer=lambda h: optax.sgd(rate),
        train_batch=lambda key, step: draw(levels[0], key),
        valid_batch=lambda key: draw(levels[1], key),
        train_set=Examples(sizes.num_examples, lambda index: tuple(x[index] for x in levels[0])),
    )


Run = Callable[[int], Iterator[np.ndarray]]
"""(seed) -> hparams after each piece of work; compiled before the first piece."""


def by_tuner(
    problem: Problem, made: Made, method: BilevelMethod, rate: float, num_iterations: int
) -> Run:
    """Run a stochastic bilevel method with constant rates."""
    space = {"point": Real(-BOUND, BOUND, shape=made.start.shape)}
    tuner = bilevel(
        problem._replace(train_set=None),  # the diagnostics of a step read a minibatch
        space,
        num_iterations,
        method=method,
        optimizer=optax.sgd(rate),
        start={"point": jnp.asarray(made.start, jnp.float32)},
    )
    jax.block_until_ready(tuner.step(jax.random.key(0), tuner.init(jax.random.key(0))))

    def run(seed):
        key = jax.random.key(seed)
        state, index = jax.block_until_ready(tuner.init(key)), 0
        while True:
            state, trials = tuner.step(jax.random.fold_in(key, index), state)
            index += 1
            yield np.asarray(trials.hparams["point"][0])

    return run


def by_implicit(made: Made) -> Run:
    """Descend full-batch implicit hypergradients with the step sizes of Barzilai and Borwein."""
    problem = made.full._replace(train_set=None)  # every batch is the full one
    estimator = implicit(problem, 50, solve=cg(50), warm_start=True)
    key = jax.random.key(0)

    @jax.jit
    def advance(carry):
        state, point, before, slope_before = carry
        state, estimate = estimator.estimate(key, state, {"point": point})
        slope = estimate.hypergrad["point"]
        s, y = point - before, slope - slope_before
        curved = s @ y
        size = jnp.where(curved > 0, s @ s / jnp.where(curved > 0, curved, 1), 1.0)
        return state, point - size * slope, point, slope

    def begin():
        point = jnp.asarray(made.start, jnp.float32)
        state = estimator.init(key, {"point": point})
        return state, point, point, jnp.zeros_like(point)

    jax.block_until_ready(advance(begin()))

    def run(seed):
        carry = jax.block_until_ready(begin())
        while True:
            carry = advance(carry)
            yield np.asarray(carry[1])

    return run


def by_jaxopt(made: Made) -> Run:
    """Minimize h by jaxopt's L-BFGS, with its L-BFGS for w* and implicit differentiation through it."""
    import jaxopt

    key, problem = jax.random.key(0), made.full
    train, valid = problem.train_batch(key, jnp.zeros((), jnp.int32)), problem.valid_batch(key)
    inner = jaxopt.LBFGS(
        lambda params, hparams: problem.loss(params, hparams, train), maxiter=100, tol=1e-6
    )

    def h(point):
        hparams = {"point": point}
        params = inner.run(problem.init(key, hparams), hparams).params
        return problem.objective(params, hparams, valid)

    outer = jaxopt.LBFGS(h, maxiter=1000, tol=0.0)
    update, first = jax.jit(outer.update), jnp.asarray(made.start, jnp.float32)
    jax.block_until_ready(update(first, outer.init_state(first)))

    def run(seed):
        point, state = first, jax.block_until_ready(outer.init_state(first))
        while True:
            point, state = update(point, state)
            yield np.asarray(point)

    return run


def solvers(made: Made) -> dict[str, Run]:
    """Build every solver."""
    slow = made.problem._replace(optimizer=lambda h: optax.sgd(made.batch_rate / 3))
    return {
        "saba, batches of 64": by_tuner(slow, made, saba(made.sums), 1e-3, 500),
        "soba, batches of 64": by_tuner(slow, made, soba(), 1e-3, 500),
        "amigo, batches of 64": by_tuner(slow, made, amigo(), 1e-3, 50),
        "soba, full batch": by_tuner(made.full, made, soba(), 3e-3, 50),
        "implicit, CG and Barzilai-Borwein": by_implicit(made),
        "jaxopt L-BFGS": by_jaxopt(made),
    }


def run(results: Results, options: argparse.Namespace) -> None:
    """Measure the problem unless it is in the results."""
    sizes = QUICK if options.quick else Sizes()
    if sizes.name not in results.cases:
        print(f"{sizes.name} ...", flush=True)
        repeats, limit = (2, 1.0) if options.quick else (REPEATS, LIMIT)
        results.add(sizes.name, measure(make(sizes), repeats, limit))


def measure(made: Made, repeats: int, limit: float) -> list[Figure]:
    """Run all solvers in turn, once a seed."""
    runs, figures = solvers(made), []
    figures.append(Figure("start", "level", made.level(made.start), "squared norm"))
    for seed in range(repeats):
        for name, solver in runs.items():
            seconds, level, arrived = race(solver(seed), made.level, limit)
            figures.append(Figure(name, "seconds", seconds, "s", seed))
            figures.append(Figure(name, "level", level, "squared norm", seed))
            figures.append(Figure(name, "arrived", int(arrived), "yes or no", seed))
    return figures


def race(
    pieces: Iterator[np.ndarray], level: Callable[[Any], float], limit: float
) -> tuple[float, float, bool]:
    """Run a solver until it arrives or its time is over; return seconds, the last level and the success."""
    seconds, last = 0.0, float("inf")
    while seconds < limit:
        began = time.perf_counter()
        hparams = next(pieces)
        seconds += time.perf_counter() - began
        found = level(hparams)
        if not np.isfinite(found):
            break
        last = found
        if last <= TARGET:
            return seconds, last, True
    return seconds, last, False


def table(results: Results) -> str:
    """Write the results as Markdown."""
    parts = []
    for name, methods in results.cases.items():
        rows = []
        for method, found in methods.items():
            if method == "start":
                continue
            arrived, num = sum(found["arrived"]), len(found["arrived"])
            took = f"{np.median(found['seconds']):.2f}" if 2 * arrived > num else "not reached"
            rows.append([method, f"{arrived} of {num}", took, f"{np.median(found['level']):.0e}"])
        start = methods["start"]["level"]
        header = ["method", "arrived", "seconds to 1e-9", "‖∇h‖² when stopped"]
        parts.append(
            f"**{name}**, from ‖∇h‖² = {start:.2f}, float32; medians\n\n{markdown(header, rows)}"
        )
    return "\n\n".join(parts)


summary = table
