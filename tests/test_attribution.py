"""Scores of training examples, against plain autodiff, finite differences and formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import hypergrad as hg
from hypergrad.estimators import (
    exact_leave_one_out,
    gradient_tracing,
    influence,
    linear_datamodeling_score,
    random_subsets,
    retrained,
    solve,
)
from hypergrad.report.examples import extreme_examples
from hypergrad.testing import assert_close

KEY = jax.random.key(3)
N, B, T = 10, 4, 6
RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(N, 3)), RANDOM.normal(size=N)


def network(optimizer, compute=None):
    """A small network on minibatches drawn with replacement."""
    x, y = jnp.asarray(X), jnp.asarray(Y)

    def each(params, batch):
        inputs, targets = batch
        if compute is not None:
            params, inputs, targets = jax.tree.map(
                lambda a: a.astype(compute), (params, inputs, targets)
            )
        hidden = jnp.tanh(inputs @ params["in"])
        return (hidden @ params["out"] - targets) ** 2

    def init(key, hparams):
        first = jax.random.normal(key, (3, 4), x.dtype) / 2
        return {"in": first, "out": jnp.linspace(-1, 1, 4, dtype=x.dtype)}

    def draw(key, step):
        return jax.random.randint(key, (B,), 0, N)

    def at(indices):
        return x[indices], y[indices]

    return hg.Problem(
        init=init,
        loss=lambda params, h, batch: jnp.mean(each(params, batch)),
        objective=lambda params, h, batch: jnp.mean(each(params, batch)),
        optimizer=optimizer,
        train_batch=lambda key, step: at(draw(key, step)),
        valid_batch=lambda key: (x[:3] + 1, y[:3]),
        train_set=hg.Examples(N, at, draw),
    )


def sgd(h):
    return optax.sgd(h["lr"], momentum=0.8)


def adam(h):
    return optax.adam(h["lr"])


H = {"lr": 0.05}


def attribute(problem, **options):
    return jax.jit(lambda h, key: hg.attribution(problem, h, key, T, **options))(H, KEY)


def predictions(params, h):
    return jnp.tanh(jnp.asarray(X[:3]) @ params["in"]) @ params["out"]


def by_hand(problem, value, weights):
    """Train by a plain loop with a weight for each row of each minibatch `[T, B]`; return the value."""
    first, run = jax.random.split(KEY)
    init, run = jax.random.split(first)
    params, optimizer = problem.init(init, H), problem.optimizer(H)
    state = optimizer.init(params)
    for t in range(T):
        key = jax.random.fold_in(run, t)
        inputs, targets = problem.train_batch(key, t)

        def loss(params, t=t, inputs=inputs, targets=targets):
            each = (jnp.tanh(inputs @ params["in"]) @ params["out"] - targets) ** 2
            return jnp.sum(weights[t] * each) / B

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    return value(params, H)


def drawn():
    first, _ = jax.random.split(KEY)
    _, run = jax.random.split(first)
    keys = jax.vmap(lambda t: jax.random.fold_in(run, t))(jnp.arange(T))
    return np.asarray(jax.vmap(lambda key: jax.random.randint(key, (B,), 0, N))(keys))


@pytest.mark.parametrize("optimizer", [pytest.param(sgd, marks=pytest.mark.slow), adam])
def test_scores_are_those_of_plain_autodiff_and_of_differences(optimizer):
    with jax.enable_x64(True):
        problem = network(optimizer)
        by_step = attribute(problem, of=predictions, per_step=True, chunk=2)
        whole = attribute(problem, of=predictions, certified=False)
        ones = jnp.ones((T, B))
        train = jax.jit(lambda w: by_hand(problem, predictions, w))
        expected, index = jax.jit(jax.jacrev(train))(ones), drawn()
        np.testing.assert_array_equal(by_step.indices, index)
        assert_close(by_step.scores, expected)
        assert_close(whole.value, train(ones))
        scores = np.zeros((3, N))
        for t, b in np.ndindex(T, B):
            scores[:, index[t, b]] += np.asarray(expected)[:, t, b]
        assert_close(whole.scores, scores)
        eps = 1e-5
        moved = [train(1 + sign * eps * (index == 2)) for sign in (1, -1)]
        slope = (moved[0] - moved[1]) / (2 * eps)
        np.testing.assert_allclose(whole.scores[:, 2], slope, rtol=1e-6)
        assert np.all(by_step.rounding < 1e-12) and not by_step.advice()
        assert np.all(by_step.info.error < 1e-12) and whole.rounding is None


def test_the_objective_is_attributed_with_and_without_jit():
    problem = network(adam)
    plain = hg.attribution(problem, H, KEY, T, certified=False)
    jitted = attribute(problem)
    assert plain.scores.shape == (N,) and plain.value.shape == jitted.rounding.shape == ()
    for name in ("scores", "value"):
        found = getattr(plain, name), getattr(jitted, name)
        np.testing.assert_allclose(*found, rtol=2e-4, atol=1e-6)
    weights = random_subsets(jax.random.key(1), 3, N, 0.3)
    np.testing.assert_array_equal(weights.sum(1), N - 3)
    values = jax.jit(lambda w: retrained(problem, H, KEY, T, w, chunk=2))(weights)
    index = drawn()
    batch = problem.valid_batch(KEY)
    train = jax.jit(lambda w: by_hand(problem, lambda p, h: problem.objective(p, h, batch), w))
    expected = [train(w[index]) for w in weights]
    np.testing.assert_allclose(values, expected, rtol=1e-5)


def mean_problem():
    """Gradient descent to the mean of numbers, on all of them at a time."""
    data = jnp.asarray(X[:, 0])

    def loss(w, h, batch):
        return 0.5 * jnp.mean((w - batch) ** 2)

    return hg.Problem(
        init=lambda key, h: jnp.zeros((), data.dtype),
        loss=loss,
        objective=lambda w, h, batch: w,
        optimizer=lambda h: optax.sgd(h["lr"]),
        train_batch=lambda key, step: data,
        valid_batch=lambda key: (),
        train_set=hg.Examples(N, lambda i: data[i], lambda key, step: jnp.arange(N)),
    )


def test_all_methods_know_the_mean_of_numbers():
    with jax.enable_x64(True):
        problem, h, horizon = mean_problem(), {"lr": jnp.asarray(0.9)}, 40
        apart = X[:, 0] - X[:, 0].mean()
        through = hg.attribution(problem, h, KEY, horizon, certified=False)
        assert_close(through.scores, apart / N)
        assert_close(influence(problem, h, KEY, horizon, solve=solve.cg()).scores, apart / N)
        gentle = influence(problem, h, KEY, 2, solve=solve.damped(solve.cg(1), 0.1))
        assert any("damped by up to" in line for line in gentle.advice())
        left = jax.jit(lambda h: exact_leave_one_out(problem, h, KEY, horizon, chunk=4))(h)
        assert_close(left.scores, apart / (N - 1))
        weights = 1 - jnp.eye(N)
        assert_close(left.predicted(weights), X[:, 0].mean() - apart / (N - 1))
        traced = gradient_tracing(problem, h, KEY, 7, num_checkpoints=3, rate=lambda step: 0.9)
        mean = X[:, 0].mean()
        at = [mean * (1 - 0.1**t) for t in (3, 5, 7)]
        assert_close(traced.scores, sum(2 * 0.9 * (X[:, 0] - w) / N for w in at))
        three = influence(problem, h, KEY, horizon, of=lambda w, h: jnp.stack([w, 2 * w, w**2]))
        assert_close(three.scores, np.outer([1, 2, 2 * mean], apart / N))


def test_rounding_is_the_error_of_narrow_arithmetic():
    narrow = attribute(network(adam, jnp.bfloat16), of=predictions)
    wide = attribute(network(adam), of=predictions, certified=False)
    error = np.linalg.norm(narrow.scores - wide.scores, axis=1)
    error /= np.linalg.norm(wide.scores, axis=1)
    np.testing.assert_allclose(narrow.rounding, error, rtol=0.1)
    told = [line for line in narrow.advice() if "rounding" in line]
    assert bool(told) == bool(np.any(error > 0.05))


def test_advice_names_losses_that_are_no_mean_and_examples_that_are_others():
    problem = network(sgd)
    total = problem._replace(loss=lambda p, h, batch: len(batch[1]) * problem.loss(p, h, batch))
    assert any("mean of the losses of its rows" in s for s in advised(total))
    other = hg.Examples(N, problem.train_set.at, lambda key, step: jnp.arange(B))
    assert any("train_set.draw" in line for line in advised(problem._replace(train_set=other)))


def advised(problem):
    return attribute(problem, certified=False).advice()


def test_a_carried_state_needs_a_weighted_loss():
    problem = network(sgd)
    stateful = problem._replace(
        init=lambda key, h: hg.Variables(problem.init(key, h), jnp.zeros(())),
        loss=lambda p, h, batch: (problem.loss(p.params, h, batch), p.state + 1),
        objective=lambda p, h, batch: problem.objective(p.params, h, batch),
    )
    with pytest.raises(ValueError, match="returned Variables, expected a loss that is a mean"):
        attribute(stateful)

    def loss(params, h, batch, weights):
        each = jax.vmap(lambda x, y: problem.loss(params.params, h, (x[None], y[None])))(*batch)
        return jnp.mean(weights * each), params.state + 1

    found = attribute(stateful, loss=loss, certified=False)
    expected = attribute(problem, certified=False)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4, atol=1e-7)
    assert not found.advice()


@pytest.mark.slow
def test_rows_draw_by_themselves():
    problem = network(sgd)
    keyed = problem._replace(
        loss=lambda p, h, b: problem.loss(p, h, (b[0] + jax.random.normal(b[2], b[0].shape), b[1])),
        train_batch=lambda key, step: (*problem.train_batch(key, step), key),
    )
    found = attribute(keyed)
    assert np.all(np.isfinite(found.scores)) and found.info.gap > 0.001


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ({"train_set": None}, {}, "problem.train_set is None, expected examples with an index"),
        ({"train_set": hg.Examples(N, lambda i: i)}, {}, "problem.train_set.draw is None"),
        (
            {"train_set": hg.Examples(N, lambda i: i, lambda key, step: jnp.ones(3))},
            {},
            r"draw returned .*expected whole numbers of shape \(B,\)",
        ),
        (
            {"train_set": hg.Examples(N, lambda i: i, lambda key, step: jnp.arange(B + 1))},
            {},
            "expected a row for each of the 5 indices",
        ),
        ({}, {"of": lambda p, h: jnp.ones((2, 3))}, "of returned .*expected one real number"),
        ({}, {"of": lambda p, h: {"a": 1.0}}, "of returned .*expected one real number"),
        ({"optimizer": lambda h: optax.lbfgs()}, {}, "problem has a loop of unknown length"),
        ({}, {"of": 3}, "of is 3, expected a function"),
        ({}, {"chunk": 0}, "chunk is 0, expected a whole number"),
        ({}, {"loss": 3}, "loss is 3, expected a function"),
    ],
)
def test_bad_input_is_refused_in_one_line(change, options, words):
    with pytest.raises(ValueError, match=words) as error:
        hg.attribution(network(sgd)._replace(**change), H, KEY, T, **options)
    assert "\n" not in str(error.value)


def test_the_score_of_datamodels_is_a_mean_rank_correlation():
    problem = mean_problem()
    h, weights = {"lr": jnp.asarray(0.9)}, random_subsets(jax.random.key(0), 30, N, 0.2)
    of = lambda w, h: jnp.stack([w, -w, 0 * w])  # noqa: E731
    found = hg.attribution(problem, h, KEY, 30, of=of, certified=False)
    values = found.predicted(weights)
    exact = linear_datamodeling_score(found, weights, values)
    assert np.isnan(exact.each[2]) and exact.mean == pytest.approx(1) and exact.high >= 1 - 1e-9
    reversed_ = linear_datamodeling_score(found, weights, values * jnp.array([1, -1, 1]))
    np.testing.assert_allclose(reversed_.each[:2], [1, -1])
    noisy = jnp.round(values + 0.2 * jax.random.normal(KEY, values.shape), 1)  # with equal numbers
    each = linear_datamodeling_score(found, weights, noisy).each
    for j in range(2):
        expected = stats.spearmanr(noisy[:, j], values[:, j]).statistic
        np.testing.assert_allclose(each[j], expected, rtol=1e-5)
    assert reversed_.low < reversed_.mean == pytest.approx(0) and "interval" in str(reversed_)
    for wrong in (values[:, :2], values[:2]):
        with pytest.raises(ValueError, match="values is"):
            linear_datamodeling_score(found, weights, wrong)
    with pytest.raises(ValueError, match="weights is"):
        retrained(problem, h, KEY, 3, weights[:, :2])
    with pytest.raises(ValueError, match="num_checkpoints is 5"):
        gradient_tracing(problem, h, KEY, 3, num_checkpoints=5)


def test_extreme_examples_are_drawn_as_pictures_or_rows():
    scores = np.array([0.0, 3.0, -2.0, 1.0])
    figure = extreme_examples(scores, pictures=np.ones((4, 2, 2)), num=2)
    assert [axes.get_title("left") for axes in figure.axes] == ["1", "3", "2", "0"]
    assert "raise" in figure.axes[0].get_ylabel() and "lower" in figure.axes[2].get_ylabel()
    rows = extreme_examples(scores, names=["a", "b", "c", "d$"], num=9)
    marks = [[text.get_text() for text in axes.get_yticklabels()] for axes in rows.axes]
    assert marks == [["b", "d$", "a", "c"], ["c", "a", "d$", "b"]]
    for options, words in (
        ({"scores": np.ones((2, 3))}, "scores is"),
        ({"scores": scores, "names": ["a"]}, "names are 1, expected 4"),
        ({"scores": scores, "num": 0}, "num is 0"),
    ):
        with pytest.raises(ValueError, match=words):
            extreme_examples(**options)
