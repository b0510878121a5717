"""Cost and agreement of every way to differentiate one training run, beside the PyTorch peers.

The run: digits, an MLP with one hidden layer, SGD with momentum or Adam; the hyperparameters are the
logarithms of the learning rate and of the L2 penalty, and the logit of the momentum (β₁). All see the same
weights and minibatches.
"""

import contextlib
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.record import Results, interleave, markdown, timed
from hypergrad.adjoint import nested_checkpoint, sqrt_checkpoint
from hypergrad.estimators import forward, mixed, plain, reverse
from hypergrad.problem import Problem
from hypergrad.train import init_state, unroll
from hypergrad.verify import in_float64

NUM_TRAIN = 1000
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
    hparams = {"log_lr": rate, "logit_momentum": 2.0, "log_l2": -8.0}
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


def schemes(problem: Problem, horizon: int) -> dict[str, Any]:
    """List every estimator that is exact here."""
    root = sqrt_checkpoint(horizon)
    return {
        "default": reverse(problem, horizon),
        "mixed, every step kept": reverse(problem, horizon, backward=mixed(())),
        "mixed, sqrt(T)": reverse(problem, horizon, backward=mixed(root)),
        "mixed, two levels": reverse(
            problem, horizon, backward=mixed(nested_checkpoint(horizon, 2))
        ),
        "plain, naive": reverse(problem, horizon, backward=plain(())),
        "plain, every step": reverse(problem, horizon, backward=plain((1,))),
        "plain, sqrt(T)": reverse(problem, horizon, backward=plain((*root, 1))),
        "forward": forward(problem, horizon),
    }


def run(results: Results, options) -> None:
    """Measure every setting that is not in the results yet."""
    for setting in QUICK if options.quick else SETTINGS:
        if setting.name not in results.cases:
            print(f"{setting.name} ...", flush=True)
            results.add(measure(setting, options.torch_python))
    for optimizer in ("momentum", "adam"):
        small = Setting(optimizer, 20 if options.quick else 200)
        name = f"finite differences, {optimizer}, T = {small.horizon}"
        if name not in results.cases:
            print(f"{name} ...", flush=True)
            results.add({"case": name, "errors": finite_differences(small)})


def measure(setting: Setting, torch_python: str | None) -> dict[str, Any]:
    """Time all schemes and all peers in turn, and compare their hypergradients."""
    problem, hparams, arrays = make_problem(setting)

    def train(h):
        return unroll(problem, h, init_state(problem, KEY, h), setting.horizon).params

    training = jax.jit(train)
    calls = {"training": timed(lambda: training(hparams))}
    compiled, costs, grads = {}, {}, {}
    for name, estimator in schemes(problem, setting.horizon).items():
        lowered = jax.jit(estimator.estimate).lower(KEY, (), hparams)
        began = time.perf_counter()
        compiled[name] = lowered.compile()
        seconds = time.perf_counter() - began
        num_bytes = compiled[name].memory_analysis().temp_size_in_bytes
        costs[name] = {"megabytes": num_bytes / 1e6, "compile_seconds": seconds}
        calls[name] = timed(lambda name=name: compiled[name](KEY, (), hparams))
        grads[name] = vector(compiled[name](KEY, (), hparams)[1].hypergrad)
    reference = grads["plain, naive"]
    ours = {n: {**costs[n], "error": relative(g, reference)} for n, g in grads.items()}

    with contextlib.ExitStack() as stack:
        workers, absent = {}, {}
        if torch_python:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            data = Path(folder) / "case.npz"
            np.savez(data, **arrays)
            for peer in PEERS:
                try:
                    workers[peer] = stack.enter_context(Worker(torch_python, peer, data, setting))
                except RuntimeError as error:
                    absent[peer] = str(error)
        calls |= {peer: worker.seconds for peer, worker in workers.items()}
        if workers:
            calls["torch training"] = workers["torch"].training
        times = interleave(calls, REPEATS)
        peers = {
            peer: {
                "error": relative(np.array(worker.answer["gradient"], np.float64), reference),
                "megabytes": worker.megabytes,
                "missing": [
                    n for n, g in zip(HPARAMS, worker.answer["gradient"], strict=True) if g is None
                ],
            }
            for peer, worker in workers.items()
        }
    forward_seconds = times["training"]["seconds"]
    for name, entry in (ours | peers).items():
        entry |= times[name] | {"ratio": times[name]["seconds"] / forward_seconds}
    best = min(entry["seconds"] for name, entry in ours.items() if name != "default")
    for entry in peers.values():
        entry["slower_than_best"] = entry["seconds"] / best
        entry["slower_than_default"] = entry["seconds"] / ours["default"]["seconds"]
    return {
        "case": setting.name,
        "setting": setting._asdict(),
        "repeats": REPEATS,
        "training": times["training"],
        "torch_training": times.get("torch training"),
        "torch_version": workers["torch"].version if workers else None,
        "schemes": ours,
        "peers": peers,
        "peers_absent": absent,
    }


class Worker:
    """A peer in a process of its own."""

    def __init__(self, python: str, peer: str, data: Path, setting: Setting):
        script = Path(__file__).with_name("peers_torch.py")
        self.process = subprocess.Popen(
            [python, "-W", "ignore", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        request = {"peer": peer, "data": str(data), **setting._asdict()}
        try:
            self.version = self.ask(request)["torch"]
            self.ask(
                {"run": "train"}
            )  # what PyTorch itself takes is no memory of the hypergradient
            before = self.ask({"run": "train"})["peak_bytes"]
            self.answer = self.ask({"run": "gradient"})
        except RuntimeError:
            self.__exit__()
            raise
        self.megabytes = (self.answer["peak_bytes"] - before) / 1e6

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": "the process ended"}
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def seconds(self) -> float:
        return self.ask({"run": "gradient"})["seconds"]

    def training(self) -> float:
        return self.ask({"run": "train"})["seconds"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()


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
            for name, estimator in schemes(problem, setting.horizon).items()
        }


def vector(grads: dict[str, Any]) -> np.ndarray:
    return np.array([grads[n] for n in HPARAMS], np.float64)


def relative(actual: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference of an entry that is there (not NaN), relative to the norm of the whole."""
    return float(np.nanmax(np.abs(actual - expected)) / np.linalg.norm(expected))


def table(results: Results) -> str:
    """Write the results as Markdown."""
    parts = []
    for name, case in results.cases.items():
        if "schemes" not in case:
            worst = max(case["errors"].values())
            parts.append(f"**{name}**: largest relative error of any scheme {worst:.1e}")
            continue
        rows = [
            [
                scheme,
                f"{entry['ratio']:.2f}",
                f"{entry['megabytes']:.1f}",
                f"{entry['compile_seconds']:.1f}" if "compile_seconds" in entry else "",
                f"{entry['error']:.0e}",
            ]
            for scheme, entry in (case["schemes"] | case["peers"]).items()
        ]
        header = ["scheme", "x training", "MB", "compile s", "error"]
        micro = case["training"]["seconds"] / case["setting"]["horizon"] * 1e6
        parts.append(f"**{name}**, training {micro:.0f} µs a step\n\n{markdown(header, rows)}")
    return "\n\n".join(parts)
