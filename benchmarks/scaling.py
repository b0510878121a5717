"""Weak scaling of a population over devices, and the bytes of a generation between them.

The run is that of `hypergradient`: an MLP on digits, momentum, 200 steps. Each core is a device of its own
(`--cores 2` for two). Two questions:

- Twice the devices train twice the members: how much longer does a generation take? Every number of devices
  from one up is measured in turn, in one process, with as many members a device.
- How many bytes does a device send in a generation? They are read off the compiled program, from the shapes
  of its collective operations, for several N: the part that grows with N alone is bytes a member.

The full run takes about two minutes.
"""

import argparse
import math
import re

import jax
import numpy as np

from benchmarks.record import Figure, Results, interleave, markdown, num_cores, timed

A_DEVICE = 64
"""Number of members on each device."""
SIZES = (256, 1024)
"""Numbers of members for which the program is read."""
REPEATS = 7
COLLECTIVE = re.compile(
    r"^\s*(?:ROOT )?\S+ = (.*?) (?:all-gather|all-reduce|collective-permute|all-to-all|reduce-scatter)"
    r"(?:-start)?\(",
    re.MULTILINE,
)


def run(results: Results, options: argparse.Namespace) -> None:
    """Measure every case that is not in the results yet."""
    jax.config.update("jax_num_cpu_devices", num_cores())
    for name, measure in (("weak scaling", scaling), ("traffic", traffic)):
        if name not in results.cases:
            print(f"{name} ...", flush=True)
            results.add(name, measure(options.quick))


def setup(quick: bool, scheduler, num_devices: int):
    """Build (hparams) -> trials of a whole generation on so many devices, and (N) -> hparams."""
    from benchmarks.hypergradient import (
        KEY,
        QUICK,
        SETTINGS,
        make_problem,
    )  # make keys, so only now
    from hypergrad.populations import chunked, devices, population, sharded
    from hypergrad.populations.layouts import CPU_WIDTH

    setting = (QUICK if quick else SETTINGS)[0]
    problem, start, _ = make_problem(setting)
    layout = sharded(devices.mesh(num_devices), chunked(CPU_WIDTH))
    members = population(problem, layout=layout)

    def hparams(num: int):
        spread = np.random.default_rng(0).normal(scale=0.3, size=(num, len(start)))
        pairs = zip(start.items(), spread.T, strict=True)
        return {name: np.asarray(value + column, np.float32) for (name, value), column in pairs}

    def generation(h):
        return scheduler(setting.horizon)(members, KEY, h)

    return jax.jit(generation), hparams


def scaling(quick: bool) -> list[Figure]:
    """Time a generation on one device, on two, ..., with as many members a device."""
    from hypergrad.schedulers import full

    each = 16 if quick else A_DEVICE
    calls, figures = {}, []
    for num in range(1, num_cores() + 1):
        generation, hparams = setup(quick, full, num)
        h = hparams(each * num)
        calls[f"{num}"] = timed(lambda generation=generation, h=h: generation(h).values)
        figures.append(Figure(f"{num}", "members", each * num, "count"))
    times = interleave(calls, 3 if quick else REPEATS)
    for name, found in times.items():
        figures += [Figure(name, f"time, {which}", took, "s") for which, took in found.items()]
        figures.append(
            Figure(name, "rate", each * int(name) / found["median"], "trials per second")
        )
        figures.append(
            Figure(
                name, "efficiency", times["1"]["median"] / found["median"], "of one device's time"
            )
        )
    return figures


def traffic(quick: bool) -> list[Figure]:
    """Read the bytes that they send off compiled programs; `halving` also moves the survivors' states."""
    from hypergrad.schedulers import full, halving

    figures = []
    kinds = {"full": full, "halving": lambda steps: halving(steps, min_steps=steps // 2, eta=2.0)}
    for name, scheduler in kinds.items():
        for num in SIZES[:1] if quick else SIZES:
            generation, hparams = setup(quick, scheduler, num_cores())
            sent = collectives(generation.lower(hparams(num)).compile().as_text() or "", num)
            method = f"{name}, {num} members"
            figures.append(Figure(method, "operations", len(sent), "count"))
            for kind in ("scalars", "states"):
                total = sum(size for what, size in sent if what == kind)
                figures.append(Figure(method, f"{kind} a member", total / num, "bytes"))
    return figures


def collectives(text: str, num: int) -> list[tuple[str, int]]:
    """List the collective operations of a compiled program for N members, as (what, bytes of the result).

    An array with at most three numbers a member counts as "scalars", a larger one as "states".
    """
    found = []
    for result in COLLECTIVE.findall(text):
        for bits, shape in re.findall(r"\w*?(\d*)\[([\d,]*)\]", result):
            width = int(bits or 8) // 8  # a Boolean, `pred`, has no number and takes a byte
            size = math.prod(int(n) for n in shape.split(",") if n)
            found.append(("scalars" if size <= 3 * num else "states", size * width))
    return found


def table(results: Results) -> str:
    """Write the results as Markdown."""
    parts = []
    if "weak scaling" in results.cases:
        rows = [
            [
                devices,
                f"{found['members']}",
                f"{found['time, median']:.3f}",
                f"{found['rate']:.0f}",
                f"{found['efficiency']:.2f}",
            ]
            for devices, found in results.cases["weak scaling"].items()
        ]
        parts.append(
            markdown(["devices", "members", "seconds", "trials a second", "efficiency"], rows)
        )
    if "traffic" in results.cases:
        rows = [
            [
                method,
                f"{found['operations']}",
                f"{found['scalars a member']:.0f}",
                f"{found['states a member']:.0f}",
            ]
            for method, found in results.cases["traffic"].items()
        ]
        parts.append(
            markdown(
                [
                    "generation",
                    "operations",
                    "bytes of scalars a member",
                    "bytes of states a member",
                ],
                rows,
            )
        )
    return "\n\n".join(parts)


summary = table
