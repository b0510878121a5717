"""Cost and agreement of implicit hypergradients beside jaxopt, lineax, TorchOpt, betty-ml and PyTorch.

One estimate is one step of training from trained weights, and 20 iterations of the linear
solver on the full batch. Peers return value and hypergradient; ours also with `info` (gradient norm, residual,
curvature), which costs two products more. The cases: a weight for every training example (data
hyper-cleaning) of a softmax regression, and a penalty for every weight of a network (Lorraine et al., 2020).
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
import optax

from benchmarks.record import Figure, Results, interleave, markdown, timed
from benchmarks.worker import Worker
from hypergrad.core.solve import cg, direct, neumann, normal_cg
from hypergrad.estimators import Estimator, implicit
from hypergrad.estimators.slopes import in_float64
from hypergrad.problem import Examples, Problem
from hypergrad.train import init_state, unroll

ITERATIONS = 20
REPEATS = 15
RATE = 0.1
NEVER = 1e-30
"""Tolerance that is never met, so that every method does all iterations."""
KEY = jax.random.key(0)
PEERS = ("torch cg", "TorchOpt cg", "TorchOpt normal_cg", "betty cg")


class Setting(NamedTuple):
    """A network of tanh layers of these widths, and what is tuned: "weight" or "decay"."""

    tuned: str
    num_train: int
    widths: tuple[int, ...]
    source: str = "digits"

    @property
    def name(self) -> str:
        what = "weights of examples" if self.tuned == "weight" else "penalties, one a parameter"
        number = self.num_train if self.tuned == "weight" else count(self.widths)
        shape = "-".join(map(str, self.widths))
        return f"{number} {what}, {shape}, {self.num_train} {self.source}"


SETTINGS = (
    Setting("weight", 1000, (64, 10)),
    Setting("weight", 5000, (784, 10), "MNIST"),
    Setting("decay", 1000, (64, 32, 10)),
)
QUICK = (Setting("weight", 100, (64, 10)), Setting("decay", 100, (64, 4, 10)))


def count(widths: tuple[int, ...]) -> int:
    return sum((a + 1) * b for a, b in pairwise(widths))


def run(results: Results, options) -> None:
    """Measure every case that is not in the results yet."""
    for setting in QUICK if options.quick else SETTINGS:
        if setting.source == "MNIST" and not options.data:
            print(f"{setting.name} is left out: name the folder of MNIST with --data DIR")
        elif setting.name not in results.cases:
            print(f"{setting.name} ...", flush=True)
            results.add(setting.name, measure(setting, options))


def arrays(setting: Setting, data: str | None) -> dict[str, Any]:
    """Make inputs, labels and trained weights."""
    if setting.source == "MNIST":
        from tasks import images

        splits = images.load(str(data), setting.num_train, 1000, 1)
        x, valid_x = (part[0].reshape(len(part[0]), -1) for part in splits[:2])
        y, valid_y = splits.train[1], splits.valid[1]
    else:
        from sklearn.datasets import load_digits

        images_, labels = load_digits(return_X_y=True)
        images_ = (images_ / 16).astype(np.float32)
        x, valid_x = images_[: setting.num_train], images_[1000:]
        y, valid_y = labels[: setting.num_train], labels[1000:]
    random = np.random.default_rng(0)
    made = {
        "x": x,
        "y": y.astype(np.int32),
        "valid_x": valid_x,
        "valid_y": valid_y.astype(np.int32),
    }
    for i, (a, b) in enumerate(pairwise(setting.widths)):
        made[f"w{i}"] = (random.normal(size=(a, b)) / a**0.5).astype(np.float32)
        made[f"b{i}"] = np.zeros(b, np.float32)
    size = setting.num_train if setting.tuned == "weight" else count(setting.widths)
    # weaker penalties leave flat directions, in which no method gets anywhere in so few iterations, and
    # training would not come to rest
    centre, num_steps = (0.0, 2000) if setting.tuned == "weight" else (-2.0, 10_000)
    made["hparams"] = (centre + 0.3 * random.normal(size=size)).astype(np.float32)
    problem = make_problem(setting, made)
    start = init_state(problem, KEY, {"tuned": jnp.asarray(made["hparams"])})
    train = jax.jit(lambda h: unroll(problem, h, start, num_steps).params)
    return made | {
        n: np.asarray(w) for n, w in train({"tuned": jnp.asarray(made["hparams"])}).items()
    }


def make_problem(setting: Setting, made: dict[str, np.ndarray]) -> Problem:
    """Build full-batch gradient descent on weighted cross-entropy with penalties."""
    weights = {n: jnp.asarray(made[n]) for n in made if n[0] in "wb"}
    layers = len(setting.widths) - 1
    train, valid = (
        (jnp.asarray(made[x]), jnp.asarray(made[y]))
        for x, y in (("x", "y"), ("valid_x", "valid_y"))
    )

    def entropies(params, batch):
        out = batch[0]
        for i in range(layers):
            out = out @ params[f"w{i}"] + params[f"b{i}"]
            out = jnp.tanh(out) if i < layers - 1 else out
        return optax.softmax_cross_entropy_with_integer_labels(out, batch[1])

    def loss(params, h, batch):
        each = entropies(params, batch)
        flat = jnp.concatenate([params[n].reshape(-1) for n in sorted(params)])
        if setting.tuned == "weight":
            return jnp.mean(jax.nn.sigmoid(h["tuned"]) * each) + 0.005 * jnp.sum(flat**2)
        return jnp.mean(each) + 0.5 * jnp.sum(jnp.exp(h["tuned"]) * flat**2)

    return Problem(
        init=lambda key, h: weights,
        loss=loss,
        objective=lambda params, h, batch: jnp.mean(entropies(params, batch)),
        optimizer=lambda h: optax.sgd(RATE),
        train_batch=lambda key, step: train,
        valid_batch=lambda key: valid,
        train_set=Examples(setting.num_train, lambda index: (train[0][index], train[1][index])),
    )


def root(problem: Problem, solve: Any):
    """The same estimate by jaxopt's `custom_root`, with a solver of (matvec, b)."""
    from jaxopt import implicit_diff

    batch = problem.train_batch(KEY, jnp.zeros((), jnp.int32))

    def gradient(params, h):
        return jax.grad(problem.loss)(params, h, batch)

    @implicit_diff.custom_root(gradient, solve=solve)
    def train(params, h):
        return jax.tree.map(lambda w, g: w - RATE * g, params, gradient(params, h))

    def objective(h):
        params = train(problem.init(KEY, h), h)
        return problem.objective(params, h, problem.valid_batch(KEY))

    return jax.value_and_grad(objective)


