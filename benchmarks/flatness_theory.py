"""Theorem 1 checked on trained networks, and the relation of each measure of flatness to generalization.

Of the networks that `configurations` has trained: how often the exact norm violates the lower bound of
Theorem 1, and Spearman's rank correlation of each measure after one epoch with the exact norm, with the final
AUC on the validation and test sets and with the generalization gap (of accuracy: training less test), alone
and given what the validation set says after that epoch; with the test AUC also among the lower rates and
within each rate. The same of what `own_batches` has measured, and Algorithm 1 by its values. Intervals are
95 % bootstrap intervals over settings: a setting is drawn with all its seeds. Then the same norm of a learner
that is no neural network, under the same negative log-likelihood: a Gaussian naive Bayes classifier trained
by its gradient.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import configurations as grid, fghpo
from benchmarks.configurations import BATCHES, BUNDLED, EPOCHS, GRID, RATES, SIZES, column
from benchmarks.fghpo import trained_grid
from benchmarks.networks import MEASURES, Split, auc, measured_parts
from benchmarks.own_batches import FURTHER, OWN
from benchmarks.record import Figure, Results, markdown
from benchmarks.tables import load
from hypergrad import curvature as cv

RESAMPLES = 1000
CONTROLS = ("auc_valid", "loss_valid", "loss_train")
TARGETS = {
    "exact norm": lambda get: get("full_1"),
    "validation AUC": lambda get: get(f"auc_valid_{EPOCHS}"),
    "test AUC": lambda get: get("auc_test"),
    "gap": lambda get: get(f"accuracy_train_{EPOCHS}") - get("accuracy_test"),
}
"""Quantity with which measures are correlated; `get` reads a column, `[seeds, settings]`."""
GIVEN = " given validation AUC"
LOW_RATE = 0.01
FEW = f"test AUC, rates to {LOW_RATE:g}"
WITHIN = "test AUC within one rate"
AGREES = "the same on four minibatches"
OVERLAP = "ten flattest of fifty, intersection over union"
NOTABLE = (
    "theorem_1",
    "section_3",
    "published",
    "sam",
    "last_layer",
    "gauss_newton",
    "full",
    "rescaled",
)
SEARCHES = {
    fghpo.CONTROL: fghpo.METHODS[fghpo.CONTROL],
    **{f"FGHPO {name}": fghpo.by_measure(f"{name}_1") for name in OWN},
    **{f"FGHPO {name}, own batch": fghpo.by_measure(f"own_{name}") for name in OWN},
}
"""Algorithm 1 by the values on four minibatches and at the setting's own batch, beside plain halving."""


def run(results: Results, options: argparse.Namespace) -> None:
    """Work through the data sets of the trained grid; train the other learner on those of scikit-learn."""
    trained = trained_grid(options.quick)
    own = own_batches(options.quick)
    cases = sorted(trained.cases, key=lambda name: SIZES[name])
    for case in cases:
        if case not in results.cases:
            print(f"{case} ...", flush=True)
            results.add(case, [*violations(trained, case), *correlations(trained, case)])
        measured = own.get(case, {})
        if "own" in measured and f"own {OWN[0]}" not in results.cases[case]:
            results.add(case, correlations_own(trained, measured["own"], case))
        if "further" in measured and FURTHER[0] not in results.cases[case]:
            results.add(case, correlations_further(trained, measured["further"], case))
    for name, method in SEARCHES.items():  # each compiles once, for all data sets
        program = jax.jit(jax.vmap(partial(fghpo.chosen, method)))
        for case in cases:
            if case in own and name not in results.cases[case]:
                print(f"{name} on {case} ...", flush=True)
                search(results, trained, own[case], case, name, program)
    for case in cases:
        if case in BUNDLED and case != "digits" and "learners" not in results.cases[case]:
            print(f"{case}: naive Bayes ...", flush=True)
            results.add(case, other_learner(trained, case))


