"""Policies over shared weights: direct and response gradients against closed forms and enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad import space as sp
from hypergrad.core.solve import direct
from hypergrad.core.types import Variables
from hypergrad.estimators import forward, implicit, reverse
from hypergrad.estimators.policies import (
    Baseline,
    enumerated,
    factorized,
    mixed,
    natural,
    no_response,
    own_leaves,
    sampled,
    score_shared,
)
from hypergrad.estimators.slopes import as_real
from hypergrad.problem import Problem
from hypergrad.space import Choice, Real
from hypergrad.testing import assert_close
from hypergrad.tuners import descent
from tests import tabular
from tests.tabular import SPACE, TWO, deviations, many

HORIZON = 5
KEY = jax.random.key(1)
POLICY = factorized(SPACE)
PHI = {"op": jnp.array([0.4, -0.2, 0.1]), "num": jnp.array([0.3, -0.5]), "l2": jnp.array(-1.0)}
SMALL = {"op": jnp.array([0.3, -0.4]), "l2": jnp.array(-1.0), "rate": jnp.array(tabular.RATE)}


def wide(tree):
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), tree)


def estimate(estimator, phi):
    return jax.jit(estimator.estimate)(KEY, estimator.init(KEY, phi), phi)[1]


def trained(phi, num_steps=HORIZON):
    rate = float(phi.get("rate", tabular.RATE))
    return tabular.descend(tabular.probabilities(phi), phi["l2"], num_steps, rate)


@pytest.mark.parametrize("through", [None, forward])
def test_enumerated_is_exact(through):
    """Real, integer and categorical leaves; `TWO` has a learning rate too."""
    with jax.enable_x64(True):
        for space, phi in ((SPACE, PHI), (TWO, SMALL))[: 1 if through else 2]:
            estimator = mixed(
                tabular.problem(), HORIZON, factorized(space), draws=enumerated(), through=through
            )
            got = estimate(estimator, wide(phi))
            direct_part, response, value = tabular.parts(trained, phi)
            assert_close(got.value, value)
            assert_close(got.info.direct, direct_part)
            assert_close(got.info.response, response)
            total = jax.tree.map(np.add, direct_part, response)
            assert_close(got.hypergrad, total)
            assert_close(got.info.response_norm, optax.tree.norm(response))
            norms = optax.tree.norm(direct_part) * optax.tree.norm(response)
            assert_close(got.info.cosine, optax.tree.vdot(direct_part, response) / norms)
            if through is None and space is SPACE:
                narrow = estimate(estimator, phi)
                rounded = jax.tree.map(lambda x: np.asarray(x, np.float32), narrow.hypergrad)
                assert_close(rounded, total, 0.01)


def test_enumerated_at_rest_is_the_closed_form():
    def rest(phi):
        return tabular.minimum(tabular.probabilities(phi), phi["l2"])

    direct_part, response, value = tabular.parts(rest, PHI)
    with jax.enable_x64(True):
        for through in (lambda p, n: implicit(p, n, solve=direct()), reverse):
            estimator = mixed(tabular.problem(), 300, POLICY, draws=enumerated(), through=through)
            got = estimate(estimator, wide(PHI))
            assert_close(got.value, value)
            assert_close(got.info.direct, direct_part)
            assert_close(got.info.response, response)


def test_leaving_the_response_out_is_wrong():
    direct_part, response, value = tabular.parts(trained, PHI)
    got = estimate(
        mixed(tabular.problem(), HORIZON, POLICY, draws=enumerated(), through=no_response), PHI
    )
    assert_close(got.value, value)
    assert_close(got.hypergrad, direct_part)
    assert got.info.response_norm == 0 and got.info.cosine == 0
    exact = jax.tree.map(np.add, direct_part, response)
    for name in ("op", "num", "l2"):
        missing = np.linalg.norm(got.hypergrad[name] - exact[name])
        assert missing > 0.1 * np.linalg.norm(exact[name]), name


def process(num_steps, num_samples, at=SMALL):
    """The exact expectation of training on drawn choices, over all runs: its three parts."""

    def value(phi, f):
        """Runs drawn by phi, the objective's draw by f."""
        p, rate = tabular.probabilities(phi), float(phi["rate"])
        return sum(
            weight
            * tabular.judge(
                tabular.descend(shares, phi["l2"], num_steps, rate),
                tabular.probabilities(f),
                f["l2"],
            )
            for shares, weight in tabular.runs(p, num_steps, num_samples)
        )

    held = {name: np.asarray(x, np.float64) for name, x in at.items()}
    return (
        tabular.differences(lambda f: value(held, f), at),
        tabular.differences(lambda f: value(f, held), at),
    )


