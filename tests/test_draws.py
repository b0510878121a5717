"""Draws whose odds depend on a hyperparameter: named, evolved, or relaxed."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from jax import random

import hypergrad as hg
from hypergrad.core.draws import DATA, DRAWN, draws_that_lose, marks_of_batch
from hypergrad.core.flow import NOTHING
from hypergrad.estimators import (
    DrawnLeafWarning,
    es,
    evolved,
    forward,
    mixed,
    nres,
    reverse,
    rtho,
    score,
    score_shared,
    shared,
)
from hypergrad.estimators.policies import concrete, factorized
from hypergrad.space import Real
from hypergrad.validation import check_step

X = jax.random.normal(jax.random.key(0), (80, 10), jnp.float32)
Y = X @ jnp.linspace(-1, 1, 10) + 0.5 * jax.random.normal(jax.random.key(1), (80,), jnp.float32)
STEPS, KEY = 40, jax.random.key(0)
H = {"rate": jnp.float32(0.3), "lr": jnp.float32(0.05)}
SLOPE = (
    3.56  # of the mean objective in the rate, from differences at common random numbers: see below
)


def objective(params, hparams, batch):
    return jnp.mean((batch[0] @ params - batch[1]) ** 2)


def dropout(hparams, key, shape):
    return random.bernoulli(key, 1 - hparams["rate"], shape)


def relaxed(temperature):
    return lambda hparams, key, shape: concrete(key, 1 - hparams["rate"], shape, temperature)


def problem_of(mask):
    def loss(params, hparams, batch):
        scaled = mask(hparams, batch[2], batch[0].shape) / (1 - hparams["rate"])
        return objective(params, hparams, (batch[0] * scaled, batch[1]))

    def train_batch(key, step):
        draw, drop = random.split(key)
        rows = random.randint(draw, (16,), 0, 24)
        return X[rows], Y[rows], drop

    return hg.Problem(
        init=lambda key, h: jnp.zeros(10),
        loss=loss,
        objective=objective,
        optimizer=lambda h: optax.sgd(h["lr"]),
        train_batch=train_batch,
        valid_batch=lambda key: (X[24:], Y[24:]),
    )


PROBLEM = problem_of(dropout)


# which draws are named: w is data or weights, h a hyperparameter, k a key

W = jnp.ones((8, 8))
P = jnp.linspace(0.1, 0.9, 8)


def shifted(order, mode):
    """Move columns by a draw."""

    def function(x, h, k):
        rows, cols = jnp.meshgrid(jnp.arange(8.0), jnp.arange(8.0), indexing="ij")
        places = [rows, cols + h * random.normal(k)]
        return jax.scipy.ndimage.map_coordinates(x, places, order, mode)

    return function


def between(far):
    """Look a row up at a drawn place, with the next one or without."""

    def function(x, h, k):
        place = 8 * h * random.uniform(k)
        low = jnp.floor(place).astype(int)
        part = place - low
        return (1 - part) * x[low] + part * x[low + 1 if far else 0]

    return function


def shortened(x, h, k):
    noise = h * random.normal(k, (8, 8))
    norm = jnp.linalg.norm(noise)
    return x + jnp.where(norm > 2.4, 2.4 * noise / norm, noise)


def guarded(x, h, k):
    noise = h * random.normal(k, (8, 8))
    norm = jnp.linalg.norm(noise)
    u = h * random.uniform(k, (8, 8))
    return x + noise / jnp.where(norm < 1e-6, 1.0, norm) + jnp.where(u > 0, jnp.log(u), 0)


def huber(x, h, k):
    off = jnp.abs(x @ W - h * random.normal(k, (8, 8)))
    return jnp.where(off < 0.5, off**2, off - 0.25)


def warped(x, h, k):
    return jnp.interp(jnp.arange(8) + h * random.normal(k, (8,)), jnp.arange(8.0), x[0])


def ordered(x, h, k):
    return x[:, jnp.argsort(random.gumbel(k, (8,)) + h * P)[:3]]


LOST = {
    "bernoulli": lambda x, h, k: x * random.bernoulli(k, 1 - h, (8, 8)) / (1 - h),
    "uniform below": lambda x, h, k: jnp.where(random.uniform(k, (8, 8)) < h, x, 0),
    "a gate that reads data": lambda x, h, k: x * random.bernoulli(k, jax.nn.sigmoid(h * x)),
    "rates of layers": lambda x, h, k: x * random.bernoulli(k, h * P, (8, 8)),
    "categorical": lambda x, h, k: x[:, random.categorical(k, h * P)],
    "categorical of data": lambda x, h, k: x[:, random.categorical(k, h * x)],
    "choice": lambda x, h, k: x[:, random.choice(k, 8, p=jax.nn.softmax(h * P))],
    "floor": lambda x, h, k: x * (jnp.arange(8) < jnp.floor(8 * h * random.uniform(k))),
    "a cast": lambda x, h, k: x * (jnp.arange(8) < (8 * h * random.uniform(k)).astype(int)),
    "randint": lambda x, h, k: x * (jnp.arange(8) < random.randint(k, (), 0, (9 * h).astype(int))),
    "poisson": lambda x, h, k: x * random.poisson(k, h, (8,)),
    "binomial": lambda x, h, k: x * random.binomial(k, 5, h, (8,)),
    "geometric": lambda x, h, k: x * random.geometric(k, h, (8,)),
    "a grid": lambda x, h, k: h * jnp.floor(x / h + random.uniform(k, (8, 8))),
    "a rounded grid": lambda x, h, k: h * jnp.round(x / h + random.uniform(k, (8, 8))),
    "a cast of data": lambda x, h, k: h * (x / h + random.uniform(k, (8, 8))).astype(int),
    "a sign": lambda x, h, k: jnp.sign(x + h * random.normal(k, (8, 8))),
    "a threshold": lambda x, h, k: h * (x + h * random.normal(k, (8, 8)) > 0),
    "a neuron": lambda x, h, k: jnp.where(h * x + random.logistic(k, (8, 8)) > 0, 1.0, 0.0),
    "a jump of noise": lambda x, h, k: (lambda y: jnp.where(y > 0.5, y, 0))(
        x + h * random.normal(k, (8, 8))
    ),
    "a kink and a count": lambda x, h, k: (lambda y: jax.nn.elu(y) * jnp.sum(y > 0))(
        x + h * random.normal(k, (8, 8))
    ),
    "a key": lambda x, h, k: x * random.uniform(random.fold_in(k, (10 * h).astype(int))),
    "the nearest": shifted(0, "nearest"),
    "a place, and not the next": between(False),
    "wald": lambda x, h, k: x * random.wald(k, h, (8, 8)),
    "an order": ordered,
    "the places of top_k": lambda x, h, k: x[
        :, jax.lax.top_k(random.gumbel(k, (8,)) + h * P, 3)[1]
    ],
    "cond": lambda x, h, k: jax.lax.cond(random.uniform(k) < h, lambda: x, lambda: x @ W),
    "a rounded rate": lambda x, h, k: x * random.bernoulli(k, jnp.round(9 * h) / 9, (8,)),
    "checkpoint": jax.checkpoint(lambda x, h, k: x * random.bernoulli(k, h, (8,))),
    "scan": lambda x, h, k: jax.lax.scan(
        lambda c, k: (c * random.bernoulli(k, h, (8,)), None), x, random.split(k, 3)
    )[0],
}
KEPT = {
    "noise": lambda x, h, k: jax.nn.relu((x + h * random.normal(k, (8, 8))) @ W),
    "a kink": lambda x, h, k: jax.nn.leaky_relu((x + h * random.normal(k, (8, 8))) @ W),
    "other kinks": lambda x, h, k: (lambda y: jax.nn.selu(y) + jax.nn.elu(y - 0.3))(
        x + h * random.normal(k, (8, 8))
    ),
    "kinks of noise": lambda x, h, k: x + jax.nn.selu(h * random.normal(k, (8, 8))),
    "a kink in a scan": lambda x, h, k: jax.lax.scan(
        lambda c, k: (jax.nn.leaky_relu(c + h * random.normal(k, (8, 8))), None), x, random.split(k)
    )[0],
    "huber": huber,
    "triangular": lambda x, h, k: x * random.triangular(k, 0.0, h, 1.0),
    "a norm of at most one": shortened,
    "guards": guarded,
    "entropy": lambda x, h, k: x * jax.scipy.special.entr(h * random.uniform(k, (8, 8))),
    "expm": lambda x, h, k: x @ jax.scipy.linalg.expm(h * random.normal(k, (8, 8))),
    "a time warp": warped,
    "a place and the next": between(True),
    **{
        f"a shift, {mode}": shifted(1, mode)
        for mode in ("nearest", "constant", "wrap", "mirror", "reflect")
    },
    "a fixed rate": lambda x, h, k: jax.nn.relu(h * x) * random.bernoulli(k, 0.5, (8, 8)),
    "concrete": lambda x, h, k: x * concrete(k, h, (8, 8)),
    "gumbel": lambda x, h, k: x * jax.nn.softmax((random.gumbel(k, (8,)) + h * P) / 0.5),
    "gamma": lambda x, h, k: x * random.gamma(k, h, (8,)),
    "beta": lambda x, h, k: x * random.beta(k, h, h),
    "truncated normal": lambda x, h, k: x * random.truncated_normal(k, -h, h, (8,)),
    "uniform within": lambda x, h, k: x * random.uniform(k, (8,), minval=-h, maxval=h),
    "rows": lambda x, h, k: jax.nn.leaky_relu(x[random.randint(k, (4,), 0, 8)] @ W * h),
    "a crop": lambda x, h, k: (
        h * jax.lax.dynamic_slice(x, (random.randint(k, (), 0, 4), 0), (4, 8))
    ),
    "a maximum": lambda x, h, k: jnp.max(h * x @ W + random.normal(k, (8, 8)), 1),
    "a sort": lambda x, h, k: jnp.sort(h * x @ W + random.normal(k, (8, 8)), 1)[:, 0],
    "the values of top_k": lambda x, h, k: jax.lax.top_k(h * x + random.normal(k, (8, 8)), 3)[0],
    "a permutation": lambda x, h, k: random.permutation(k, h * x)[0],
    "a width": lambda x, h, k: x * (jnp.arange(8) < 8 * h) * random.bernoulli(k, 0.5, (8,)),
    "stopped": lambda x, h, k: h * x * random.bernoulli(k, jax.lax.stop_gradient(h), (8,)),
}


@pytest.mark.parametrize("name", [*LOST, *KEPT])
def test_a_draw_that_loses_a_derivative_is_found(name):
    function = (LOST | KEPT)[name]
    value = jax.value_and_grad(lambda x, h, k: jnp.sum(function(x, h, k)))
    with jax.default_matmul_precision("default"):
        program = jax.make_jaxpr(value)(W, 0.3, KEY)
    live = [i == 0 for i in range(len(program.jaxpr.outvars))]
    found = draws_that_lose(program, [DATA, frozenset(["rate"]), NOTHING], live)
    assert found == ({"rate"} if name in LOST else set())


SEEN = ["a shift, constant", "a place and the next", "a norm of at most one", "other kinks"]
UNSEEN = ["a grid", "a threshold", "wald"]
SLOW = ["huber", "guards", "triangular", "a time warp", "a shift, wrap", "a shift, reflect"]


@pytest.mark.parametrize(
    "name", [*SEEN, *UNSEEN, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_what_is_found_is_what_the_derivative_lacks(name):
    """The mean derivative is the slope of the mean where nothing is lost, and only there."""
    function = (LOST | KEPT)[name]
    keys, x = random.split(KEY, 10000), 0.3 + jnp.sin(jnp.arange(64.0)).reshape(8, 8) / 2

    def value(h, key):
        return jnp.mean(jnp.exp(function(x, h, key)))

    each = lambda f: jax.vmap(f, (None, 0))  # noqa: E731
    slopes = jax.jit(lambda h: each(value)(h + 0.01, keys) - each(value)(h - 0.01, keys))(0.3)
    grads = np.asarray(jax.jit(each(jax.grad(value)))(0.3, keys))
    off = np.asarray(slopes) / 0.02 - grads
    error = 4 * off.std() / len(keys) ** 0.5 + 0.005 * abs(grads.mean())
    assert (abs(off.mean()) > error) == (name in LOST)


def test_what_a_batch_draws_is_a_draw():
    batch = lambda key: (X[random.randint(key, (4,), 0, 8)], random.uniform(key, (4,)), key)  # noqa: E731
    assert marks_of_batch(jax.make_jaxpr(batch)(KEY))[:2] == [DATA, DRAWN]
    drawn = PROBLEM._replace(
        train_batch=lambda key, step: (X[:16], Y[:16], random.uniform(key, (16, 10))),
    )
    below = lambda h, u, shape: u > h["rate"]  # noqa: E731
    drawn = drawn._replace(loss=problem_of(below).loss)
    with pytest.warns(DrawnLeafWarning, match=r"problem.loss depends on hparams\['rate'\]"):
        jax.eval_shape(reverse(drawn, 3).estimate, KEY, (), H)


# the warning


@pytest.mark.parametrize("make", [reverse, forward], ids=lambda f: f.__name__)
def test_estimate_warns_by_the_name_of_the_leaf(make):
    with pytest.warns(
        DrawnLeafWarning, match=r"hparams\['rate'\], and only part of its derivative"
    ) as said:
        jax.eval_shape(make(PROBLEM, 3).estimate, KEY, (), H)
    assert len(said) == 1 and "\n" not in str(said[0].message)


CLASSES = 3


def measured(read):
    """A classifier with noise on its weights, that writes its accuracy down, and may read it."""

    def init(key, h):
        return hg.Variables(
            jnp.zeros((10, CLASSES)), {"accuracy": jnp.float32(0), "mean": jnp.float32(0)}
        )

    def loss(params, hparams, batch):
        noise = 0.1 * hparams["rate"] * random.normal(batch[2], (10, CLASSES))
        logits, labels = batch[0] @ (params.params + noise), (batch[1] > 0).astype(int)
        accuracy = jnp.mean((jnp.argmax(logits, -1) == labels).astype(jnp.float32))
        state = {"accuracy": accuracy, "mean": 0.9 * params.state["mean"] + accuracy}
        value = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
        return value + (0.1 * params.state["mean"] if read == "loss" else 0), state

    def objective(params, hparams, batch):
        logits, labels = batch[0] @ params.params, (batch[1] > 0).astype(int)
        value = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
        return value + (params.state["accuracy"] if read == "objective" else 0)

    return PROBLEM._replace(init=init, loss=loss, objective=objective)


@pytest.mark.parametrize(("read", "num"), [("nothing", 0), ("loss", 1), ("objective", 1)])
def test_an_accuracy_that_is_written_down_loses_nothing(read, num):
    check = lambda h: (check_step(measured(read), h, real=True), h["rate"])[1]  # noqa: E731
    assert len(drawn_leaves(check, H)) == num


@pytest.mark.parametrize("make", [reverse, forward, rtho], ids=lambda f: f.__name__)
def test_a_leaf_that_only_sets_odds_gets_one_cure(make):
    """Its derivative is zero by structure, because the draw loses it: that is said once."""

    def loss(params, hparams, batch):
        kept = random.bernoulli(batch[2], 1 - hparams["rate"], batch[0].shape)
        return objective(params, hparams, (batch[0] * kept, batch[1]))

    estimator = make(PROBLEM._replace(loss=loss), 3)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        jax.eval_shape(lambda h: estimator.estimate(KEY, estimator.init(KEY, h), h), H)
    assert {w.category for w in said} == {DrawnLeafWarning}
    assert "seen, or none" in str(said[0].message)


RATE = {"rate": H["rate"]}
HELD = PROBLEM._replace(optimizer=lambda h: optax.sgd(0.05))


def drawn_leaves(function, *args):
    """Trace a function; return the messages of the leaves that a draw loses."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        jax.eval_shape(function, *args)
    return [str(w.message) for w in said if w.category is DrawnLeafWarning]


