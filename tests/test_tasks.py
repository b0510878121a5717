"""Every task: it builds, fits its space, learns, and keeps its three sets apart."""

import gzip
import inspect
import struct
import sys
from importlib import import_module
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.core.types import Variables
from hypergrad.space import (
    Real,
    check_space,
    check_value,
    constrain,
    default,
    sample,
    unconstrain,
)
from hypergrad.train import evaluate_loss, init_state, unroll
from hypergrad.validation import drawn_leaves, validate
from tasks import augment, data, digits, images, quadratic, ridge, supervised, tabular

ROOT = Path(__file__).parents[1]
MNIST = ROOT.parent / "shared" / "data" / "mnist"
KEY = jax.random.key(0)
NUM_STEPS = 60


def write_idx(path, values):
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    content = header + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_images(folder, prefix, num, seed, suffix=""):
    """Stripes whose place gives the class, and noise that makes every image another."""
    random = np.random.default_rng(seed)
    labels = np.arange(num) % 3
    pixels = random.integers(0, 100, (num, 6, 6))
    pixels[np.arange(num), 2 * labels] += 150
    write_idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", pixels)
    write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", labels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_images(folder, "t10k", 120, 0, ".gz")
    return folder


@pytest.fixture(scope="module")
def csv_file(tmp_path_factory):
    random = np.random.default_rng(0)
    lines = ["size,age,colour,weight,kind"]
    for i in range(90):
        size, age = random.normal(size=2) + 3 * (i % 2)
        weight = size + age + 0.1 * random.normal()
        colour = random.choice(["r", "g", "?"])
        known = "" if i % 7 == 0 else f"{size:.6f}"
        lines.append(f"{known},{age:.6f},{colour},{weight:.6f},{('low', 'high')[i % 2]}")
    path = tmp_path_factory.mktemp("table") / "t.csv"
    path.write_text("\n".join(lines))
    return path


SMALL = {"num_train": 60, "num_valid": 30, "num_test": 30, "batch_size": 10, "width": 8}
BUILD = {
    "digits": lambda folder, csv: digits.task(horizon=NUM_STEPS, batch_size=16, width=8),
    "csv": lambda folder, csv: tabular.task(
        data=str(csv), horizon=NUM_STEPS, batch_size=8, width=8
    ),
    "regression": lambda folder, csv: tabular.task(
        data=str(csv), label="weight", horizon=NUM_STEPS, batch_size=8, width=8
    ),
    "breast_cancer": lambda folder, csv: tabular.task(horizon=NUM_STEPS, width=8),
    "diabetes": lambda folder, csv: tabular.task(data="diabetes", horizon=NUM_STEPS, width=8),
    "images": lambda folder, csv: images.task(
        data=str(folder), horizon=NUM_STEPS, model="mlp", **SMALL
    ),
    "cnn": lambda folder, csv: images.task(data=str(folder), horizon=NUM_STEPS, flip=True, **SMALL),
    "resnet": lambda folder, csv: images.task(
        data=str(folder), horizon=NUM_STEPS, model="resnet", **{**SMALL, "width": 4}
    ),
    "quadratic": lambda folder, csv: quadratic.task(horizon=NUM_STEPS, num_params=3),
    "ridge": lambda folder, csv: ridge.task(horizon=NUM_STEPS),
}
NAMES = [pytest.param(n, marks=[pytest.mark.slow] * (n == "resnet")) for n in BUILD]
BUNDLED = ("digits", "breast_cancer", "diabetes")
"""The tasks that need scikit-learn."""
REGRESSION = ("regression", "diabetes", "quadratic", "ridge")
"""The tasks whose metric is a squared error."""
LEARNED = [name for name in BUILD if name not in ("quadratic", "ridge")]
"""The tasks with examples."""
DISTINCT = [name for name in BUILD if name not in ("breast_cancer", "diabetes")]
"""One for each loss and model: compiling is what takes time."""


@pytest.fixture(scope="module")
def build(folder, csv_file):
    made = {}

    def get(name):
        if name in BUNDLED:
            pytest.importorskip("sklearn")
        if name not in made:
            made[name] = BUILD[name](folder, csv_file)
        return made[name]

    return get