@pytest.mark.slow
def test_score_shared_is_unbiased():
    direct_part, response = process(2, 2)
    problem, policy = tabular.problem(), factorized(TWO)
    each = many(score_shared(problem, 2, policy, num_runs=4, num_samples=2), SMALL, 6000)
    assert deviations(each.info.direct, direct_part) < 4
    assert deviations(each.info.response, response) < 4
    total = jax.tree.map(np.add, direct_part, response)
    assert deviations(each.hypergrad, total) < 4
    assert deviations(each.info.direct, total) > 8, "the response is not nothing"
    own = Baseline(lambda: (), lambda state, values: (state, values - jnp.mean(values)))
    wrong = score_shared(problem, 2, policy, num_runs=2, num_samples=2, baseline=own)
    assert deviations(many(wrong, SMALL, 6000).hypergrad, total) > 8


def pathwise(num_samples, rate):
    """Exact expectations for one step from zero with S draws, by the number of draws of the first choice.

    Returns the mean of the pathwise response in the logits, and that of the score form, which is unbiased.
    """
    phi = {**SMALL, "rate": np.asarray(rate)}
    p = tabular.probabilities(phi)
    q = p[[0, 2]]
    slopes = np.stack([tabular.slope(np.zeros(3), np.eye(6)[k], -1.0) for k in (0, 2)])
    scores = np.eye(2) - q  # row k: the gradient of log q_k in the logits
    path, exact = np.zeros(2), np.zeros(2)
    for num in range(num_samples + 1):
        counts = np.array([num, num_samples - num])
        chance = float(np.prod([np.prod(q[k] ** counts[k]) for k in range(2)]))
        chance *= float(np.prod([(num_samples - i) / (i + 1) for i in range(num)]))
        w = -rate * counts @ slopes / num_samples
        adjoint = w - p @ tabular.D
        for k in range(2):
            others = (counts @ slopes - slopes[k]) / (num_samples - 1)
            share = counts[k] / num_samples
            path += chance * share * -rate * (adjoint @ (slopes[k] - others)) * scores[k]
        exact += chance * tabular.judge(w, p, -1.0) * (counts @ scores)
    return path, exact


@pytest.mark.slow
def test_the_bias_of_few_samples_falls_as_one_over_samples():
    rate, sizes = 0.9, (2, 4, 8, 16, 32)
    bias = [np.linalg.norm(np.subtract(*pathwise(n, rate))) for n in sizes]
    scaled = np.array(sizes) * bias
    assert np.all(np.abs(scaled / scaled[-1] - 1) < 0.1), scaled
    phi = {**SMALL, "rate": jnp.array(rate)}
    for num_samples in (2, 4):
        path, exact = pathwise(num_samples, rate)
        estimator = mixed(tabular.problem(), 1, factorized(TWO), draws=sampled(num_samples))
        each = many(estimator, phi, 20000)
        assert deviations({"op": each.info.response["op"]}, {"op": path}) < 4
        assert deviations({"op": each.info.response["op"]}, {"op": exact}) > 5, "it is biased"
        assert deviations(each.info.direct, process(1, num_samples, phi)[0]) < 4, "it is not"


@pytest.mark.slow
def test_implicit_with_draws():
    """Draws over the training set are those of the estimate; the response is near the enumerated one."""
    exact = tabular.parts(lambda f: tabular.minimum(tabular.probabilities(f), f["l2"]), PHI)[1]
    through = lambda p, n: implicit(p, n, solve=direct())  # noqa: E731
    estimator = mixed(tabular.problem(), 60, POLICY, draws=sampled(64), through=through)
    each = many(estimator, PHI, 40)
    for name in PHI:
        got = np.mean(each.info.response[name], 0)
        assert np.linalg.norm(got - exact[name]) < 0.25 * np.linalg.norm(exact[name]) + 0.02
    rated = mixed(tabular.problem(), 60, factorized(TWO), draws=enumerated(), through=through)
    with pytest.raises(ValueError, match=r"hparams\['rate'\] acts on training through"):
        rated.estimate(KEY, rated.init(KEY, SMALL), SMALL)


def test_natural_gradient_of_both_parts():
    plain, steered = (
        estimate(
            mixed(tabular.problem(), 3, POLICY, draws=enumerated(), precondition=precondition), PHI
        )
        for precondition in (None, natural(SPACE))
    )
    for part in ("direct", "response"):
        want = natural(SPACE)(PHI, getattr(plain.info, part))
        assert_close(getattr(steered.info, part), want, 1e-1)
    # of an exact direct gradient in one leaf it is the centred advantage
    descended = tabular.descend(tabular.probabilities(PHI), -1.0, 3)
    f = np.array([tabular.judge(descended, one, -1.0) for one in np.eye(6)])
    advantage = tabular.softmax(np.asarray(PHI["op"], np.float64)) @ f.reshape(3, 2)
    assert_close(steered.info.direct["num"], advantage - advantage.mean(), 1.0)