def test_best_response_and_bilevel_methods_name_the_leaf():
    assert len(drawn_leaves(hg.best_response(HELD, 3), RATE, KEY)) == 1
    with pytest.warns(DrawnLeafWarning, match=r"problem.loss depends on hparams\['rate'\]"):
        hg.tuners.bilevel(HELD, {"rate": Real(0.0, 0.9)}, 2)


@pytest.mark.parametrize(
    ("estimator", "warned"),
    [
        ("reverse", 1),
        *(
            pytest.param(name, warned, marks=pytest.mark.slow)
            for name, warned in (("es", 0), ("forward", 1), ("truncated", 1))
        ),
    ],
)
def test_a_descent_names_the_leaf_once(estimator, warned):
    space = {"lr": Real(0.01, 0.1), "rate": Real(0.05, 0.9)}
    problem = PROBLEM._replace(optimizer=lambda h: optax.sgd(h["lr"]))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        hg.tune(problem, space, horizon=3, estimator=estimator, budget=1, num_seeds=2, eval_seeds=2)
    assert len([w for w in said if w.category is DrawnLeafWarning]) == warned


@pytest.mark.parametrize("make", [score, mixed, score_shared, shared])
def test_real_leaves_of_a_policy_are_named(make):
    """A choice has its score; a real leaf beside it goes through the run."""

    def loss(params, hparams, batch):
        return PROBLEM.loss(params, hparams, batch) + hparams["which"] * jnp.sum(params**2)

    policy = factorized({"rate": Real(0.0, 0.9), "which": hg.space.Choice(("a", "b", "c"))})
    phi = policy.init(KEY)
    estimator = make(HELD._replace(loss=loss), 2, policy)
    said = drawn_leaves(estimator.estimate, KEY, jax.eval_shape(estimator.init, KEY, phi), phi)
    assert len(said) == 1 and "rate" in said[0]


