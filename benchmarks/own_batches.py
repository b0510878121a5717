"""The grid's networks after their first epoch, measured at each setting's own batch as in Algorithm 1.

`configurations` takes every measure on four minibatches of 16 samples, the same for all settings. Algorithm 1
takes the supremum over the minibatches of the setting itself, whose size is searched over (4 to 256): section
3's form has a factor 1/m, the published code grows with m. Here the first epoch is trained again, from the
same weights in the same order, and the cheap measures are taken on all minibatches of that order. On some of
the data sets also the measures that `configurations` has not, on the 64 samples of its four minibatches
together; and Theorem 1 on each of the four against the last layer's block with and without the bias, in both
readings of ‖a^[L]‖. Resumable by data set, the smallest first.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.configurations import (
    BATCHES,
    BUNDLED,
    DEPTHS,
    GRID,
    SIZES,
    WIDTHS,
    column,
    load,
)  # fmt: skip
from benchmarks.fghpo import trained_grid
from benchmarks.networks import (
    Member,
    Settings,
    Sizes,
    Split,
    begin,
    judge,
    measured_parts,
    network,
    settings,
    tidy,
    train_epoch,
)
from benchmarks.record import Figure, Results, markdown
from hypergrad import curvature as cv
from hypergrad.curvature.models import dense, loss_of

OWN = ("theorem_1", "section_3", "published", "last_layer")
"""Measures taken at the setting's own batch."""
NUM_FURTHER = 4
"""Number of the smallest data sets, on which the further measures are taken."""
SIDE = 256
"""Number of samples whose minibatches are measured side by side."""


def run(results: Results, options: argparse.Namespace) -> None:
    """Train the first epoch on every data set of the trained grid, then measure on the smallest ones."""
    trained = trained_grid(options.quick)
    cases = sorted(trained.cases, key=lambda name: SIZES[name])
    if not options.data and not options.quick:
        print("data sets of OpenML need the folder of their files: name it with --data DIR")
    for case in cases:
        readable = case in BUNDLED or options.data
        if case not in results.cases and readable:
            print(f"{case} ...", flush=True)
            results.add(case, work(trained, case, options.data, own))
    for case in cases[:NUM_FURTHER]:
        if case in results.cases and "further" not in results.cases[case]:
            print(f"{case}, further measures ...", flush=True)
            results.add(case, work(trained, case, options.data, further))


def work(trained: Results, case: str, folder: str | None, measure: Callable) -> list[Figure]:
    """Train the first epoch of every setting and seed; return the results of `measure`, and its time.

    `measure` takes (members, settings, minibatches of the epoch, minibatches of `configurations`) and returns
    (method, {name: [N]}).
    """
    began = time.process_time()
    num_seeds, num = column(trained, case, "auc_test").shape
    figures, gaps, method = [], [], ""
    for seed in range(num_seeds):
        (train, valid, _), classes = load(case, folder, seed)
        every = np.sort(np.arange(num) * 11 % len(GRID))  # as `configurations` chooses them
        columns: dict[str, np.ndarray] = {}
        for batch in BATCHES:
            rows = every[GRID[every, 2] == batch]
            of = settings(width=GRID[rows, 1], depth=GRID[rows, 0], rate=GRID[rows, 3])
            members, order = first_epoch(train, classes, seed, rows, batch, of)
            method, found = measure(members, of, order, measured_parts(train, seed))
            found = {"auc_valid": judge(members, of, valid)["auc"]} | found
            for name, values in found.items():
                kept = columns.setdefault(name, np.full(len(GRID), np.nan))
                kept[rows] = np.asarray(values, np.float64)
        before = column(trained, case, "auc_valid_1")[seed]
        gaps.append(np.abs(columns.pop("auc_valid")[every] - before))
        figures += [Figure(method, n, tidy(c[every]), "", seed) for n, c in columns.items()]
    gap = np.array(gaps)[np.isfinite(gaps)]
    check = {
        "largest gap of validation AUC": np.max(gap),
        "equal validation AUC": np.mean(gap < 1e-4),
    }
    figures += [
        Figure("check", f"{method}: {name}", float(f"{x:.3g}"), "") for name, x in check.items()
    ]
    return [*figures, Figure("all", f"{method}: seconds", time.process_time() - began, "s")]


