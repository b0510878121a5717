"""Experiments on the open questions of the paper on cross-entropy hyperparameter optimization (CEHPO).

The cases are functions with known minima, some with local minima, and Adam and AMSGrad on MNIST-10k with a
small network (only with --data, its folder). Cross-entropy search runs against random, grid and Bayesian
search, by dimension, smoothing c, sample size M, share of elites rho and first distribution; the stopping rules
are followed on the way. All seeds of a setting run in one compiled program. The full run takes about ten
minutes; docs/cehpo.md has the results.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.functions import Function, levy, logs, rastrigin, rosenbrock
from benchmarks.record import Figure, Results, markdown
from hypergrad.populations import chunked, population
from hypergrad.problem import Problem
from hypergrad.report import style as plots
from hypergrad.report.text import number
from hypergrad.schedulers import full
from hypergrad.searchers import (
    Searcher,
    Smoothing,
    Trials,
    bayes,
    cross_entropy,
    distribution,
    grid,
    random,
)
from hypergrad.searchers.grid import levels_within
from hypergrad.searchers.models.families import Family, Normals
from hypergrad.space import LogReal, Real

BUDGET, NUM_SEEDS = 512, 20
SMOOTHINGS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
SIZES, SHARES = (8, 16, 32, 64), (0.125, 0.25, 0.5)
DIMENSIONS = (2, 4, 8, 16, 32, 64)
STARTS = {
    "uniform": (0.5, 0.2887),
    "narrow, in the middle": (0.5, 0.1),
    "narrow, off": (0.15, 0.1),
}
"""First mean and standard deviation of every coordinate; the minima lie elsewhere."""
FUNCTIONS: dict[str, Callable[[], Function]] = {
    "bowl of logarithms": logs,
    "Rosenbrock": rosenbrock,
    "Levy": levy,
    "Rastrigin": rastrigin,
}
SMOOTHING = Smoothing(c=0.7, beta=0.9, q=5.0)
"""Value of c where it is not varied: in the middle of the paper's range, not the best one found here."""
MNIST_BUDGET, MNIST_SEEDS, MNIST_SMALL = 192, 5, 64
MNIST_STEPS = 60


def run(results: Results, options: argparse.Namespace) -> None:
    """Measure every case that is not in the results yet."""
    quick = options.quick
    budget, num_seeds = (64, 2) if quick else (BUDGET, NUM_SEEDS)
    names = ["Rastrigin"] if quick else list(FUNCTIONS)
    cases: dict[str, Callable[[], list[Figure]]] = {}
    for name in names:
        cases[f"c, {name}"] = partial(by_smoothing, name, budget, num_seeds)
    for name in names[-2:]:
        cases[f"M and rho, {name}"] = partial(by_size, name, budget, num_seeds)
    for name in ("bowl of logarithms", "Rastrigin")[: 1 if quick else 2]:
        cases[f"dimension, {name}"] = partial(by_dimension, name, quick, num_seeds)
    if options.data:
        for name in ("Adam", "AMSGrad")[: 1 if quick else 2]:
            cases[f"MNIST-10k, {name}"] = partial(on_images, name, options.data, quick)
    else:
        print("MNIST-10k is left out: name the folder of its files with --data DIR")
    for name, measure in cases.items():
        if name not in results.cases:
            print(f"{name} ...", flush=True)
            results.add(name, measure())


def with_smoothing(family: Family, c: jax.Array) -> Family:
    """Follow the elites by the share c, which may be traced: of means at once, of deviations less and less."""
    rule = SMOOTHING._replace(beta=c)

    def blend(old, new, step):
        def one(old: Normals, new: Normals) -> Normals:
            share = rule.share(step)
            mean, std = (
                s * a + (1 - s) * b
                for s, a, b in ((c, new.mean, old.mean), (share, new.std, old.std))
            )
            return Normals(mean, std, old.correlation)

        return tuple(one(*pair) for pair in zip(old, new, strict=True))

    return family._replace(blend=blend)


