"""Theorem 1 checked on trained networks, and what each measure of flatness says of generalization.

Of the networks that `configurations` has trained: how often the exact norm violates the lower bound of
Theorem 1, and Spearman's rank correlation of each measure after one epoch with the exact norm, with the final
AUC on the validation and test sets and with the generalization gap, alone and given what the validation set
says after that epoch. Intervals are 95 % bootstrap intervals over settings. Then the same norm of a learner
that is no neural network, under the same negative log-likelihood: a Gaussian naive Bayes classifier trained
by its gradient.
"""

import argparse
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import configurations as grid
from benchmarks.configurations import BATCHES, BUNDLED, EPOCHS, RATES, SIZES, column
from benchmarks.fghpo import trained_grid
from benchmarks.networks import MEASURES, Split, auc, measured_parts
from benchmarks.record import Figure, Results, markdown
from hypergrad import curvature as cv

RESAMPLES = 200
CONTROLS = ("auc_valid", "loss_valid", "loss_train")
TARGETS = {
    "exact norm": lambda get: get("full_1"),
    "validation AUC": lambda get: get(f"auc_valid_{EPOCHS}"),
    "test AUC": lambda get: get("auc_test"),
    "gap": lambda get: get(f"accuracy_train_{EPOCHS}") - get("accuracy_test"),
}
"""What a measure is correlated with; `get` reads a column of one seed."""
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


def run(results: Results, options: argparse.Namespace) -> None:
    """Work through the data sets of the trained grid; train the other learner on those of scikit-learn."""
    trained = trained_grid(options.quick)
    cases = sorted(trained.cases, key=lambda name: SIZES[name])
    for case in cases:
        if case not in results.cases:
            print(f"{case} ...", flush=True)
            results.add(case, [*violations(trained, case), *correlations(trained, case)])
    for case in cases:
        if case in BUNDLED and case != "digits" and "learners" not in results.cases[case]:
            print(f"{case}: naive Bayes ...", flush=True)
            results.add(case, other_learner(trained, case))


def violations(trained: Results, case: str) -> list[Figure]:
    """Return how often Theorem 1's value exceeds the exact norm on a minibatch, with its interval."""
    figures = []
    for epoch in (1, EPOCHS):
        for norm in ("full", "last_layer"):
            values = column(trained, case, f"violated_{norm}_{epoch}").ravel()
            values = values[np.isfinite(values)]
            resampled = np.random.default_rng(0).integers(
                len(values), size=(RESAMPLES, len(values))
            )
            low, high = np.quantile(values[resampled].mean(1), [0.025, 0.975])
            found = [float(f"{x:.4g}") for x in (values.mean(), low, high)]
            figures.append(Figure("violated", f"{norm}, epoch {epoch}", found, "share"))
    return figures