def first_epoch(
    train: Split, classes: int, seed: int, rows: np.ndarray, batch: int, of: Settings
) -> tuple[Member, Split]:
    """Train N networks for an epoch as `train_and_measure` does; return them and the epoch's minibatches."""
    key = jax.random.fold_in(jax.random.key(seed), batch)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed + 1), i))(rows)
    members = begin(keys, of, Sizes(train.inputs.shape[1], classes, DEPTHS[-1], WIDTHS[-1]))
    now = jax.random.fold_in(key, 1)
    samples = len(train.labels)
    size = min(batch, samples)
    order = jax.random.permutation(now, samples)[: samples // size * size].reshape(-1, size)
    parts = jax.tree.map(lambda x: x[np.asarray(order)], train)
    return train_epoch(members, of, now, train, batch), parts


def own(members: Member, of: Settings, order: Split, parts: Split) -> tuple[str, dict[str, Any]]:
    """Return the suprema of the cheap measures over the minibatches of the epoch."""
    return "own", measure_own(members, of, order)


def further(
    members: Member, of: Settings, order: Split, parts: Split
) -> tuple[str, dict[str, Any]]:
    """Return the measures that `configurations` lacks, and how often Theorem 1 exceeds the last layer."""
    return "further", measure_further(members, of, parts) | measure_last(members, of, parts)


def last(model: cv.Layered, params: Any, inputs: Any) -> tuple[Any, Any]:
    """Return inputs `[m, units]` and probabilities `[m, classes]` of the last layer."""

    def one(x):
        calls = []

        def listening(layer, signal):
            calls.append(signal)
            return dense(layer, signal)

        outputs = model.forward(listening, params, (x,))
        return calls[-1], jax.nn.softmax(outputs)

    return jax.vmap(one)(inputs)


def last_norms(inputs: Any, probabilities: Any) -> tuple[Any, Any]:
    """Return ‖H_LL‖_F of the last layer's matrix with its bias, and of the matrix alone.

    (1/m²) Σ_ij (a_i·a_j)² ⟨S_i, S_j⟩, with the bias a_i·a_j + 1 in place of a_i·a_j; S = diag(p) − p pᵀ.
    """
    crossed = probabilities[:, :, None] * probabilities[:, None, :]
    crossed = crossed * (1 - jnp.eye(probabilities.shape[1]))
    bends = jnp.sum(crossed, 2)[..., None] * jnp.eye(probabilities.shape[1]) - crossed  # S
    bends = bends.reshape(len(inputs), -1)
    both = bends @ bends.T
    alike = inputs @ inputs.T
    with_bias, alone = (jnp.sqrt(jnp.sum((alike + c) ** 2 * both)) / len(inputs) for c in (1, 0))
    return with_bias, alone


@jax.jit
def measure_own(members: Member, of: Settings, order: Split) -> dict[str, Any]:
    """Return the largest value over the minibatches of an epoch, `[N]`."""

    def one(x):
        params, width, depth = x
        model = network(width, depth)

        def values(part):
            named = {n: getattr(cv, n)(model, params, part) for n in OWN[:3]}
            return named | {"last_layer": last_norms(*last(model, params, part.inputs))[0]}

        side = max(1, SIDE // order.labels.shape[1])
        found = jax.lax.map(values, order, batch_size=min(side, len(order.labels)))
        return jax.tree.map(jnp.max, found)

    return jax.lax.map(one, (members.params, *of[:2]), batch_size=8)


@jax.jit
def measure_last(members: Member, of: Settings, parts: Split) -> dict[str, Any]:
    """Return the share of minibatches on which Theorem 1 exceeds the last layer's norm, by reading."""

    def one(x):
        params, width, depth = x

        def values(part):
            model = network(width, depth)
            mean = cv.theorem_1(model, params, part)
            bounds = {"mean": mean, "stacked": mean * jnp.sqrt(len(part.labels))}
            with_bias, alone = last_norms(*last(model, params, part.inputs))
            norms = {"with bias": with_bias, "alone": alone}
            return {
                f"violated, {reading}, {which}": jnp.where(
                    jnp.isfinite(norm), bound > norm, jnp.nan
                )
                for reading, bound in bounds.items()
                for which, norm in norms.items()
            }

        return jax.tree.map(jnp.mean, jax.lax.map(values, parts))

    return jax.lax.map(one, (members.params, *of[:2]), batch_size=8)


@jax.jit
def measure_further(members: Member, of: Settings, parts: Split) -> dict[str, Any]:
    """Return every further measure on all samples of the minibatches together, `[N]`."""
    batch = jax.tree.map(lambda x: jnp.asarray(x).reshape(-1, *x.shape[2:]), parts)
    size = parts.labels.shape[1]

    def one(x):
        params, width, depth = x
        return further_values(network(width, depth), params, batch, size)

    return jax.lax.map(one, (members.params, *of[:2]), batch_size=8)


def relative_last(model: cv.Layered, params: Any, batch: Split) -> Any:
    """Return `relative_flatness` of the last layer's matrix in closed form.

    κ = (1/m) Σ_i ‖a_i‖² ⟨S_i, WᵀW⟩ for logits that are linear in W, S = diag(p) − p pᵀ.
    """
    inputs, p = last(model, params, batch.inputs)
    products = params[-1]["kernel"].T @ params[-1]["kernel"]
    spread = p @ jnp.diag(products) - jnp.einsum("mc,cd,md->m", p, products, p)
    return jnp.mean(jnp.sum(inputs**2, 1) * spread)


def further_values(model: cv.Layered, params: Any, batch: Split, size: int) -> dict[str, Any]:
    """Return every further measure on one batch; random ones with the same draws for all networks."""
    key, loss = jax.random.key(0), loss_of(model)
    return {
        "keskar": cv.keskar(loss, params, batch),
        "adaptive": cv.adaptive(loss, params, batch),
        "m_sharpness": cv.m_sharpness(loss, params, batch, size=size),
        "expected": cv.expected_sharpness(loss, params, batch, key, num_pairs=10).value,
        "pac_bayes": cv.pac_bayes(loss, params, batch, key, num_pairs=5, num_bisections=12),
        "path_norm": cv.path_norm(model, params, batch),
        "gradient_variance": cv.gradient_variance(loss, params, batch),
        "relative_flatness": relative_last(model, params, batch),
        "top_eigenvalue": cv.top_eigenvalues(loss, params, batch, key, num=1, num_steps=15).values[
            0
        ],
        "trace": cv.trace_estimate(loss, params, batch, key, num_products=20, rank=0).value,
    }


FURTHER = (
    "keskar", "adaptive", "m_sharpness", "expected", "pac_bayes", "path_norm", "gradient_variance",
    "relative_flatness", "top_eigenvalue", "trace",
)  # fmt: skip


def table(results: Results) -> str:
    """Write the share of networks whose validation AUC is as before, and the time of the passes."""
    rows = []
    for name, case in results.cases.items():
        check = case["check"]
        rows.append(
            [
                name,
                f"{100 * check['own: equal validation AUC']:.1f} %",
                f"{100 * check['own: largest gap of validation AUC']:.1g}",
                *(f"{case['all'].get(f'{n}: seconds', np.nan):.0f}" for n in ("own", "further")),
            ]
        )
    header = ["data set", "same validation AUC", "largest gap x 100", "CPU s own", "CPU s further"]
    return markdown(header, [["" if cell == "nan" else cell for cell in row] for row in rows])
