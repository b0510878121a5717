"""Programs hold no data: large arrays that functions close over are arguments."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.core.hoist import LARGE, Compiled
from hypergrad.schedulers import SCHEDULERS

X = np.random.default_rng(0).normal(size=(8192, 32)).astype(np.float32)
ON_DEVICE = jnp.asarray(X + 1)
W = jnp.full(32, 2.0)
NUM_CONSTANTS = re.compile(r"tensor<([0-9x]*)x[a-z]+([0-9]+)>")


def largest_constant(text):
    """Return the bytes of the largest constant in a lowered program that is not one number repeated."""
    sizes = [0]
    for line in text.splitlines():
        if "stablehlo.constant" in line and ('dense<"' in line or "dense<[" in line):
            shape, bits = NUM_CONSTANTS.search(line).groups()
            sizes.append(int(np.prod([int(n) for n in shape.split("x")])) * int(bits) // 8)
    return max(sizes)


@jax.jit
def inner(w):
    return jnp.sum(jnp.tanh(ON_DEVICE[:8] @ w)) + jnp.sum(jnp.asarray(X)[:8] @ w)


def host_times(w, x=X):
    return jnp.sum(jnp.asarray(x) @ w)


def looped(w):
    return jax.lax.fori_loop(0, jnp.int32(w[0]), lambda i, x: x + inner(w * x), 0.1)


def solved(w):
    def times(x):
        return x * (3 + inner(w))

    return jax.lax.custom_linear_solve(times, w, lambda _, b: b / (3 + inner(w)), symmetric=True)


@jax.custom_vjp
def ruled(w):
    return inner(w)


ruled.defvjp(lambda w: (inner(w), w), lambda w, g: (g * inner(w) * w,))

FUNCTIONS = {
    "the host's": host_times,
    "the device's": lambda w: jnp.sum(ON_DEVICE @ w),
    "jit": lambda w: inner(w) * 2,
    "scan": lambda w: jax.lax.scan(lambda c, x: (c + inner(w * x), c), 0.0, jnp.arange(3.0)),
    "while": looped,
    "vmapped while": jax.vmap(looped, in_axes=(0,), axis_size=2),
    "cond": lambda w: jax.lax.cond(w[0] > 1, inner, lambda w: 0.0, w),
    "checkpoint": jax.grad(jax.checkpoint(lambda w: inner(w) ** 2)),
    "custom rule": ruled,
    "its derivative": jax.grad(ruled),
    "custom_linear_solve": solved,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_large_arrays_are_arguments_and_change_nothing(name):
    if jax.config.jax_enable_x64 and name in ("cond", "custom_linear_solve"):
        pytest.skip("the numbers of this case are of 32 bits")
    traces = []

    def function(w):
        traces.append(name)
        return FUNCTIONS[name](w)

    w = jnp.stack([W, W / 2]) if name == "vmapped while" else W
    want, plain = jax.jit(function)(w), jax.jit(function).lower(w).as_text()
    assert largest_constant(plain) == X.nbytes  # what is avoided here
    traces.clear()
    program = Compiled(lambda w: function(w))
    jax.tree.map(nearly, program(w), want)
    program(w + 1)
    assert len(traces) == 1 and program._cache_size() == 1
    assert largest_constant(program.lower(w).as_text()) <= 4 * len(W)
    assert sum(x.nbytes for x in jax.tree.leaves(program.data(w))) in (X.nbytes, 2 * X.nbytes)


def nearly(found, want):
    """Compare up to rounding: what XLA knows to be constant, it may compute in another order."""
    np.testing.assert_allclose(found, want, rtol=2e-5, atol=1e-5 * np.max(np.abs(want)))


def test_small_arrays_stay_and_traces_are_those_of_jit():
    small = jnp.arange(LARGE // 4, dtype=jnp.float32)
    program = Compiled(lambda w: w[0] * small + host_times(w))
    (data,) = program.data(W)
    assert [x.shape for x in data] == [X.shape]
    closed = jax.make_jaxpr(program)(W)
    assert [e.primitive.name for e in closed.jaxpr.eqns] == ["jit"]
    assert largest_constant(jax.jit(program).lower(W).as_text()) == X.nbytes
    assert largest_constant(Compiled(lambda w: program(w)).lower(W).as_text()) == small.nbytes


@pytest.mark.parametrize("data", [X[:2, :2], X], ids=["small", "large"])
def test_a_brief_program_says_so_to_the_compiler_and_to_no_trace(monkeypatch, data):
    def times(w):
        return jnp.tanh(data @ w[: data.shape[1]])

    want, brief = Compiled(times)(W), Compiled(times, brief=True)
    nearly(brief(W), want)
    nearly(jax.jit(lambda w: 2 * brief(w))(W), 2 * want)  # jax refuses options within a trace
    monkeypatch.setattr("hypergrad.core.hoist.BRIEF", {"no_such_option": "2"})
    with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
        Compiled(times, brief=True)(W)


def test_data_of_the_host_are_copied_once_and_never_stale():
    data = X.copy()

    def times(w):
        return host_times(w, data)

    first, second = Compiled(times), Compiled(lambda w: host_times(w, data) + 1)
    assert first.data(W)[0][0] is second.data(W)[0][0]
    before = first(W)
    data *= 2
    np.testing.assert_array_equal(first(W), before)  # as jax.jit, which reads them once
    np.testing.assert_array_equal(Compiled(lambda w: host_times(w, data))(W), 2 * before)


def test_another_precision_is_another_program():
    program = Compiled(lambda w: jnp.sum(jnp.cumsum(ON_DEVICE @ w)))
    assert program(W).dtype == jnp.float32
    with jax.enable_x64(True):
        wide = program(jnp.asarray(np.full(32, 2.0)))
        assert wide.dtype == jnp.float64
        np.testing.assert_allclose(
            wide, np.sum(np.cumsum(np.asarray(ON_DEVICE, float) @ np.full(32, 2.0)))
        )


def test_donated_arguments_are_taken():
    program = Compiled(
        lambda key, w: ((w + host_times(w)).astype(w.dtype), jnp.sum(w)), donate=(1,)
    )
    w = W + 0
    program(0, w)
    assert w.is_deleted()


DEVICES = """
import json, os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from hypergrad.core.hoist import Compiled
from hypergrad.populations import mesh
mesh = mesh()
data = np.arange(2**18, dtype=np.float32).reshape(-1, 4) / 2**18
split = jax.device_put(data, NamedSharding(mesh, P(mesh.axis_names[0])))
one = jax.device_put(data, jax.devices()[0])
w = jnp.ones(4)
spread = jax.shard_map(
    lambda w: w * jax.jit(lambda: jnp.sum(one))(), mesh=mesh,
    in_specs=P(mesh.axis_names[0]), out_specs=P(mesh.axis_names[0]),
)
functions = [
    lambda w: split @ w,
    lambda w: split @ w + one @ w,
    spread,
    lambda w: one @ w,
]
for function in functions:
    program = Compiled(function)
    found, want = np.asarray(program(w)), np.asarray(jax.jit(function)(w))
    kinds = [len(x.addressable_shards) for x in program.data(w)[0]]
    shares = [x.addressable_shards[0].data.shape[0] / x.shape[0] for x in program.data(w)[0]]
    print(json.dumps([bool(np.allclose(found, want, rtol=1e-4)), kinds, shares]))