def test_carried_state_is_averaged():
    """A running mean of what was drawn, read by the objective."""

    def loss(params, h, batch):
        drawn = jnp.asarray(h["op"], jnp.result_type(float))
        value = 0.5 * jnp.sum((params.params - drawn) ** 2)
        return value, {
            "mean": 0.5 * params.state["mean"] + 0.5 * drawn,
            "count": params.state["count"] + 1,
        }

    problem = Problem(
        init=lambda key, h: Variables(jnp.zeros(2), {"mean": jnp.zeros(()), "count": jnp.int32(0)}),
        loss=loss,
        objective=lambda params, h, b: params.state["mean"] + 0.5 * h["x"],
        optimizer=lambda h: optax.sgd(0.1),
        train_batch=lambda key, step: (),
        valid_batch=lambda key: (),
    )
    policy = factorized({"op": Choice(("a", "b")), "x": Real(0.0, 1.0)})
    phi = {"op": jnp.array([0.2, -0.3]), "x": jnp.array(0.5)}
    got = estimate(mixed(problem, 3, policy, draws=enumerated()), phi)
    p = tabular.softmax(np.array([0.2, -0.3]))
    assert_close(got.value, p[1] * (1 - 0.5**3) + 0.25, 1e-1)
    assert_close(got.hypergrad["op"], (1 - 0.5**3) * p[0] * p[1] * np.array([-1.0, 1.0]), 1e-1)


def test_what_the_optimizer_reads_cannot_be_shared():
    problem = tabular.problem()
    rates = jnp.array([0.1, 0.2])
    kinds = {**TWO, "rate": Choice((0.1, 0.2))}
    picky = problem._replace(
        optimizer=lambda h: problem.optimizer({"rate": sp.select(h["rate"], rates)})
    )
    policy = factorized(kinds)
    phi = {**SMALL, "rate": jnp.zeros(2)}
    assert own_leaves(picky, policy.mode(phi)) == ["rate"]
    assert own_leaves(problem, POLICY.mode(PHI)) == []
    for factory in (mixed, score_shared):
        with pytest.raises(
            ValueError, match=r"hparams\['rate'\] is drawn, and read by problem.opt"
        ):
            factory(picky, 3, policy).estimate(KEY, (), phi)
    born = problem._replace(init=lambda key, h: jnp.full(3, 0.1) * h["op"])
    with pytest.raises(ValueError, match=r"hparams\['op'\] is drawn, and read by problem.opt"):
        mixed(born, 3, factorized(TWO)).estimate(KEY, (), SMALL)


@pytest.mark.slow
def test_descent_on_logits_and_reals():
    tuner = descent(
        mixed(tabular.problem(), HORIZON, POLICY, draws=enumerated()), POLICY.space, patience=None
    )
    state, step = tuner.init(KEY), jax.jit(tuner.step)
    values = []
    for key in jax.random.split(KEY, 60):
        state, outcome = step(key, state)
        values.append(float(outcome.values[0]))
    assert values[-1] < values[0] - 0.1
    assert POLICY.entropy(jax.tree.map(lambda x: x[0], state.best)) < 0.8 * np.log(6)


CASES = {
    "policy is dict": lambda: mixed(tabular.problem(), 3, SPACE),
    "draws is 8": lambda: mixed(tabular.problem(), 3, POLICY, draws=8),
    "num_samples is 0": lambda: sampled(0),
    "num_runs is 0": lambda: score_shared(tabular.problem(), 3, POLICY, num_runs=0),
    "horizon is 0": lambda: mixed(tabular.problem(), 0, POLICY),
    "use reverse(...), which differentiates real leaves": lambda: mixed(
        tabular.problem(), 3, POLICY._replace(log_prob=lambda phi, h: jnp.zeros(()))
    ).estimate(KEY, (), PHI),
    "use estimators.reverse(...)": lambda: mixed(
        tabular.problem(), 3, factorized({"l2": SPACE["l2"]})
    ),
    "hparams has the leaves ['op']": lambda: mixed(tabular.problem(), 3, POLICY).estimate(
        KEY, (), {"op": PHI["op"]}
    ),
}


@pytest.mark.parametrize("fragment", list(CASES))
def test_refused_in_one_line(fragment):
    with pytest.raises(ValueError) as caught:
        CASES[fragment]()
    message = str(caught.value)
    assert fragment in message
    assert "\n" not in message and len(message) < 500


def test_check_takes_policies():
    """`hypergrad verify` compares the expected problem of few combinations, whatever differentiates it."""
    problem, space = as_real(tabular.problem(), SPACE, KEY)
    got = estimate(reverse(problem, HORIZON), PHI)
    direct_part, response, value = tabular.parts(trained, PHI)
    assert_close(got.value, value, 1.0)
    assert_close(got.hypergrad, jax.tree.map(np.add, direct_part, response), 1.0)
    sp.check_value(space, PHI)
    real = as_real(tabular.problem(), {"l2": SPACE["l2"]}, KEY)
    assert real[1] == {"l2": SPACE["l2"]}
    picky = tabular.problem()._replace(optimizer=lambda h: optax.sgd(0.1 * h["num"]))
    with pytest.raises(ValueError, match=r"hparams\['num'\] is drawn, and read by problem.opt"):
        as_real(picky, SPACE, KEY)
