"""Recommendations over cases where the answer is clear."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad import estimators, space as spaces
from hypergrad.cli import main as cli
from hypergrad.estimators.recommend import recommend
from hypergrad.problem import Examples, Problem
from hypergrad.space import Choice, LogReal, Real, Sequence, schedule, select
from hypergrad.testing import ridge_many
from tests import tabular

KEY = jax.random.key(0)
TARGET = jnp.linspace(-1.0, 1.0, 64)


def sgd(optimizer, **parts):
    """Minibatches of a quadratic that is far from rest after few steps."""
    problem = Problem(
        init=lambda key, h: jnp.zeros(64),
        loss=lambda w, h, b: 0.05 * jnp.sum((w - TARGET - 0.1 * b) ** 2),
        objective=lambda w, h, b: jnp.mean((w - TARGET) ** 2),
        optimizer=optimizer,
        train_batch=lambda key, step: jax.random.normal(key, (64,)),
        valid_batch=lambda key: (),
    )
    return problem._replace(**parts)


def rates(length):
    return {"lr": Sequence(LogReal(1e-2, 1.0), length), "momentum": Real(0.0, 0.95, 0.9)}


def momentum(h):
    return optax.sgd(schedule(h["lr"]), momentum=h["momentum"])


def said(found):
    assert str(found).startswith(f"use estimators.{found.name}(")
    assert all("\n" not in reason and len(reason) < 300 for reason in found.reasons)
    return " | ".join(found.reasons)


def works(found, hparams):
    """The estimator is ready to use."""
    state = found.estimator.init(KEY, hparams)
    estimate = jax.jit(found.estimator.estimate)(KEY, state, hparams)[1]
    assert np.isfinite(estimate.value)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(estimate.hypergrad))


def test_a_training_set_that_no_memory_holds_at_once_is_not_read_at_once():
    """A tebibyte of examples, which are made from their indices."""

    def at(indices):
        return jnp.sin(indices[:, None] * jnp.arange(256.0))

    problem = sgd(
        lambda h: optax.adam(h["lr"]),
        loss=lambda w, h, b: jnp.mean((w - TARGET) ** 2) + jnp.mean((b @ jnp.tile(w, 4)) ** 2),
        train_batch=lambda key, step: at(jax.random.randint(key, (8,), 0, 2**30)),
        train_set=Examples(2**30, at),
    )
    found = recommend(problem, {"lr": LogReal(1e-3, 1.0)}, 5)
    assert found.name == "forward"
    works(found, {"lr": jnp.asarray(0.01)})


def test_one_or_two_hyperparameters():
    problem = sgd(lambda h: optax.adam(h["lr"]))
    found = recommend(problem, {"lr": LogReal(1e-3, 1.0)}, 30)
    assert found.name == "forward" and "1 hyperparameter:" in said(found)
    assert "does not come to rest" in said(found)


@pytest.mark.parametrize(
    ("store", "compute"),
    [("float32", "float32"), ("float32", "bfloat16"), ("float16", "float16")],
)
def test_sixteen_bits_are_for_the_certificate_of_rounding(store, compute):
    problem = sgd(
        lambda h: optax.sgd(h["lr"]),
        init=lambda key, h: jnp.zeros(64, store),
        loss=lambda w, h, b: jnp.mean((w.astype(compute) - TARGET.astype(compute)) ** 2),
    )
    reasons = said(recommend(problem, {"lr": LogReal(1e-3, 1.0)}, 3))
    assert ("estimators.rounding(" in reasons) == (compute != "float32")
    assert compute == "float32" or f"computes in {compute}" in reasons


def test_a_leaf_that_only_sets_odds_is_not_said_to_be_zero():
    problem = sgd(
        lambda h: optax.sgd(0.1),
        loss=lambda w, h, b: jnp.sum(jax.random.bernoulli(b, h["rate"], (64,)) * (w - TARGET) ** 2),
        train_batch=lambda key, step: key,
    )
    found = recommend(problem, {"rate": Real(0.1, 0.9)}, 3)
    reasons = said(found)
    assert found.name == "es" and "a random draw depends on" in reasons
    assert "zero by structure" not in reasons


def test_a_schedule_is_for_reverse_mode():
    problem = sgd(lambda h: optax.adam(schedule(h["lr"])))
    found = recommend(problem, {"lr": rates(30)["lr"]}, 30)
    assert found.name == "reverse" and "30 hyperparameters" in said(found)
    assert "every state fits" in said(found)
    assert found.call == "reverse(problem, 30, backward=mixed_mode(()))"


def test_penalties_at_rest_are_for_the_implicit_function_theorem():
    problem = ridge_many().problem
    found = recommend(problem, {"log_l2": Real(-4.0, 1.0, shape=(4,))}, 200)
    assert found.name == "implicit" and "one linear solve" in said(found)
    early = recommend(problem, {"log_l2": Real(-4.0, 1.0, shape=(4,))}, 5)
    assert early.name == "reverse" and "does not come to rest" in said(early)


def test_rates_at_rest_are_not():
    solved = ridge_many()
    problem = solved.problem._replace(
        loss=lambda w, h, b: solved.problem.loss(w, {"log_l2": jnp.full(4, -1.0)}, b),
        objective=lambda w, h, b: solved.problem.objective(w, {}, b),
        optimizer=lambda h: optax.sgd(schedule(h["lr"])),
    )
    found = recommend(problem, {"lr": Sequence(LogReal(1e-2, 0.5), 200)}, 200)
    assert found.name == "reverse"
    assert "comes to rest, but hparams['lr'] acts on training through problem.optimizer" in said(
        found
    )


def test_a_rate_and_a_penalty_in_one_leaf_are_not():
    solved = ridge_many()
    problem = solved.problem._replace(
        loss=lambda w, h, b: solved.problem.loss(w, {"log_l2": h["x"][1:]}, b),
        objective=lambda w, h, b: solved.problem.objective(w, {}, b),
        optimizer=lambda h: optax.sgd(jnp.exp(h["x"][0])),
    )
    found = recommend(problem, {"x": Real(-4.0, -1.0, -2.0, shape=(5,))}, 200)
    assert found.name == "reverse" and "one linear solve" not in said(found)
    assert "comes to rest, but hparams['x'] acts through problem.optimizer or problem.init too" in (
        said(found)
    )


@pytest.mark.slow
def test_memory_decides_between_passes():
    horizon = 400
    undone = recommend(sgd(momentum), rates(horizon), horizon, memory=100_000)
    assert undone.name == "drift" and "undone in floating point" in said(undone)
    adam = sgd(lambda h: optax.adam(schedule(h["lr"]), b1=h["momentum"]))
    segments = recommend(adam, rates(horizon), horizon, memory=100_000)
    assert segments.name == "reverse" and "cannot be undone" in said(segments)
    assert "mixed_mode((" in segments.call and "mixed_mode(())" not in segments.call


@pytest.mark.slow
def test_a_small_momentum_is_undone_in_integers():
    horizon = 400
    space = {**rates(horizon), "momentum": Real(0.0, 0.95, 0.5)}
    found = recommend(sgd(momentum), space, horizon, memory=100_000)
    assert found.name == "reversible" and "exactly" in said(found)


def test_nothing_fits():
    with pytest.raises(
        ValueError, match=r"memory is 100 bytes, expected at least.*reverse_on_disk"
    ):
        recommend(sgd(lambda h: optax.adam(h["lr"][0])), {"lr": rates(20)["lr"]}, 4, memory=100)


def chaotic(h):
    return optax.sgd(schedule(h["lr"]))


CHAOS = sgd(
    chaotic,
    loss=lambda w, h, b: jnp.sum(jnp.cos(3 * w) + 0.05 * w**2),
    init=lambda key, h: jax.random.normal(key, (64,)),
)


@pytest.mark.slow
def test_chaos_is_for_evolution_and_its_call_works():
    """What is recommended, and what its `call` builds, make the same estimate."""
    space = {"lr": Sequence(LogReal(0.1, 10.0), 60)}
    found = recommend(CHAOS, space, 60)
    assert found.name == "pes" and "gradients through all 60 explode" in said(found)
    assert found.call == "pes(problem, 60, 15, space=space)"
    built = estimators.pes(CHAOS, 60, 15, space=space)
    hparams = spaces.default(space)
    both = []
    for estimator in (found.estimator, built):
        state = jax.jit(estimator.init)(KEY, hparams)
        both.append(jax.jit(estimator.estimate)(KEY, state, hparams)[1])
    np.testing.assert_array_equal(both[0].hypergrad["lr"], both[1].hypergrad["lr"])
    slopes, info = np.asarray(both[0].hypergrad["lr"]), both[0].info
    assert slopes.shape == (60,) and np.all(np.isfinite(slopes)) and np.any(slopes)
    assert np.isfinite(both[0].value) and info.num_nonfinite == 0 and info.horizon == 60
    # where the window that is read off the horizon is one step
    alone = {"lr": LogReal(0.1, 10.0)}
    single = CHAOS._replace(optimizer=lambda h: optax.sgd(h["lr"]))
    prime = recommend(single, alone, 61)
    assert prime.call == "pes(problem, 61, 1, space=space)"


def test_structural_zeros_are_said():
    space = {"lr": rates(30)["lr"], "bits": Real(1.0, 8.0)}
    problem = sgd(lambda h: optax.adam(schedule(h["lr"] * jnp.round(h["bits"]) / 4)))
    found = recommend(problem, space, 30)
    assert found.name == "reverse" and "hparams['bits'] has a hypergradient of zero" in said(found)


def test_a_run_that_is_not_finite_is_refused():
    problem = sgd(lambda h: optax.sgd(1e30 * h["lr"]))
    with pytest.raises(ValueError, match=r"training at the defaults .* is not finite from step \d"):
        recommend(problem, {"lr": LogReal(0.1, 1.0)}, 30)
    with pytest.raises(ValueError, match="memory is 0"):
        recommend(problem, {"lr": LogReal(0.1, 1.0)}, 30, memory=0)


@pytest.mark.slow
def test_integers_and_choices():
    problem = tabular.problem()
    found = recommend(problem, tabular.SPACE, 6)
    assert found.name == "mixed" and found.call.endswith("draws=enumerated())")
    works(found, {"op": jnp.zeros(3), "num": jnp.zeros(2), "l2": jnp.asarray(-1.0)})
    discrete = {name: tabular.SPACE[name] for name in ("op", "num")}
    found = recommend(problem, discrete, 6)
    assert found.name == "score" and "no leaf is real" in said(found)
    works(found, {"op": jnp.zeros(3), "num": jnp.zeros(2)})
    kinds = {**tabular.TWO, "rate": Choice((0.1, 0.3))}
    picky = problem._replace(
        optimizer=lambda h: optax.sgd(select(h["rate"], jnp.array([0.1, 0.3])))
    )
    found = recommend(picky, kinds, 6)
    assert found.name == "score" and "hparams['rate'] acts through the optimizer" in said(found)
    many = {**tabular.SPACE, "more": Choice(tuple(range(9)))}
    found = recommend(problem, many, 6)
    assert found.call.endswith("draws=sampled(8))") and "biased by O(1/8)" in said(found)


def test_the_command(capsys):
    assert cli.main(["recommend", "quadratic", "--horizon", "8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["estimator"] == "reverse" and found["call"].startswith("reverse(problem, 8")
    assert any("hyperparameters" in reason for reason in found["reasons"])
    assert cli.main(["recommend", "ridge"]) == 0
    assert capsys.readouterr().out.startswith("use estimators.implicit(")
    assert cli.main(["recommend", "ridge", "--memory", "none"]) == 2
