"""Populations: every layout trains the same members, and nobody depends on the company."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params

from hypergrad import study
from hypergrad.populations import (
    LayoutWarning,
    chunked,
    devices,
    fastest_layout,
    groups,
    layouts,
    looped,
    partitioned,
    population,
    sharded,
    vectorized,
)
from hypergrad.problem import Problem, with_hparams
from hypergrad.schedulers import halving
from hypergrad.searchers import random
from hypergrad.space import Choice, Integer, LogReal, Real, dynamic, sample
from hypergrad.train import init_state, unroll
from hypergrad.tuners import search
from tests.lowering import wide_results
from tests.processes import two

KEY = jax.random.key(0)
X = jnp.asarray(np.random.default_rng(0).normal(size=(32, 3)), jnp.float32)
Y = jnp.tanh(X @ jnp.array([1.0, -1.0, 0.5], jnp.float32))
LAYOUTS = {
    "vectorized": vectorized(),
    "chunked": chunked(3),
    "looped": looped(),
    "looped in threes": looped(3),
    "sharded": sharded(devices.mesh(1), chunked(2), pad=True),
}


def loss(params, hparams, batch):
    return jnp.mean((jnp.tanh(batch[0] @ params) - batch[1]) ** 2)


def train_batch(key, step):
    index = jax.random.bits(key, (4,)) % 24  # half the bits, and so half the program, of randint
    return X[index], Y[index]


PROBLEM = Problem(
    init=lambda key, h: h["scale"] * jax.random.uniform(key, (3,), jnp.float32, -2, 2),
    loss=loss,
    objective=loss,
    optimizer=lambda h: optax.sgd(h["lr"], momentum=0.9),
    train_batch=train_batch,
    valid_batch=lambda key: (X[24:], Y[24:]),
)


def settings(num):
    return {
        "lr": jnp.geomspace(1e-3, 0.3, num).astype(jnp.float32),
        "scale": jnp.linspace(0.1, 1.0, num).astype(jnp.float32),
    }


def run(members, hparams, num_steps=9, keys=None):
    num = len(hparams["lr"])
    keys = jax.random.split(KEY, num) if keys is None else keys
    return members.advance(hparams, members.init(keys, hparams), num_steps)


@jax.jit
def alone(hparams, key, num_steps):
    """One run by itself: its state, and its objective."""
    start = init_state(PROBLEM, key, hparams)
    state = jax.lax.fori_loop(0, num_steps, lambda _, s: unroll(PROBLEM, hparams, s, 1), start)
    return state, loss(state.params, hparams, PROBLEM.valid_batch(key))


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(raw, a), jax.tree.map(raw, b))


def raw(x):
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else np.asarray(x)


@pytest.fixture
def compilations():
    """Count what is compiled from the moment it is asked."""
    counted = []

    def listen(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            counted.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield counted
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_every_layout_equals_single_runs_and_compiles_once(name, compilations):
    members = population(PROBLEM, layout=LAYOUTS[name])
    hparams, keys = settings(5), jax.random.split(KEY, 5)
    states = run(members, hparams)
    values = members.value(hparams, states)
    for i in range(5):
        state, value = alone(jax.tree.map(lambda x, i=i: x[i], hparams), keys[i], 9)
        np.testing.assert_allclose(states.train.params[i], state.params, rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(values[i], value, rtol=2e-5)
    assert states.train.step.tolist() == [9] * 5 and states.diverged.tolist() == [2**31 - 1] * 5
    again = {"lr": hparams["lr"] / 2, "scale": hparams["scale"] + 0.1}
    compilations.clear()
    for num_steps in (9, 4, 30):
        members.judge(again, run(members, again, num_steps, keys))
    assert not compilations


@pytest.mark.parametrize("name", ["vectorized", "chunked", "sharded"])
def test_lowers_for_a_tpu_without_wide_types(name):
    members = population(PROBLEM, layout=LAYOUTS[name])

    def whole(data, hparams, num_steps):
        keys = jax.random.split(jax.random.wrap_key_data(data), 4)
        states = members.advance(hparams, members.init(keys, hparams), num_steps)
        return members.judge(hparams, members.take(states, jnp.array([0, 0, 3, 1])))

    data = jax.random.key_data(KEY)
    assert not wide_results(jax.jit(whole), data, settings(4), jnp.int32(9))


@pytest.mark.parametrize("name", ["chunked", "sharded"])
def test_a_member_keeps_its_bits_in_any_company(name):
    members = population(PROBLEM, layout=LAYOUTS[name])
    hparams, keys = settings(7), jax.random.split(KEY, 7)
    whole = run(members, hparams)
    index = jnp.array([5, 4, 3, 3, 1])
    few = jax.tree.map(lambda x: x[index], hparams)
    same(run(members, few, keys=keys[index]), members.take(whole, index))


def test_training_goes_on_where_it_stopped():
    members = population(PROBLEM, layout=chunked(3))
    hparams = settings(4)
    halfway = run(members, hparams, 4)
    same(members.advance(hparams, halfway, 5), run(members, hparams, 9))
    same(members.advance(hparams, halfway, jnp.array([5, 5, 5, 5])), run(members, hparams, 9))
    index = jnp.array([3, 1])
    rest = members.advance(
        jax.tree.map(lambda x: x[index], hparams), members.take(halfway, index), jnp.array([5, 2])
    )
    assert rest.train.step.tolist() == [9, 6]
    same(rest.train.params[0], run(members, hparams, 9).train.params[3])


@pytest.mark.parametrize("name", ["chunked", "looped"])
def test_a_member_that_diverges_is_noted_and_leaves_the_others_their_bits(name):
    def breaking(params, hparams, batch):
        return loss(params, hparams, batch) * jnp.where(
            jnp.sum(params) > hparams["limit"], jnp.nan, 1.0
        )

    one = jax.tree.map(lambda x: x[4], settings(6))
    sums = [float(jnp.sum(alone(one, jax.random.split(KEY, 6)[4], t)[0].params)) for t in range(9)]
    late = int(np.argmax(sums))
    assert late > 0
    limit = (max(sums[:late]) + sums[late]) / 2  # passed at that step and not before
    members = population(PROBLEM._replace(loss=breaking), layout=LAYOUTS[name])
    calm = settings(6) | {"limit": jnp.full(6, jnp.inf)}
    wild = calm | {"limit": calm["limit"].at[2].set(-jnp.inf).at[4].set(limit)}
    healthy, sick = (run(members, h) for h in (calm, wild))
    values, info = members.judge(wild, sick)
    assert info["diverged"].tolist() == [-1, -1, 0, -1, late, -1]
    assert np.isnan(values).tolist() == [False, False, True, False, True, False]
    others = jnp.array([0, 1, 3, 5])
    same(members.take(sick, others), members.take(healthy, others))


def test_only_the_objective_diverges():
    broken = PROBLEM._replace(objective=lambda p, h, b: jnp.where(h["lr"] > 0.1, jnp.inf, 0.0))
    members = population(broken, layout=vectorized())
    hparams = settings(4)
    values, info = members.judge(hparams, run(members, hparams, 3))
    assert info["diverged"].tolist() == [-1, -1, -1, 3] and values[3] == jnp.inf


def shapes_drawn(jaxpr):
    """The shapes of all random bits drawn anywhere in a program."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "random_bits":
            yield eqn.outvars[0].aval.shape
        for inner in jaxprs_in_params(eqn.params):
            yield from shapes_drawn(inner)


