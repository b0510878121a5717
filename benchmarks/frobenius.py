"""Exact Frobenius norms of Hessians: our paths, jax.hessian, torch.func.hessian, curvlinops, PyHessian.

The networks are ReLU MLPs with biases and softmax cross-entropy at their first weights, on m random samples, in
float32. A path that would take minutes or gigabytes is measured on some of its columns and scaled ("of the
columns" says how many), or left out with the reason. Errors are against float64: the dense matrix up to 5,000
parameters, sample pairs above. The full run takes about half an hour; it continues where it was stopped.
"""

import contextlib
import tempfile
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from benchmarks.record import Figure, Results, interleave, markdown, timed
from benchmarks.worker import Worker
from hypergrad import curvature as cv
from hypergrad.curvature.models import loss_of

REPEATS = 5
WARM = 0.2
"""Seconds below which a call is made once before it counts."""
MEMORY = 2**29
WHOLE = 6_000
"""Largest number of parameters at which all columns are made; above, `SOME` of them."""
SOME = 256
PEERS = ("torch.func.hessian", "curvlinops", "PyHessian")
SHOWN = {
    "PyHessian": ("tab:brown", "v"),
    "torch.func.hessian": ("tab:red", "s"),
    "curvlinops": ("tab:orange", "D"),
    "jax.hessian": ("tab:purple", "^"),
    "HVP columns": ("tab:green", "P"),
    "hypergrad dense": ("0.6", "x"),
    "hypergrad frobenius": ("tab:blue", "o"),
    "hypergrad, last layer": ("tab:cyan", "o"),
}
"""Method in the picture -> its color and marker."""


class Setting(NamedTuple):
    """A network of these widths, and the number of samples."""

    widths: tuple[int, ...]
    samples: int

    @property
    def size(self) -> int:
        return sum((a + 1) * b for a, b in pairwise(self.widths))

    @property
    def name(self) -> str:
        return f"{self.size} parameters, {'-'.join(map(str, self.widths))}, m = {self.samples}"


NETWORKS = ((20, 24, 16, 4), (64, 48, 32, 10), (64, 128, 80, 10), (64, 256, 256, 64, 10))
SETTINGS = tuple(Setting(widths, m) for widths in NETWORKS for m in (64, 256, 1024))
QUICK = (Setting((10, 8, 6, 3), 16), Setting((10, 16, 8, 3), 64))


def run(results: Results, options) -> None:
    """Measure every case that is not in the results yet."""
    for setting in QUICK if options.quick else SETTINGS:
        if setting.name not in results.cases:
            print(f"{setting.name} ...", flush=True)
            results.add(setting.name, measure(setting, options))


def arrays(setting: Setting) -> dict[str, Any]:
    random = np.random.default_rng(0)
    made = {
        "x": random.normal(size=(setting.samples, setting.widths[0])).astype(np.float32),
        "y": random.integers(setting.widths[-1], size=setting.samples).astype(np.int32),
    }
    for i, (a, b) in enumerate(pairwise(setting.widths)):
        made[f"w{i}"] = (random.normal(size=(a, b)) * (2 / a) ** 0.5).astype(np.float32)
        made[f"b{i}"] = (0.1 * random.normal(size=b)).astype(np.float32)
    return made


def network(made: dict[str, np.ndarray], layers: int, dtype: Any = jnp.float32):
    params = [
        {"kernel": jnp.asarray(made[f"w{i}"], dtype), "bias": jnp.asarray(made[f"b{i}"], dtype)}
        for i in range(layers)
    ]
    return params, (jnp.asarray(made["x"], dtype), jnp.asarray(made["y"]))


