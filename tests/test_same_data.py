"""A study goes on with the data that it began with: whatever a task reads, however it reads it."""

import functools
import importlib
import json
import threading
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.core.outside import reached
from hypergrad.study import StudyWarning
from hypergrad.tuning import data
from hypergrad.tuning.build import NAMES, check_task
from hypergrad.tuning.data import check_same_data, data_of, held_arrays
from hypergrad.tuning.settings import check_settings

SETTINGS = {"method": "random", "budget": 2, "eval_seeds": 2}
CHOSEN = check_settings(SETTINGS, NAMES)
GLOBAL = jnp.linspace(0.0, 1.0, 6, dtype=jnp.float32)
SHAPE = jax.ShapeDtypeStruct((3,), np.float32)


def table(seed, rows=8):
    return np.random.default_rng(seed).normal(size=(rows, 3)).astype(np.float32)


def task_of(test=None, **functions):
    """Return a task of a line; each function may be replaced."""

    def loss(params, hparams, batch):
        return jnp.mean((batch @ params) ** 2) + hparams["decay"] * params @ params

    problem = hg.Problem(
        init=lambda key, hparams: jax.random.normal(key, (3,)),
        loss=loss,
        objective=loss,
        optimizer=lambda hparams: optax.sgd(0.1),
        train_batch=lambda key, step: jnp.ones((2, 3)),
        valid_batch=lambda key: jnp.ones((2, 3)),
    )
    problem = problem._replace(**functions)
    space = {"decay": hg.Real(0.0, 1.0)}
    return hg.Task("line", problem, space, 2, test, "error", False)


def known(task):
    return data_of(check_task(task, CHOSEN))


class Rows:
    """Data as attributes of an object, some of them in a slot."""

    __slots__ = ("table",)

    def __init__(self, rows):
        self.table = rows

    def draw(self, key, step):
        return jnp.asarray(self.table)[jax.random.randint(key, (2,), 0, 8)]

    def fetch(self, rows):
        return self.table[rows]


def by_closure(rows):
    return lambda key, step: jnp.asarray(rows)[:2]


def by_default(rows):
    return lambda key, step, rows=rows: jnp.asarray(rows)[:2]


def by_jitted(rows):
    inner = jax.jit(lambda key: jnp.asarray(rows)[jax.random.randint(key, (2,), 0, 8)])
    return lambda key, step: inner(key)


def by_loop(rows):
    held = jnp.asarray(rows)
    return lambda key, step: jax.lax.map(lambda i: held[i], jnp.arange(2))


def by_global(rows):
    def draw(key, step):
        return globals()["HELD"][:2]

    globals()["HELD"] = jnp.asarray(rows)
    return draw


def by_host(rows):
    at = hg.host_batches(lambda index: rows[index], like=SHAPE)
    return lambda key, step: at(jax.random.randint(key, (2,), 0, 8))


def by_callback(rows):
    out = jax.ShapeDtypeStruct((2, 3), np.float32)
    return lambda key, step: jax.pure_callback(lambda step: rows[:2], out, step)


TRAIN = {
    "closure": by_closure,
    "default": by_default,
    "partial": lambda rows: functools.partial(lambda rows, key, step: jnp.asarray(rows)[:2], rows),
    "method": lambda rows: Rows(rows).draw,
    "global": by_global,
    "jitted": by_jitted,
    "loop": by_loop,
    "list": lambda rows: by_closure(rows.tolist()),
    "jax array": lambda rows: by_closure(jnp.asarray(rows)),
    "host": by_host,
    "host method": lambda rows: (
        lambda key, step: hg.host_batches(Rows(rows).fetch, like=SHAPE)(jnp.arange(2))
    ),
    "callback": by_callback,
}


@pytest.mark.parametrize("way", TRAIN)
def test_training_data_are_known_however_they_are_held(way, tmp_path):
    one, same, other = (known(task_of(train_batch=TRAIN[way](table(s)))) for s in (0, 0, 1))
    assert one == same and one.data["problem.train_batch"]
    check_same_data(same, one._asdict())
    with pytest.raises(ValueError, match=r"the data that problem\.train_batch reads changed since"):
        check_same_data(other, one._asdict())
    assert not one.data_unknown
    text = json.loads(json.dumps(one._asdict()))
    check_same_data(same, text)


@pytest.mark.parametrize("name", ["init", "loss", "objective", "valid_batch", "optimizer"])
def test_every_function_is_named(name):
    def held(seed):
        rows = jnp.asarray(table(seed))

        def penalty(params, hparams, batch):
            return jnp.sum((rows @ params) ** 2) * (1 + hparams["decay"])

        mask = optax.stateless(lambda g, p: jax.tree.map(lambda x: x * rows[0], g))
        function = {
            "init": lambda key, hparams: rows[0],
            "loss": penalty,
            "objective": penalty,
            "valid_batch": lambda key: rows,
            "optimizer": lambda hparams: optax.chain(mask, optax.sgd(0.1)),
        }[name]
        return known(task_of(**{name: function}))

    one, other = held(0), held(1)
    with pytest.raises(ValueError, match=f"data that problem.{name} reads changed"):
        check_same_data(other, one._asdict())


