"""One command and one seed give one study: costs are counted; no clock, cache or locale decides anything."""

import json
import math
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest

import hypergrad as hg
from hypergrad import space as spaces
from hypergrad.core.autodiff import programs
from hypergrad.estimators import ESTIMATORS, plan
from hypergrad.estimators.policies import RESPONSES
from hypergrad.populations import widest_chunk
from hypergrad.problem import Problem
from hypergrad.train import init_state, unroll
from hypergrad.tuners import BILEVEL_METHODS
from hypergrad.tuning.build import NAMES, build
from hypergrad.tuning.settings import check_settings
from tasks import quadratic

HERE = Path(__file__).parent
TASK = quadratic.task(horizon=4, num_params=2)
HORIZON, BATCH, WIDTH = 8, 16, 24
SPACE = {"lr": hg.LogReal(1e-3, 1.0), "momentum": hg.Real(0.0, 0.9)}


def net(params, batch):
    return jnp.tanh(jnp.tanh(batch @ params["a"]) @ params["b"])


def mlp(read=lambda h: 0.0, optimizer=lambda h: optax.sgd(h["lr"], h["momentum"])) -> Problem:
    """Return a problem whose arithmetic is matrix products, which the test counts by itself."""

    def loss(params, hparams, batch):
        return jnp.mean(net(params, (1 + read(hparams)) * batch) ** 2)

    data = jnp.ones((4 * BATCH, WIDTH))
    return Problem(
        init=lambda key, h: {name: jax.random.normal(key, (WIDTH, WIDTH)) for name in "ab"},
        loss=loss,
        objective=loss,
        optimizer=optimizer,
        train_batch=lambda key, step: data[jax.random.randint(key, (BATCH,), 0, 4 * BATCH)],
        valid_batch=lambda key: data[:BATCH],
        train_set=hg.Examples(4 * BATCH, lambda index: data[index]),
    )


def flops(jaxpr, turns: int, within: int = 0) -> float:
    """Count the multiplications of matrix products; a `while` makes `turns`, one in another makes `within`."""
    total = 0.0
    for eqn in jaxpr.eqns:
        deeper = (within, within) if eqn.primitive.name == "while" else (turns, within)
        inner = sum(flops(one, *deeper) for one in programs(eqn))
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            left, out = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
            total += math.prod(out) * math.prod(left[i] for i in contracted)
        elif eqn.primitive.name == "scan":
            total += eqn.params["length"] * inner
        elif eqn.primitive.name == "while":
            total += turns * inner
        else:
            total += inner
    return total


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_counted_cost_is_that_of_the_arithmetic(name):
    """The documented multiples, against the products in the traced programs; nothing compiles."""
    by_loss = name == "implicit"
    space = {"l2": hg.Real(0.0, 1.0)} if by_loss else SPACE
    problem = mlp(lambda h: h["l2"], lambda h: optax.sgd(0.1)) if by_loss else mlp()
    if name in ("drift", "reversible"):
        problem = problem._replace(optimizer=lambda h: optax.sgd(h["lr"], 0.5 + h["momentum"] / 2))
    hparams, key = spaces.starting_values(space), jax.random.key(0)

    def train(h):
        return unroll(problem, h, init_state(problem, key, h), HORIZON).params

    method = ESTIMATORS[name]
    estimator = method.make(problem, HORIZON, space)
    state = jax.eval_shape(estimator.init, key, hparams)
    traced = jax.make_jaxpr(lambda s, h: estimator.estimate(key, s, h))(state, hparams)
    spent = flops(traced.jaxpr, 100 if by_loss else 0)
    spent /= flops(jax.make_jaxpr(train)(hparams).jaxpr, 0)
    spent -= 1 / HORIZON  # the objective with its gradient, which is not counted
    counted = method.cost(problem, HORIZON, space)
    assert 0.65 < spent / counted < 1.5, (spent, counted)


@pytest.mark.parametrize("name", [*BILEVEL_METHODS, *RESPONSES])
def test_the_counted_cost_of_a_tuner_is_that_of_its_arithmetic(name):
    kind = "bilevel" if name in BILEVEL_METHODS else "controller"
    space, read = {"l2": hg.Real(0.0, 1.0)}, lambda h: h["l2"]
    if kind == "controller":
        space["times"], read = hg.Integer(1, 2), lambda h: h["l2"] * h["times"]
    problem = mlp(read, lambda h: optax.sgd(0.1))
    words = {"method": kind, "bilevel" if kind == "bilevel" else "response": name}
    horizon = 20
    task = hg.Task("net", problem, space, horizon, None, "metric", False)
    tuner, cost = build(task, check_settings({**words, "budget": 2, "num_seeds": 1}, NAMES))
    key = jax.random.key(0)
    traced = jax.make_jaxpr(tuner.step)(key, jax.eval_shape(tuner.init, key))
    hparams = spaces.starting_values(space)

    def train(h):
        return unroll(problem, h, init_state(problem, key, h), horizon).params

    spent = flops(traced.jaxpr, 2, within=5) / flops(jax.make_jaxpr(train)(hparams).jaxpr, 0)
    assert 0.65 < spent / cost.trainings < 1.5, (spent, cost)


def test_a_reverse_pass_in_segments_counts_the_steps_that_it_makes_again():
    settings = check_settings({"budget": 2, "num_seeds": 1}, NAMES)
    task = quadratic.task(horizon=64, num_params=16)
    enough = plan(task.problem, spaces.default(task.space), 64, 2**30).num_bytes
    whole, cut = (build(task, settings._replace(memory=m))[1] for m in (enough, enough - 1))
    assert (whole.trainings, cut.trainings) == (3.0, 4.0)


