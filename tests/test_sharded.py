"""Models whose weights are divided over devices: the same hypergradients, and a share of the memory on each."""

import json
import os
import subprocess
import sys

import pytest

from tests.disk import ROOT
from tests.processes import two

SHARE = 0.3
"""Largest part of the temporary memory of one device that each of four takes."""

WHOLE = {"reversible": 0.45, "implicit": 0.45, "forward": 0.7, "population": 0.35}
"""The same where a part is whole on every device: weights laid out as one vector, activations, the data."""

PROGRAM = """
import json, os, sys
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import NamedSharding, PartitionSpec as P
import hypergrad as hg
from hypergrad import estimators as E

jax.config.update("jax_enable_x64", True)
names, kinds = json.loads(sys.argv[1])
mesh = hg.populations.mesh(4)
(axis,) = mesh.axis_names
RULES = {
    "fsdp": {"in": P(axis), "out": P(axis), "data": P()},
    "tensor": {"in": P(None, axis), "out": P(axis), "data": P()},
    "data": {"in": P(), "out": P(), "data": P(axis)},
}
random = np.random.default_rng(0)
X = random.normal(size=(32, 64))
Y = np.tanh(X[:, :4])

def problem(kind, rate):
    def place(x, what):
        return x if kind is None else jax.lax.with_sharding_constraint(
            x, NamedSharding(mesh, RULES[kind][what]))

    def init(key, hparams):
        first, second = jax.random.split(key)
        return {"in": place(jax.random.normal(first, (64, 512)) / 8, "in"),
                "out": place(jax.random.normal(second, (512, 4)) / 22, "out")}

    def error(params, batch):
        x, y = (place(jnp.asarray(b), "data") for b in batch)
        return jnp.mean((jnp.tanh(x @ params["in"]) @ params["out"] - y) ** 2)

    def loss(params, hparams, batch):
        return error(params, batch) + hparams["decay"] * sum(jnp.sum(w**2) for w in params.values())

    def train_batch(key, step):
        index = jax.random.randint(key, (8,), 0, 32)
        return jnp.asarray(X)[index], jnp.asarray(Y)[index]

    return hg.Problem(init=init, loss=loss, objective=lambda p, h, b: error(p, b),
        optimizer=lambda h: optax.sgd(h.get("lr", 0.1), momentum=rate), train_batch=train_batch,
        valid_batch=lambda key: (X, Y))

CASES = {
    "reverse": lambda p: E.reverse(p, 12, backward=E.mixed_mode((4,))),
    "every": lambda p: E.reverse(p, 12, backward=E.mixed_mode(())),
    "nested": lambda p: E.reverse(p, 12, backward=E.mixed_mode((4, 2))),
    "drift": lambda p: E.drift(p, 12),
    "reversible": lambda p: E.reversible(p, 12),
    "forward": lambda p: E.forward(p, 12),
    "implicit": lambda p: E.implicit(p, 12),
}

def value_of_population(p):
    members = hg.populations.population(p, layout=hg.populations.vectorized())
    def values(key, state, hparams):
        many = jax.tree.map(lambda x: x * jnp.array([1.0, 0.5, 2.0]), hparams)
        states = members.init(jax.random.split(key, 3), many)
        found = members.value(many, members.advance(many, states, 12))
        return None, E.Estimate(None, list(found), None)
    return E.Estimator(lambda key, hparams: (), values)

CASES["population"] = value_of_population
key = jax.random.key(0)
for name in names:
    hparams = {"lr": jnp.asarray(0.1), "decay": jnp.asarray(0.1)}
    if name == "implicit":
        hparams = {"decay": jnp.asarray(0.5)}
    def run(kind):
        estimator = CASES[name](problem(kind, None if name == "implicit" else 0.9))
        args = key, estimator.init(key, hparams), hparams
        program = jax.jit(estimator.estimate).lower(*args).compile()
        found = jax.tree.leaves(program(*args)[1].hypergrad)
        return program.memory_analysis().temp_size_in_bytes, [float(x) for x in found]
    memory, want = run(None)
    for kind in kinds:
        num_bytes, found = run(kind)
        print(json.dumps([name, kind, num_bytes / memory, found, want]), flush=True)
"""


def check(names, kinds):
    command = [sys.executable, "-c", PROGRAM, json.dumps([names, kinds])]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == len(names) * len(kinds)
    for name, kind, share, found, want in lines:
        assert found == pytest.approx(want, rel=1e-6), (name, kind)
        assert all(x == x and x != 0 for x in want)
        assert kind == "data" or share <= WHOLE.get(name, SHARE), (name, kind, share)


