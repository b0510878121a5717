"""Data on the host: batches by index equal those of the device, and what is no function is refused."""

import itertools
import random
import threading
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import io_callback

import hypergrad as hg
from hypergrad.core import host, solve
from hypergrad.estimators import (
    drift,
    es,
    forward,
    implicit,
    pes,
    reverse,
    reversible,
    rtho,
    truncated,
)
from hypergrad.populations import chunked, devices, looped, population, sharded, vectorized
from hypergrad.validation import check_step, validate

ROWS, STEPS = 48, 12
RNG = np.random.default_rng(0)
X = RNG.normal(size=(ROWS, 5)).astype(np.float32)
Y = np.tanh(X @ RNG.normal(size=5)).astype(np.float32)
LIKE = {"x": jax.ShapeDtypeStruct((5,), np.float32), "y": jax.ShapeDtypeStruct((), np.float32)}
H = {"lr": jnp.float32(0.1), "decay": jnp.float32(0.02)}
KEY = jax.random.key(3)
STREAM = (X[RNG.integers(0, ROWS, 8)] for _ in itertools.count())
ENDS = iter([X[:8]])
NUMBERS = itertools.count()


def device_at(indices, soon=None):
    return {"x": jnp.asarray(X)[indices], "y": jnp.asarray(Y)[indices]}


def from_arrays(indices):
    return {"x": X[indices], "y": Y[indices]}


def loss(params, hparams, batch):
    fit = jnp.mean((jnp.tanh(batch["x"] @ params) - batch["y"]) ** 2)
    return fit + hparams["decay"] * jnp.sum(params**2)


def problem_of(at, ahead=False):
    def train_batch(key, step):
        if ahead:  # epochs whose order is known in advance
            rows = lambda step: (step * 8 + jnp.arange(8)) % 32  # noqa: E731
            return at(rows(step), soon=rows(step + 1))
        return at(jax.random.randint(key, (8,), 0, 32))

    return hg.Problem(
        init=lambda key, h: 0.3 * jax.random.normal(key, (5,)),
        loss=loss,
        objective=lambda p, h, b: jnp.mean((jnp.tanh(b["x"] @ p) - b["y"]) ** 2),
        optimizer=lambda h: optax.sgd(h["lr"], momentum=0.8),
        train_batch=train_batch,
        valid_batch=lambda key: at(jnp.arange(32, ROWS)),
    )


DEVICE = problem_of(device_at)
PARTS = problem_of(device_at)._asdict()


class Rows:
    """What torch calls a map-style data set, without torch."""

    def __len__(self):
        return ROWS

    def __getitem__(self, index):
        return {"x": X[index], "y": Y[index]}


def collated(data):
    def fetch(indices):
        examples = [data[int(i)] for i in indices]
        return {name: np.stack([np.asarray(one[name]) for one in examples]) for name in LIKE}

    return fetch


def torch_fetch(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")

    class Rated(Rows, torch.utils.data.Dataset):
        def __getitem__(self, index):
            return {"x": torch.from_numpy(X[index]), "y": torch.tensor(Y[index])}

    data = Rated()
    return lambda indices: jax.tree.map(
        lambda x: x.numpy(), torch.utils.data.default_collate(data.__getitems__(indices.tolist()))
        if hasattr(data, "__getitems__")
        else torch.utils.data.default_collate([data[i] for i in indices.tolist()])
    )  # fmt: skip


def grain_fetch(tmp_path):
    grain = pytest.importorskip("grain", reason="grain is not installed")
    return collated(grain.MapDataset.source(Rows()).map(lambda one: one | {"x": one["x"] * 1}))


def file_fetch(tmp_path):
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    return lambda indices: {"x": np.asarray(mapped[indices]), "y": Y[indices]}


SOURCES = {
    "a numpy array": lambda tmp_path: from_arrays,
    "a map-style data set": lambda tmp_path: collated(Rows()),
    "a data set of torch": torch_fetch,
    "grain.MapDataset": grain_fetch,
    "a file": file_fetch,
}
ESTIMATORS = {
    "reverse": lambda p: reverse(p, STEPS),
    "forward": lambda p: forward(p, STEPS),
    "drift": lambda p: drift(p, STEPS),
    "reversible": lambda p: reversible(p, STEPS),
    "truncated": lambda p: truncated(p, STEPS, 4),
    "rtho": lambda p: rtho(p, STEPS),
    "es": lambda p: es(p, STEPS, sigma=0.01, num_pairs=2),
    "pes": lambda p: pes(p, STEPS, 4, sigma=0.01, num_pairs=2),
    "implicit": lambda p: implicit(
        p._replace(optimizer=lambda h: optax.sgd(0.1)), STEPS, solve=solve.cg(10)
    ),
}

LAYOUTS = {
    "vectorized": vectorized(),
    "chunked": chunked(3),
    "looped": looped(),
    "sharded": sharded(devices.mesh(1), chunked(2), pad=True),
}


def some_slow(names, quick):
    return [pytest.param(n, marks=() if n in quick else pytest.mark.slow) for n in names]


def estimated(make, problem, keys=None):
    estimator = make(problem)

    hparams = {"decay": H["decay"]} if make is ESTIMATORS["implicit"] else H

    def one(key):
        return estimator.estimate(key, estimator.init(key, hparams), hparams)[1]

    found = jax.jit(one)(KEY) if keys is None else jax.jit(jax.vmap(one))(keys)
    return found.value, found.hypergrad


def assert_same(found, expected):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-6, atol=1e-7), found, expected)


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_the_batches_of_the_device(source, tmp_path):
    at = hg.host_batches(SOURCES[source](tmp_path), LIKE)
    rows = jnp.array([[3, 3, 47], [0, 1, 3]])
    assert_same(jax.jit(at)(rows), device_at(rows))
    jax.eval_shape(reverse(problem_of(at), 3).estimate, KEY, (), H)


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_the_hypergradient_of_the_device(source, tmp_path):
    at = hg.host_batches(SOURCES[source](tmp_path), LIKE)
    assert_same(
        estimated(ESTIMATORS["reverse"], problem_of(at)), estimated(ESTIMATORS["reverse"], DEVICE)
    )


