"""The flags of jax that help to find bugs find none in the package: one member of each family under each."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad import curvature, populations, schedulers, searchers, tuners
from hypergrad.core import solve
from hypergrad.estimators import mixed, policies
from hypergrad.space import Choice, LogReal, Real

STEPS = 3
DATA = jnp.asarray(np.random.default_rng(0).normal(size=(8, 2)), jnp.float32)
SPACE = {"lr": LogReal(0.01, 0.1), "l2": Real(0.1, 1.0, shape=(2,))}
DRAWN = {"kind": Choice(("small", "large")), "l2": Real(0.1, 1.0)}


PROBLEM = hg.Problem(
    init=lambda key, h: {"w": jax.random.normal(key, (2,))},
    loss=lambda p, h, b: jnp.mean((b @ p["w"] - 1) ** 2) + jnp.sum(h["l2"] * p["w"] ** 2),
    objective=lambda p, h, b: jnp.mean((b @ p["w"] - 1) ** 2),
    optimizer=lambda h: optax.sgd(h["lr"], momentum=0.8),
    train_batch=lambda key, step: DATA[jax.random.randint(key, (4,), 0, 8)],
    valid_batch=lambda key: DATA + 0.1 * jax.random.normal(key, DATA.shape),
)
OF_LOSS = hg.problem.with_hparams(PROBLEM, lambda h: {"lr": 0.05, **h})


def key():
    return jax.random.key(0)


def estimate(estimator, hparams):
    state = estimator.init(jax.random.key(1), hparams)
    return jax.jit(estimator.estimate)(key(), state, hparams)[1].hypergrad


def advance(tuner):
    state = tuner.init(key())
    for seed in (1, 2):
        state, trials = tuner.step(jax.random.key(seed), state)
    return trials.values


def search(searcher, num=4):
    """Ask twice and tell once."""
    state = searcher.init(key())
    hparams = searcher.ask(jax.random.key(1), state, num)
    values = jnp.arange(num, dtype=jnp.float32)
    told = searchers.Trials(hparams, values, jnp.ones(num, int), jnp.arange(num), {})
    return searcher.ask(jax.random.key(2), searcher.tell(state, told), num)


def schedule(scheduler):
    members = populations.population(PROBLEM)
    hparams = searchers.random(SPACE).ask(key(), (), 4)
    return jax.jit(lambda key, h: scheduler(members, key, h).values)(jax.random.key(1), hparams)


def respond():
    value = lambda h, k: jnp.sum(hg.best_response(OF_LOSS, STEPS)(h, k)["w"])  # noqa: E731
    return jax.jit(jax.grad(value))({"l2": jnp.ones(2)}, key())


def draw():
    loss = lambda p, h, b: PROBLEM.loss(p, {"l2": h["l2"] + h["kind"] / 9}, b)  # noqa: E731
    problem = PROBLEM._replace(loss=loss, optimizer=lambda h: optax.sgd(0.05))
    policy = policies.factorized(DRAWN)
    return estimate(mixed(problem, STEPS, policy), policy.init(jax.random.key(3)))


def solved():
    matrix = jnp.array([[2.0, 1.0], [1.0, 3.0]])
    return jax.jit(lambda b: solve.cg()(lambda x: {"x": matrix @ x["x"]}, b))({"x": jnp.ones(2)})


def curved():
    params = {"w": jnp.ones((2, 2))}
    loss = lambda p, batch: jnp.mean(jnp.tanh(batch @ p["w"]) ** 2)  # noqa: E731
    return jax.jit(lambda p, k: curvature.top_eigenvalues(loss, p, DATA, k, num=1))(params, key())


def searched():
    members = populations.population(PROBLEM)
    return tuners.search(members, searchers.random(SPACE), schedulers.full(STEPS), 4)


FAMILIES = {
    "estimators": lambda: estimate(
        hg.estimators.reverse(PROBLEM, STEPS), {"lr": jnp.float32(0.05), "l2": jnp.ones(2)}
    ),
    "online estimators": lambda: estimate(
        hg.estimators.rtho(PROBLEM, STEPS), {"lr": jnp.float32(0.05), "l2": jnp.ones(2)}
    ),
    "responses": respond,
    "policies": draw,
    "solvers": solved,
    "curvature": curved,
    "searchers": lambda: search(searchers.sobol(SPACE)),
    "schedulers": lambda: schedule(schedulers.halving(STEPS, min_steps=1)),
    "tuners": lambda: advance(searched()),
    "bilevel": lambda: advance(tuners.bilevel(OF_LOSS, {"l2": SPACE["l2"]}, STEPS)),
}
FLAGS = {
    "numpy_rank_promotion": lambda: jax.numpy_rank_promotion("raise"),
    "debug_key_reuse": lambda: jax.debug_key_reuse(True),
    "debug_nans": lambda: jax.debug_nans(True),
    "disable_jit": lambda: jax.disable_jit(True),
    "check_tracer_leaks": lambda: jax.check_tracer_leaks(True),
    "log_compiles": lambda: jax.log_compiles(True),
}


QUICK = {
    "numpy_rank_promotion": ("searchers", "schedulers"),
    "debug_key_reuse": ("estimators", "online estimators"),
    "debug_nans": ("solvers",),
    "disable_jit": ("solvers",),
    "check_tracer_leaks": ("solvers",),
    "log_compiles": ("curvature",),
}
"""Families that found a bug under the flag once, or are cheap; the slow suite has all of them."""


@pytest.mark.parametrize(
    ("flag", "family"),
    [
        pytest.param(flag, family, marks=() if family in QUICK[flag] else pytest.mark.slow)
        for flag in FLAGS
        for family in FAMILIES
    ],
)
def test_a_flag_finds_no_bug(flag, family):
    with FLAGS[flag]():
        found = FAMILIES[family]()
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(found))
