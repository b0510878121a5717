"""What a problem's functions may reach: everything that gives something else with each call is refused."""

import itertools
import os
import random
import secrets
import uuid
import warnings
from array import array
from collections import deque
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.core.cautions import BatchWarning
from hypergrad.core.outside import MAX_CONTENTS, contents, may_change, reached, sums_of

X = jnp.asarray(np.random.default_rng(0).normal(size=(64, 4)), jnp.float32)
SHAPE = jax.ShapeDtypeStruct((8, 4), np.float32)
H = {"lr": jnp.float32(0.1)}
COUNT, BUFFER, QUEUE = np.zeros(3, np.float32), bytearray(4), deque([1.0, 2.0, 3.0, 4.0])
UNITS, PATHS = array("d", [0.0]), [Path(str(i)) for i in range(5000)]
SCRATCH, DATA = np.zeros(4, np.float32), np.ones((2**18, 20), np.float32)
TABLE = jnp.arange(8.0)


def loss(params, hparams, batch):
    return jnp.mean((batch @ params) ** 2)


PROBLEM = hg.Problem(
    init=lambda key, h: jnp.ones(4),
    loss=loss,
    objective=loss,
    optimizer=lambda h: optax.sgd(h["lr"]),
    train_batch=lambda key, step: X[:8],
    valid_batch=lambda key: X[8:],
)


def times(number):
    """A loss that is scaled by a number from elsewhere."""
    return lambda p, h, b: loss(p, h, b) * number()


def imported():
    import numpy.random as source

    return source.default_rng().normal()


def by_name():
    from os import urandom

    return urandom(8)[0]


def written():
    COUNT[0] += 1
    return COUNT[0]


def written_as_data():
    COUNT[1:] += 1
    return jnp.sum(jnp.asarray(COUNT))


def shuffled():
    np.random.default_rng(0).shuffle(DATA[:, 0])
    DATA[:] += 1
    return DATA[3, 4]


def bytes_written():
    BUFFER[0] += 1
    return BUFFER[0]


def units_written():
    UNITS[0] += 1
    return UNITS[0]


def attributed():
    attributed.num = getattr(attributed, "num", 0) + 1
    return attributed.num


def turned():
    QUEUE.rotate(1)
    return QUEUE[0]


class Noise:
    """An object whose methods draw."""

    scale = 1.0

    def draw(self):
        return self.scale * secrets.randbelow(10**9)

    @staticmethod
    def drawn():
        return int(uuid.uuid4()) % 10**6

    @property
    def now(self):
        return os.times().elapsed + int.from_bytes(os.urandom(3))


class Counted:
    num = 0

    def next(self):
        Counted.num += 1
        return Counted.num


class Crowded:
    """An iterator and a counter, before and after a list of many arrays."""

    def __init__(self):
        self.numbers = itertools.count()
        self.images = [np.ones(3) for _ in range(5000)]
        self.settings = {"num": 0}

    def draw(self):
        self.settings["num"] += 1
        return self.settings["num"] + len(self.images)


NOISE, COUNTED, CROWDED = Noise(), Counted(), Crowded()

MOVING = {
    "os.urandom": lambda: int.from_bytes(os.urandom(3), "little"),
    "os.urandom as a seed": lambda: jax.random.normal(
        jax.random.key(int.from_bytes(os.urandom(3), "little"))
    ),
    "secrets": lambda: secrets.randbits(20),
    "uuid": lambda: uuid.uuid4().int % 10**6,
    "a generator without a seed": lambda: np.random.default_rng().normal(),
    "a generator of another kind": lambda: np.random.Generator(np.random.PCG64()).normal(),
    "a state without a seed": lambda: np.random.RandomState().normal(),
    "entropy of numpy": lambda: np.random.SeedSequence().entropy % 10**6,
    "Random without a seed": lambda: random.Random().random(),
    "SystemRandom": lambda: random.SystemRandom().random(),
    "a module imported within": imported,
    "a name imported within": by_name,
    "a method that is called": lambda: NOISE.draw(),
    "a static method": lambda: Noise.drawn(),
    "a property": lambda: NOISE.now,
    "an attribute of a class": lambda: COUNTED.next(),
    "an array written in place": written,
    "an array written in place, as data": written_as_data,
    "a large array written in place": shuffled,
    "bytes written in place": bytes_written,
    "a queue": turned,
    "an array of Python": units_written,
    "an attribute of a function": attributed,
    "beside many arrays": CROWDED.draw,
    "beside many paths": lambda: len(PATHS) + next(CROWDED.numbers),
}