@pytest.mark.parametrize("num_seeds", [1, 2])
def test_a_shared_order_is_drawn_once(num_seeds):
    def batches(order):
        members = population(PROBLEM, layout=vectorized(), num_seeds=num_seeds, order=order)
        hparams = settings(5)
        states = members.init(jax.random.split(KEY, 5), hparams)
        program = jax.make_jaxpr(members.advance)(hparams, states, 2)
        return members, states, max(int(np.prod(s)) for s in shapes_drawn(program.jaxpr))

    shared, states, few = batches(jax.random.key(7))
    _, _, many = batches(None)
    assert many == 5 * few
    hparams = settings(5)
    alike = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), hparams)
    keys = jnp.broadcast_to(KEY, (5,))
    after = shared.advance(alike, shared.init(keys, alike), 6).train.params
    same(after, jnp.broadcast_to(after[:1], after.shape))
    # the same run alone, whose key is the order
    one = jax.tree.map(lambda x: x[0], alike)
    order = jax.random.key(7) if num_seeds == 1 else jax.random.split(jax.random.key(7), 2)[1]
    first = KEY if num_seeds == 1 else jax.random.split(KEY, 2)[1]
    state = init_state(PROBLEM, first, one)._replace(key=order)
    expected = unroll(PROBLEM, one, state, 6).params
    found = after[0] if num_seeds == 1 else after[0, 1]
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)
    with pytest.raises(ValueError, match="num_steps has shape"):
        shared.advance(hparams, states, jnp.arange(5))


