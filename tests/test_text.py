"""The task `text`: what it reads and refuses, how it predicts, and its rate of dropout."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.testing import assert_close
from hypergrad.validation import drawn_leaves
from tasks import images, text

KEY = jax.random.key(0)
SMALL = {"batch_size": 4, "length": 8, "width": 8, "num_layers": 1, "num_heads": 2}
WORDS = " ".join(f"{a} {b}" for a in ("the", "a", "no") for b in ("cat", "dog", "sun", "sea") * 20)


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text(WORDS, encoding="utf-8")
    return path


def small(**changes):
    return text.task(**{"horizon": 12, **SMALL, **changes})


def test_a_text_is_cut_into_three_and_numbered_by_its_first_part(tmp_path):
    path = tmp_path / "é.txt"
    whole = "abcé\r\n" * 200 + "Ω" * 120
    path.write_bytes(b"\xef\xbb\xbf" + whole.encode())
    found = text.load(str(path), 8)
    assert found.characters == "\nabcé"
    parts = [len(part) for part in (found.train, found.valid, found.test)]
    assert parts == [896, 112, 112]
    assert list(found.train[:6]) == [2, 3, 4, 5, 1, 2]
    assert (found.test == 0).all()


def test_the_most_frequent_characters_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "MAX_CHARACTERS", 3)
    path = tmp_path / "a.txt"
    path.write_text("aaabbbccd" * 50)
    found = text.load(str(path), 8)
    assert found.characters == "abc" and set(found.train[6:9]) == {3, 0}


@pytest.mark.parametrize("missing", [False, True])
def test_python_brings_a_text(missing, monkeypatch):
    if missing:
        monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    whole = text.shipped()
    assert len(whole) > 20_000 and "\0" not in whole and "function" in whole


def test_the_problem_is_whole(book):
    task = small(data=str(book))
    hg.validate(task)
    inputs, targets, key = task.problem.train_batch(KEY, 0)
    assert inputs.shape == targets.shape == (4, 8)
    np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])
    other = task.problem.train_batch(jax.random.key(1), 0)[0]
    assert (other != inputs).any()
    hparams = hg.space.default(task.space)
    params = jax.jit(task.problem.init)(KEY, hparams)
    scores = jax.jit(task.test)(params, hparams)
    assert scores.ndim == 1 and len(scores) > 1 and (scores > 0).all()
    value = jax.jit(task.problem.loss)(params, hparams, (inputs, targets, key))
    assert abs(value / np.log(2) - scores.mean()) < 1  # bits, and nats


@pytest.mark.parametrize("name", ["text", "images"])
def test_the_snippet_is_the_optimizer_of_the_task(name, book):
    if name == "images":
        pytest.importorskip("sklearn")
    task = small(data=str(book)) if name == "text" else images.task(model="mlp", horizon=12)
    hparams = hg.space.sample(task.space, KEY)
    names = {}
    exec(task.snippet(jax.tree.map(np.asarray, hparams)), names)
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    states = [params, params]
    for i, optimizer in enumerate((names["optimizer"], task.problem.optimizer(hparams))):
        state, update = optimizer.init(params), jax.jit(optimizer.update)
        for _ in range(4):
            updates, state = update(states[i], state, states[i])
            states[i] = optax.apply_updates(states[i], updates)
    assert_close(
        *states, scale=1000.0 if jax.config.jax_enable_x64 else 10.0
    )  # written to six digits
    assert (states[0]["kernel"] != 1).all()


def test_a_character_sees_those_before_it_alone(book):
    model = text.Transformer(5, 8, 8, 1, 2)
    tokens = jnp.arange(8)[None] % 5
    params, apply = jax.jit(model.init)(KEY, tokens), jax.jit(model.apply)
    logits, changed = apply(params, tokens), apply(params, tokens.at[0, 5].set(4))
    np.testing.assert_array_equal(logits[0, :5], changed[0, :5])
    assert (logits[0, 5:] != changed[0, 5:]).any(-1).all()


def test_dropout_is_tuned_and_never_silently_blind(book):
    """True masks are named by whoever is blind to them; relaxed ones have a derivative, that of differences."""
    masked, relaxed = (
        small(data=str(book), dropout=0.2, horizon=2, temperature=t) for t in (None, 0.5)
    )
    hparams = hg.space.default(masked.space)
    assert hparams["dropout"] == pytest.approx(0.2)
    assert drawn_leaves(masked.problem, hparams) == {"hparams['dropout']"}
    assert not drawn_leaves(relaxed.problem, hparams)
    params = jax.jit(relaxed.problem.init)(KEY, hparams)
    batch = relaxed.problem.train_batch(KEY, 0)

    def loss(rate):
        return relaxed.problem.loss(params, {**hparams, "dropout": rate}, batch)

    slope = jax.jit(jax.value_and_grad(loss))
    (high, _), (_, middle), (low, _) = (slope(jnp.float32(x)) for x in (0.31, 0.3, 0.29))
    np.testing.assert_allclose(middle, (high - low) / 0.02, rtol=0.05, atol=1e-3)
    assert middle != 0 and high != low


CASES = {
    "empty": (b"", "is empty, expected a text"),
    "blank": (b" \n\t ", "is empty, expected a text"),
    "binary": (b"\x7fELF\x02\0\0\0" * 200, "has a zero byte at 5, as binary files"),
    "utf-16": ("hello " * 200, "has a zero byte at 3, as binary files and UTF-16 have"),
    "latin": (b"caf\xe9 " * 200, "has the byte 0xe9 at 3, which is not UTF-8"),
    "short": (b"hello", "has 5 characters, expected at least 90 for windows of length = 8"),
    "one": (b"a" * 200, "repeats the one character 'a'"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_no_text_is_refused_in_one_line(name, tmp_path):
    content, message = CASES[name]
    path = tmp_path / "a.txt"
    path.write_bytes(content.encode("utf-16") if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=message) as error:
        small(data=str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "nowhere.txt"}, "data is 'nowhere.txt', a file that is not there"),
        ({"width": 9}, "width is 9, expected a multiple of num_heads = 2"),
        ({"dropout": 0.9}, r"dropout is 0.9, expected a rate in \(0, 0.8\)"),
        ({"temperature": 0.5}, "temperature is 0.5, expected a positive number beside a rate"),
        ({"length": 10**6}, "the text that comes with Python has"),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


@pytest.mark.slow
def test_descent_makes_a_text_more_probable():
    task = text.task(horizon=40, width=16, num_layers=1, batch_size=4)
    study = hg.tune(task.problem, task.space, horizon=40, budget=15, seed=1)
    assert study.best_value < 0.97 * study.trials[0].values[0]