@pytest.mark.parametrize("part", ["loss", "objective", "init", "optimizer", "train_batch"])
def test_every_function_refuses_what_moves(part):
    for name, number in MOVING.items():
        made = {
            "init": lambda key, h, of=number: jnp.ones(4) * of(),
            "optimizer": lambda h, of=number: optax.sgd(h["lr"] * of()),
            "train_batch": lambda key, step, of=number: X[:8] * of(),
        }.get(part, times(number))
        with pytest.raises(ValueError, match=f"problem.{part} .*expected a function") as caught:
            hg.validate(PROBLEM._replace(**{part: made}), H)
        assert "\n" not in str(caught.value), name


class Closed:
    """An object that tells nothing."""

    def __getattr__(self, name):
        raise RuntimeError("not connected")


CLOSED = Closed()


def filled():
    SCRATCH[:] = 0
    SCRATCH[1] = 2
    return jnp.asarray(SCRATCH)[1]


STILL = {
    "a buffer that is filled anew": filled,
    "a generator with a seed": lambda: np.random.default_rng(3).normal(),
    "an object that tells nothing": lambda: 1 if CLOSED else 2,
    "a path": lambda: len(os.path.join("a", "b")),
}


@pytest.mark.parametrize("name", STILL)
def test_what_is_the_same_each_time_passes(name):
    hg.validate(PROBLEM._replace(loss=times(STILL[name])), H)


def test_a_draw_of_jax_beside_numpy_is_not_tried_twice():
    noisy = lambda p, h, b: np.pi * loss(p, h, b) + jax.random.normal(jax.random.key(0))  # noqa: E731
    assert not may_change(reached(noisy))
    assert may_change(reached(lambda: np.random.normal()))  # noqa: NPY002


def test_of_large_arrays_blocks_are_read_and_of_read_only_ones_nothing(monkeypatch):
    read = []
    monkeypatch.setattr("zlib.crc32", lambda data, start=0: read.append(len(data)) or start + 1)
    many = [np.zeros((1000, 1050), np.float32)[:, :1000] for _ in range(8)]
    sums_of([*many, np.zeros((1000, 1000), order="F")])
    assert 0 < sum(read) <= MAX_CONTENTS and max(read) < 2**14
    read.clear()
    fixed = np.broadcast_to(np.float32(1), (2**20, 2**10))
    contents([fixed])
    assert not read


# streams


def twice_each(num=2):
    return (b for i in itertools.count() for b in [X[i % 8 : i % 8 + 8]] * num)