@pytest.mark.parametrize("name", NAMES)
def test_space_fits_the_problem(build, name):
    task = build(name)
    check_space(task.space, real=True)
    for hparams in (default(task.space), sample(task.space, KEY)):
        check_value(task.space, hparams)
        validate(task.problem, hparams, task.horizon)
    hparams = default(task.space)
    assert not drawn_leaves(task.problem, hparams)
    again = constrain(task.space, unconstrain(task.space, hparams))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), hparams, again)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            n, marks=[pytest.mark.slow] * (n in ("csv", "images", "cnn", "regression", "resnet"))
        )
        for n in DISTINCT
    ],
)
def test_training_lowers_both_losses_and_every_hparam_has_a_hypergradient(build, name):
    task = build(name)
    problem = task.problem
    batch = problem.train_batch(KEY, 0)
    if problem.train_set is not None:
        batch = problem.train_set.at(jnp.arange(problem.train_set.num_examples))

    def losses(params, hparams):
        train, _ = evaluate_loss(problem, params, hparams, batch)
        return train, problem.objective(params, hparams, problem.valid_batch(KEY))

    def train(hparams):
        start = init_state(problem, KEY, hparams)
        end = unroll(problem, hparams, start, NUM_STEPS)
        after = losses(end.params, hparams)
        return after[1], (losses(start.params, hparams), after)

    hypergrad, (before, after) = jax.jit(jax.grad(train, has_aux=True))(default(task.space))
    assert after[0] < 0.95 * before[0]
    assert after[1] < before[1]
    for leaf in jax.tree.leaves(hypergrad):
        assert np.isfinite(leaf).all()
        assert (leaf != 0).any()


@pytest.mark.parametrize("name", NAMES)
def test_scores(build, name):
    task = build(name)
    hparams = default(task.space)
    scores = task.test(task.problem.init(KEY, hparams), hparams)
    assert scores.ndim == 1 and len(scores) > 1 and jnp.issubdtype(scores.dtype, jnp.floating)
    assert task.higher_is_better == (name not in REGRESSION)
    assert ("accuracy" in task.metric) == task.higher_is_better
    if task.higher_is_better:
        assert set(np.unique(scores)) <= {0.0, 1.0}
    else:
        assert (scores >= 0).all()


@pytest.mark.parametrize("name", [n for n in LEARNED if n != "resnet"])
def test_batches_are_drawn_by_key_from_the_training_set(build, name):
    problem = build(name).problem
    inputs, targets = problem.train_batch(KEY, 0)[:2]
    again, other = problem.train_batch(KEY, 0)[0], problem.train_batch(jax.random.key(1), 0)[0]
    assert (inputs == again).all() and not (inputs == other).all()
    assert inputs.dtype == jnp.float32 and len(inputs) == len(targets)
    whole = rows([problem.train_set.at(jnp.arange(problem.train_set.num_examples))[0]])
    assert rows([inputs]) <= whole


def rows(arrays):
    return {row.tobytes() for x in arrays for row in np.asarray(x).reshape(len(x), -1)}


def read_by(function, *args):
    """Return the examples that a function closes over: the constants of its jaxpr with many rows."""
    constants = jax.make_jaxpr(function)(*args).consts
    return rows([c for c in constants if c.ndim >= 2 and len(c) >= 18])


@pytest.mark.parametrize("name", [n for n in LEARNED if n != "resnet"])
def test_only_the_test_reads_the_test_set(build, name):
    task = build(name)
    problem, hparams = task.problem, default(task.space)
    params = problem.init(KEY, hparams)
    batch, valid = problem.train_batch(KEY, 0), problem.valid_batch(KEY)
    train_rows = read_by(problem.train_batch, KEY, 0)
    valid_rows = read_by(problem.valid_batch, KEY)
    test_rows = read_by(task.test, params, hparams)
    assert min(len(train_rows), len(valid_rows), len(test_rows)) >= 18
    elsewhere = train_rows | valid_rows
    elsewhere |= read_by(problem.init, KEY, hparams)
    elsewhere |= read_by(problem.loss, params, hparams, batch)
    elsewhere |= read_by(problem.objective, params, hparams, valid)
    elsewhere |= read_by(problem.train_set.at, jnp.arange(2))
    assert not test_rows & elsewhere
    assert not train_rows & valid_rows


def test_tabular_encodes_with_training_rows_only(csv_file, monkeypatch):
    seen = {}
    original = data.encode

    def encode(table, train):
        inputs = original(table, train)
        seen["inputs"] = inputs
        for column in table.columns:  # other rows may be anything
            others = np.setdiff1d(np.arange(len(column)), train)
            column[others] = "unseen" if column.dtype == object else 1000.0
        seen["again"], seen["train"] = original(table, train), train
        return inputs

    monkeypatch.setattr(data, "encode", encode)
    tabular.task(data=str(csv_file), horizon=1, batch_size=8)
    train = seen["train"]
    np.testing.assert_array_equal(seen["inputs"][train], seen["again"][train])


