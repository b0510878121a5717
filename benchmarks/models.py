"""Trace, compile, run and memory of hypergradients of real networks, beside loops by hand and PyTorch.

The networks are a character transformer, a CNN with BatchNorm, a ResNet-8 and the digits MLP (`nets`). Each way
to differentiate their training runs in a process of its own, all of them in turn. Errors are against `jax.grad`
straight through a loop by hand. A full run takes about fifteen minutes, twenty with peers. On an accelerator
GPT-2 is trained, too, by fewer ways.
"""

import contextlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.nets import LARGE, NETS, QUICK, arrays
from benchmarks.record import Figure, Results, accelerator, interleave, markdown
from benchmarks.worker import Worker

REPEATS = 5
WAYS = ("training", "grad, naive", "grad, checkpoint", "grad of unroll, checkpoint", "reverse")
WAYS_OF_LARGE = ("training", "reverse", "reverse, offloaded")
LEAN = "reverse, a quarter"
BY_HAND = "grad, checkpoint"
PEERS = ("torch", "torch.func", "higher", "torchopt")


def run(results: Results, options) -> None:
    """Measure every network that is not in the results yet."""
    everything = NETS | (LARGE if accelerator() else {})
    for kind, make in (QUICK if options.quick else everything).items():
        name = make().name
        if name not in results.cases:
            print(f"{name} ...", flush=True)
            large = kind in LARGE
            results.add(name, measure_large(kind) if large else measure(kind, options))


def measure(kind: str, options) -> list[Figure]:
    """Measure all ways and peers for one network."""
    figures: list[Figure] = []
    grads, calls, costs = {}, {}, {}
    with contextlib.ExitStack() as stack:

        def begin(method: str, memory: int | None = None) -> None:
            request = {"net": kind, "way": method, "quick": options.quick, "memory": memory}
            worker = stack.enter_context(
                Worker(sys.executable, "benchmarks.models_worker", request)
            )
            costs[method] = worker.ask({"run": "first"})
            grads[method] = np.array(costs[method]["gradient"])
            calls[method] = lambda: worker.ask({"run": "again"})["seconds"]

        for method in WAYS:
            begin(method)
        try:
            begin(LEAN, costs["reverse"]["memory"] // 4)
        except RuntimeError as error:  # no pass is that lean
            figures.append(Figure(LEAN, "absent", str(error), "message"))
        if options.torch_python:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            figures += begin_peers(kind, options, stack, folder, grads, calls)
        times = interleave(calls, 2 if options.quick else REPEATS)

    for method, cost in costs.items():
        figures += [
            *cost_of(method, cost),
            Figure(method, "trace_ratio", cost["trace"] / costs[BY_HAND]["trace"], "of by hand"),
            Figure(
                method, "compile_ratio", cost["compile"] / costs[BY_HAND]["compile"], "of by hand"
            ),
        ]
    training, ours = times["training"]["median"], times["reverse"]["median"]
    for method, found in times.items():
        figures += [Figure(method, f"time, {which}", took, "s") for which, took in found.items()]
        figures.append(Figure(method, "run_ratio", found["median"] / training, "trainings"))
        if method in PEERS:
            figures.append(Figure(method, "peer_ratio", found["median"] / ours, "times reverse"))
        if method in grads and method != "training":
            figures.append(
                Figure(method, "error", relative(grads[method], grads["grad, naive"]), "relative")
            )
    return figures


def measure_large(kind: str) -> list[Figure]:
    """Measure the ways that fit for a large network, one process after another; each runs once more."""
    figures, training = [], 1.0
    for method in WAYS_OF_LARGE:
        request = {"net": kind, "way": method, "quick": False, "memory": None}
        with Worker(sys.executable, "benchmarks.models_worker", request) as worker:
            cost = worker.ask({"run": "first"})
            seconds = worker.ask({"run": "again"})["seconds"]
        training = seconds if method == "training" else training
        figures += [*cost_of(method, cost), Figure(method, "time, median", seconds, "s")]
        figures.append(Figure(method, "run_ratio", seconds / training, "trainings"))
    return figures


def cost_of(method: str, cost: dict[str, Any]) -> list[Figure]:
    """List what it cost to make a way, and the memory that it takes."""
    return [
        Figure(method, "trace", cost["trace"], "CPU s"),
        Figure(method, "compile", cost["compile"], "CPU s"),
        Figure(method, "memory_mb", cost["memory"] / 1e6, "MB, says the compiler"),
        Figure(method, "peak_mb", cost["peak"] / 1e6, "MB, measured"),
    ]


def begin_peers(
    kind: str, options, stack: contextlib.ExitStack, folder: Path, grads: dict, calls: dict
) -> list[Figure]:
    """Start the peers, each in a process, with the same weights and batches; one may not know a network."""
    net, figures = (QUICK if options.quick else NETS)[kind](), []
    data = folder / "case.npz"
    np.savez(data, allow_pickle=False, **arrays(net))
    for peer in PEERS:
        request = {"peer": peer, "data": str(data), "kind": net.kind}
        request |= {"horizon": net.horizon, "layers": net.layers}
        try:
            worker = stack.enter_context(Worker(options.torch_python, "peers_models.py", request))
            worker.ask({"run": "train"})
            before = worker.ask({"run": "train"})["peak_bytes"]
            answer = worker.ask({"run": "gradient"})
        except RuntimeError as error:
            figures.append(Figure(peer, "absent", str(error), "message"))
            continue
        found = answer["gradient"]
        flat = [np.ravel(np.array(found[name], np.float64)) for name in sorted(found)]
        grads[peer] = np.concatenate(flat)
        calls[peer] = lambda w=worker: w.ask({"run": "gradient"})["seconds"]
        missing = [name for name in found if np.isnan(np.array(found[name], np.float64)).any()]
        figures += [
            Figure(peer, "missing", missing, "hparams"),
            Figure(peer, "peak_mb", (answer["peak_bytes"] - before) / 1e6, "MB, measured"),
            Figure(peer, "version", worker.made["torch"], "torch"),
        ]
        if peer == "torch":
            calls["torch training"] = lambda w=worker: w.ask({"run": "train"})["seconds"]
    return figures


def relative(actual: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference of an entry that is not NaN, relative to the norm of the whole."""
    return float(np.nanmax(np.abs(actual - expected)) / np.linalg.norm(expected))


def table(results: Results) -> str:
    """Write the results as Markdown."""
    parts = []
    for name, methods in results.cases.items():
        training = methods["training"]
        head = (
            f"**{name}**: training {training['time, median']:.3g} s, "
            f"traced in {training['trace']:.1f} s and compiled in {training['compile']:.1f} s"
        )
        rows = [row(method, found) for method, found in methods.items() if method != "training"]
        parts.append(f"{head}\n\n{markdown(HEADER, rows)}")
    return "\n\n".join(parts)


HEADER = ["method", "trace", "compile", "x training", "MB", "peak MB", "error", "x reverse"]


def row(method: str, found: dict[str, Any]) -> list[str]:
    if "absent" in found:
        return [f"{method}: does not run", *[""] * 7]
    without = f" without {', '.join(found['missing'])}" if found.get("missing") else ""

    def cell(metric: str, form: str) -> str:
        return format(found[metric], form) if metric in found else ""

    forms = {
        "trace_ratio": ".2f",
        "compile_ratio": ".2f",
        "run_ratio": ".2f",
        "memory_mb": ".0f",
        "peak_mb": ".0f",
        "error": ".0e",
        "peer_ratio": ".1f",
    }
    return [method + without, *(cell(metric, form) for metric, form in forms.items())]