def final(problem, rate, key):
    h = {"rate": rate, "lr": H["lr"]}
    state = hg.unroll(problem, h, hg.init_state(problem, key, h), 3)
    return objective(state.params, h, (X[24:], Y[24:]))


@pytest.mark.parametrize(
    "differentiate",
    [
        lambda f: jax.jit(jax.vmap(jax.grad(f), (None, 0))),
        lambda f: jax.jacfwd(lambda rate, keys: jax.vmap(f, (None, 0))(rate, keys)),
        lambda f: jax.grad(lambda rate, keys: jnp.sum(jax.vmap(f)(rate * jnp.ones(2), keys))),
    ],
    ids=["grad", "jacfwd", "grad of vmap"],
)
def test_the_derivative_of_unroll_names_the_leaf_once(differentiate):
    problem = problem_of(lambda *args: dropout(*args))
    f = differentiate(lambda rate, key: final(problem, rate, key))
    keys = random.split(KEY, 2)
    said = [drawn_leaves(lambda *args: f(*args), 0.3, keys) for _ in range(2)]
    assert [len(s) for s in said] == [1, 0] and "problem.loss depends on hparams['rate']" in said[
        0
    ][0]
    assert drawn_leaves(jax.vmap(lambda k: final(problem_of(dropout), 0.3, k)), keys) == []
    by_lr = lambda lr: jnp.sum(hg.unroll(PROBLEM, H | {"lr": lr}, start, 3).params)  # noqa: E731
    start = hg.init_state(PROBLEM, KEY, H)
    assert drawn_leaves(jax.grad(by_lr), 0.1) == []