def test_splits_by_index(csv_file, monkeypatch):
    seen = []
    monkeypatch.setattr(
        tabular, "take", lambda x, y, parts: seen.append(parts) or supervised.take(x, y, parts)
    )
    tabular.task(data=str(csv_file), horizon=1, batch_size=8)
    (parts,) = seen
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(90))
    assert [len(p) for p in parts] == [54, 18, 18]


def test_official_test_images_are_the_test_set(folder, tmp_path):
    write_images(tmp_path, "train", 100, 1)
    write_images(tmp_path, "t10k", 40, 2, ".gz")
    sizes = {**SMALL, "num_valid": 40, "num_test": 40}
    both = images.task(data=str(tmp_path), horizon=2, **sizes)
    hparams = default(both.space)
    tested = read_by(both.test, both.problem.init(KEY, hparams), hparams)
    (tmp_path / "train-images-idx3-ubyte").unlink()
    official = images.task(
        data=str(tmp_path), horizon=2, **{**SMALL, "num_train": 20, "num_valid": 10, "num_test": 10}
    )
    assert len(tested) == 40
    assert rows([official.problem.train_set.at(jnp.arange(20))[0]]) <= tested
    write_images(tmp_path, "train", 100, 1)
    with pytest.raises(ValueError, match=r"num_test is 41, expected at most the 40 images"):
        images.task(data=str(tmp_path), **{**sizes, "num_test": 41})


def test_images_from_npz(tmp_path):
    random = np.random.default_rng(0)
    x, y = random.integers(0, 256, (40, 4, 4), dtype=np.uint8), np.arange(40) % 2
    np.savez(tmp_path / "one.npz", x=x, y=y)
    np.savez(tmp_path / "two.npz", x_train=x[:30], y_train=y[:30], x_test=x[30:], y_test=y[30:])
    sizes = {"num_train": 20, "num_valid": 10, "num_test": 10, "batch_size": 5, "width": 4}
    tasks = [
        images.task(data=str(tmp_path / f"{n}.npz"), horizon=2, **sizes) for n in ("one", "two")
    ]
    for task in tasks:
        inputs = task.problem.train_set.at(jnp.arange(20))[0]
        assert inputs.shape == (20, 4, 4, 1)
        assert inputs.min() >= 0 and 0.9 < inputs.max() <= 1
    params = tasks[1].problem.init(KEY, default(tasks[1].space))
    pixels = (x[30:] / np.float32(255)).astype(np.float32)
    assert read_by(tasks[1].problem.valid_batch, KEY).isdisjoint(rows([pixels]))
    assert tasks[1].test(params, {}).shape == (10,)


def test_cnn_carries_its_statistics(build):
    problem = build("cnn").problem
    hparams = default(build("cnn").space)
    state = init_state(problem, KEY, hparams)
    end = unroll(problem, hparams, state, 2)
    assert isinstance(end.params, Variables)
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), state.params.state, end.params.state)
    assert all(jax.tree.leaves(changed))


@pytest.mark.skipif(not MNIST.is_dir(), reason="needs the MNIST files in ../shared/data")
def test_mnist():
    task = images.task(data=str(MNIST), model="mlp", batch_size=100)
    hparams = default(task.space)
    state = init_state(task.problem, KEY, hparams)
    params = jax.jit(lambda h, s: unroll(task.problem, h, s, 100))(hparams, state).params
    assert task.problem.train_set.num_examples == 5000
    scores = task.test(params, hparams)
    assert scores.shape == (2500,)
    assert scores.mean() > 0.8


def test_images_are_the_digits_where_no_data_is_named():
    pytest.importorskip("sklearn")
    task = images.task(horizon=2)
    inputs, labels, _ = task.problem.train_set.at(jnp.arange(1000))
    assert (
        inputs.shape == (1000, 8, 8, 1)
        and inputs.max() == 1
        and set(np.unique(labels)) == set(range(10))
    )
    params = task.problem.init(KEY, default(task.space))
    assert task.test(params, default(task.space)).shape == (397,)
    for wrong, message in (
        ({"model": "vgg"}, "model is 'vgg', expected one of cnn, resnet, mlp"),
        (
            {"num_train": 2000},
            "num_train \\+ num_valid \\+ num_test is 2797, expected at most the 1797",
        ),
        ({"flip": 1}, "flip is 1, expected true or false"),
    ):
        with pytest.raises(ValueError, match=message):
            images.task(**wrong)


