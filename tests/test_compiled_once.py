"""One study compiles one program of plain training, and one more for a hypergradient."""

import re
import sys

import jax
import jax.numpy as jnp
import optax
import pytest
from jax._src import compiler

import hypergrad as hg
from hypergrad.schedulers import SCHEDULERS

HORIZON = 8


def marked(grads, state, params=None):
    """Leave updates as they are, with an operation that nothing else in a study has."""
    return jax.tree.map(lambda g: jnp.sinh(jnp.arcsinh(g)), grads), state


def objective(params, hparams, batch):
    return jnp.mean((batch @ params["w"] - 1) ** 2)


def make(optimizer=lambda h: optax.sgd(h["lr"]), read=lambda h: 0.0) -> hg.Task:
    def loss(params, hparams, batch):
        return objective(params, hparams, batch) + read(hparams) * jnp.sum(params["w"] ** 2)

    problem = hg.Problem(
        init=lambda key, h: {"w": jnp.zeros(3)},
        loss=loss,
        objective=objective,
        optimizer=lambda h: optax.chain(
            optax.GradientTransformation(lambda params: (), marked), optimizer(h)
        ),
        train_batch=lambda key, step: jax.random.normal(key, (4, 3)),
        valid_batch=lambda key: jax.random.normal(key, (4, 3)),
    )
    space = {"lr": hg.LogReal(1e-3, 1e-1)}
    return hg.Task("marked", problem, space, HORIZON, lambda p, h: jnp.ones(4), "score", True)


@pytest.fixture
def programs(monkeypatch):
    """The programs that are compiled, as text."""
    found = []
    compile_ = compiler.compile_or_get_cached

    def noted(backend, computation, *args, **kwargs):
        found.append(str(computation))
        return compile_(backend, computation, *args, **kwargs)

    for module in list(sys.modules.values()):
        if getattr(module, "compile_or_get_cached", None) is compile_:
            monkeypatch.setattr(module, "compile_or_get_cached", noted)
    return found


def trainings(programs: list[str]) -> list[int]:
    """Count the training steps in each program that trains in a loop."""
    loops = [text for text in programs if "stablehlo.while" in text]
    return [n for text in loops if (n := len(re.findall(r"\bchlo\.sinh\b", text)))]


SEARCHES = [
    *(("random", name) for name in SCHEDULERS),
    ("cross_entropy", "halving"),
    ("tpe", "full"),
]
QUICK = ("random", "halving")


@pytest.mark.parametrize(
    ("method", "scheduler"),
    [pytest.param(*one, marks=[pytest.mark.slow] * (one != QUICK)) for one in SEARCHES],
)
def test_a_search_compiles_its_training_once(programs, method, scheduler):
    words = {"method": method, "scheduler": scheduler, "population": 9, "generations": 2}
    hg.tune(make(), eval_seeds=2, num_seeds=1, **words)
    assert trainings(programs) == [1]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["descent", "bilevel"])
def test_a_hypergradient_is_one_program_more(programs, method):
    by_loss = make(lambda h: optax.sgd(0.1), lambda h: h["lr"])
    hg.tune(by_loss if method == "bilevel" else make(), method=method, budget=2, eval_seeds=2)
    assert sorted(trainings(programs))[0] == 1 and len(trainings(programs)) == 2
