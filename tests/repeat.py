"""Studies of each kind of method, for `test_repeatable`: `python tests/repeat.py FOLDER` writes them there."""

import contextlib
import locale
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import optax

import hypergrad as hg
from hypergrad.tuning.tune import tune
from tasks import quadratic, ridge


def small_task(horizon: int) -> hg.Task:
    """Return a task with a choice, for the controller."""
    data = jnp.linspace(-1, 1, 24).reshape(8, 3)

    def loss(params, hparams, batch):
        return jnp.mean((batch @ params - hparams["aim"]) ** 2) + hparams["l2"] * params @ params

    problem = hg.Problem(
        init=lambda key, hparams: jax.random.normal(key, (3,)),
        loss=loss,
        objective=lambda params, hparams, batch: loss(params, {"aim": 1.5, "l2": 0.0}, batch),
        optimizer=lambda hparams: optax.sgd(0.1),
        train_batch=lambda key, step: data[jax.random.randint(key, (4,), 0, 8)],
        valid_batch=lambda key: data,
    )
    space = {"aim": hg.Integer(0, 3), "l2": hg.LogReal(1e-3, 1.0)}
    return hg.Task("small", problem, space, horizon, None, "metric", False)


STUDIES = {
    "descent": (quadratic.task, {"budget": 3, "num_seeds": 2, "memory": 10_000_000}),
    "cross_entropy": (quadratic.task, {"method": "cross_entropy", "budget": 32, "memory": 8000}),
    "tpe": (quadratic.task, {"method": "tpe", "scheduler": "halving", "budget": 16}),
    "bilevel": (ridge.task, {"method": "bilevel", "budget": 2, "num_seeds": 1}),
    "controller": (small_task, {"method": "controller", "budget": 2, "num_seeds": 1}),
}
"""{name: (horizon) -> task, settings}."""


def make(folder: Path) -> None:
    """Write every study into a folder of its own."""
    for name, (task, settings) in STUDIES.items():
        tune(task(horizon=4), storage=folder / name, **settings, eval_seeds=2, seed=3)


if __name__ == "__main__":
    with contextlib.suppress(
        locale.Error
    ):  # one that is not installed; its variables are set all the same
        locale.setlocale(locale.LC_ALL, "")
    make(Path(sys.argv[1]))
