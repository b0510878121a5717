"""32 hypergradients at once, each at its own hyperparameters, against a loop of one compiled program.

The run is that of `hypergradient`: an MLP on digits. `--cores 2` gives each of two cores a device of its own,
which must be set before jax computes anything; therefore this is a separate benchmark. The full run takes
about two minutes.
"""

import argparse
import time
from collections.abc import Callable

import jax
import numpy as np

from benchmarks.record import Figure, Results, interleave, markdown, num_cores, timed

NUM_MEMBERS = 32
REPEATS = 7
CHUNK = 4
"""Number of members side by side on one device; the fastest on one core."""


def run(results: Results, options: argparse.Namespace) -> None:
    """Measure every run that is not in the results yet."""
    num_devices = max(n for n in range(1, num_cores() + 1) if NUM_MEMBERS % n == 0)
    jax.config.update("jax_num_cpu_devices", num_devices)
    from benchmarks.hypergradient import QUICK, SETTINGS  # makes a key, so it is imported late

    for setting in QUICK if options.quick else (SETTINGS[0], SETTINGS[3]):
        if setting.name not in results.cases:
            print(f"{setting.name} ...", flush=True)
            results.add(setting.name, measure(setting, 3 if options.quick else REPEATS))


def measure(setting, repeats: int) -> list[Figure]:
    """Time the loop and every way to make all at once, in turn, and compare their results."""
    from benchmarks.hypergradient import KEY, make_problem, relative, vector
    from hypergrad.estimators import reverse

    problem, start, _ = make_problem(setting)
    estimator = reverse(problem, setting.horizon)
    spread = np.random.default_rng(0).normal(scale=0.3, size=(NUM_MEMBERS, len(start)))
    pairs = zip(start.items(), spread.T, strict=True)
    hparams = {name: np.asarray(value + column, np.float32) for (name, value), column in pairs}
    members = [{name: x[i] for name, x in hparams.items()} for i in range(NUM_MEMBERS)]

    def one(h):
        return estimator.estimate(KEY, (), h)[1].hypergrad

    single = jax.jit(one)
    calls: dict[str, Callable] = {"loop": lambda: [single(h) for h in members]}
    figures = []
    for name, whole in ways(one).items():
        began = time.perf_counter()
        program = jax.jit(whole).lower(hparams).compile()
        figures.append(Figure(name, "compile", time.perf_counter() - began, "s"))
        calls[name] = lambda program=program: program(hparams)
    each = np.stack([vector(grads) for grads in calls["loop"]()])
    for name, call in calls.items():
        if name != "loop":
            error = relative(vector(call()).T, each)
            figures.append(Figure(name, "error", error, "relative"))
    times = interleave({name: timed(call) for name, call in calls.items()}, repeats)
    for name, found in times.items():
        figures += [Figure(name, f"time, {which}", took, "s") for which, took in found.items()]
        ratio = times["loop"]["median"] / found["median"]
        figures.append(Figure(name, "faster", ratio, "times the loop"))
    figures.append(Figure("loop", "devices", len(jax.devices()), "count"))
    return figures


def ways(one: Callable) -> dict[str, Callable]:
    """Return (hparams of all members) -> hypergradients of all, in each of the ways."""
    partition = jax.sharding.PartitionSpec("members")
    mesh = jax.make_mesh(
        (len(jax.devices()),), ("members",), axis_types=(jax.sharding.AxisType.Auto,)
    )

    def shared(part: Callable) -> Callable:
        """Give each device its share of the members."""
        return jax.shard_map(
            part, mesh=mesh, in_specs=(partition,), out_specs=partition, check_vma=False
        )

    def in_turn(hparams):
        return jax.lax.map(one, hparams)

    def chunked(hparams):
        return jax.lax.map(one, hparams, batch_size=CHUNK)

    return {
        "vmap": jax.vmap(one),
        f"lax.map, {CHUNK} at a time": chunked,
        "a device a core, lax.map": shared(in_turn),
        f"a device a core, lax.map, {CHUNK} at a time": shared(chunked),
    }


def table(results: Results) -> str:
    """Write the results as Markdown."""
    parts = []
    for name, methods in results.cases.items():
        rows = [
            [
                method,
                f"{found['time, median']:.2f}",
                f"{found['faster']:.2f}x",
                f"{found['compile']:.1f}" if "compile" in found else "",
                f"{found['error']:.0e}" if "error" in found else "",
            ]
            for method, found in methods.items()
            if "time, median" in found
        ]
        head = f"**{name}**, {NUM_MEMBERS} hypergradients on {methods['loop']['devices']} cores"
        header = ["way", "seconds", "against the loop", "compile s", "error"]
        parts.append(f"{head}\n\n{markdown(header, rows)}")
    return "\n\n".join(parts)


summary = table