def test_a_file_in_memory_is_read_whole_and_one_too_large_in_part(tmp_path, monkeypatch):
    """One changed byte of a mapped file shows; beyond the bound, evenly spaced rows are compared."""
    path = tmp_path / "rows.npy"
    np.save(path, table(0, 4000))

    def mapped():
        rows = np.load(path, mmap_mode="r+")
        at = hg.host_batches(lambda index: rows[index], like=SHAPE)
        return rows, known(task_of(train_batch=lambda key, step: at(jnp.arange(2))))

    rows, before = mapped()
    rows[3999, 2] += 1
    rows.flush()
    with pytest.raises(ValueError, match="train_batch reads changed"):
        check_same_data(mapped()[1], before._asdict())
    monkeypatch.setattr(data, "MAX_DIGESTED", 1200)  # a hundred rows of 4000
    rows, before = mapped()
    rows[1] += 1
    assert mapped()[1] == before, "between the rows that are read"
    rows[3999] += 1
    assert mapped()[1] != before


def test_objects_on_the_host_are_looked_through():
    """Containers, texts, wrappers and cycles; locks, modules and numbers are no data."""
    rows, words = table(0), np.array(["a", None, "c"], object)
    box = Rows({"x": [rows, (b"raw", words)]})
    box.table["me"] = box
    box.table["lock"] = threading.Lock()

    @functools.lru_cache
    def fetch(index, scale=3.0):
        return box, np, GLOBAL

    found = list(held_arrays(reached(functools.partial(fetch.__wrapped__, 1))))
    kinds = sorted(str(np.asarray(x).dtype) for x in found)
    assert kinds == ["float32", "float32", "object", "uint8"]
    assert all(data._digest(x) for x in found)
    assert data._digest(np.array([object()])) is None


def test_what_cannot_be_read_is_said():
    files = {"0": 1.0}

    def reads_files(index):
        return np.full((len(index), 3), files["0"], np.float32)

    at = hg.host_batches(reads_files, like=SHAPE)
    before = known(task_of(train_batch=lambda key, step: at(jnp.arange(2))))
    assert before.data_unknown == ["problem.train_batch"]
    assert before.data["problem.train_batch"], "its first example is compared"
    with pytest.warns(StudyWarning, match="problem.train_batch reads data on the host that cannot"):
        data.warn_of_unknown(before._asdict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.warn_of_unknown({})
        data.warn_of_unknown(known(task_of())._asdict())


def test_lists_and_files_beside_an_array_are_not_known(tmp_path):
    labels, path = table(0), tmp_path / "rows.npy"
    np.save(path, table(0))
    rows, name = table(0).tolist(), str(path)
    for fetch in (
        lambda index: labels[index] + np.stack([np.float32(rows[i]) for i in index]),
        lambda index: labels[index] + np.load(name)[index],
    ):
        at = hg.host_batches(fetch, like=SHAPE)
        found = known(task_of(train_batch=lambda key, step, at=at: at(jnp.arange(2))))
        assert found.data_unknown == ["problem.train_batch"]


def test_a_cache_that_grows_is_no_change():
    rows, cache = table(0), {}

    def fetch(index):
        return np.stack([cache.setdefault(i, rows[i].copy()) for i in index.tolist()])

    at = hg.host_batches(fetch, like=SHAPE)
    task = task_of(train_batch=lambda key, step: at(jnp.arange(2)))
    before = known(task)
    fetch(np.arange(8))
    check_same_data(known(task), before._asdict())


def test_changed_test_data_are_refused_on_resume(tmp_path, monkeypatch):
    page = importlib.import_module("hypergrad.report.page")
    monkeypatch.setattr(page, "write_report", lambda folder: Path(folder) / "report.html")

    def made(seed):
        rows = table(seed)
        return task_of(test=lambda params, hparams: (jnp.asarray(rows) @ params) ** 2)

    folder = tmp_path / "s"

    def stop(now):
        if now.phase == "judge":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hg.tune(made(0), storage=folder, callbacks=[hg.Callback(step=stop)], **SETTINGS)
    with pytest.raises(ValueError) as caught:
        hg.resume(made(1), folder)
    text = "the data that task.test reads changed since the study was started, expected the same"
    assert str(caught.value).startswith(text) and "\n" not in str(caught.value)
    found = hg.resume(made(0), folder).result["final_digest"]
    assert hg.tune(made(0), **SETTINGS).result["final_digest"] == found
    (folder / "result.json").unlink()
    changed = hg.resume(made(1), folder, allow_changes=True).result
    assert changed["final_digest"] != found