@pytest.mark.parametrize("name", some_slow(ESTIMATORS, ("reverse", "forward", "es", "implicit")))
def test_every_estimator_sees_the_data_of_the_device(name):
    at = hg.host_batches(from_arrays, LIKE, memory=2000)  # for a few examples only
    assert_same(estimated(ESTIMATORS[name], problem_of(at)), estimated(ESTIMATORS[name], DEVICE))


@pytest.mark.parametrize("name", some_slow(LAYOUTS, ("vectorized",)))
def test_every_population_sees_the_data_of_the_device(name):
    keys, hparams = jax.random.split(KEY, 5), {"lr": jnp.linspace(0.01, 0.2, 5)}
    hparams |= {"decay": jnp.zeros(5)}

    def values(problem):
        members = population(problem, layout=LAYOUTS[name])
        states = members.init(keys, hparams)
        half = members.advance(
            hparams, states, 5
        )  # a run that is stopped goes on with the same data
        return members.value(hparams, members.advance(hparams, half, 4))

    at = hg.host_batches(from_arrays, LIKE)
    together = (lambda f: f) if name == "looped" else jax.jit
    assert_same(together(lambda: values(problem_of(at)))(), together(lambda: values(DEVICE))())


def test_one_call_serves_all_members_and_nothing_is_fetched_twice():
    asked = []

    def fetch(indices):
        asked.append(indices)
        return from_arrays(indices)

    at = hg.host_batches(fetch, LIKE)
    asked.clear()
    keys = jax.random.split(KEY, 6)
    rows = jax.vmap(lambda key: jax.random.randint(key, (8,), 0, ROWS))(keys)
    jax.block_until_ready(jax.jit(jax.vmap(at))(rows))
    (indices,) = asked
    np.testing.assert_array_equal(indices, np.unique(rows))
    assert_same(estimated(ESTIMATORS["reverse"], problem_of(at), keys), estimated(
        ESTIMATORS["reverse"], DEVICE, keys
    ))  # fmt: skip
    whole = np.concatenate(asked)
    assert len(whole) == len(set(whole.tolist()))


def test_a_small_cache_forgets_what_came_first():
    at = hg.host_batches(from_arrays, LIKE, memory=3 * (host.OVERHEAD + 24))
    call = jax.jit(at)
    for rows in ([0, 1], [2, 3], [1, 4, 5, 6, 7], [7, 7, 0], [3], []):
        rows = jnp.array(rows, jnp.int32)
        assert_same(call(rows), device_at(rows))


def test_a_thread_fetches_what_is_wanted_soon():
    asked, fetched = [], threading.Event()

    def fetch(indices):
        asked.append((indices.tolist(), threading.current_thread().name))
        if 5 in indices:
            fetched.set()
        return from_arrays(indices)

    at = hg.host_batches(fetch, LIKE)
    jax.block_until_ready(jax.jit(at)(jnp.arange(3), soon=jnp.arange(3, 6)))
    assert fetched.wait(60)
    assert asked[-1][0] == [3, 4, 5] and host.CALL in asked[-1][1]
    num = len(asked)
    assert_same(jax.jit(at)(jnp.arange(3, 6)), device_at(jnp.arange(3, 6)))
    assert len(asked) == num
    assert_same(
        estimated(ESTIMATORS["reverse"], problem_of(at, ahead=True)),
        estimated(ESTIMATORS["reverse"], problem_of(device_at, ahead=True)),
    )