def lineax_solve():
    """lineax's conjugate gradients, which knows by a tag that the matrix is positive definite."""
    import lineax  # pyright: ignore[reportMissingImports]

    solver = lineax.CG(rtol=NEVER, atol=NEVER, max_steps=ITERATIONS)

    def solve(matvec, b, **_):
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), b)
        tags = lineax.positive_semidefinite_tag
        operator = lineax.FunctionLinearOperator(matvec, like, tags=tags)
        return lineax.linear_solve(operator, b, solver, throw=False).value

    return solve


def ours(problem: Problem) -> dict[str, Estimator]:
    # next_batch, the training batch itself, is the full one here: nothing is gathered
    problem = problem._replace(train_set=None)
    solvers = {
        "cg": cg(ITERATIONS, NEVER),
        "normal_cg": normal_cg(ITERATIONS, NEVER),
        "neumann": neumann(ITERATIONS),
    }
    return {f"hypergrad {name}": implicit(problem, 1, solve=s) for name, s in solvers.items()}


def drop_info(program: Any) -> Any:
    """Return value and hypergradient alone."""
    return lambda h: program(h)[:2]


def measure(setting: Setting, options) -> list[Figure]:
    """Time all methods in turn, and compare them with a dense solve in float64."""
    from jaxopt import linear_solve

    made = arrays(setting, options.data)
    problem, hparams = make_problem(setting, made), {"tuned": jnp.asarray(made["hparams"])}
    programs: dict[str, Any] = {
        name: (lambda e: lambda h: e.estimate(KEY, e.init(KEY, h), h)[1])(estimator)
        for name, estimator in ours(problem).items()
    }
    # like the peers' result: the compiler removes the work that only `info` needs
    programs |= {f"{name}, no info": drop_info(programs[name]) for name in list(programs)[:2]}
    for name in ("cg", "normal_cg"):
        solve = partial(getattr(linear_solve, f"solve_{name}"), maxiter=ITERATIONS, tol=0.0)
        programs[f"jaxopt {name}"] = root(problem, solve)
    figures: list[Figure] = []
    try:
        programs["lineax cg"] = root(problem, lineax_solve())
    except ImportError as error:
        figures.append(Figure("lineax cg", "absent", str(error), "message"))
    calls, grads = {}, {}
    for name, program in programs.items():
        began = time.perf_counter()
        compiled = jax.jit(program).lower(hparams).compile()
        figures.append(Figure(name, "compile", time.perf_counter() - began, "s"))
        calls[name] = timed(lambda compiled=compiled: compiled(hparams))
        out = compiled(hparams)
        grads[name] = np.asarray(out[1]["tuned"])
    with contextlib.ExitStack() as stack:
        if options.torch_python:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            path = Path(folder) / "case.npz"
            np.savez(path, **made)
            for peer in PEERS:
                try:
                    worker = stack.enter_context(Peer(options.torch_python, peer, path, setting))
                    grads[peer] = np.asarray(worker.ask("gradient")["gradient"])
                    calls[peer] = lambda worker=worker: worker.ask("time")["seconds"]
                except RuntimeError as error:
                    figures.append(Figure(peer, "absent", str(error), "message"))
        times = interleave(calls, REPEATS)
    exact = reference(setting, made)
    for name, grad in grads.items():
        error = float(np.linalg.norm(grad - exact) / np.linalg.norm(exact))
        error = error if np.isfinite(error) else None  # a peer's result may be NaN
        figures.append(Figure(name, "error", error, "relative"))
        figures += [Figure(name, f"time, {n}", took, "s") for n, took in times[name].items()]
    return figures