@pytest.mark.parametrize(("read", "num"), [("nothing", 0), ("loss", 1)])
def test_the_derivative_of_unroll_asks_what_training_reads(read, num):
    problem = measured(read)
    start = hg.init_state(problem, KEY, H)
    f = jax.grad(
        lambda rate: jnp.sum(hg.unroll(problem, H | {"rate": rate}, start, 3).params.params)
    )
    assert len(drawn_leaves(f, 0.3)) == num


class Dropping(linen.Module):
    rate: Any
    of_flax: bool = False

    @linen.compact
    def __call__(self, x, train=False):
        if self.of_flax:
            return linen.Dropout(self.rate, deterministic=not train)(linen.Dense(4)(x))
        kept = random.bernoulli(self.make_rng("dropout"), 1 - self.rate, x.shape)
        return linen.Dense(1)(x * kept / (1 - self.rate) if train else x)


class NnxDropping(nnx.Module):
    def __init__(self, rate, rngs):
        self.dense = nnx.Linear(10, 1, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)

    def __call__(self, x):
        return self.dense(self.dropout(x))


def of_flax(model):
    """Train a model whose rate is a hyperparameter."""

    def loss(params, hparams, batch):
        out, _ = model(hparams["rate"]).apply(params, batch[0], train=True, key=batch[2])
        return jnp.mean((out[:, 0] - batch[1]) ** 2)

    return HELD._replace(init=lambda key, h: model(0.5).init(key, X), loss=loss)