def noisy(indices):
    return {
        "x": X[indices] + RNG.normal(size=(len(indices), 5)).astype(np.float32),
        "y": Y[indices],
    }


BAD_FETCH = {
    "fetch is 3": (3, LIKE),
    "memory is 0": (from_arrays, LIKE),
    "fetch returned the structure": (lambda i: (X[i], Y[i]), LIKE),
    "fetch returned 'x' as an array of shape (2, 4)": (lambda i: {"x": X[i, :4], "y": Y[i]}, LIKE),
    "fetch returned 'y' as an array of shape (2,) and dtype float64": (
        lambda i: {"x": X[i], "y": Y[i].astype(float)},
        LIKE,
    ),
    "fetch returned 'x' as list": (lambda i: {"x": "1", "y": Y[i]}, LIKE),
    "fetch returned two different 'x' for index 0": (noisy, LIKE),
    "like has no leaves": (from_arrays, {}),
}
if not jax.config.read("jax_enable_x64"):  # a dtype that arrays do not have
    BAD_FETCH["like['y'] has dtype float64"] = (from_arrays, LIKE | {"y": np.zeros(())})


@pytest.mark.parametrize("fragment", BAD_FETCH)
def test_what_fetch_returns_is_checked(fragment):
    fetch, like = BAD_FETCH[fragment]
    fragment = fragment.replace("list", "str '1'")
    memory = {"memory": 0} if "memory" in fragment else {}
    with pytest.raises(ValueError) as caught:
        hg.host_batches(fetch, like, **memory)
    message = str(caught.value)
    assert fragment in message and ", expected " in message and "\n" not in message


def test_what_fetch_returns_is_checked_every_time():
    at = hg.host_batches(lambda i: from_arrays(i[i < 40]), LIKE)
    with pytest.raises(Exception, match=r"fetch returned 'x' as an array of shape \(1, 5\)"):
        jax.block_until_ready(at(jnp.array([1, 45])))
    with pytest.raises(Exception, match="indices hold -1, expected at least 0"):
        jax.block_until_ready(at(jnp.array([-1])))
    with pytest.raises(
        ValueError, match=r"indices is an array of shape .* expected an array of int"
    ):
        at(jnp.ones(3))


# what is no function of its arguments


AT = hg.host_batches(from_arrays, LIKE)
SHAPE = jax.ShapeDtypeStruct((8, 5), np.float32)


def streamed(batch):
    return {"x": batch, "y": jnp.zeros(8)}


@jax.jit
def frozen(key):
    return next(STREAM)


def counted(key, step):
    first = next(NUMBERS) % 8
    return device_at(jnp.arange(32))["x"][first : first + 8]


BATCHES = {
    "an iterator": lambda key, step: next(STREAM),
    "an iterator within jit": lambda key, step: frozen(key) * 2,
    "an iterator that ends": lambda key, step: next(ENDS),
    "a counter": counted,
    "a generator of numpy": lambda key, step: X[RNG.integers(0, 32, 8)],
    "a number of Python": lambda key, step: jnp.asarray(X[:8]) * random.random(),
    "a callback": lambda key, step: jax.pure_callback(lambda s: next(STREAM), SHAPE, step),
    "a callback with effects": lambda key, step: io_callback(lambda: next(STREAM), SHAPE),
    "an ordered one": lambda key, step: io_callback(lambda: next(STREAM), SHAPE, ordered=True),
}


@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_is_a_function_of_key_and_step(name):
    problem = DEVICE._replace(train_batch=lambda key, step: streamed(BATCHES[name](key, step)))
    for call in (
        lambda: validate(problem, H),
        lambda: jax.jit(reverse(problem, 3).estimate)(KEY, (), H),
        lambda: jax.vmap(lambda key: reverse(problem, 3).estimate(key, (), H))(
            jax.random.split(KEY, 2)
        ),
    ):
        with pytest.raises(
            ValueError, match=r"train_batch.* expected a function.*hg.host_batches"
        ) as caught:
            call()
        assert "\n" not in str(caught.value)
    problem = DEVICE._replace(valid_batch=lambda key: streamed(BATCHES[name](key, 0)))
    if name != "a callback" and name != "an iterator that ends":
        with pytest.raises(ValueError, match=r"valid_batch.* expected a function.*hg.host_batches"):
            validate(problem, H)


TICKS, GENERATOR, COUNT = itertools.count(), random.Random(0), [0]