def test_shifts_interpolate_between_pixels():
    """A shift by a whole row and a part of a column, by slices of numpy; the derivative by differences."""
    x, key = jax.random.uniform(KEY, (1, 4, 5, 2)), jax.random.key(1)
    down, across = (float(u) for u in jax.random.uniform(key, (2, 1), x.dtype, -1, 1)[:, 0])
    moved = jax.jit(jax.value_and_grad(lambda s: (augment.shift(key, x, s) ** 2).sum()))
    shifted = jax.jit(augment.shift)
    size = 1 / abs(down)
    padded = np.pad(np.asarray(x[0]), ((3, 3), (3, 3), (0, 0)))
    row, left = 3 - round(down * size), int(np.floor(3 - across * size))
    part = 3 - across * size - left
    rows = padded[row : row + 4]
    expected = (1 - part) * rows[:, left : left + 5] + part * rows[:, left + 1 : left + 6]
    np.testing.assert_allclose(shifted(key, x, size)[0], expected, atol=1e-5)
    np.testing.assert_array_equal(shifted(key, x, 0.0), x)
    (high, _), (_, slope), (low, _) = map(moved, (0.71, 0.7, 0.69))
    np.testing.assert_allclose(slope, (high - low) / 0.02, rtol=1e-3)


def test_flips_mirror_about_half_of_the_images():
    x = jax.random.uniform(KEY, (200, 2, 3, 1))
    flipped = augment.flip(KEY, x)
    same = (flipped == x).all((1, 2, 3))
    assert 70 < same.sum() < 130
    np.testing.assert_array_equal(flipped[~same], x[~same][:, :, ::-1])


@pytest.mark.slow
def test_descent_makes_a_network_of_images_better():
    pytest.importorskip("sklearn")
    task = images.task(horizon=40, width=4, num_train=200)
    study = hg.tune(task.problem, task.space, horizon=40, budget=15, seed=1)
    assert study.best_value < 0.85 * study.trials[0].values[0]


# closed forms


@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_quadratic_is_its_closed_form(momentum):
    task = quadratic.task(horizon=15, num_params=4, seed=3)
    lr = np.random.default_rng(0).uniform(0.01, 0.5, 15)
    hparams = {"lr": jnp.asarray(lr, jnp.float32), "momentum": jnp.float32(momentum)}
    problem = task.problem

    def objective(hparams):
        state = unroll(problem, hparams, init_state(problem, KEY, hparams), 15)
        return problem.objective(state.params, hparams, ())

    value, hypergrad = jax.value_and_grad(objective)(hparams)
    np.testing.assert_allclose(value, quadratic.exact(lr, momentum, 4, 3), rtol=1e-5)
    for index in (0, 7, 14):
        shift = np.eye(15)[index] * 1e-6
        high, low = (quadratic.exact(lr + s, momentum, 4, 3) for s in (shift, -shift))
        np.testing.assert_allclose(
            hypergrad["lr"][index], (high - low) / 2e-6, rtol=1e-3, atol=1e-5
        )
    high, low = (quadratic.exact(lr, momentum + s, 4, 3) for s in (1e-6, -1e-6))
    np.testing.assert_allclose(hypergrad["momentum"], (high - low) / 2e-6, rtol=1e-3, atol=1e-5)


def test_ridge_is_its_closed_form_at_a_long_horizon():
    task = ridge.task(horizon=2000, num_features=5, seed=1)
    sets = ridge.make_data(5, 1)
    penalty = np.linspace(0.05, 0.5, 5)
    value, hypergrad = ridge.exact(penalty, sets)
    for index in range(5):  # the closed form against float64 differences of itself
        shift = np.eye(5)[index] * 1e-6
        high, low = (ridge.exact(penalty + s, sets)[0] for s in (shift, -shift))
        np.testing.assert_allclose(hypergrad[index], (high - low) / 2e-6, rtol=1e-6, atol=1e-9)
    hparams = {"penalty": jnp.asarray(penalty, jnp.float32)}
    problem = task.problem

    def objective(hparams):
        state = unroll(problem, hparams, init_state(problem, KEY, hparams), 2000)
        return problem.objective(state.params, hparams, problem.valid_batch(KEY))

    got, grads = jax.jit(jax.value_and_grad(objective))(hparams)
    np.testing.assert_allclose(got, value, rtol=1e-5)
    np.testing.assert_allclose(grads["penalty"], hypergrad, rtol=1e-3, atol=1e-5)