def test_a_rate_of_flax_is_named_or_refused():
    own = of_flax(lambda rate: hg.from_linen(Dropping(rate), train_argument="train"))
    own = own._replace(objective=lambda params, h, batch: jnp.sum(params["Dense_0"]["bias"]))
    assert len(drawn_leaves(reverse(own, 2).estimate, KEY, (), RATE)) == 1
    theirs = lambda rate: hg.from_linen(Dropping(rate, True), train_argument="train")  # noqa: E731
    module = lambda rate: hg.from_nnx(lambda rngs: NnxDropping(rate, rngs))  # noqa: E731
    for model in (theirs, module):
        with pytest.raises(ValueError, match="module got a traced rate, expected a number"):
            jax.eval_shape(reverse(of_flax(model), 2).estimate, KEY, (), RATE)


def test_ways_that_see_the_whole_derivative_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.eval_shape(es(PROBLEM, 3, sigma=0.05).estimate, KEY, (), H)
        evolve = lambda p, n: nres(p, n, 3, sigma=0.05)  # noqa: E731
        estimator = evolved(PROBLEM, 3, ["rate"], evolve)
        state = jax.eval_shape(estimator.init, KEY, H)
        jax.eval_shape(estimator.estimate, KEY, state, H)
        jax.eval_shape(reverse(problem_of(relaxed(0.1)), 3).estimate, KEY, (), H)