def noisy(make):
    """A loss that reads a number on from a source of its own."""
    source = make()
    return lambda p, h, b: loss(p, h, b) + next(source)


def counting(p, h, b):
    COUNT[0] += 1
    return loss(p, h, b) * COUNT[0]


class Counter:
    num = 0

    def __call__(self, p, h, b):
        self.num += 1
        return loss(p, h, b) * self.num


CACHE = {}
EFFECTS = {
    "loss, a generator": noisy(lambda: (0.5 * i for i in range(9))),
    "loss, an iterator that ends": noisy(lambda: iter([1.0])),
    "loss, jitted": jax.jit(lambda p, h, b: loss(p, h, b) + next(TICKS)),
    "loss, partial": partial(lambda source, p, h, b: loss(p, h, b) * source.random(), GENERATOR),
    "loss, a list": counting,
    "loss, a method of C": partial(lambda draw, p, h, b: loss(p, h, b) * draw(), RNG.normal),
    "loss, an object": Counter(),
    "objective, a clock": lambda p, h, b: loss(p, h, b) + time.perf_counter_ns() % 1_000_003,
    "objective, a generator of numpy": lambda p, h, b: loss(p, h, b) * RNG.normal(),
    "init, a generator of numpy": lambda key, h: jnp.asarray(RNG.normal(size=5), jnp.float32),
    "optimizer, a generator of Python": lambda h: optax.sgd(h["lr"] * GENERATOR.random()),
    "loss": lambda p, h, b: loss(p, h, b) + np.random.normal(),  # noqa: NPY002
    "objective": lambda p, h, b: loss(p, h, b) + random.random(),
    "init": lambda key, h: jnp.asarray(np.random.normal(size=5), jnp.float32),  # noqa: NPY002
    "optimizer": lambda h: optax.sgd(h["lr"] * io_callback(lambda: np.float32(1), jnp.zeros(()))),
}


@pytest.mark.parametrize("name", EFFECTS)
def test_every_function_is_one_of_its_arguments(name):
    part = name.partition(",")[0]
    for _ in range(2):
        with pytest.raises(ValueError, match=f"problem.{part} .*expected a function") as caught:
            validate(DEVICE._replace(**{part: EFFECTS[name]}), H)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


PURE = {
    "a generator that names": {
        "loss": lambda p, h, b: jax.named_call(loss, name=f"loss{next(TICKS)}")(p, h, b)
    },
    "a cache": {"loss": lambda p, h, b: CACHE.setdefault("twice", 2) * loss(p, h, b)},
    "printing": {"loss": lambda p, h, b: jax.debug.print("{}", p[0]) or loss(p, h, b)},
    "an ordered print": {
        "loss": lambda p, h, b: jax.debug.callback(print, p[0], ordered=True) or loss(p, h, b)
    },
    "arrays of numpy": {
        "train_batch": lambda key, step: {"x": jnp.asarray(X)[step], "y": jnp.asarray(Y)[step]}
    },
    "a pure callback": {
        "train_batch": lambda key, step: streamed(jax.pure_callback(lambda s: X[:8], SHAPE, step))
    },
    "noise and a key": {
        "train_batch": lambda key, step: streamed(jax.random.normal(key, (8, 5))) | {"key": key}
    },
    "a full batch": {"train_batch": jax.jit(lambda key, step: device_at(slice(0, 32)))},
    "its own stream of numbers, of one seed": {
        "train_batch": lambda key, step: streamed(
            np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
        )
    },
}


@pytest.mark.parametrize("name", PURE)
def test_what_is_a_function_passes(name):
    problem = DEVICE._replace(**PURE[name])
    validate(problem, H)
    jax.make_jaxpr(lambda h: (check_step(problem, h, real=True), h["lr"])[1])(H)


INDICES = {
    "loss": lambda p, h, b: loss(p, h, AT(jnp.arange(3) + jnp.int32(9 * h["lr"]))),
    "objective": lambda p, h, b: loss(p, h, AT(jnp.argsort(p))),
    "init": lambda key, h: jax.lax.fori_loop(
        0, 3, lambda i, p: p + AT(p[:1].astype(jnp.int32))["x"][0], h["decay"] * jnp.ones(5)
    ),
}


@pytest.mark.parametrize("name", INDICES)
def test_an_index_depends_on_no_hyperparameter(name):
    problem = DEVICE._replace(**{name: INDICES[name]})
    what = "the weights" if name == "objective" else r"hparams\['"
    with pytest.raises(ValueError, match=f"problem.{name} fetches .* depends on {what}"):
        jax.eval_shape(reverse(problem, 3).estimate, KEY, (), H)
    check_step(problem, H)  # a search may