def programs(setting: Setting) -> dict[str, tuple[Any, float]]:
    """Return {name: ((params, batch) -> a norm, the share of the columns that it makes)}."""
    model = cv.mlp(jax.nn.relu)
    last = str(len(setting.widths) - 2)
    whole = setting.size <= WHOLE
    share = 1.0 if whole else SOME / setting.size

    def of(path, **arguments):
        return lambda params, batch: path(model, params, batch, memory=MEMORY, **arguments).value

    def flat_loss(params, batch):
        flat, unravel = ravel_pytree(params)
        return flat, lambda w: loss_of(model)(unravel(w), batch)

    def columns(params, batch):
        """HVP columns as one writes them by hand: linearized once, 64 side by side."""
        flat, loss = flat_loss(params, batch)
        push = jax.linearize(jax.grad(loss), flat)[1]
        count = setting.size if whole else SOME

        def square(index):
            return jnp.sum(jnp.square(push(jax.nn.one_hot(index, flat.size))))

        return jnp.sqrt(jnp.sum(jax.lax.map(square, jnp.arange(count), batch_size=64)))

    def dense(params, batch):
        flat, loss = flat_loss(params, batch)
        return jnp.linalg.norm(jax.hessian(loss)(flat))

    def estimate(params, batch):
        return cv.frobenius_estimate(model, params, batch, jax.random.key(0), num_products=60).value

    found: dict[str, tuple[Any, float]] = {
        "hypergrad frobenius": (of(cv.frobenius), 1.0),
        "hypergrad pairs": (of(cv.frobenius_pairs), 1.0),
        "hypergrad, Gauss-Newton": (of(cv.frobenius, gauss_newton=True), 1.0),
        "hypergrad, last layer": (of(cv.frobenius, layers=[last]), 1.0),
        "hypergrad estimate, 60 products": (estimate, 1.0),
        "HVP columns": (columns, share),
    }
    if setting.size <= 4 * WHOLE:
        found["hypergrad dense"] = (of(cv.frobenius_dense), 1.0)
    if whole:
        found["hypergrad columns"] = (of(cv.frobenius_columns), 1.0)
        found["jax.hessian"] = (dense, 1.0)
    return found


def measure(setting: Setting, options) -> list[Figure]:
    """Time all methods in turn, and compare them with float64."""
    made, layers = arrays(setting), len(setting.widths) - 1
    params, batch = network(made, layers)
    figures, calls, norms, shares = [], {}, {}, {}
    for name, (program, share) in programs(setting).items():
        began = time.perf_counter()
        compiled = jax.jit(program).lower(params, batch).compile()
        figures.append(Figure(name, "compile", time.perf_counter() - began, "s"))
        analysis: Any = compiled.memory_analysis()
        memory = analysis.temp_size_in_bytes
        figures.append(Figure(name, "memory", memory, "bytes"))
        calls[name] = timed(lambda compiled=compiled: compiled(params, batch))
        norms[name], shares[name] = float(compiled(params, batch)), share
    with contextlib.ExitStack() as stack:
        if options.torch_python:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            path = Path(folder) / "case.npz"
            np.savez(path, **made)
            for peer in PEERS:
                try:
                    worker = stack.enter_context(Peer(options.torch_python, peer, path, setting))
                    norms[peer], shares[peer] = worker.ask("norm")["norm"], worker.share
                    figures.append(Figure(peer, "version", worker.made["version"], "version"))
                    calls[peer] = lambda worker=worker: worker.ask("time")["seconds"]
                except RuntimeError as error:
                    figures.append(Figure(peer, "absent", str(error), "message"))
        times = interleave(calls, REPEATS, WARM)
    exact = reference(setting, made)
    for name, norm in norms.items():
        share = shares[name]
        figures.append(Figure(name, "columns", share, "share"))
        if share == 1.0 and name not in exact:
            figures.append(Figure(name, "error", abs(norm / exact[""] - 1), "relative"))
        elif name in exact:
            figures.append(Figure(name, "error", abs(norm / exact[name] - 1), "relative"))
        figures += [
            Figure(name, f"time, {n}", took / share, "s") for n, took in times[name].items()
        ]
    return figures


def reference(setting: Setting, made: dict[str, np.ndarray]) -> dict[str, float]:
    """The norms in float64: "" of the Hessian, and those of the methods that measure another matrix."""
    with jax.enable_x64(True):
        model = cv.mlp(jax.nn.relu)
        params, batch = network(made, len(setting.widths) - 1, jnp.float64)
        large = 2**33
        head = (setting.widths[-2] + 1) * setting.widths[-1]
        last = str(len(setting.widths) - 2)

        def matrices(params):
            full = cv.hessian(model, params, batch, memory=large)
            bent = cv.hessian(model, params, batch, memory=large, product=cv.ggn_vp)
            # the last layer's leaves stand last
            return [jnp.linalg.norm(m) for m in (full, bent, full[-head:, -head:])]

        def by_pairs(params):
            pairs = partial(cv.frobenius_pairs, model, params, batch, memory=large)
            return [got.value for got in (pairs(), pairs(gauss_newton=True), pairs(layers=[last]))]

        norms = matrices if setting.size <= WHOLE else by_pairs
        full, bent, final = (float(x) for x in jax.jit(norms)(params))
    return {"": full, "hypergrad, Gauss-Newton": bent, "hypergrad, last layer": final}


