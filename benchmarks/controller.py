"""Does the response matter? ENAS with and without it, beside DARTS and searches that share no weights.

Every method searches the same space, `tasks.supernet_digits` (the optimizer fixed or part of it), on digits,
with 50 to 1000 training images: the fewer there are, the more training and validation disagree. Its finds are
trained again from scratch: the four best by its own account once, and the best of these on validation twice
more, with fresh seeds. Validation and test figures are those of the last two trainings. The whole is repeated
over ten seeds side by side in one program, each with its own split, weights and minibatches.

Two budgets: equal gradient evaluations, where a backward pass through a step of training counts as two
gradients and a product with the Hessian as two (a solve tried again with more damping counts once); and equal
time, that of ENAS. Times are CPU times of the process, pinned to one core, so that other work on the machine
hardly matters: those of a step are medians of three, without compilation.
The full run takes about half an hour on one idle core.
"""

import argparse
import itertools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import t as student

from benchmarks.record import Figure, Results, markdown
from hypergrad.core.solve import cg, positive
from hypergrad.core.types import Array, Key
from hypergrad.estimators.policies import (
    Policy,
    Response,
    at_rest,
    left_out,
    mixture,
    running_mean,
    sampled,
    shared,
    unrolled,
)
from hypergrad.populations import population, vectorized
from hypergrad.problem import Problem
from hypergrad.schedulers import full, pbt, perturb
from hypergrad.searchers import cross_entropy, random
from hypergrad.train import init_state, unroll
from hypergrad.tuners import Tuner, controller, policy_adam, search
from tasks.digits import load
from tasks.supernet_digits import recurrent, search_space, supernet
from tasks.supervised import Splits

NUM_SEEDS = 10
SIZES = (50, 1000, 200)
NUM_LAYERS, BATCH, HORIZON, NUM_VALID = 2, 32, 200, 200
UPDATES, WINDOW, DRAWS, CANDIDATES = 5, 10, 4, 16
MEMBERS = 10
"""Number of trials in a generation of the populations."""
EVALUATIONS = 4000
"""Number of gradients of a minibatch that a search may take."""
MAX_TRACED = 64
PRODUCTS = 5
FINALISTS, NUM_JUDGE = 4, 2
RATE = 0.01
REPEATS = 3
BUDGETS = ("equal gradient evaluations", "equal CPU time")
UNITS = {"validation loss": "nats", "test loss": "nats", "test accuracy": "fraction"}


class Method(NamedTuple):
    """A way to search.

    Attributes:
        build: (problem, learning rate of the policy) -> tuner.
        evaluations: Gradients of a minibatch that a step of the tuner takes.
        joint: Whether the optimizer is part of the space.
        trained: Whether the values of its trials are those of trained weights, so that the best trials of all
            steps count, and not the last ones.
        rate: Learning rate of the policy; 0 where it never moves.
    """

    build: Callable[[Problem, Array], Tuner]
    evaluations: int
    joint: bool
    trained: bool = False
    rate: float = RATE


def by_policy(
    policy: Policy, response: Response, credit: bool = False, num: int = DRAWS
) -> Callable[[Problem, Array], Tuner]:
    """Build the tuner of a policy on shared weights."""

    def build(problem, rate):
        baseline = running_mean() if credit else None
        draws = sampled(num)
        estimator = shared(problem, WINDOW, policy, response=response, draws=draws, credit=baseline)
        candidates = CANDIDATES if num > 1 else 1  # a mixture has only its mode
        settings = {
            "optimizer": policy_adam(rate),
            "num_candidates": candidates,
            "entropy_bonus": 0.003,
        }
        return controller(problem, policy, estimator, UPDATES, **settings)

    return build