placed = jax.device_put(w, NamedSharding(mesh, P()))
print(json.dumps(bool(np.allclose(Compiled(functions[3])(placed), data @ np.ones(4)))))
"""


@pytest.mark.slow
def test_data_keep_their_devices_or_stand_whole_on_each():
    done = subprocess.run(
        [sys.executable, "-c", DEVICES], capture_output=True, text=True, check=True
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[0] == [True, [4], [0.25]]
    assert sorted(lines[1][2]) == [0.25, 1] and lines[1][0]
    assert lines[2] == [True, [4], [1]]
    assert lines[3] == [True, [1], [1]]
    assert lines[4] is True


@jax.jit
def train_batch(key, step):
    index = jax.random.bits(key, (4,)) % 8192
    return jnp.asarray(X)[index]


PROBLEM = hg.Problem(
    init=lambda key, h: jax.random.normal(key, (32,)),
    loss=lambda w, h, batch: jnp.mean((batch @ w - 1) ** 2) + h["decay"] * w @ w,
    objective=lambda w, h, batch: jnp.mean((ON_DEVICE @ w - 1) ** 2),
    optimizer=lambda h: optax.sgd(0.01, momentum=0.5),
    train_batch=train_batch,
    valid_batch=lambda key: (),
)
SPACE = {"decay": hg.space.LogReal(1e-4, 1e-1)}
CHOICES = SPACE | {"twice": hg.space.Choice([False, True])}
STUDIES = [
    {"method": "random", "scheduler": "halving"},
    *({"method": "random", "scheduler": s} for s in SCHEDULERS if s != "halving"),
    *({"method": "descent", "estimator": e} for e in ("reverse", "implicit", "forward", "drift")),
    {"method": "bilevel"},
    {"method": "controller"},
]


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(s, id="-".join(s.values()), marks=[pytest.mark.slow] * (i > 0))
        for i, s in enumerate(STUDIES)
    ],
)
def test_no_program_of_a_study_holds_the_data(settings, tmp_path, monkeypatch):
    space = CHOICES if settings["method"] == "controller" else SPACE
    jax.config.update("jax_dump_ir_to", str(tmp_path))
    try:
        hg.tune(PROBLEM, space, horizon=9, budget=1, eval_seeds=2, **settings)
    finally:
        jax.config.update("jax_dump_ir_to", "")
    programs = list(Path(tmp_path).glob("*.mlir"))
    assert any("jit__step" in p.name or "jit_program" in p.name for p in programs)
    assert max(largest_constant(p.read_text()) for p in programs) <= LARGE