def test_the_width_of_a_search_follows_from_shapes_and_the_bound(monkeypatch):
    """A bound on memory is kept by halves of the usual width, which the compiler measures; nothing is run."""
    monkeypatch.setattr(time, "perf_counter", None)
    hparams = {name: jnp.full(16, 0.1) for name in SPACE}
    problem = mlp()
    sizes = {}
    for width in (1, 2, 4):
        with pytest.raises(ValueError, match="expected at least") as caught:
            widest_chunk(problem, hparams, 1, width)
        sizes[width] = int(re.findall(r"at least (\d+)", str(caught.value))[0])
    assert sizes[1] == sizes[2] == sizes[4], "the smallest width is what a bound must allow"
    assert widest_chunk(problem, hparams, 2**40, 4) == 4
    widths = [widest_chunk(problem, hparams, sizes[1] + more, 4) for more in (0, 5000, 10**6)]
    assert widths == sorted(widths) and widths[0] < widths[-1] == 4


class WildClock:
    """A clock that jumps to and fro."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)

    def __call__(self) -> float:
        return self.random.uniform(-1e6, 1e6)


def comparable(result: dict) -> str:
    """Return what must be the same on every run, in its order: all but the times."""
    return json.dumps(
        {k: v for k, v in result.items() if k not in TIMES}, default=lambda x: x.tolist()
    )


TIMES = ("sha256", "started", "seconds", "clock")


@pytest.mark.parametrize("method", ["descent", "random"])
def test_no_clock_decides_anything(monkeypatch, method):
    found = []
    for seed in (1, 2):
        for name in ("perf_counter", "monotonic", "time"):
            monkeypatch.setattr(time, name, WildClock(seed))
        words = {"method": method, "budget": 2, "num_seeds": 1, "eval_seeds": 2}
        found.append(hg.tune(TASK, **words).result)
    assert comparable(found[0]) == comparable(found[1])
    steps = {"descent": 2, "random": 1}[method]
    assert found[0]["trace"]["trainings"][-1] == steps * found[0]["cost"]["trainings"]
    if method == "descent":
        assert found[0]["cost"] == {
            "trainings": 3.0,
            "counted": "1 hypergradient by 'reverse', 3 trainings each",
        }
        assert found[0]["random_trace"]["trainings"][-1] == 6, "two steps of three trainings"
        assert list(found[0]["clock"]) == ["descent", "random"]


@pytest.mark.slow
def test_the_same_study_in_any_process(tmp_path):
    """Other hash seeds, time zones and locales, a cold and a warm cache: all but times is the same."""
    places = [
        {"PYTHONHASHSEED": "1", "TZ": "Asia/Kathmandu", "LC_ALL": "C"},
        {"PYTHONHASHSEED": "77", "TZ": "America/St_Johns", "LC_ALL": "tr_TR.UTF-8"},
    ]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(HERE.parent)}
    for index, place in enumerate(places):
        words = [sys.executable, str(HERE / "repeat.py"), str(tmp_path / str(index))]
        subprocess.run(words, check=True, env={**os.environ, **place, **cache})
    assert any((tmp_path / "cache").iterdir()), (
        "the second process reads what the first has compiled"
    )
    one, other = sorted((tmp_path / "0").rglob("*.json*")), tmp_path / "1"
    names = [path.relative_to(tmp_path / "0") for path in one if "checkpoint" not in path.name]
    assert len(names) > 20
    for name in names:
        assert records(tmp_path / "0" / name) == records(other / name), name
    for name in {name.parts[0] for name in names}:
        first, second = (tmp_path / place / name / "report.html" for place in "01")
        assert without_times(first.read_text()) == without_times(second.read_text())


def records(path: Path) -> list[str]:
    """Return the objects of a file without their times and their checksums."""
    text = path.read_text()
    found = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else None
    return [
        json.dumps({k: v for k, v in one.items() if k not in (*TIMES, "crc")})
        for one in found or [json.loads(text)]
    ]


def without_times(page: str) -> str:
    page = re.sub(r"<tr><th scope=\"row\">(started|took)</th>.*", "", page)
    return re.sub(r"(<p class=\"facts\">.*) · [\d.]+ (s|min)", r"\1", page)


def test_the_docs_state_the_cost_of_every_estimator():
    text = (HERE.parent / "docs" / "studies.md").read_text()
    table = text[text.index("| estimator | trainings") : text.index("A step of `descent` costs")]
    assert set(re.findall(r"`(\w+)`", re.sub(r" \|[^|]*\|\n", "\n", table))) == set(ESTIMATORS)
    problem, horizon = mlp(), 40
    cost = {name: one.cost(problem, horizon, SPACE) for name, one in ESTIMATORS.items()}
    assert cost == pytest.approx(
        {
            "reverse": 3,
            "forward": 1 + 1.5 * 2,
            "truncated": 1.5,
            "implicit": 1 + 1.5 * 101 * 4 / 40,
            "drift": 4,
            "reversible": 4,
            "one_step": (2 + 2) / 40,
            "rtho": (1 + 1.5 * 2) * 2 / 40,
            "hd": (2 + 1) / 40,
            "es": 32,
            "pes": 8,
            "nres": 8,
        }
    )
    cost = {name: one.cost(problem) for name, one in BILEVEL_METHODS.items()}
    assert cost == {"soba": 4, "saba": 3 * 64 / BATCH + 1, "amigo": 34}