def methods() -> dict[str, Method]:
    """Return every method by name, in the order of the tables."""
    fixed, joint = search_space(NUM_LAYERS, None), search_space(NUM_LAYERS, HORIZON)
    alone, both, mixed = recurrent(fixed), recurrent(joint), mixture(fixed)
    steps = UPDATES * WINDOW
    train, back = steps * DRAWS, 2 * steps * DRAWS
    solve = UPDATES * DRAWS * (2 * PRODUCTS + 4)

    def rest():
        return at_rest(positive(cg(PRODUCTS)), full=False)

    def generations(problem, scheduler, searcher):
        members = population(problem, layout=vectorized())
        return search(members, searcher, scheduler, MEMBERS)

    def evolve(problem, rate):
        return generations(problem, pbt(HORIZON, perturb(joint), period=25), random(joint))

    def fit(problem, rate):
        return generations(problem, full(HORIZON), cross_entropy(joint, rho=0.4))

    each = HORIZON * MEMBERS
    enas = by_policy(alone, left_out())
    return {
        "ENAS": Method(enas, train, False),
        "ENAS + unrolled": Method(by_policy(alone, unrolled()), train + back, False),
        "ENAS + implicit": Method(by_policy(alone, rest()), train + solve, False),
        "joint": Method(by_policy(both, left_out(), True), train, True),
        "joint + unrolled": Method(by_policy(both, unrolled()), train + back, True),
        "joint + implicit": Method(by_policy(both, rest(), True), train + solve, True),
        "DARTS, first order": Method(by_policy(mixed, left_out(), num=1), steps, False),
        "DARTS, second order": Method(
            by_policy(mixed, unrolled(1), num=1), steps + 2 * UPDATES, False
        ),
        "random, shared weights": Method(enas, train, False, rate=0.0),
        "cross-entropy": Method(fit, each, True, True),
        "PBT": Method(evolve, each, True, True),
    }


def run(results: Results, options: argparse.Namespace) -> None:
    """Measure every case that is not in the results yet: a method at one size with one budget."""
    num_seeds, num_evaluations = (2, 400) if options.quick else (NUM_SEEDS, EVALUATIONS)
    sizes = SIZES[:1] if options.quick else SIZES
    data = stacked(num_seeds)
    keys = jax.random.split(jax.random.key(7), num_seeds)
    finish = jax.jit(jax.vmap(finals, in_axes=(0, 0, None, 0)))
    programs: dict[Callable, Callable] = {}
    for name, method in methods().items():
        if all(_done(results, name, n, budget) for n in sizes for budget in BUDGETS):
            continue
        print(f"{name} ...", flush=True)
        program = programs.setdefault(method.build, _program(method))

        def call(num, steps, program=program, rate=method.rate):
            began = time.process_time()
            found = jax.block_until_ready(program(data, keys, num, steps, rate))
            return found, time.process_time() - began

        compiled = call(SIZES[0], 0)[1]
        counts = dict.fromkeys(BUDGETS, max(1, round(num_evaluations / method.evaluations)))
        took = _step_time(call) / num_seeds
        if name != "ENAS":
            known = results.cases[case_of(SIZES[0], BUDGETS[0])]["ENAS"]
            counts[BUDGETS[1]] = max(1, round(known["steps"] * known["step time"] / took))
        for num in sizes:
            found, judged = None, None
            for budget in BUDGETS:
                if _done(results, name, num, budget):
                    continue
                steps = counts[budget]
                if found is None or steps != counts[BUDGETS[0]]:
                    found, _ = call(num, steps)
                    judged = finish(data, keys, num, found[0])
                figures = _figures(name, found, judged, steps)
                evaluations = steps * method.evaluations
                figures.append(Figure(name, "step time", took, "CPU s a seed"))
                figures.append(Figure(name, "compilation", compiled, "CPU s"))
                figures.append(Figure(name, "evaluations", evaluations, "gradients"))
                results.add(case_of(num, budget), figures)
                print(f"  {num}, {budget}: {steps} steps of {took:.3f} s", flush=True)