def test_seeds_are_averaged_with_their_spread():
    several = population(PROBLEM, layout=chunked(3), num_seeds=3)
    single = population(PROBLEM, layout=chunked(3))
    hparams, keys = settings(4), jax.random.split(KEY, 4)
    values, info = several.judge(hparams, run(several, hparams))
    each = jax.vmap(lambda k: jax.random.split(k, 3))(keys)
    apart = np.stack(
        [single.value(hparams, run(single, hparams, keys=each[:, s])) for s in range(3)]
    )
    np.testing.assert_allclose(values, apart.mean(0), rtol=2e-5)
    np.testing.assert_allclose(info["spread"], apart.std(0, ddof=1), rtol=2e-4)
    assert info["diverged"].tolist() == [-1] * 4


def test_a_diverged_seed_is_a_diverged_member():
    def breaking(params, hparams, batch):
        return loss(params, hparams, batch) * jnp.where(params[0] > hparams["limit"], jnp.nan, 1.0)

    members = population(PROBLEM._replace(loss=breaking), layout=chunked(2), num_seeds=4)
    hparams = settings(2) | {"limit": jnp.array([jnp.inf, 0.0])}
    values, info = members.judge(hparams, run(members, hparams))
    assert np.isfinite(values[0]) and np.isnan(values[1])
    assert info["diverged"].tolist() == [-1, 0]


def test_out_of_memory_halves_the_width(monkeypatch):
    usual = layouts._one_device

    def small(function, width):
        call = usual(function, width)

        def guarded(shared, *parts):
            if (layouts.num_members(parts) if width is None else width) > 2:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
            return call(shared, *parts)

        return guarded

    hparams = settings(8)
    expected = run(population(PROBLEM, layout=chunked(8)), hparams)
    monkeypatch.setattr(layouts, "_one_device", small)
    for layout in (vectorized(), chunked(8)):
        with pytest.warns(LayoutWarning) as caught:
            found = run(population(PROBLEM, layout=layout), hparams)
        texts = [str(w.message) for w in caught]
        for wide, narrow in ((8, 4), (4, 2)):
            assert (
                sum(
                    f"with {wide} members side by side; continuing with {narrow}," in t
                    for t in texts
                )
                == 2
            )
        np.testing.assert_allclose(found.train.params, expected.train.params, rtol=1e-5)
    broken = layouts._one_device(lambda s, x: x, None)
    with pytest.raises(jax.errors.JaxRuntimeError):
        broken(None, jnp.zeros(3))


def test_fastest_layout_is_measured_once_and_within_its_bound(compilations):
    hparams = settings(5)
    sized = fastest_layout(PROBLEM, hparams)
    labels = [tried.label for tried in sized.tried]
    assert labels[0] == "one after another" and labels[1] == "chunks of 4"
    assert sized.layout.label in labels
    assert sized.seconds == min(t.seconds for t in sized.tried)
    compilations.clear()
    again = fastest_layout(PROBLEM, settings(5))
    assert again.tried == sized.tried and again.layout.label == sized.layout.label
    lean = sized.tried[0].num_bytes
    bounded = fastest_layout(PROBLEM, hparams, memory=lean)
    assert bounded.num_bytes <= lean < max(tried.num_bytes for tried in sized.tried)
    with pytest.raises(ValueError, match=f"memory is 10 bytes, expected at least {lean}"):
        fastest_layout(PROBLEM, hparams, memory=10)
    assert not compilations


WIDTHS = {
    "width": Integer(2, 3, static=True),
    "activation": Choice((jnp.tanh, jnp.sin), static=True),
    "lr": LogReal(1e-2, 1e-1),
}


def shaped():
    """A network whose width is static, and checks that its values are Python's."""

    def net(params, hparams, batch):
        assert isinstance(hparams["width"], int) and callable(hparams["activation"])
        hidden = hparams["activation"](batch[0] @ params["in"])
        return jnp.mean((hidden @ params["out"] - batch[1]) ** 2)

    def init(key, h):
        a, b = jax.random.split(key)
        return {
            "in": jax.random.uniform(a, (3, h["width"])),
            "out": jax.random.uniform(b, (h["width"],)),
        }

    return PROBLEM._replace(
        init=init, loss=net, objective=net, optimizer=lambda h: optax.sgd(h["lr"])
    )


