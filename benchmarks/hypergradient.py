"""Cost and agreement of every way to differentiate one training run, beside the PyTorch peers.

The run trains an MLP with one hidden layer on digits by SGD with momentum or Adam; the hyperparameters are the
logarithms of the learning rate and of the L2 penalty, and the logit of the momentum (β₁). All libraries see the
same weights and minibatches.
"""

import contextlib
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.record import Figure, Results, interleave, markdown, timed
from benchmarks.worker import Worker
from hypergrad.estimators import drift, forward, mixed_mode, plain, reverse, reversible
from hypergrad.estimators.base import temporary_bytes
from hypergrad.estimators.slopes import in_float64
from hypergrad.estimators.unrolled.adjoint import nested_checkpoint, sqrt_checkpoint
from hypergrad.problem import Problem
from hypergrad.train import init_state, unroll

NUM_TRAIN = 1000
MOMENTUM = 0.9
REPEATS = 5
KEY = jax.random.key(0)
HPARAMS = ("log_lr", "logit_momentum", "log_l2")
PEERS = ("torch", "higher", "torchopt")


class Setting(NamedTuple):
    """One training run."""

    optimizer: str
    horizon: int
    width: int = 64
    batch_size: int | None = 128

    @property
    def name(self) -> str:
        batch = "full batch" if self.batch_size is None else f"batch {self.batch_size}"
        return f"{self.optimizer}, 64-{self.width}-10, {batch}, T = {self.horizon}"


SETTINGS = (
    Setting("momentum", 200),
    Setting("momentum", 1000),
    Setting("momentum", 10_000),
    Setting("adam", 200),
    Setting("adam", 1000),
    Setting("momentum", 200, width=128, batch_size=None),
)
LONG = Setting("momentum", 100_000)
QUICK = (Setting("momentum", 20, width=8, batch_size=16), Setting("adam", 20, 8, 16))