class Peer(Worker):
    """A PyTorch peer.

    Attributes:
        share: Share of the columns that it makes.
    """

    def __init__(self, python: str, peer: str, data: Path, setting: Setting):
        whole = setting.size <= WHOLE
        self.share = 1.0 if whole else SOME / setting.size
        if peer == "torch.func.hessian" and not whole:
            gigabytes = 4e-9 * setting.size**2
            raise RuntimeError(
                f"its matrix alone takes {gigabytes:.1f} GB, and it makes nothing less"
            )
        request = {"peer": peer.replace(".", "_"), "data": str(data)}
        request |= {"layers": len(setting.widths) - 1, "columns": round(self.share * setting.size)}
        super().__init__(python, "peers_frobenius.py", request)


def table(results: Results) -> str:
    """Write the results as Markdown."""
    parts = []
    for name, methods in results.cases.items():
        base, rows = methods["hypergrad frobenius"]["time, median"], []
        for method, found in methods.items():
            if "absent" in found:
                rows.append([method, "not measured", "", "", "", found["absent"]])
                continue
            share, memory = found["columns"], found.get("memory")
            rows.append(
                [
                    method,
                    f"{found['time, median'] * 1e3:.4g}",
                    f"{found['time, median'] / base:.3g}",
                    "" if memory is None else f"{memory / 1e6:.1f}",
                    f"{found['error']:.0e}" if "error" in found else "",
                    "" if share == 1 else f"{share:.2%} of the columns, scaled",
                ]
            )
        header = ["method", "ms", "times ours", "MB", "error", ""]
        parts.append(f"**{name}**\n\n{markdown(header, rows)}")
    return "\n\n".join(parts)


def summary(results: Results) -> str:
    """Write one line a network at m = 256: the exact norm beside columns and the fastest peer."""
    rows = []
    for name, methods in results.cases.items():
        network, _, samples = name.rpartition(", m = ")
        if samples != "256":
            continue
        times = {m: found["time, median"] for m, found in methods.items() if "absent" not in found}
        ours, last = times["hypergrad frobenius"], times["hypergrad, last layer"]
        best = min((peer for peer in PEERS if peer in times), key=times.__getitem__, default=None)
        rows.append(
            [
                network,
                f"{ours * 1e3:.3g}",
                f"{methods['hypergrad frobenius']['memory'] / 1e6:.1f}",
                f"{last * 1e3:.2g}",
                f"{times['HVP columns'] / ours:.3g}x",
                f"{times[best] / ours:.3g}x ({best})" if best else "not measured",
            ]
        )
    header = ["256 samples", "ms", "MB", "last layer ms", "HVP columns", "best peer"]
    return markdown(header, rows)


def draw(results: Results) -> Any:
    """Draw the times by the number of parameters, a panel a batch size; hollow where scaled from a part."""
    from matplotlib.figure import Figure as Canvas

    curves: dict[str, dict[str, list]] = {}
    for name, methods in results.cases.items():
        samples = name.rpartition(", m = ")[2]
        for method, found in methods.items():
            if method in SHOWN and "absent" not in found:
                point = int(name.split()[0]), found["time, median"], found["columns"] == 1
                curves.setdefault(samples, {}).setdefault(method, []).append(point)
    canvas = Canvas(figsize=(11, 4.2), layout="constrained")
    axes = canvas.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for axis, (samples, methods) in zip(axes, curves.items(), strict=True):
        for method, points in methods.items():
            color, marker = SHOWN[method]
            sizes, seconds, _ = zip(*points, strict=True)
            axis.loglog(sizes, seconds, color=color, linewidth=1.5)
            for size, second, full in points:
                face = color if full else "white"
                axis.plot(size, second, marker, color=color, markerfacecolor=face, markersize=6)
        axis.set_title(f"m = {samples}", loc="left", fontsize=10)
        axis.set_xlabel("parameters")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("seconds")
    entries = [
        axes[0].plot([], [], color=color, marker=marker, label=method)[0]
        for method, (color, marker) in SHOWN.items()
    ]
    canvas.legend(handles=entries, loc="outside right center", frameon=False, fontsize=9)
    return canvas