def correlations(trained: Results, case: str) -> list[Figure]:
    """Return Spearman's correlation of each measure with each target, seeds averaged, with intervals.

    Settings whose network diverged are left out.
    """
    found: dict[tuple[str, str], list[np.ndarray]] = {}
    for seed in range(column(trained, case, "auc_test").shape[0]):

        def get(name, seed=seed):
            return column(trained, case, name)[seed]

        values = {name: get(f"{name}_1") for name in (*MEASURES, *CONTROLS)}
        values |= {target: read(get) for target, read in TARGETS.items()}
        sound = np.isfinite(np.stack(list(values.values()))).all(0)
        draws = np.random.default_rng(seed).integers(sound.sum(), size=(RESAMPLES, sound.sum()))
        draws = np.concatenate([np.arange(sound.sum())[None], draws])
        made = {name: ranks(x[sound][draws]) for name, x in values.items()}
        for target in TARGETS:
            for measure in (*MEASURES, *CONTROLS):
                alone = correlation(made[measure], made[target])
                found.setdefault((measure, target), []).append(alone)
                if measure != "auc_valid":
                    given = at_equal(made[measure], made[target], made["auc_valid"])
                    label = f"{target} given validation AUC"
                    found.setdefault((measure, label), []).append(given)
    figures = []
    for (measure, target), values in found.items():
        means = np.mean(values, 0)
        numbers = [means[0], *np.nanquantile(means[1:], [0.025, 0.975])]
        if np.isfinite(numbers).all():
            rounded = [float(f"{v:.4g}") for v in numbers]
            figures.append(Figure(measure, target, rounded, "rank correlation"))
    return figures


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


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Return the rank correlation of the pairs that are finite."""
    keep = np.isfinite(x) & np.isfinite(y)
    return float(correlation(ranks(x[keep]), ranks(y[keep])))


def other_learner(trained: Results, case: str) -> list[Figure]:
    """Correlate the exact norm with the final AUC for naive Bayes, for the networks, and for both together."""
    norm, auc, nets = [], [], []
    for seed in range(column(trained, case, "auc_test").shape[0]):
        (train, valid, _), classes = grid.load(case, None, seed)
        found = train_bayes(train, valid, classes, seed)
        norm.append(found[0])
        auc.append(found[1])
        nets.append([column(trained, case, n)[seed] for n in ("full_1", f"auc_valid_{EPOCHS}")])
    rows = {
        "naive Bayes": [spearman(x, y) for x, y in zip(norm, auc, strict=True)],
        "networks": [spearman(x, y) for x, y in nets],
        "both": [
            spearman(np.append(x, net[0]), np.append(y, net[1]))
            for x, y, net in zip(norm, auc, nets, strict=True)
        ],
        "flattest ten that are naive Bayes": [
            float(np.mean(flattest_ten(x, net[0]))) for x, net in zip(norm, nets, strict=True)
        ],
        "best ten that are naive Bayes": [
            float(np.mean(flattest_ten(-np.asarray(y), -net[1])))
            for y, net in zip(auc, nets, strict=True)
        ],
    }
    return [
        Figure("learners", label, float(f"{np.nanmean(values):.4g}"), "")
        for label, values in rows.items()
    ]


def flattest_ten(other: np.ndarray, networks: np.ndarray) -> np.ndarray:
    """Tell which of the ten lowest are of the other learner, of as many of each."""
    some = np.random.default_rng(0).permutation(networks)[: len(other)]
    both = np.append(other, some)
    order = np.argsort(np.where(np.isfinite(both), both, np.inf))[:10]
    return order < len(other)


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
    """Write the violations, and the correlations averaged over the data sets with their range."""
    cases = results.cases
    share = markdown(
        ["data set", *next(iter(cases.values()))["violated"]],
        [
            [
                name,
                *(
                    f"{100 * v[0]:.0f} % ({100 * v[1]:.0f} to {100 * v[2]:.0f})"
                    for v in case["violated"].values()
                ),
            ]
            for name, case in cases.items()
        ],
    )  # fmt: skip
    columns = [*TARGETS, "test AUC given validation AUC", "gap given validation AUC"]
    rows = []
    for measure in (*NOTABLE, *CONTROLS):
        row = [measure]
        for target in columns:
            values = [c[measure][target] for c in cases.values() if target in c.get(measure, {})]
            if not values:
                row.append("")
                continue
            firm = [sum(v[1] > 0 for v in values), sum(v[2] < 0 for v in values)]
            row.append(f"{np.mean([v[0] for v in values]):+.2f} ({firm[0]}+ {firm[1]}−)")
        rows.append(row)
    known = (
        f"Mean over {len(cases)} data sets; in brackets, on how many of them the interval lies above 0 and "
        "below it."
    )
    return f"{share}\n\n{known}\n\n{markdown(['after one epoch', *columns], rows)}"


def summary(results: Results) -> str:
    """Write what the exact norm says between learners."""
    cases = {name: case["learners"] for name, case in results.cases.items() if "learners" in case}
    labels = list(next(iter(cases.values()), {}))
    return markdown(
        ["data set", *labels],
        [[name, *(f"{case[label]:+.2f}" for label in labels)] for name, case in cases.items()],
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