def own_batches(quick: bool) -> dict[str, Any]:
    """Return the results of `own_batches`; nothing where it has not run."""
    path = Path(__file__).parent / "results" / f"own_batches{'-quick' * quick}.jsonl"
    return load(path).cases if path.exists() else {}


def resamples(num: int) -> np.ndarray:
    """Return places among `num` settings: all of them in order first, then `RESAMPLES` draws of as many."""
    drawn = np.random.default_rng(0).integers(num, size=(RESAMPLES, num))
    return np.concatenate([np.arange(num)[None], drawn])


def with_interval(values: np.ndarray) -> list[float] | None:
    """Return the first of many values, of the settings as they are, and the 95 % interval of the others.

    The interval is None where there are no numbers.
    """
    if not (np.isfinite(values[0]) and np.isfinite(values[1:]).any()):
        return None
    numbers = [values[0], *np.nanquantile(values[1:], [0.025, 0.975])]
    return [float(f"{v:.4g}") for v in numbers]


def violations(trained: Results, case: str) -> list[Figure]:
    """Return how often Theorem 1's value exceeds the exact norm on a minibatch, with its interval."""
    return [
        Figure("violated", f"{norm}, epoch {epoch}", found, "share")
        for epoch in (1, EPOCHS)
        for norm in ("full", "last_layer")
        if (found := share(column(trained, case, f"violated_{norm}_{epoch}"))) is not None
    ]


def share(values: np.ndarray) -> list[float] | None:
    """Return the mean of `[seeds, settings]`, NaN left out, and its interval: a setting's seeds go together."""
    known = np.isfinite(values)
    sums, counts = np.where(known, values, 0).sum(0), known.sum(0)
    drawn = resamples(values.shape[1])
    with np.errstate(invalid="ignore", divide="ignore"):
        return with_interval(sums[drawn].sum(1) / counts[drawn].sum(1))


def correlations(trained: Results, case: str) -> list[Figure]:
    """Return Spearman's correlation of each measure with each target, seeds averaged, with intervals.

    Settings whose network diverged at one of the seeds are left out.
    """
    values = {n: column(trained, case, f"{n}_1") for n in (*MEASURES, *CONTROLS)}
    return figures_of(correlated(values, *beside(trained, case)))