# digits


def test_digits_snippet_trains_alike(build):
    """The text, executed by itself, must train as the task does."""
    task = build("digits")
    problem, space = task.problem, task.space
    hparams = sample(space, jax.random.key(2))
    hparams["lr"] = 0.1 * hparams["lr"]
    namespace = {}
    exec(task.snippet(jax.tree.map(np.asarray, hparams)), namespace)
    optimizer = namespace["optimizer"]
    state = init_state(problem, KEY, hparams)

    @jax.jit
    def update(params, opt_state, step):
        batch = problem.train_batch(jax.random.fold_in(state.key, step), step)
        grads = jax.grad(problem.loss)(params, hparams, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    params, opt_state = state.params, optimizer.init(state.params)
    for step in range(12):
        params, opt_state = update(params, opt_state, step)
    end = unroll(problem, hparams, state, 12)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), params, end.params
    )
    assert "hypergrad" not in task.snippet(hparams)


def test_digits_step_is_the_documented_one(build):
    """w ← w − lr_t (m_t + decay_t · decay_scale_layer · w), decay on kernels only."""
    problem = build("digits").problem
    hparams = default(build("digits").space)
    hparams |= {
        "lr": jnp.linspace(0.1, 0.3, NUM_STEPS),
        "decay": jnp.linspace(0.01, 0.1, NUM_STEPS),
        "decay_scale": jnp.array([0.5, 2.0]),
    }
    state = init_state(problem, KEY, hparams)
    params, trace = state.params, jax.tree.map(jnp.zeros_like, state.params)
    for step in range(3):
        batch = problem.train_batch(jax.random.fold_in(state.key, step), step)
        grads = jax.grad(problem.loss)(params, hparams, batch)
        trace = jax.tree.map(lambda m, g: hparams["momentum"] * m + g, trace, grads)
        for layer, scale in zip(("dense_0", "dense_1"), hparams["decay_scale"], strict=True):
            w, m, rate = params[layer], trace[layer], hparams["lr"][step]
            decay = hparams["decay"][step] * scale
            kernel = w["kernel"] - rate * (m["kernel"] + decay * w["kernel"])
            params = {**params, layer: {"kernel": kernel, "bias": w["bias"] - rate * m["bias"]}}
    end = unroll(problem, hparams, state, 3)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), params, end.params
    )


def test_digits_sizes_and_dimensions():
    pytest.importorskip("sklearn")
    task = digits.task()
    assert task.horizon == 200 and task.problem.train_set.num_examples == 1000
    assert len(task.problem.valid_batch(KEY)[1]) == 400
    hparams = default(task.space)
    assert {name: v.shape for name, v in hparams.items()} == {
        "lr": (200,),
        "decay": (200,),
        "decay_scale": (2,),
        "momentum": (),
    }
    assert task.space["momentum"] == Real(0.0, 0.99, default=0.9)
    assert task.test(task.problem.init(KEY, hparams), hparams).shape == (397,)


def test_the_digits_are_those_of_scikit_learn_without_its_import(monkeypatch):
    datasets = pytest.importorskip("sklearn.datasets")
    found = digits.read_digits()
    expected = datasets.load_digits(return_X_y=True)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    monkeypatch.setattr(datasets, "load_digits", None)
    digits.load()


def test_missing_scikit_learn_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    for build_task in (digits.task, tabular.task):
        with pytest.raises(ValueError, match=r"needs scikit-learn.*hypergrad-jax\[zoo\]"):
            build_task()


# the house


def test_factories():
    """One `task` a file, keyword-only, with a one-line first sentence for the list."""
    files = [f for f in (ROOT / "tasks").glob("*.py") if "\ndef task(" in f.read_text()]
    assert {f.stem for f in files} >= {"digits", "tabular", "images", "quadratic", "ridge"}
    for file in files:
        factory = import_module(f"tasks.{file.stem}").task
        parameters = inspect.signature(factory).parameters.values()
        assert all(p.kind is p.KEYWORD_ONLY for p in parameters)
        assert inspect.getdoc(factory).splitlines()[0].endswith(".")