def _program(method: Method) -> Callable:
    """Compile a search for all seeds side by side; one method's program serves another one's rate."""

    def search_one(splits, key, num_train, num_steps, rate):
        return one(method, splits, key, num_train, num_steps, rate)

    return jax.jit(jax.vmap(search_one, in_axes=(0, 0, None, None, None)))


def _step_time(call: Callable) -> float:
    """Return the CPU time of a step: the median of the extra time of two steps over none."""
    times = [call(SIZES[0], 2)[1] - call(SIZES[0], 0)[1] for _ in range(REPEATS)]
    return max(float(np.median(times)), 1e-9) / 2


def case_of(num: int, budget: str) -> str:
    """Name a case."""
    return f"{num} images, {budget}"


def _done(results: Results, name: str, num: int, budget: str) -> bool:
    return "test loss" in results.cases.get(case_of(num, budget), {}).get(name, {})


def stacked(num_seeds: int) -> Splits:
    """Load a split a seed, leading axis `[num_seeds]`; the first `NUM_VALID` of the validation images."""
    parts = [load(seed) for seed in range(num_seeds)]
    cut = [p._replace(valid=tuple(x[:NUM_VALID] for x in p.valid)) for p in parts]
    return jax.tree.map(lambda *xs: jnp.stack(xs), *cut)


def one(
    method: Method, splits: Splits, key: Key, num_train: Array, num_steps: Array, rate: Array
) -> Any:
    """Search for one seed; return the finalists, their values, and the course of direct and response."""
    problem, _ = supernet(splits, NUM_LAYERS, BATCH, 10, num_train)
    tuner = method.build(problem, rate)
    init_key, run_key = jax.random.split(key)
    state = tuner.init(init_key)
    first = jax.eval_shape(tuner.step, run_key, state)[1]
    size = min(FINALISTS, len(first.values))
    best = jax.tree.map(lambda x: jnp.zeros((size, *x.shape[1:]), x.dtype), first.hparams)
    names = [n for n in TRACED if n in first.info]
    traces = {n: jnp.full(MAX_TRACED, jnp.nan) for n in names}

    def body(index, carry):
        state, best, values, traces = carry
        state, trials = tuner.step(jax.random.fold_in(run_key, index), state)
        new = jnp.where(jnp.isfinite(trials.values), trials.values, jnp.inf)
        pool, scores = trials.hparams, new
        if method.trained:
            pool = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), best, pool)
            scores = jnp.concatenate([values, new])
        order = jnp.argsort(scores)[:size]
        best = jax.tree.map(lambda x, old: x[order].astype(old.dtype), pool, best)
        traces = {n: x.at[index].set(trials.info[n][0], mode="drop") for n, x in traces.items()}
        return state, best, scores[order], traces

    start = (state, best, jnp.full(size, jnp.inf), traces)
    _, best, values, traces = jax.lax.fori_loop(0, num_steps, body, start)
    return best, values, traces


TRACED = (
    "direct_norm",
    "response_norm",
    "cosine",
    "direct_variance",
    "response_variance",
    "entropy",
    "credit_norm",
    "residual",
    "damping",
    "refused",
)


def finals(splits: Splits, key: Key, num_train: Array, finalists: Any) -> dict[str, Array]:
    """Train the finalists once, the best of them again, and judge it; means over the fresh seeds."""
    problem, score = supernet(splits, NUM_LAYERS, BATCH, 10, num_train)
    choose_key, judge_key = jax.random.split(jax.random.fold_in(key, 1))

    def train(hparams, key):
        params = unroll(problem, hparams, init_state(problem, key, hparams), HORIZON).params
        return params, problem.objective(params, hparams, problem.valid_batch(key))

    def judged(hparams, key):
        params, value = train(hparams, key)
        accuracy = jnp.mean(score(params, hparams))
        return value, problem.objective(params, hparams, splits.test), accuracy

    values = jax.vmap(lambda h: train(h, choose_key)[1])(finalists)
    index = jnp.argmin(jnp.where(jnp.isfinite(values), values, jnp.inf))
    best = jax.tree.map(lambda x: x[index], finalists)
    found = jax.vmap(lambda k: judged(best, k))(jax.random.split(judge_key, NUM_JUDGE))
    return dict(zip(UNITS, (jnp.mean(x) for x in found), strict=True))