class Loader:
    """A loader that begins anew with each `iter`, and serves each batch twice."""

    def __init__(self):
        self.place = 0

    def __iter__(self):
        return iter([X[:8], X[8:16]])

    def first(self):
        return next(iter(self))

    def whole(self):
        return X[self.place * 0 :]

    def draw(self):
        self.place += 1
        return X[self.place // 2 * 8 :][:8]


TWICE, LATE, ALONG, LOADER = twice_each(), itertools.count(), twice_each(), Loader()


def late(step):
    """A callback that is a function at step 0 alone."""
    return np.asarray(X[:8]) + (next(LATE) if step else 0)


STREAMS = {
    "each batch twice": lambda key, step: next(TWICE),
    "each batch twice, of an object": lambda key, step: LOADER.draw(),
    "a callback after step 0": lambda key, step: jax.pure_callback(late, SHAPE, step),
    "a callback, each batch twice": lambda key, step: jax.pure_callback(
        lambda step: np.asarray(next(ALONG)), SHAPE, step
    ),
}


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_is_refused(name):
    with pytest.raises(ValueError, match=r"train_batch returned .* expected a function.*host_bat"):
        hg.validate(PROBLEM._replace(train_batch=STREAMS[name]), H)


class Solver:
    """A loss with a callback that fails on zeros, of an object that has a generator, too."""

    def __init__(self):
        self.calls, self.generator = [], np.random.default_rng(0)

    def factor(self, matrix):
        self.calls.append(1)
        return np.linalg.cholesky(np.asarray(matrix))

    def loss(self, params, hparams, batch):
        gram = jax.lax.stop_gradient(batch.T @ batch)
        root = jax.pure_callback(self.factor, jax.ShapeDtypeStruct((4, 4), np.float32), gram)
        return loss(params, hparams, batch) + jnp.sum(root)


def test_a_callback_of_a_loss_is_not_called_and_one_that_fails_says_so_when_it_is_drawn():
    solver = Solver()
    hg.validate(PROBLEM._replace(loss=solver.loss), H)
    assert not solver.calls
    batch = lambda key, step: jax.pure_callback(  # noqa: E731
        lambda i: np.linalg.cholesky(np.zeros((4, 4), np.float32)), jnp.zeros((4, 4)), step
    )
    hg.validate(PROBLEM._replace(train_batch=batch), H)


KEPT, LEFT = {}, [1.0, 2.0]


def cached(key):
    if "x" not in KEPT:
        KEPT["x"] = X[:8] * 2
    return KEPT["x"]


def used(key):
    return 2 * cached(key)


def popped(key):
    return X[:8] * LEFT.pop()


def test_the_error_of_a_second_trace_says_what_is_wrong():
    for batch in (cached, used):
        KEPT.clear()
        with pytest.raises(ValueError, match=r"keeps an array .*; make it outside") as caught:
            hg.validate(PROBLEM._replace(valid_batch=batch), H)
        assert isinstance(caught.value.__cause__, jax.errors.UnexpectedTracerError)
    LEFT.pop()
    with pytest.raises(ValueError, match=r"traced again \(IndexError: pop from empty list\)"):
        hg.validate(PROBLEM._replace(valid_batch=popped), H)


def test_a_callback_of_one_batch_passes():
    batches = [np.asarray(X[:8])]
    served = lambda key, step: jax.pure_callback(lambda i: batches[int(i)], SHAPE, step)  # noqa: E731
    hg.validate(PROBLEM._replace(train_batch=served), H)


def in_a_loop(key, step):
    for batch in LOADER:
        return batch


def left(key, step):
    for batch in LOADER:  # noqa: B007
        break
    return batch


@pytest.mark.parametrize("batch", [lambda key, step: next(iter(LOADER)), in_a_loop, left])
def test_the_first_batch_of_a_loader_is_warned_of(batch):
    with pytest.warns(BatchWarning, match=r"problem.train_batch returns one batch") as said:
        hg.validate(PROBLEM._replace(train_batch=batch), H)
    assert len(said) == 1 and "hg.host_batches" in str(said[0].message)


FIRST = next(iter(LOADER))


def whole_of_a_loop(key, step):
    found = []
    for batch in LOADER:
        if len(batch) < 8:
            break
        found.append(batch)
    return jnp.concatenate(found)


@pytest.mark.parametrize(
    "batch",
    [
        lambda key, step: FIRST,
        lambda key, step: X,
        lambda key, step: next(x for x in [X[step]])[None],
        lambda key, step: next(iter([X]))[jax.random.randint(key, (8,), 0, 64)],
        lambda key, step: X[next(iter({0: 1, 8: 2})) :],
        lambda key, step: next(iter([X])),
        lambda key, step: LOADER.whole(),
        lambda key, step: jnp.concatenate(list(LOADER)),
        whole_of_a_loop,
    ],
)
def test_other_batches_are_not(batch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hg.validate(PROBLEM._replace(train_batch=batch), H)