def make_problem(setting: Setting, activation=jax.nn.relu) -> tuple[Problem, dict, dict]:
    """Build the run, its hparams, and the arrays that the peers need for the same one."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x, y = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels, jnp.int32)
    train, valid = (x[:NUM_TRAIN], y[:NUM_TRAIN]), (x[NUM_TRAIN:], y[NUM_TRAIN:])
    keys = jax.random.split(jax.random.key(1), 3)
    weights = {
        "w1": jax.random.normal(keys[0], (64, setting.width)) / 8,
        "b1": jnp.zeros(setting.width),
        "w2": jax.random.normal(keys[1], (setting.width, 10)) / setting.width**0.5,
        "b2": jnp.zeros(10),
    }
    shape = (setting.horizon, setting.batch_size or 0)
    indices = jax.random.randint(keys[2], shape, 0, NUM_TRAIN)

    def cross_entropy(params, batch):
        logits = activation(batch[0] @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    def loss(params, h, batch):
        squares = jnp.sum(params["w1"] ** 2) + jnp.sum(params["w2"] ** 2)
        return cross_entropy(params, batch) + 0.5 * jnp.exp(h["log_l2"]) * squares

    def optimizer(h):
        rate, momentum = jnp.exp(h["log_lr"]), jax.nn.sigmoid(h["logit_momentum"])
        if setting.optimizer == "adam":
            return optax.adam(rate, b1=momentum)
        return optax.sgd(rate, momentum=momentum)

    def train_batch(key, step):
        if setting.batch_size is None:
            return train
        return train[0][indices[step]], train[1][indices[step]]

    problem = Problem(
        init=lambda key, h: weights,
        loss=loss,
        objective=lambda params, h, batch: cross_entropy(params, batch),
        optimizer=optimizer,
        train_batch=train_batch,
        valid_batch=lambda key: valid,
    )
    rate = -5.0 if setting.optimizer == "adam" else -2.5
    hparams = {"log_lr": rate, "logit_momentum": 2.1974, "log_l2": -8.0}
    hparams = {name: jnp.float32(value) for name, value in hparams.items()}
    arrays = {
        **weights,
        "x": train[0],
        "y": train[1],
        "valid_x": valid[0],
        "valid_y": valid[1],
        "indices": indices,
        "hparams": jnp.stack([hparams[n] for n in HPARAMS]),
    }
    return problem, hparams, {name: np.asarray(array) for name, array in arrays.items()}


def schemes(problem: Problem, setting: Setting) -> dict[str, Any]:
    """List every estimator that is exact here, or exact except for the rounding that it reports."""
    horizon = setting.horizon
    root = sqrt_checkpoint(horizon)
    found = {"default": reverse(problem, horizon)}
    if setting.optimizer == "momentum":
        found |= {
            "drift": drift(problem, horizon, min_momentum=MOMENTUM),
            "reversible": reversible(problem, horizon, min_momentum=MOMENTUM),
        }
    if setting == LONG:
        return found
    return found | {
        "mixed, every step kept": reverse(problem, horizon, backward=mixed_mode(())),
        "mixed, sqrt(T)": reverse(problem, horizon, backward=mixed_mode(root)),
        "mixed, two levels": reverse(
            problem, horizon, backward=mixed_mode(nested_checkpoint(horizon, 2))
        ),
        "plain, naive": reverse(problem, horizon, backward=plain(())),
        "plain, every step": reverse(problem, horizon, backward=plain((1,))),
        "plain, sqrt(T)": reverse(problem, horizon, backward=plain((*root, 1))),
        "forward": forward(problem, horizon),
    }


def run(results: Results, options) -> None:
    """Measure every setting that is not in the results yet."""
    for setting in QUICK if options.quick else (*SETTINGS, LONG):
        if setting.name not in results.cases:
            print(f"{setting.name} ...", flush=True)
            peers = None if setting == LONG else options.torch_python
            results.add(setting.name, measure(setting, peers))
    for optimizer in ("momentum", "adam"):
        small = Setting(optimizer, 20 if options.quick else 200)
        name = f"finite differences, {optimizer}, T = {small.horizon}"
        if name not in results.cases:
            print(f"{name} ...", flush=True)
            errors = finite_differences(small).items()
            results.add(name, [Figure(n, "error", error, "relative") for n, error in errors])


def measure(setting: Setting, torch_python: str | None) -> list[Figure]:
    """Time all schemes and all peers in turn, and compare their hypergradients."""
    problem, hparams, arrays = make_problem(setting)

    def train(h):
        return unroll(problem, h, init_state(problem, KEY, h), setting.horizon).params

    training = jax.jit(train)
    calls = {"training": timed(lambda: training(hparams))}
    figures: list[Figure] = []
    grads = {}
    for name, estimator in schemes(problem, setting).items():
        lowered = jax.jit(estimator.estimate).lower(KEY, (), hparams)
        began = time.perf_counter()
        compiled = lowered.compile()
        figures.append(Figure(name, "compile", time.perf_counter() - began, "s"))
        num_bytes = temporary_bytes(compiled)
        figures.append(Figure(name, "memory", num_bytes / 1e6, "MB"))
        calls[name] = timed(lambda compiled=compiled: compiled(KEY, (), hparams))
        found = compiled(KEY, (), hparams)[1]
        grads[name] = vector(found.hypergrad)
        figures += certificate(name, found.info)

    with contextlib.ExitStack() as stack:
        workers = {}
        if torch_python:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            data = Path(folder) / "case.npz"
            np.savez(data, **arrays)
            for peer in PEERS:
                try:
                    workers[peer] = stack.enter_context(Peer(torch_python, peer, data, setting))
                except RuntimeError as error:
                    figures.append(Figure(peer, "absent", str(error), "message"))
        for peer, worker in workers.items():
            grads[peer] = np.array(worker.answer["gradient"], np.float64)
            missing = [n for n, g in zip(HPARAMS, grads[peer], strict=True) if np.isnan(g)]
            figures.append(Figure(peer, "missing", missing, "hparams"))
            figures.append(Figure(peer, "memory", worker.megabytes, "MB"))
            figures.append(Figure(peer, "version", worker.version, "torch"))
            calls[peer] = worker.seconds
        if "torch" in workers:
            calls["torch training"] = workers["torch"].training
            with Peer(torch_python, "torch", data, setting, wide=True) as worker:
                answer = np.array(worker.answer["gradient"])
            error = relative(answer, hypergrad_float64(problem, hparams, setting.horizon))
            figures.append(Figure("torch", "error in float64", error, "relative"))
        times = interleave(calls, 3 if setting == LONG else REPEATS)
    reference = grads.get("plain, naive", grads["default"])
    for name, grad in grads.items():
        error = relative(grad, reference)
        ratio = times[name]["median"] / times["training"]["median"]
        figures += [
            Figure(name, "error", error, "relative"),
            Figure(name, "ratio", ratio, "trainings"),
        ]
    for name, found in times.items():
        figures += [Figure(name, f"time, {which}", took, "s") for which, took in found.items()]
    return figures


def certificate(name: str, info: Any) -> list[Figure]:
    """Keep the diagnostics of an estimator that undoes training."""
    if hasattr(info, "mismatch"):
        return [
            Figure(name, "mismatch", float(info.mismatch), "relative"),
            Figure(name, "recomputed", int(info.num_recomputed), "segments"),
        ]
    if hasattr(info, "exact"):
        return [
            Figure(name, "exact", bool(info.exact), "certificate"),
            Figure(name, "bits", float(info.bits), "bits a parameter and step"),
        ]
    return []


class Peer(Worker):
    """A PyTorch peer, with its hypergradient and its memory."""

    def __init__(self, python, peer: str, data: Path, setting: Setting, *, wide: bool = False):
        request = {"peer": peer, "data": str(data), "wide": wide, **setting._asdict()}
        super().__init__(python, "peers_torch.py", request)
        self.version = self.made["torch"]
        try:
            # PyTorch's own memory is not memory of the hypergradient
            self.ask({"run": "train"})
            before = self.ask({"run": "train"})["peak_bytes"]
            self.answer = self.ask({"run": "gradient"})
        except RuntimeError:
            self.__exit__()
            raise
        self.megabytes = (self.answer["peak_bytes"] - before) / 1e6

    def seconds(self) -> float:
        return self.ask({"run": "gradient"})["seconds"]

    def training(self) -> float:
        return self.ask({"run": "train"})["seconds"]


def hypergrad_float64(problem: Problem, hparams: dict, horizon: int) -> np.ndarray:
    """Repeat the same run in float64, where rounding separates long trainings later."""
    with jax.enable_x64(True):
        estimator = reverse(in_float64(problem), horizon)
        point = {name: jnp.asarray(value, jnp.float64) for name, value in hparams.items()}
        return vector(jax.jit(estimator.estimate)(KEY, (), point)[1].hypergrad)


def finite_differences(setting: Setting, h: float = 1e-6) -> dict[str, float]:
    """Compare every scheme with central differences in float64, with tanh as the activation."""
    with jax.enable_x64(True):
        problem, hparams, _ = make_problem(setting, jnp.tanh)
        problem = in_float64(problem)
        point = {name: jnp.asarray(value, jnp.float64) for name, value in hparams.items()}

        def objective(point):
            state = unroll(problem, point, init_state(problem, KEY, point), setting.horizon)
            return problem.objective(state.params, point, problem.valid_batch(KEY))

        value = jax.jit(objective)
        slopes = [
            (value({**point, name: point[name] + h}) - value({**point, name: point[name] - h}))
            / (2 * h)
            for name in HPARAMS
        ]
        return {
            name: relative(
                vector(jax.jit(estimator.estimate)(KEY, (), point)[1].hypergrad), np.array(slopes)
            )
            for name, estimator in schemes(problem, setting).items()
        }


def vector(grads: dict[str, Any]) -> np.ndarray:
    return np.array([grads[n] for n in HPARAMS], np.float64)


def relative(actual: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference of an entry that is not NaN, relative to the norm of the whole."""
    return float(np.nanmax(np.abs(actual - expected)) / np.linalg.norm(expected))