def _figures(name: str, found: Any, judged: Any, steps: int) -> list[Figure]:
    figures = [
        Figure(name, metric, _plain(value), UNITS[metric], seed)
        for metric, values in judged.items()
        for seed, value in enumerate(np.asarray(values))
    ]
    kept = min(steps, MAX_TRACED)
    for metric, values in found[2].items():
        for seed, row in enumerate(np.asarray(values)):
            numbers = [_plain(x, 4) for x in row[:kept]]
            figures.append(Figure(name, metric, numbers, "a step", seed))
    return [*figures, Figure(name, "steps", steps, "steps")]


def _plain(value: Any, digits: int = 7) -> float | None:
    return float(f"{float(value):.{digits}g}") if np.isfinite(value) else None


PAIRS = (
    ("ENAS + unrolled", "ENAS"),
    ("ENAS + implicit", "ENAS"),
    ("joint + unrolled", "joint"),
    ("joint + implicit", "joint"),
    ("DARTS, second order", "DARTS, first order"),
    ("joint", "ENAS"),
    ("ENAS", "random, shared weights"),
)
"""Pairs of a method and the one that it extends; the first `NUM_RESPONSES` add a response."""
NUM_RESPONSES = 5


def table(results: Results) -> str:
    """Write a table for each budget and size, and the differences that answer the question."""
    parts = []
    for budget in BUDGETS:
        for num in sorted(SIZES):
            found = results.cases.get(case_of(num, budget), {})
            rows = [_row(name, found[name]) for name in methods() if name in found]
            if rows:
                header = ["method", *UNITS, "gradients", "CPU s", "cosine", "refused"]
                parts.append(f"**{case_of(num, budget)}**\n\n{markdown(header, rows)}")
    return "\n\n".join(parts)


def _row(name: str, found: dict[str, Any]) -> list[str]:
    cells = [interval(found[metric]) for metric in UNITS]
    cosines = [x for row in found.get("cosine", []) for x in row if x]
    shown = f"{np.mean(cosines):+.2f}" if cosines else ""
    seconds = found["steps"] * found["step time"]
    refused = [x for row in found.get("refused", []) for x in row if x is not None]
    share = f"{np.mean(refused) / UPDATES:.0%}" if "implicit" in name and refused else ""
    return [name, *cells, f"{found['evaluations']}", f"{seconds:.2f}", shown, share]


def summary(results: Results) -> str:
    """Write the change by each addition, seed by seed, with 95 % intervals, and a verdict."""
    rows = []
    for budget, (more, less), num in itertools.product(BUDGETS, PAIRS, sorted(SIZES)):
        apart = differences(results, budget, more, less, num)
        if apart:
            cells = [interval(values, "+") for values in apart.values()]
            rows.append([budget, f"{more} − {less}", f"{num}", *cells])
    return f"{answer(results)}\n\n{markdown(['budget', 'difference', 'images', *UNITS], rows)}"


def answer(results: Results) -> str:
    """Say which intervals of the change by a response exclude zero, and on which side they lie."""
    found: dict[str, list[str]] = {"gain": [], "loss": []}
    count = 0
    pairs = PAIRS[:NUM_RESPONSES]
    for budget, (more, less), num in itertools.product(BUDGETS, pairs, sorted(SIZES)):
        for metric, values in differences(results, budget, more, less, num).items():
            middle, half = mean_and_half(values)
            count += 1
            if abs(middle) > half:
                side = "gain" if (middle < 0) == ("loss" in metric) else "loss"
                found[side].append(f"{more}, {num} images, {budget}, {metric}")
    if not count:
        return "No response has been measured."
    lines = [
        f"Of {count} intervals of what a response adds, {len(found['gain'])} show a gain and "
        f"{len(found['loss'])} a loss; {count / 20:.0f} would leave zero out by chance alone."
    ]
    lines += [f"- a {side}: {each}" for side, all_of in found.items() for each in all_of]
    return "\n".join(lines[:1] + [""] * (len(lines) > 1) + lines[1:])


