"""Models of equinox and haiku: trained as one would by hand, with a rate of dropout as a hyperparameter."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import hypergrad as hg
from hypergrad.estimators import DrawnLeafWarning, es, evolved, reverse
from hypergrad.testing import assert_close
from hypergrad.train import split_key

eqx = pytest.importorskip("equinox")
hk = pytest.importorskip("haiku")

KEY = jax.random.key(3)
X = jax.random.normal(jax.random.key(1), (24, 5))
LABELS = jnp.arange(24) % 3
NUM_STEPS = 2


class Net(eqx.Module):
    """A layer with BatchNorm, dropout and an array of integers, and a last layer."""

    dense: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    drop: eqx.nn.Dropout
    out: eqx.nn.Linear
    order: jax.Array

    def __init__(self, rate, *, key):
        first, last = jax.random.split(key)
        self.dense = eqx.nn.Linear(5, 4, key=first)
        self.norm = eqx.nn.BatchNorm(4, "batch", momentum=0.9, mode="batch")
        self.drop = eqx.nn.Dropout(rate)
        self.out = eqx.nn.Linear(4, 3, key=last)
        self.order = jnp.arange(4)[::-1]

    def __call__(self, x, state, *, key=None):
        x, state = self.norm(self.dense(x), state)
        x = jnp.tanh(x)[self.order]
        return self.out(self.drop(x, key=key)), state


def of_equinox(rate):
    return hg.from_equinox(lambda key: eqx.nn.make_with_state(Net)(rate, key=key))


def forward(rate):
    def function(x, is_training):
        x = jnp.tanh(hk.BatchNorm(True, True, 0.9)(hk.Linear(4)(x), is_training))
        if is_training:
            x = hk.dropout(hk.next_rng_key(), rate, x)
        return hk.Linear(3)(x)

    return function


def of_haiku(rate):
    return hg.from_haiku(forward(rate), train_argument="is_training")


MODELS = {"equinox": of_equinox, "haiku": of_haiku}


def entropy(logits, labels, smoothing=0.0):
    wanted = optax.smooth_labels(jax.nn.one_hot(labels, 3), smoothing)
    return optax.softmax_cross_entropy(logits, wanted).mean()


def problem_of(model, rate=0.3):
    """Train with a rate of dropout that is a hyperparameter where there is one."""

    def loss(params, hparams, batch):
        here = model(hparams.get("rate", rate))
        logits, state = here.apply(params, batch[0], train=True, key=batch[2])
        return entropy(logits, batch[1], hparams["smoothing"]), state

    def train_batch(key, step):
        rows = jax.random.randint(key, (8,), 0, 16)
        return X[rows], LABELS[rows], key

    return hg.Problem(
        init=lambda key, hparams: model(rate).init(key, X[:2]),
        loss=loss,
        objective=lambda p, h, batch: entropy(model(rate).apply(p, batch[0])[0], batch[1]),
        optimizer=lambda hparams: optax.sgd(hparams["lr"]),
        train_batch=train_batch,
        valid_batch=lambda key: (X[16:], LABELS[16:]),
    )


HPARAMS = {"lr": jnp.float32(0.3), "smoothing": jnp.float32(0.1)}


def by_hand_equinox(hparams, key):
    """Written with equinox alone, from the keys that a run draws."""
    start = hg.init_state(problem_of(of_equinox), key, hparams)
    first = split_key(key)[0]
    module, state = eqx.nn.make_with_state(Net)(0.3, key=first)
    called = {"axis_name": "batch", "in_axes": (0, None, 0), "out_axes": (0, None)}

    @eqx.filter_grad(has_aux=True)
    def gradient(module, state, batch):
        keys = jax.random.split(batch[2], 8)
        logits, state = jax.vmap(lambda x, s, k: module(x, s, key=k), **called)(
            batch[0], state, keys
        )
        return entropy(logits, batch[1], hparams["smoothing"]), state

    for step in range(NUM_STEPS):
        batch = problem_of(of_equinox).train_batch(jax.random.fold_in(start.key, step), step)
        grads, state = gradient(module, state, batch)
        updates = jax.tree.map(lambda g: -hparams["lr"] * g, grads)
        module = eqx.apply_updates(module, updates)
    judged = eqx.nn.inference_mode(module)
    logits, _ = jax.vmap(judged, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(
        X[16:], state
    )
    return entropy(logits, LABELS[16:])


def by_hand_haiku(hparams, key):
    start = hg.init_state(problem_of(of_haiku), key, hparams)
    function = hk.transform_with_state(forward(0.3))
    params, state = function.init(split_key(key)[0], X[:2], is_training=True)

    def loss(params, state, batch):
        logits, state = function.apply(params, state, batch[2], batch[0], is_training=True)
        return entropy(logits, batch[1], hparams["smoothing"]), state

    for step in range(NUM_STEPS):
        batch = problem_of(of_haiku).train_batch(jax.random.fold_in(start.key, step), step)
        grads, state = jax.grad(loss, has_aux=True)(params, state, batch)
        params = jax.tree.map(lambda w, g: w - hparams["lr"] * g, params, grads)
    logits, _ = function.apply(params, state, None, X[16:], is_training=False)
    return entropy(logits, LABELS[16:])


@pytest.mark.parametrize("name", MODELS)
def test_hypergradients_are_those_of_a_loop_written_by_hand(name):
    by_hand = {"equinox": by_hand_equinox, "haiku": by_hand_haiku}[name]
    estimator = reverse(problem_of(MODELS[name]), NUM_STEPS)
    state = estimator.init(KEY, HPARAMS)
    _, found = jax.jit(estimator.estimate)(KEY, state, HPARAMS)
    value, hypergrad = jax.jit(jax.value_and_grad(by_hand))(HPARAMS, split_key(KEY)[0])
    np.testing.assert_allclose(found.value, value, rtol=1e-5)
    assert all(abs(x) > 1e-4 for x in jax.tree.leaves(hypergrad))
    assert_close(found.hypergrad, hypergrad, scale=1.0)


@pytest.mark.parametrize("name", [pytest.param("equinox", marks=pytest.mark.slow), "haiku"])
def test_a_rate_of_dropout_is_handed_on(name):
    """The same numbers as for a rate of Python, a warning from what is blind to it, none from `evolved`."""
    model = MODELS[name]
    params = model(0.3).init(KEY, X[:2])
    assert isinstance(params, hg.Variables)
    outputs = [
        jax.jit(lambda r, m=m: model(m or r).apply(params, X, train=True, key=KEY))(0.3)
        for m in (None, 0.3)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *outputs)
    other = model(0.6).apply(params, X, train=True, key=KEY)[0]
    assert (other != outputs[0][0]).any()

    problem, hparams = problem_of(model), {**HPARAMS, "rate": jnp.float32(0.3)}
    with pytest.warns(DrawnLeafWarning, match=r"hparams\['rate'\]"):
        jax.eval_shape(reverse(problem, 2).estimate, KEY, (), hparams)
    estimator = evolved(problem, 2, ["rate"], lambda p, n: es(p, n, sigma=0.1))
    state = jax.eval_shape(estimator.init, KEY, hparams)
    jax.eval_shape(estimator.estimate, KEY, state, hparams)


def test_evaluation_leaves_the_state_alone_and_training_moves_it():
    for name, make in MODELS.items():
        model = make(0.0)
        params = model.init(KEY, X[:2])
        _, same = model.apply(params, X)
        _, moved = model.apply(params, X, train=True, key=KEY)
        assert same is params.state
        changed = [
            (a != b).any() for a, b in zip(*map(jax.tree.leaves, (same, moved)), strict=True)
        ]
        assert sum(map(bool, changed)) >= 3, name
        if name == "equinox":
            np.testing.assert_array_equal(moved["order"], [3, 2, 1, 0])


def test_networks_without_state_have_plain_params():
    plain = hg.from_equinox(lambda key: eqx.nn.MLP(3, 2, 4, 1, key=key))
    whole = hg.from_equinox(lambda key: jax_like(key), axis_name=None)
    haiku = hg.from_haiku(lambda x: hk.Linear(2)(x))
    inputs = jax.random.normal(KEY, (5, 3))
    for model in (plain, whole, haiku):
        params = model.init(KEY, inputs)
        outputs, state = model.apply(params, inputs)
        assert isinstance(params, dict) and state is None and outputs.shape == (5, 2)
    params = plain.init(KEY, inputs)
    assert set(params) == {f"layers.{i}.{n}" for i in (0, 1) for n in ("weight", "bias")}
    module = eqx.nn.MLP(3, 2, 4, 1, key=KEY)
    np.testing.assert_allclose(plain.apply(params, inputs)[0], jax.vmap(module)(inputs), rtol=1e-6)


def jax_like(key):
    class Whole(eqx.Module):
        linear: eqx.nn.Linear

        def __call__(self, x):
            return x @ self.linear.weight.T

    return Whole(eqx.nn.Linear(3, 2, key=key))


class Scaled(eqx.Module):
    scale: jax.Array

    def __call__(self, x):
        return self.scale * x


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hg.from_equinox(3), "make is 3, expected a function"),
        (lambda: hg.from_equinox(lambda key: 3), "make returned 3, expected a module of equinox"),
        (
            lambda: hg.from_equinox(lambda key: Net(0.1, key=key)),
            "a module with state .*, expected",
        ),
        (
            lambda: jax.eval_shape(
                lambda h: hg.from_equinox(lambda key: Scaled(h)).init(KEY, None), jnp.ones(())
            ),
            "make keeps a traced value as the weight 'scale'",
        ),
        (lambda: hg.from_haiku(hk.transform(lambda x: x)), "function is .*, expected a function"),
    ],
)
def test_wrong_makers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("init", "message"),
    [
        (eqx.nn.Linear(5, 3, key=KEY), "problem.init is of the module Linear of equinox"),
        (lambda key, hparams: eqx.nn.MLP(5, 3, 4, 1, key=key), "for a module of equinox"),
    ],
)
def test_modules_of_equinox_in_a_problem_are_sent_to_the_adapter(init, message):
    with pytest.raises(ValueError, match=rf"{message}.* hg\.from_equinox\(make\)"):
        hg.validate(problem_of(of_haiku)._replace(init=init), HPARAMS)


@pytest.mark.parametrize("name", MODELS)
def test_a_library_that_is_missing_is_one_line(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=rf"needs {name}.*hypergrad-jax\[{name}\]"):
        MODELS[name](0.3)


class Normed(nnx.Module):
    """A network of flax with BatchNorm between two layers."""

    def __init__(self, rngs):
        wide = {"rngs": rngs, "dtype": jnp.float64, "param_dtype": jnp.float64}
        self.first, self.last = nnx.Linear(3, 4, **wide), nnx.Linear(4, 1, **wide)
        self.norm = nnx.BatchNorm(4, momentum=0.5, **wide)

    def __call__(self, x):
        return self.last(jnp.tanh(self.norm(self.first(x))))


def test_the_derivative_passes_through_running_statistics_of_nnx():
    """The objective reads them; differences at two distances, the rest of whose error cancels."""
    with jax.enable_x64(True):
        model = hg.from_nnx(lambda rngs: Normed(rngs))
        x = jax.random.normal(jax.random.key(1), (8, 3))
        y = x[:, :1] ** 2

        def loss(params, hparams, batch):
            outputs, state = model.apply(params, x, train=True)
            return jnp.mean((outputs - y) ** 2), state

        problem = hg.Problem(
            init=lambda key, h: jax.tree.map(jnp.float64, model.init(key, x)),
            loss=loss,
            objective=lambda params, h, batch: jnp.mean((model.apply(params, x)[0] - y) ** 2),
            optimizer=lambda h: optax.sgd(h["lr"]),
            train_batch=lambda key, step: None,
            valid_batch=lambda key: None,
        )

        @jax.jit
        def run(rate):
            state = hg.init_state(problem, jax.random.key(0), {"lr": rate})
            return problem.objective(hg.unroll(problem, {"lr": rate}, state, 3).params, {}, None)

        slopes = [(run(0.1 + h) - run(0.1 - h)) / (2 * h) for h in (1e-3, 2e-3)]
        expected = (4 * slopes[0] - slopes[1]) / 3
        np.testing.assert_allclose(jax.grad(run)(0.1), expected, rtol=1e-7)