def test_static_leaves_are_partitioned_and_compiled_once_each(compilations):
    problem = shaped()
    members = partitioned(problem, WIDTHS, lambda p: population(p, layout=chunked(2)))
    keys = jax.random.split(KEY, 5)
    hparams = {
        "width": np.array([2, 3, 2, 3, 3]),
        "activation": np.array([0, 1, 0, 1, 1]),
        "lr": np.geomspace(0.01, 0.1, 5, dtype=np.float32),
    }
    drawn = jax.eval_shape(lambda k: sample(dynamic(WIDTHS), k), KEY)
    assert jax.tree.structure(hparams) == jax.tree.structure(drawn)
    states = run(members, hparams, 5)
    values = members.value(hparams, states)
    for width, option in ((2, 0), (3, 1)):
        fixed = {"width": width, "activation": WIDTHS["activation"].options[option]}
        alone = with_hparams(problem, lambda h, fixed=fixed: fixed | h)

        @jax.jit
        def train(one, key, alone=alone):
            state = unroll(alone, one, init_state(alone, key, one), 5)
            return alone.objective(state.params, one, (X[24:], Y[24:]))

        for i in np.flatnonzero(hparams["width"] == width):
            expected = train({"lr": hparams["lr"][i]}, keys[i])
            np.testing.assert_allclose(values[i], expected, rtol=2e-5)
    order = np.array([4, 0, 0, 3, 1])  # as many of each shape as before, and nothing to compile
    few = jax.tree.map(lambda x: x[order], hparams)
    np.testing.assert_array_equal(members.value(few, members.take(states, order)), values[order])
    uneven = members.advance(hparams, states, np.arange(5))
    steps = {
        int(i): int(s) for g in uneven for i, s in zip(g.index, g.states.train.step, strict=True)
    }
    assert steps == {i: 5 + i for i in range(5)}
    other = hparams | {"lr": hparams["lr"] / 2}
    compilations.clear()
    run(members, other, 8, keys)
    assert not compilations


def test_buckets_are_the_best_cuts():
    sizes = np.array([[4], [5], [6], [40], [41], [100]])
    found = groups.plan_buckets(sizes, lambda s: s[0] ** 2, most=3)
    assert found.shapes == ((6,), (41,), (100,))
    assert found.assign(np.array([[1], [6], [7], [41], [42]])).tolist() == [0, 0, 1, 1, 2]
    assert found.cost == pytest.approx((3 * 36 + 2 * 41**2 + 100**2) / 6) and found.one == 100**2
    assert groups.plan_buckets(sizes, lambda s: s[0] ** 2, most=3, price=1e9).shapes == ((100,),)
    # against every way to cut
    drawn = np.random.default_rng(0)
    widths = np.sort(drawn.integers(1, 60, 9))
    cost = lambda s: s[0] ** 1.5  # noqa: E731
    best = min(
        sum(cost((w[-1],)) * len(w) for w in (widths[:i], widths[i:j], widths[j:]) if len(w))
        for i in range(10)
        for j in range(i, 10)
    )
    assert groups.plan_buckets(widths[:, None], cost).cost == pytest.approx(best / 9)
    plane = drawn.integers(1, 30, (40, 2))
    found = groups.plan_buckets(plane, lambda s: s[0] * s[1], most=4)
    assert found.shapes[-1] == tuple(plane.max(0)) and found.cost < 0.7 * found.one
    chosen = np.asarray(found.shapes)[found.assign(plane)]
    assert np.all(chosen >= plane)
    with pytest.raises(ValueError, match=r"sizes\[0\] is \(31, 1\)"):
        found.assign(np.array([[31, 1]]))


def refused():
    members = population(PROBLEM, layout=vectorized())
    hparams, keys, three = settings(4), jax.random.split(KEY, 4), settings(3)
    ones = jnp.ones(3)
    one = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("a", "b"))
    divided = vectorized()._replace(multiple=3)
    return {
        "layout is int 3, expected a Layout": lambda: population(PROBLEM, layout=3),
        "num_seeds is 0": lambda: population(PROBLEM, num_seeds=0),
        "order is 3, expected a PRNG key": lambda: population(PROBLEM, order=3),
        "width is 0": lambda: chunked(0),
        "width is 2.5": lambda: looped(2.5),
        "keys has shape (4,), expected (3,)": lambda: members.init(keys, three),
        "hparams['lr'] has shape (), expected one row": lambda: members.init(keys, {"lr": 0.1}),
        "hparams['scale'] has shape (3,), expected 4 rows": lambda: members.init(
            keys, hparams | {"scale": ones}
        ),
        "hparams has 4 members, expected a multiple of 3": lambda: population(
            PROBLEM, layout=divided
        ).init(keys, hparams),
        "expected a jax.sharding.Mesh of one axis": lambda: sharded(one),
        "inner is 'one after another'": lambda: sharded(devices.mesh(1), looped()),
        "devices is 99": lambda: devices.mesh(99),
        "num is 99, expected": lambda: devices.use_cores(99),
        "num is 0": lambda: devices.use_cores(0),
        "memory is 0": lambda: fastest_layout(PROBLEM, hparams, memory=0),
        "num_devices is 0": lambda: fastest_layout(PROBLEM, hparams, num_devices=0),
        "expected ['activation', 'lr', 'width']": lambda: partitioned(PROBLEM, WIDTHS).init(
            keys, hparams
        ),
        "sizes has shape (3,)": lambda: groups.plan_buckets(np.ones(3, int), lambda s: 1.0),
        "cost((1,)) is nan": lambda: groups.plan_buckets(
            np.ones((1, 1), int), lambda s: float("nan")
        ),
        "most is 0": lambda: groups.plan_buckets(np.ones((1, 1), int), lambda s: 1.0, most=0),
    }