@pytest.mark.slow
def test_the_hypergradient_of_a_divided_model_is_that_of_the_whole():
    check(["reverse"], ["fsdp"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["reverse", "every", "nested", "drift", "reversible", "forward", "implicit", "population"],
)
def test_every_way_to_divide_a_model(name):
    check([name], ["fsdp", "tensor", "data"])


UNEVEN = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
import jax, jax.numpy as jnp, optax
from jax.sharding import NamedSharding, PartitionSpec as P
import hypergrad as hg

mesh = hg.populations.mesh(4)
rows = NamedSharding(mesh, P(mesh.axis_names[0]))
loss = lambda w, hparams, batch: jnp.mean((w - hparams["to"]) ** 2)
init = lambda key, hparams: jax.lax.with_sharding_constraint(jnp.ones((66, 2)), rows)
problem = hg.Problem(init=init, loss=loss, objective=loss, valid_batch=lambda key: (),
    optimizer=lambda h: optax.sgd(0.1), train_batch=lambda key, step: ())
estimate = hg.estimators.reverse(problem, 2).estimate
args = jax.random.key(0), (), {"to": jnp.zeros(())}
print(jax.jit(estimate)(*args)[1].value)
try:
    estimate(*args)
except ValueError as error:
    print(error)
"""


def test_sizes_that_do_not_divide_work_where_the_compiler_pads():
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", UNEVEN]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
    value, refused = done.stdout.splitlines()
    weight = 1 - 0.2 / 132  # of the gradient 2 w / 132, at a rate of .1, one step
    assert float(value) == pytest.approx((weight * (1 - 0.2 / 132)) ** 2, rel=1e-5)
    assert refused.startswith("problem.init divides an array unevenly over devices (")
    assert "expected sizes that the devices divide; call it within jax.jit" in refused


TUNED = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
import jax, jax.numpy as jnp, optax
from jax.sharding import NamedSharding, PartitionSpec as P
import hypergrad as hg
from hypergrad.tuning.build import layout_of
from hypergrad.tuning.settings import Settings

mesh = hg.populations.mesh(4)
rows = NamedSharding(mesh, P(mesh.axis_names[0]))
X = jax.random.normal(jax.random.key(1), (8, 16))

def task(divided):
    def init(key, hparams):
        weights = jax.random.normal(key, (16, 2))
        return jax.lax.with_sharding_constraint(weights, rows) if divided else weights

    def loss(weights, hparams, batch):
        return jnp.mean((X @ weights - 1) ** 2) + hparams["decay"] * jnp.sum(weights**2)

    problem = hg.Problem(init=init, loss=loss, objective=loss, valid_batch=lambda key: (),
        optimizer=lambda h: optax.sgd(0.1, momentum=0.9), train_batch=lambda key, step: ())
    return hg.Task("rows", problem, {"decay": hg.LogReal(1e-4, 1e-1)}, 3, None, "loss", False)

settings = Settings(method="random", budget=16)
print(layout_of(task(False), settings).label)
print(layout_of(task(True), settings).label)
try:
    hg.tune(task(True), method="random", budget=16, devices=4)
except ValueError as error:
    print(error)
if TUNE:
    print(hg.tune(task(True), method="random", budget=16, eval_seeds=2).best_value)
"""


def tuned(whole):
    command = [sys.executable, "-c", TUNED.replace("TUNE", str(whole))]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def test_members_of_a_divided_model_take_turns():
    alone, divided, refused = tuned(False)
    assert "of 16" in alone and "devices" not in divided
    assert refused.startswith("devices is 4, expected 1, because the problem divides its own model")


@pytest.mark.slow
def test_a_divided_model_is_tuned():
    assert float(tuned(True)[-1]) > 0


APART = """
import json, sys
import jax
if len(sys.argv) > 1:
    jax.distributed.initialize("127.0.0.1:" + sys.argv[1], 2, int(sys.argv[2]))
import jax.numpy as jnp, numpy as np, optax
from jax.sharding import NamedSharding, PartitionSpec as P
import hypergrad as hg

jax.config.update("jax_enable_x64", True)
divided = jax.process_count() > 1
rows = NamedSharding(hg.populations.mesh(), P("members"))
X = np.random.default_rng(0).normal(size=(8, 16))

def init(key, hparams):
    weights = jax.random.normal(key, (16, 2))
    return jax.lax.with_sharding_constraint(weights, rows) if divided else weights

def error(weights, hparams, batch):
    return jnp.mean((jnp.tanh(batch @ weights) - 1) ** 2)

problem = hg.Problem(
    init=init,
    loss=lambda w, h, b: error(w, h, b) + h["decay"] * jnp.sum(w**2),
    objective=error,
    optimizer=lambda h: optax.sgd(h["lr"], momentum=0.9),
    train_batch=lambda key, step: jnp.asarray(X)[jax.random.randint(key, (4,), 0, 8)],
    valid_batch=lambda key: jnp.asarray(X),
)
key, hparams = jax.random.key(0), {"lr": 0.1, "decay": 0.1}
begun = jax.jit(lambda k, h: hg.init_state(problem, k, h).params)(key, hparams)
_, found = jax.jit(hg.estimators.reverse(problem, 6).estimate)(key, (), hparams)
print(json.dumps([
    [list(one.data.shape) for one in begun.addressable_shards],
    [float(x) for x in (found.value, *jax.tree.leaves(found.hypergrad))],
]))
"""


@pytest.mark.slow
def test_two_processes_hold_half_of_a_model_each(tmp_path):
    """Neither has the weights of the other; both find the hypergradient that one process finds."""
    alone = subprocess.run(
        [sys.executable, "-c", APART], capture_output=True, text=True, check=True
    )
    (whole,), want = json.loads(alone.stdout.splitlines()[-1])
    assert whole == [16, 2] and all(want)
    for said in two(APART, tmp_path):
        (half,), found = json.loads(said.splitlines()[-1])
        assert half == [8, 2]
        assert found == pytest.approx(want, rel=1e-12)