def table(results: Results) -> str:
    """Write the results as Markdown."""
    parts = []
    for name, methods in results.cases.items():
        if "training" not in methods:
            worst = max(found["error"] for found in methods.values())
            parts.append(f"**{name}**: largest relative error of any scheme {worst:.0e}")
            continue
        rows = [row(method, found) for method, found in methods.items() if "ratio" in found]
        rows += [
            [method, "does not run", "", "", ""]
            for method, found in methods.items()
            if "absent" in found
        ]
        horizon = int(name.rsplit(" ", 1)[1])
        micro = methods["training"]["time, median"] / horizon * 1e6
        head = f"**{name}**, training {micro:.0f} µs a step"
        if "torch" in methods:
            error = methods["torch"]["error in float64"]
            own = methods["torch"]["time, median"] / methods["torch training"]["time, median"]
            head += (
                f"; PyTorch's hypergradient takes {own:.1f} of PyTorch's trainings, "
                f"and differs by {error:.0e} in float64"
            )
        header = ["method", "x training", "MB", "compile s", "error"]
        parts.append(f"{head}\n\n{markdown(header, rows)}")
    return "\n\n".join(parts)


def summary(results: Results) -> str:
    """Write one line a case: the default beside the naive scheme and the fastest peer."""
    rows = []
    for name, methods in results.cases.items():
        if "training" not in methods:
            continue
        ours, naive = methods["default"], methods.get("plain, naive")
        cells = [
            name,
            f"{ours['ratio']:.1f}",
            f"{ours['memory']:.1f}",
            f"{naive['ratio']:.1f}" if naive else "",
            f"{naive['memory']:.0f}" if naive else "",
        ]
        whole = [peer for peer in PEERS if peer in methods and not methods[peer].get("missing")]
        peers = {peer: methods[peer]["ratio"] for peer in whole if "ratio" in methods[peer]}
        if peers:
            best = min(peers, key=peers.__getitem__)
            cells.append(f"{peers[best] / ours['ratio']:.1f}x ({best})")
        else:
            cells.append("not measured")
        rows.append(cells)
    header = ["digits MLP", "x training", "MB", "naive: x training", "MB", "faster than best peer"]
    return markdown(header, rows)


def row(method: str, found: dict[str, Any]) -> list[str]:
    compile_seconds = f"{found['compile']:.1f}" if "compile" in found else ""
    note = f" without {', '.join(found['missing'])}" if found.get("missing") else ""
    if "mismatch" in found:
        note = f" (mismatch {found['mismatch']:.0e}, {found['recomputed']} segments computed again)"
    if "exact" in found:
        undone = "undone to the bit" if found["exact"] else "NOT undone exactly"
        note = f" ({undone}, {found['bits']:.2f} bits a parameter and step)"
    return [
        method + note,
        f"{found['ratio']:.2f}",
        f"{found['memory']:.1f}",
        compile_seconds,
        f"{found['error']:.0e}",
    ]