def trace(function: Function, num: int, rho: float, budget: int) -> Callable:
    """Compile (key, c, mean, deviation) -> the course of cross-entropy search, generation by generation."""
    values_of = jax.vmap(function.value, (None, 0))
    index = jnp.arange(num, dtype=jnp.int32)

    def run(key, c, mean, std):
        family = with_smoothing(distribution(function.space), c)
        start = jax.tree.map(jnp.ones_like, family.start)
        family = family._replace(
            start=tuple(Normals(p.mean * mean, p.std * std, p.correlation) for p in start)
        )
        searcher = cross_entropy(function.space, rho=rho, family=lambda space: family)

        def generation(state, key):
            hparams = searcher.ask(key, state, num)
            values = values_of(function.data, hparams)
            trials = Trials(hparams, values, index * 0 + 1, index, {})
            state = searcher.tell(state, trials)
            return state, {
                "best": jnp.min(values),
                "unchanged": state.unchanged,
                **searcher.info(state),
            }

        key, init_key = jax.random.split(key)
        keys = jax.random.split(key, budget // num)
        return jax.lax.scan(generation, searcher.init(init_key), keys)[1]

    many = jax.jit(jax.vmap(run, (0, None, None, None)))

    def call(num_seeds, c=SMOOTHING.c, start=STARTS["uniform"]):
        found = many(jax.random.split(jax.random.key(0), num_seeds), c, *start)
        found = {name: np.asarray(x) for name, x in found.items()}
        found["lowest"] = np.minimum.accumulate(found["best"], 1) - (function.least or 0.0)
        return found

    return call


def rounded(values: Any) -> list:
    """Round to four digits; a number that is not finite becomes None."""
    flat = [float(f"{v:.4g}") if np.isfinite(v) else None for v in np.ravel(values)]
    return flat


def by_smoothing(name: str, budget: int, num_seeds: int) -> list[Figure]:
    """Vary c and the first distribution; follow the likelihood of the elites and the stopping rules."""
    call = trace(FUNCTIONS[name](), 16, 0.25, budget)
    figures = []
    for c in SMOOTHINGS:
        found = call(num_seeds, c)
        figures.append(
            Figure(f"c = {c}", "regret", rounded(found["lowest"][:, -1]), "value, [seeds]")
        )
    for label, start in STARTS.items():
        found = call(num_seeds, 0.7, start)
        figures.append(
            Figure(f"start {label}", "regret", rounded(found["lowest"][:, -1]), "value, [seeds]")
        )
    found = call(num_seeds)
    before, after = found["log_likelihood_before"], found["log_likelihood_after"]
    kept = {
        "gamma": np.median(found["gamma"], 0),
        "log-likelihood before": np.median(before, 0),
        "log-likelihood after": np.median(after, 0),
        "lowest": np.median(found["lowest"], 0),
    }
    figures += [
        Figure("EM", metric, rounded(curve), "median, [generations]")
        for metric, curve in kept.items()
    ]
    figures += [
        Figure("EM", "rises by the update", float(np.mean(after >= before)), "share"),
        Figure("EM", "rises to the next elites", float(np.mean(np.diff(before) > 0)), "share"),
    ]
    return figures + stopping(found)


def stopping(found: dict[str, np.ndarray]) -> list[Figure]:
    """Return when each rule would have ended the searches, and the loss from that."""
    change = np.abs(np.diff(found["gamma"], prepend=np.inf))
    near = change <= 0.01 * np.abs(found["gamma"])
    in_a_row = np.cumsum(near, 1) - np.maximum.accumulate(np.where(near, 0, np.cumsum(near, 1)), 1)
    rules = {
        "gamma unchanged in 5": found["unchanged"] >= 5,
        "gamma within 1 % in 5": in_a_row >= 5,
        "sigma below 1e-3": found["largest_std"] < 1e-3,
        "sigma below 1e-2": found["largest_std"] < 1e-2,
        "budget": np.arange(found["gamma"].shape[1])[None] >= found["gamma"].shape[1] - 1,
    }
    figures = []
    for rule, met in rules.items():
        ended = np.where(met.any(1), met.argmax(1), -1)
        regret = np.take_along_axis(found["lowest"], ended[:, None], 1)[:, 0]
        figures += [
            Figure(f"stop: {rule}", "met", float(np.mean(met.any(1))), "share of searches"),
            Figure(
                f"stop: {rule}",
                "generation",
                float(np.median(np.where(ended < 0, met.shape[1], ended + 1))),
                "median",
            ),
            Figure(f"stop: {rule}", "regret", rounded(regret), "value, [seeds]"),
        ]
    return figures


def by_size(name: str, budget: int, num_seeds: int) -> list[Figure]:
    """Vary the sample size M and the share of elites, wherever that leaves two elites."""
    figures = []
    for num in SIZES:
        for rho in SHARES:
            if num <= budget // 4 and num * rho >= 2:
                found = trace(FUNCTIONS[name](), num, rho, budget)(num_seeds)
                regret = rounded(found["lowest"][:, -1])
                figures.append(
                    Figure(f"M = {num}, rho = {rho}", "regret", regret, "value, [seeds]")
                )
    return figures


def by_dimension(name: str, quick: bool, num_seeds: int) -> list[Figure]:
    """Count the evaluations until the regret is a hundredth of a random trial's, cross-entropy and random."""
    figures = []
    for dim in DIMENSIONS[: 2 if quick else None]:
        function = FUNCTIONS[name](dim)  # type: ignore[call-arg]
        num = 32
        found = trace(function, num, 0.125, 64 * num)(num_seeds)
        first = np.median(found["gamma"][:, 0])  # of the first generation: still random
        met = found["lowest"] <= 0.01 * (first - (function.least or 0.0))
        count = np.where(met.any(1), (met.argmax(1) + 1) * num, -1)
        drawn = random_lowest(function, 64 * num, num_seeds) - (function.least or 0.0)
        figures += [
            Figure(f"D = {dim}", "evaluations", count.tolist(), "count, [seeds]; -1: never"),
            Figure(
                f"D = {dim}",
                "regret",
                rounded(found["lowest"][:, -1] / first),
                "of the first gamma",
            ),
            Figure(f"D = {dim}", "regret, random", rounded(drawn / first), "of the first gamma"),
        ]
    return figures


def random_lowest(function: Function, budget: int, num_seeds: int) -> np.ndarray:
    """Return the lowest value of independent trials, `[seeds]`."""
    ask = random(function.space).ask

    @jax.jit
    @jax.vmap
    def lowest(key):
        return jnp.min(jax.vmap(function.value, (None, 0))(function.data, ask(key, (), budget)))

    return np.asarray(lowest(jax.random.split(jax.random.key(1), num_seeds)))


IMAGES_SPACE = {
    "lr": LogReal(1e-5, 1e0),
    "b1": Real(0.0, 0.99),
    "b2_gap": LogReal(1e-4, 1e0),
    "eps": LogReal(1e-10, 1e-1),
}


def image_problem(optimizer: str, data: str, num_train: int = 6000) -> Problem:
    """Train an MLP of 16 units on MNIST at half its resolution; the objective is the held-out loss."""
    from tasks import images

    train, valid, _ = images.load(data, num_train, 2000, 2000)
    scale = {"Adam": optax.scale_by_adam, "AMSGrad": optax.scale_by_amsgrad}[optimizer]

    def small(pixels):
        halves = pixels.reshape(len(pixels), 14, 2, 14, 2).mean((2, 4))
        return jnp.asarray(halves.reshape(len(pixels), 196))

    x, y = small(train[0]), jnp.asarray(train[1])
    held_out = small(valid[0]), jnp.asarray(valid[1])

    def init(key, h):
        one, two = jax.random.split(key)
        return {
            "one": jax.random.normal(one, (196, 16)) / 14,
            "two": jax.random.normal(two, (16, 10)) / 4,
        }

    def loss(params, h, batch):
        logits = jnp.tanh(batch[0] @ params["one"]) @ params["two"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    def rule(h):
        return optax.chain(
            scale(h["b1"], 1 - h["b2_gap"], h["eps"]), optax.scale_by_learning_rate(h["lr"])
        )

    def train_batch(key, step):
        index = jax.random.randint(key, (50,), 0, num_train)
        return x[index], y[index]

    return Problem(init, loss, loss, rule, train_batch, lambda key: held_out)


def on_images(optimizer: str, data: str, quick: bool) -> list[Figure]:
    """Search for lr, b1, b2 and eps; every trial has its own weights and minibatches."""
    problem = image_problem(optimizer, data)
    budget, small, num_seeds = (32, 16, 1) if quick else (MNIST_BUDGET, MNIST_SMALL, MNIST_SEEDS)
    members = population(problem, layout=chunked(4), order=jax.random.key(0))
    methods: dict[str, tuple[Searcher, int, int]] = {
        "cross_entropy": (
            cross_entropy(
                IMAGES_SPACE, rho=0.25, family=partial(distribution, smoothing=SMOOTHING)
            ),
            16,
            budget,
        ),
        "random": (random(IMAGES_SPACE), 16, budget),
        "grid": (grid(IMAGES_SPACE, levels_within(IMAGES_SPACE, budget)), 16, budget),
        "bayes": (bayes(IMAGES_SPACE, 64), 16, small),
    }
    figures = []
    train = jax.jit(full(MNIST_STEPS), static_argnums=0)
    again = jax.random.key(99)
    for name, (searcher, num, total) in methods.items():
        ask = jax.jit(lambda key, state, s=searcher, n=num: s.ask(key, state, n))
        tell = jax.jit(searcher.tell)
        judged, curves = [], []
        for seed in range(num_seeds):
            key, init_key = jax.random.split(jax.random.key(seed))
            state, tried, values = searcher.init(init_key), [], []
            for one in jax.random.split(key, total // num):
                ask_key, train_key = jax.random.split(one)
                hparams = ask(ask_key, state)
                trials = train(members, train_key, hparams)
                state = tell(state, trials)
                tried.append(hparams)
                values.append(np.asarray(trials.values))
            flat = np.where(np.isfinite(np.concatenate(values)), np.concatenate(values), np.inf)
            # the lowest of noisy values is partly luck: the best setting is trained again
            best = int(flat.argmin())
            chosen = jax.tree.map(lambda *x, i=best: jnp.repeat(jnp.concatenate(x)[i], 16), *tried)
            judged.append(float(np.mean(train(members, again, chosen).values)))
            curves.append(np.minimum.accumulate(flat)[num - 1 :: num])
        figures += [
            Figure(name, "judged", rounded(judged), "nats, [seeds]"),
            Figure(name, "lowest", rounded(np.median(curves, 0)), "nats, [generations]"),
            Figure(name, "evaluations", total, "count"),
        ]
    return figures


def median(values: list) -> str:
    return number(float(np.median([np.inf if v is None else v for v in values])), 2)


def across(results: Results, prefix: str, start: str, title: str) -> str:
    """Write median regrets: settings that begin with `start` as rows, the cases of a prefix as columns."""
    cases = {n.split(", ", 1)[1]: f for n, f in results.cases.items() if n.startswith(prefix)}
    settings = dict.fromkeys(s for f in cases.values() for s in f if s.startswith(start))
    rows = [[s, *(median(f[s]["regret"]) for f in cases.values())] for s in settings]
    return f"**{title}**\n\n{markdown(['', *cases], rows)}" if rows else ""


def table(results: Results) -> str:
    """Write the answers as Markdown."""
    blocks = [
        across(results, "c,", "c =", "Median regret by c"),
        across(results, "c,", "start", "Median regret by the first distribution, c = 0.7"),
        across(results, "M and rho", "M =", "Median regret by sample size and share of elites"),
        dimensions(results),
        likelihoods(results),
        rules(results),
        images_table(results),
    ]
    return "\n\n".join(block for block in blocks if block)


def dimensions(results: Results) -> str:
    rows = []
    for case, found in results.cases.items():
        if not case.startswith("dimension"):
            continue
        for dim, of in found.items():
            counts = [c if c >= 0 else np.inf for c in of["evaluations"]]
            middle = float(np.median(counts))
            rows.append(
                [
                    f"{case.split(', ', 1)[1]}, {dim}",
                    f"{middle:.0f}" if np.isfinite(middle) else "not reached",
                    f"{sum(map(np.isfinite, counts))} of {len(counts)}",
                    median(of["regret"]),
                    median(of["regret, random"]),
                ]
            )
    header = ["", "evaluations to 1 %", "seeds that got there", "regret after 2,048", "random"]
    title = "Dimension: regret relative to the elites of the first 32 trials, M = 32, rho = 0.125"
    return f"**{title}**\n\n{markdown(header, rows)}" if rows else ""


def likelihoods(results: Results) -> str:
    rows = [
        [
            case.split(", ", 1)[1],
            f"{of['EM']['rises by the update']:.3f}",
            f"{of['EM']['rises to the next elites']:.3f}",
        ]
        for case, of in results.cases.items()
        if case.startswith("c,")
    ]
    header = ["share of generations", "rises by the update", "rises to the next elites"]
    title = "Log-likelihood of the elites"
    return f"**{title}**\n\n{markdown(header, rows)}" if rows else ""


def rules(results: Results) -> str:
    cases = {n.split(", ", 1)[1]: f for n, f in results.cases.items() if n.startswith("c,")}
    names = dict.fromkeys(n for f in cases.values() for n in f if n.startswith("stop"))
    rows = []
    for name in names:
        cells = [
            f"{100 * f[name]['met']:.0f} %, {f[name]['generation']:.0f}, {median(f[name]['regret'])}"
            for f in cases.values()
        ]
        rows.append([name.removeprefix("stop: "), *cells])
    title = "Stopping rules: searches that meet it, generation, median regret there"
    return f"**{title}**\n\n{markdown(['', *cases], rows)}" if rows else ""


def images_table(results: Results) -> str:
    rows = []
    for case, found in results.cases.items():
        if case.startswith("MNIST"):
            for name, of in found.items():
                low, high = min(of["judged"]), max(of["judged"])
                cells = [median(of["judged"]), f"{low:.3f} to {high:.3f}"]
                rows.append([case, name, str(of["evaluations"]), *cells])
    header = ["", "search", "evaluations", "loss of the best, retrained", "range over seeds"]
    return f"**MNIST-10k**\n\n{markdown(header, rows)}" if rows else ""


COLORS = ("#0072B2", "#D55E00", "#007D5C", "#CC79A7")


def draw(results: Results) -> Any:
    """Draw regret by c, evaluations by dimension, the likelihood of the elites, and the searches on MNIST."""
    with plots.styled():
        figure, (first, second, third, fourth) = plots.panels(plots.WIDE, 0.62, 2, 2)
        cases = {n.split(", ", 1)[1]: f for n, f in results.cases.items() if n.startswith("c,")}
        for color, (name, found) in zip(COLORS, cases.items(), strict=False):
            regrets = [np.median(found[f"c = {c}"]["regret"]) for c in SMOOTHINGS]
            best = max(min(regrets), 1e-12)
            first.plot(SMOOTHINGS, np.array(regrets) / best, color=color, label=name, marker=".")
            curves = found["EM"]
            steps = np.arange(1, 1 + len(curves["log-likelihood before"]))
            third.plot(
                steps, np.array(curves["log-likelihood before"], float), color=color, label=name
            )
            after = np.array(curves["log-likelihood after"], float)
            third.plot(steps, after, color=color, linewidth=0.8, linestyle=(0, (3, 1.5)))
        first.set_yscale("log")
        first.set(title="median regret over that of the best c", xlabel="c")
        third.set(title="log-likelihood of the elites", xlabel="generation")
        styles = ("-", (0, (3, 1.5)))
        shown = {n: f for n, f in results.cases.items() if n.startswith("dimension")}
        for color, (name, found) in zip(COLORS[::3], shown.items(), strict=False):
            dims = [int(label.split("= ")[1]) for label in found]
            for style, metric, label in zip(
                styles, ("regret", "regret, random"), ("", ", random"), strict=True
            ):
                values = [max(float(np.median(of[metric])), 1e-7) for of in found.values()]
                name_of = name.split(", ", 1)[1] + label
                second.plot(dims, values, color=color, linestyle=style, marker=".", label=name_of)
        second.set_xscale("log", base=2)
        second.set_yscale("log")
        second.set_xticks(DIMENSIONS, [str(d) for d in DIMENSIONS])
        second.set(title="regret after 2,048 trials (dashed: random)", xlabel="dimensions")
        trained = {n: f for n, f in results.cases.items() if n.startswith("MNIST")}
        for style, found in zip(styles, trained.values(), strict=False):
            for color, (method, of) in zip(COLORS, found.items(), strict=True):
                steps = 16 * np.arange(1, 1 + len(of["lowest"]))
                if method == "grid":  # so far above the others that those would be one line
                    continue
                label = method if style == "-" else None
                fourth.plot(steps, of["lowest"], color=color, linestyle=style, label=label)
        if trained:
            fourth.legend(loc="upper right")
        else:
            fourth.set_axis_off()
        fourth.set(title="lowest loss on MNIST-10k (dashed: AMSGrad)", xlabel="evaluations")
        plots.legend_above(figure, first, plots.WIDE)
    return figure