def reference(setting: Setting, made: dict[str, np.ndarray]) -> np.ndarray:
    """The same hypergradient in float64, solved to the last digits."""
    with jax.enable_x64(True):
        wide = {n: x.astype(np.float64) if x.dtype == np.float32 else x for n, x in made.items()}
        problem = in_float64(make_problem(setting, wide))._replace(train_set=None)
        small = count(setting.widths) <= 3000
        solve = direct() if small else cg(2000, 1e-13)
        hparams = {"tuned": jnp.asarray(wide["hparams"])}
        estimator = implicit(problem, 1, solve=solve)
        got = jax.jit(estimator.estimate)(KEY, estimator.init(KEY, hparams), hparams)[1]
        return np.asarray(got.hypergrad["tuned"])


class Peer(Worker):
    """A PyTorch peer."""

    def __init__(self, python: str, peer: str, data: Path, setting: Setting):
        request = {"peer": peer, "data": str(data), "tuned": setting.tuned}
        request |= {"layers": len(setting.widths) - 1, "iterations": ITERATIONS, "rate": RATE}
        super().__init__(python, "peers_implicit.py", request)


def wrong(method: str, methods: dict[str, Any]) -> bool:
    """Tell whether conjugate gradients have more than three times our error after as many iterations."""
    error = methods[method]["error"]
    return error is None or (
        " cg" in method and error > 3 * methods["hypergrad cg, no info"]["error"]
    )


def table(results: Results) -> str:
    """Write the results as Markdown."""
    parts = []
    for name, methods in results.cases.items():
        base = methods["hypergrad cg, no info"]["time, median"]
        rows = []
        for method, found in methods.items():
            if "absent" in found:
                rows.append([method, "does not run", "", ""])
                continue
            median = found["time, median"]
            error = "NaN" if found["error"] is None else f"{found['error']:.1e}"
            error += " (wrong)" if wrong(method, methods) else ""
            cells = [f"{median * 1e3:.2f}", f"{median / base:.2f}", error]
            rows.append([method, *cells])
        header = ["method", "ms", "times ours (cg, no info)", "error"]
        parts.append(f"**{name}**, {ITERATIONS} iterations\n\n{markdown(header, rows)}")
    return "\n\n".join(parts)


summary = table