def differences(
    results: Results, budget: str, more: str, less: str, num: int
) -> dict[str, list[float]]:
    """Return, for each metric, the difference of two methods, seed by seed; nothing where one is missing."""
    found = results.cases.get(case_of(num, budget), {})
    if more not in found or less not in found:
        return {}
    return {metric: _apart(found[more][metric], found[less][metric]) for metric in UNITS}


def _apart(left: list, right: list) -> list[float]:
    pairs = zip(left, right, strict=True)
    return [a - b for a, b in pairs if a is not None and b is not None]


def interval(values: list, sign: str = "") -> str:
    """Write a mean over seeds with half the width of its 95 % interval, and how many seeds failed."""
    middle, half = mean_and_half(values)
    num_failed = sum(v is None for v in values)
    if not np.isfinite(middle):
        return "not finite"
    failed = f" ({num_failed} failed)" if num_failed else ""
    spread = f" ± {half:.3f}" if np.isfinite(half) else ""
    return f"{middle:{sign}.3f}{spread}{failed}"


def mean_and_half(values: list) -> tuple[float, float]:
    """Return the mean of the known values, and half the width of its 95 % interval."""
    known = np.array([v for v in values if v is not None])
    if len(known) < 2:
        return float(known[0]) if len(known) else np.nan, np.inf
    half = student.ppf(0.975, len(known) - 1) * known.std(ddof=1) / np.sqrt(len(known))
    return float(known.mean()), float(half)


def draw(results: Results) -> Any:
    """Draw cosine and norms of direct and response over training, from the results alone."""
    from hypergrad.report import style as plots

    with plots.styled():
        figure, (angle, norms) = plots.panels(plots.WIDE, 0.42, 1, 2)
        shown = []
        styles: tuple[dict[str, Any], ...] = (
            {"color": "#0072B2"},
            {"color": "#D55E00", "linestyle": (0, (5, 1.5))},
        )
        for name, style in zip(("ENAS + unrolled", "ENAS + implicit"), styles, strict=True):
            found = results.cases.get(case_of(SIZES[0], BUDGETS[0]), {}).get(name)
            if found is None:
                continue
            cosines = np.array(found["cosine"], float)
            steps = UPDATES * (1 + np.arange(cosines.shape[1]))
            middle = np.nanmean(cosines, 0)
            half = student.ppf(0.975, len(cosines) - 1) * np.nanstd(cosines, 0, ddof=1)
            half = half / np.sqrt(len(cosines))
            band = plots.Curve(steps, middle, middle - half, middle + half)
            plots.draw_band(angle, band, style["color"])
            angle.plot(steps, middle, label=name, **style)
            for part, width in (("direct_norm", 0.8), ("response_norm", 1.8)):
                # a seed whose shared weights diverged would dominate a mean
                line = np.nanmedian(np.array(found[part], float), 0)
                label = f"{part.partition('_')[0]}, {name.rpartition(' ')[2]}"
                norms.plot(steps, line, label=label, linewidth=width, **style)
                shown.append(line)
        angle.axhline(0, color="#9a9a9a", linewidth=0.8)
        angle.set(title="cosine between direct and response", xlabel="updates of the policy")
        norms.set(title="their norms", xlabel="updates of the policy")
        angle.legend(loc="lower left")
        norms.legend(loc="lower left")
        if shown:
            plots.fit_scale(norms, np.concatenate(shown), log=True)
        return figure