@pytest.mark.slow
def test_recommend_names_the_leaf():
    space = {"rate": Real(0.0, 0.9, default=0.3), "lr": Real(0.01, 0.1, default=0.05)}
    made = hg.recommend(PROBLEM, space, 5)
    assert (
        made.name == "evolved" and "hparams['rate']" in str(made) and "a random draw" in str(made)
    )


# what sees all of it


@pytest.mark.slow
def test_evolved_is_both_estimators_side_by_side():
    evolve = lambda p, n: es(p, n, sigma=0.05, num_pairs=4)  # noqa: E731
    estimator = evolved(PROBLEM, 5, ["rate"], evolve)
    _, found = jax.jit(estimator.estimate)(KEY, estimator.init(KEY, H), H)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DrawnLeafWarning)
        _, expected = jax.jit(reverse(PROBLEM, 5).estimate)(KEY, (), H)
    np.testing.assert_allclose(found.hypergrad["lr"], expected.hypergrad["lr"], rtol=1e-6)
    np.testing.assert_allclose(found.value, expected.value, rtol=1e-6)
    held = PROBLEM._replace(optimizer=lambda h: optax.sgd(H["lr"]))
    key = jax.random.fold_in(KEY, 1)
    _, moved = jax.jit(evolve(held, 5).estimate)(key, (), {"rate": H["rate"]})
    np.testing.assert_allclose(found.hypergrad["rate"], moved.hypergrad["rate"], rtol=1e-6)
    total = jax.tree.map(jnp.add, found.info.direct, found.info.response)
    np.testing.assert_allclose(total["rate"], found.hypergrad["rate"], rtol=1e-5)
    with pytest.raises(ValueError, match="leaves is 'dropout', expected one of"):
        evolved(PROBLEM, 5, ["dropout"], evolve).init(KEY, H)
    with pytest.raises(ValueError, match="leaves is 'rate', expected names"):
        evolved(PROBLEM, 5, "rate", evolve)


@pytest.mark.slow
def test_the_slope_of_the_mean_objective_in_a_dropout_rate():
    keys = random.split(random.key(7), 1500)

    def value(rate, key):
        h = H | {"rate": rate}
        state = hg.init_state(PROBLEM, key, h)
        return objective(hg.unroll(PROBLEM, h, state, STEPS).params, h, (X[24:], Y[24:]))

    f = jax.jit(jax.vmap(value, (None, 0)))
    slopes = np.asarray(f(0.35, keys) - f(0.25, keys)) / 0.1
    error = slopes.std() / len(slopes) ** 0.5
    assert abs(slopes.mean() - SLOPE) < 2 * error

    pathwise = np.asarray(jax.jit(jax.vmap(jax.grad(value), (None, 0)))(0.3, keys))
    assert pathwise.mean() < SLOPE - 1

    estimator = evolved(PROBLEM, STEPS, ["rate"], lambda p, n: es(p, n, sigma=0.05, num_pairs=6000))
    _, found = jax.jit(estimator.estimate)(KEY, estimator.init(KEY, H), H)
    assert found.info.evolution.std_error["rate"] < 0.1
    off = abs(found.hypergrad["rate"] - SLOPE)
    assert off < 2 * np.hypot(found.info.evolution.std_error["rate"], error)

    def relaxed_slope(temperature):
        estimate = reverse(problem_of(relaxed(temperature)), STEPS).estimate
        each = jax.jit(jax.vmap(lambda key: estimate(key, (), H)[1].hypergrad["rate"]))
        return float(jnp.mean(each(keys)))

    biases = [SLOPE - relaxed_slope(temperature) for temperature in (1.0, 0.5, 0.1)]
    np.testing.assert_allclose(biases, [2.36, 1.34, 0.24], atol=0.1)