def beside(trained: Results, case: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the targets and the control, each `[seeds, settings]`."""
    get = partial(column, trained, case)
    return {target: read(get) for target, read in TARGETS.items()}, get("auc_valid_1")


def correlations_own(trained: Results, own: dict[str, Any], case: str) -> list[Figure]:
    """Return the same of the measures at each setting's own batch, and how far those on four agree."""
    values = {f"own {name}": np.array(own[name], dtype=float) for name in OWN}
    targets, control = beside(trained, case)
    found = correlated(values, targets, control)
    for name in OWN:
        mine, four = values[f"own {name}"], column(trained, case, f"{name}_1")
        again = correlated({f"own {name}": mine}, {AGREES: four}, control)
        found[f"own {name}", AGREES] = again[f"own {name}", AGREES]
        found[f"own {name}", OVERLAP] = overlap(mine, four)
    return figures_of(found)


def correlations_further(trained: Results, further: dict[str, Any], case: str) -> list[Figure]:
    """Return the same of the further measures, and how often Theorem 1 fails by reading."""
    values = {name: np.array(further[name], dtype=float) for name in FURTHER}
    found = correlated(values, *beside(trained, case))
    for name in further:
        if name.startswith("violated, "):
            violated = np.array(further[name], dtype=float)
            found["violated", name.removeprefix("violated, ")] = share(violated)
    return figures_of(found)


def figures_of(found: dict[tuple[str, str], list[float] | None]) -> list[Figure]:
    """Write (measure, target) -> values as figures."""
    return [
        Figure(measure, target, values, "share" if measure == "violated" else "rank correlation")
        for (measure, target), values in found.items()
        if values is not None
    ]


def correlated(
    measures: dict[str, np.ndarray], targets: dict[str, np.ndarray], control: np.ndarray
) -> dict[tuple[str, str], list[float] | None]:
    """Return (measure, target) -> correlation and interval, alone and given the control.

    With the test AUC also among the lower rates, and within each rate, the mean over rates. Everything is
    `[seeds, settings]`; all seeds of a setting are drawn together.
    """
    every = np.stack([*measures.values(), *targets.values(), control])
    sound = np.isfinite(every).all((0, 1))
    rates = GRID[np.resize(np.arange(len(GRID)), sound.size), 3][sound]
    measures, targets = ({n: x[:, sound] for n, x in many.items()} for many in (measures, targets))
    given = control[:, sound]
    found: dict[tuple[str, str], list[float] | None] = {}

    def ranked(values, places):
        drawn = places[resamples(len(places))]
        return {name: ranks(x[:, drawn]) for name, x in values.items()}

    everything = np.arange(sound.sum())
    x, y = ranked(measures, everything), ranked(targets, everything)
    z = ranked({"": given}, everything)[""]
    for target in targets:
        for measure in measures:
            found[measure, target] = with_interval(correlation(x[measure], y[target]).mean(0))
            if measure != "auc_valid":
                partly = at_equal(x[measure], y[target], z)
                found[measure, target + GIVEN] = with_interval(partly.mean(0))
    if "test AUC" in targets:
        few = everything[rates <= 1.01 * LOW_RATE]
        x, y = ranked(measures, few), ranked(targets, few)
        for measure in measures:
            found[measure, FEW] = with_interval(correlation(x[measure], y["test AUC"]).mean(0))
        parts: dict[str, list[np.ndarray]] = {measure: [] for measure in measures}
        for rate in np.unique(rates):
            same = everything[rates == rate]
            x, y = ranked(measures, same), ranked(targets, same)
            for measure in measures:
                parts[measure].append(correlation(x[measure], y["test AUC"]))
        for measure, values in parts.items():
            stacked = np.array(values)  # [rates, seeds, resamples]
            known = np.isfinite(stacked)
            sums = np.where(known, stacked, 0).sum((0, 1))
            with np.errstate(invalid="ignore"):
                found[measure, WITHIN] = with_interval(sums / known.sum((0, 1)))
    return found


def overlap(own: np.ndarray, four: np.ndarray) -> list[float]:
    """Return the overlap of the ten flattest of fifty drawn settings by both values, and its range."""
    shares = []
    for i in range(fghpo.REPEATS):
        drawn = np.random.default_rng(i).permutation(own.shape[1])[: fghpo.FIRST]
        tops = []
        for values in (own[i % len(own)][drawn], four[i % len(own)][drawn]):
            order = np.argsort(np.where(values > 0, values, np.inf), kind="stable")
            tops.append(set(order[: fghpo.KEPT]))
        shares.append(len(tops[0] & tops[1]) / len(tops[0] | tops[1]))
    return [float(f"{x:.4g}") for x in (np.mean(shares), min(shares), max(shares))]


def search(results, trained, own, case, name, program) -> None:
    """Let one method search the grid as `fghpo` does, from the same draws."""
    tables = fghpo.tables_of(trained, case)
    size = tables["auc_valid_1"].shape[-1]
    for measure in OWN:
        values = np.array(own["own"][measure], np.float32)
        tables[f"own_{measure}"] = np.tile(values, -(-size // values.shape[1]))[:, :size]
    repeats = fghpo.REPEATS
    seeds = np.arange(repeats) % len(tables["auc_valid_1"])
    keys = jax.vmap(jax.random.key)(jnp.arange(repeats))
    rows = {n: jnp.asarray(values[seeds]) for n, values in tables.items()}
    found, epochs = map(np.asarray, program(rows, keys))
    tests = column(trained, case, "auc_test")
    fghpo.keep(results, case, name, found, epochs, seeds, tables, tests)


def ranks(x: np.ndarray) -> np.ndarray:
    """Return the ranks in each row, those of ties averaged, with mean 0."""
    from scipy.stats import rankdata  # comes with jax

    made = rankdata(x, axis=-1)
    return made - made.mean(-1, keepdims=True)


def correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the correlation of centred rows; NaN where one does not vary."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.sum(a * b, -1) / np.sqrt(np.sum(a**2, -1) * np.sum(b**2, -1))


def at_equal(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Return the partial rank correlation of a and b given c."""
    ab, ac, bc = correlation(a, b), correlation(a, c), correlation(b, c)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (ab - ac * bc) / np.sqrt((1 - ac**2) * (1 - bc**2))


def other_learner(trained: Results, case: str) -> list[Figure]:
    """Correlate the exact norm with the final AUC for naive Bayes, for the networks, and for both together."""
    norm, auc, nets = [], [], []
    for seed in range(column(trained, case, "auc_test").shape[0]):
        (train, valid, _), classes = grid.load(case, None, seed)
        found = train_bayes(train, valid, classes, seed)
        norm.append(found[0])
        auc.append(found[1])
        nets.append([column(trained, case, n)[seed] for n in ("full_1", f"auc_valid_{EPOCHS}")])
    norm, auc = np.array(norm), np.array(auc)
    nets = np.array(nets)  # [seeds, 2, settings]
    return compare_learners(norm, auc, nets[:, 0], nets[:, 1])


def compare_learners(
    norm: np.ndarray, auc: np.ndarray, net_norm: np.ndarray, net_auc: np.ndarray
) -> list[Figure]:
    """Return rank correlations of norm and AUC and the shares of one learner, with bootstrap intervals.

    Norm and AUC of the one learner `[seeds, K]`, of the networks `[seeds, N]`. Settings are drawn with all
    their seeds, each learner's by themselves; for the shares, as many of the networks as of the other.
    """
    fine, net_fine = (
        np.isfinite(x).all(0) & np.isfinite(y).all(0) for x, y in ((norm, auc), (net_norm, net_auc))
    )
    norm, auc, net_norm, net_auc = (
        norm[:, fine],
        auc[:, fine],
        net_norm[:, net_fine],
        net_auc[:, net_fine],
    )
    num, many = norm.shape[1], net_norm.shape[1]
    draws, net_draws = resamples(num), resamples(many)
    one = correlation(ranks(norm[:, draws]), ranks(auc[:, draws])).mean(0)
    other = correlation(ranks(net_norm[:, net_draws]), ranks(net_auc[:, net_draws])).mean(0)
    norms = np.concatenate([norm[:, draws], net_norm[:, net_draws]], -1)
    aucs = np.concatenate([auc[:, draws], net_auc[:, net_draws]], -1)
    both = correlation(ranks(norms), ranks(aucs)).mean(0)
    few = np.random.default_rng(1).integers(many, size=(len(draws), num))
    flattest = ten_lowest(norm[:, draws], net_norm[:, few]).mean(0)
    best = ten_lowest(-auc[:, draws], -net_auc[:, few]).mean(0)
    found = {
        "naive Bayes": one,
        "networks": other,
        "naive Bayes less networks": one - other,
        "both": both,
    }
    shares = {
        "flattest ten that are naive Bayes": flattest,
        "best ten that are naive Bayes": best,
        "flattest less best": flattest - best,
    }
    figures = [(n, with_interval(x)) for n, x in found.items()]
    figures += [(n, with_interval(np.append(np.mean(x[1:]), x[1:]))) for n, x in shares.items()]
    return [Figure("learners", name, x, "") for name, x in figures if x is not None]


def ten_lowest(other: np.ndarray, networks: np.ndarray) -> np.ndarray:
    """Return the share of the other learner among the ten lowest of both, over the last axis."""
    order = np.argsort(np.concatenate([other, networks], -1), -1)[..., :10]
    return np.mean(order < other.shape[-1], -1)


def bayes_logits(params: Any, inputs: Any) -> Any:
    """Return log p(c) + Σ_d log N(x_d; μ_cd, σ_cd), `[n, C]`."""
    gaps = (inputs[:, None] - params["mean"]) * jnp.exp(-params["log_std"])
    return params["prior"] - jnp.sum(0.5 * gaps**2 + params["log_std"], -1)


def bayes_loss(params: Any, batch: Split) -> Any:
    """Return the same negative log-likelihood as that of the networks."""
    z = bayes_logits(params, batch.inputs)
    return optax.softmax_cross_entropy_with_integer_labels(z, batch.labels).mean()


def train_bayes(
    train: Split, valid: Split, classes: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Train at every batch size and learning rate of the grid; return norm after an epoch, final AUC."""
    norms, aucs = [], []
    parts = measured_parts(train, seed)
    drawn = jax.random.normal(jax.random.key(seed), (classes, train.inputs.shape[1]))
    start = {"mean": 0.1 * drawn, "log_std": jnp.zeros_like(drawn), "prior": jnp.zeros(classes)}
    optimizer = optax.scale_by_adam()

    @partial(jax.jit, static_argnums=2)
    def epoch(state, key, batch):
        samples = len(train.labels)
        size = min(batch, samples)
        order = jax.random.permutation(key, samples)[: samples // size * size].reshape(-1, size)

        def step(state, index):
            some = jax.tree.map(lambda x: jnp.asarray(x)[index], train)

            def one(params, moments, rate):
                moves, moments = optimizer.update(jax.grad(bayes_loss)(params, some), moments)
                return jax.tree.map(lambda w, d: w - rate * d, params, moves), moments

            params, moments = state
            return jax.vmap(one)(params, moments, jnp.asarray(RATES)), None

        return jax.lax.scan(step, state, order)[0]

    @jax.jit
    def norm(params):
        def one(params):
            return jnp.max(
                jax.lax.map(lambda p: cv.frobenius_columns(bayes_loss, params, p).value, parts)
            )

        return jax.lax.map(one, params)

    @jax.jit
    def score(params):
        z = jax.vmap(lambda p: bayes_logits(p, jnp.asarray(valid.inputs)))(params)
        return jax.vmap(lambda z: auc(jax.nn.softmax(z), jnp.asarray(valid.labels)))(z)

    many = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(RATES), *x.shape)), start)
    for batch in BATCHES:
        state = (many, jax.vmap(optimizer.init)(many))
        for number in range(1, EPOCHS + 1):
            key = jax.random.fold_in(jax.random.key(seed), number)
            state = epoch(state, key, batch)
            if number == 1:
                norms.append(np.asarray(norm(state[0])))
        aucs.append(np.asarray(score(state[0])))
    return np.concatenate(norms), np.concatenate(aucs)


def table(results: Results) -> str:
    """Write the violations, and the correlations averaged over the data sets."""
    cases = results.cases
    labels = [f"{norm}, epoch {epoch}" for epoch in (1, EPOCHS) for norm in ("full", "last_layer")]
    violated = markdown(["data set", *labels], shares(cases, labels))
    columns = [*TARGETS, f"test AUC{GIVEN}", f"gap{GIVEN}"]
    rows = averaged(cases, (*NOTABLE, *CONTROLS, *FURTHER), columns)
    known = (
        f"Mean over {len(cases)} data sets, or as many as the first column says; in brackets, on how many of "
        "them the interval lies above 0 and below it."
    )
    return f"{violated}\n\n{known}\n\n{markdown(['after one epoch', *columns], rows)}"


def shares(cases: dict[str, Any], labels: list[str]) -> list[list[str]]:
    """Return rows of violations with their intervals, of the data sets that have them."""
    return [
        [name, *(f"{100 * v[0]:.0f} % ({100 * v[1]:.0f} to {100 * v[2]:.0f})" for v in values)]
        for name, case in cases.items()
        if len(values := [case["violated"][n] for n in labels if n in case["violated"]])
        == len(labels)
    ]


def averaged(cases: dict[str, Any], measures: Any, columns: list[str]) -> list[list[str]]:
    """Return a row a measure: the mean over data sets, and the number whose interval excludes 0."""
    rows = []
    for measure in measures:
        have = [case[measure] for case in cases.values() if measure in case]
        if not have:
            continue
        row = [measure if len(have) == len(cases) else f"{measure} ({len(have)} sets)"]
        for target in columns:
            values = [case[target] for case in have if target in case]
            firm = [sum(v[1] > 0 for v in values), sum(v[2] < 0 for v in values)]
            mean = f"{np.mean([v[0] for v in values]):+.2f}" if values else ""
            row.append(f"{mean} ({firm[0]}+ {firm[1]}−)" if values else "")
        rows.append(row)
    return rows


def rates_table(results: Results) -> str:
    """Write the correlations with the test AUC over all rates, over the lower ones, and within one rate."""
    columns = ["test AUC", FEW, WITHIN]
    rows = averaged(results.cases, (*NOTABLE, *CONTROLS, *FURTHER), columns)
    return markdown(["after one epoch", *columns], rows)


def readings_table(results: Results) -> str:
    """Write how often Theorem 1 fails after an epoch, by reading of ‖a^[L]‖ and by block."""
    labels = [f"{r}, {block}" for block in ("with bias", "alone") for r in ("mean", "stacked")]
    header = ["data set", *(f"{n}" for n in labels)]
    return markdown(header, shares(results.cases, labels))


def own_table(results: Results) -> str:
    """Write the effect of measuring at the setting's own batch: correlations, and searches."""
    names = [name for n in OWN for name in (n, f"own {n}")]
    columns = [*TARGETS, f"test AUC{GIVEN}", AGREES]
    cases = {name: case for name, case in results.cases.items() if f"own {OWN[0]}" in case}
    rows = averaged(cases, names, columns)
    for row, name in zip(rows, names, strict=True):
        found = [case[name][OVERLAP][0] for case in cases.values() if OVERLAP in case[name]]
        row.append(f"{np.mean(found):.2f}" if found else "")
    correlations = markdown(["after one epoch", *columns, OVERLAP], rows)
    searched = {
        name: {method: case[method] for method in SEARCHES}
        for name, case in cases.items()
        if set(SEARCHES) <= set(case)
    }
    return f"{correlations}\n\n{fghpo.compared(searched)}"


def summary(results: Results) -> str:
    """Write the relation of the exact norm to quality between learners."""
    cases = {name: case["learners"] for name, case in results.cases.items() if "learners" in case}
    labels = list(next(iter(cases.values()), {}))
    return markdown(
        ["data set", *labels],
        [
            [name, *("{:+.2f} ({:+.2f} to {:+.2f})".format(*case[label]) for label in labels)]
            for name, case in cases.items()
        ],
    )


def draw(results: Results) -> Any:
    """Draw the rank correlations with their intervals: with the exact norm, the test AUC, and the gap."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(10, 5.2), layout="constrained")
    axes = canvas.subplots(1, 3, sharey=True)
    shown = ("exact norm", "test AUC", "test AUC given validation AUC")
    measures = [*NOTABLE, *CONTROLS]
    cases = list(results.cases)
    for axis, target in zip(axes, shown, strict=True):
        for j, case in enumerate(cases):
            for i, measure in enumerate(measures):
                found = results.cases[case].get(measure, {}).get(target)
                if found is None or (measure == "full" and target == "exact norm"):
                    continue
                y = len(measures) - i + 0.7 * (0.5 - (j + 0.5) / len(cases))
                color = "black" if measure not in CONTROLS else "tab:blue"
                axis.plot(found[1:], [y, y], color=color, alpha=0.35, linewidth=1.5)
                axis.plot(found[0], y, ".", color=color, markersize=4)
        axis.axvline(0, color="gray", linewidth=0.8)
        axis.set_xlim(-1, 1)
        axis.set_title(f"with the {target}", fontsize=9)
        axis.set_xlabel("rank correlation")
        axis.spines[["top", "right"]].set_visible(False)
    names = {
        "auc_valid": "validation AUC",
        "loss_valid": "validation loss",
        "loss_train": "training loss",
    }
    axes[0].set_yticks(
        range(len(measures), 0, -1), [names.get(m, m.replace("_", " ")) for m in measures]
    )
    return canvas