@pytest.mark.parametrize("fragment", list(refused()))
def test_refused_in_one_line_before_compilation(fragment, compilations):
    call = refused()[fragment]
    compilations.clear()
    with pytest.raises(ValueError) as caught:
        call()
    assert fragment in str(caught.value) and "\n" not in str(caught.value)
    assert not compilations


SPREAD = """
import json, sys
from hypergrad.populations import devices
assert devices.use_cores(4) == 4
import jax, jax.numpy as jnp, numpy as np
sys.path.insert(0, {tests!r})
from hypergrad import schedulers, searchers, space
from hypergrad.populations import chunked, population, sharded
from hypergrad.tuners import search
import test_population as t

compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda e, s, **_: compiled.append(e) if e.endswith("backend_compile_duration") else None)
box = {{"lr": space.LogReal(1e-3, 0.3), "scale": space.Real(0.1, 1.0)}}
found = {{}}
for num in (1, 2, 4):
    layout = sharded(devices.mesh(num), chunked(2), pad=True)
    members = population(t.PROBLEM, layout=layout)
    tuner = search(members, searchers.random(box), schedulers.halving(8, min_steps=4, eta=2.0), 9)
    state = tuner.init(t.KEY)
    values, late = [], 0
    for i in range(3):
        before = len(compiled)
        state, outcome = tuner.step(jax.random.fold_in(t.KEY, i), state)
        values.append(np.asarray(outcome.values).tolist())
        late = len(compiled) - before
    found[num] = {{"values": values, "late": late}}
hparams = t.settings(6)
states = t.run(members, hparams)
found["devices"] = len(states.train.params.devices())
text = jax.jit(members.value).lower(hparams, states).compile().as_text()
found["gathers"] = [x.split("all-gather")[0] for x in text.splitlines() if " all-gather(" in x]
print(json.dumps(found))
"""


def test_any_number_of_devices_gives_the_same_values():
    script = SPREAD.format(tests=str(Path(__file__).parent))
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    for num in ("2", "4"):
        np.testing.assert_allclose(found[num]["values"], found["1"]["values"], rtol=1e-5)
        assert found[num]["late"] == 0  # the third generation compiles nothing
    assert found["devices"] == 4
    # what leaves a device to be judged is a number or two a member, no weights
    assert found["gathers"] and all("[6]" in g or "[8]" in g for g in found["gathers"])


TWO = """
import json, sys
import jax
jax.distributed.initialize("127.0.0.1:" + sys.argv[1], 2, int(sys.argv[2]))
sys.path.insert(0, {tests!r})
import test_population as t
found = t.searched()
print(json.dumps([found.digest, len(jax.devices()), [o.values.tolist() for o in found.trials]]))
"""


def searched():
    """Search by halving over all devices, of all processes."""
    box = {"lr": LogReal(1e-3, 0.3), "scale": Real(0.1, 1.0)}
    members = population(PROBLEM, layout=sharded(devices.mesh(), chunked(2), pad=True))
    scheduler = halving(8, min_steps=4, eta=2.0)
    return study.run(search(members, random(box), scheduler, 5), KEY, 2)


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path):
    said = two(TWO.format(tests=str(Path(__file__).parent)), tmp_path)
    one = searched()
    for out in said:
        digest, num_devices, values = json.loads(out.splitlines()[-1])
        assert num_devices == 2 * len(jax.devices())
        np.testing.assert_allclose(values, [o.values for o in one.trials], rtol=1e-5)
        assert digest == json.loads(said[0].splitlines()[-1])[0]
