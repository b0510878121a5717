"""Score-function and relaxed hypergradients against exact enumeration."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad import space as sp
from hypergrad.core.solve import direct
from hypergrad.estimators import implicit, policies, reverse
from hypergrad.estimators.policies import Baseline, factorized, multitask, natural, relaxed, score
from hypergrad.space import Choice, Integer, Real
from hypergrad.testing import assert_close
from hypergrad.train import init_state, unroll
from hypergrad.tuners import descent
from tests import tabular
from tests.tabular import SPACE, deviations, many

HORIZON = 4
KEY = jax.random.key(1)
POLICY = factorized(SPACE)
PHI = {"op": jnp.array([0.4, -0.2, 0.1]), "num": jnp.array([0.3, -0.5]), "l2": jnp.array(-1.0)}


def own(phi, rate=tabular.RATE):
    """The expected objective where every outcome trains weights of its own, in numpy."""
    p = tabular.probabilities(phi)
    each = [
        tabular.judge(tabular.descend(one, phi["l2"], HORIZON, rate), one, phi["l2"])
        for one in np.eye(6)
    ]
    return float(p @ each)


EXACT = tabular.differences(own, PHI)
DISCRETE = factorized({name: SPACE[name] for name in ("op", "num")})
LOGITS = {name: PHI[name] for name in ("op", "num")}
LOGITS_EXACT = {name: EXACT[name] for name in ("op", "num")}


def discrete(lift=0.0):
    """The same problem without its real leaf, which compiles no reverse pass."""
    problem = tabular.problem()
    return problem._replace(
        objective=lambda w, h, b: problem.objective(w, h, b) + lift,
    )


def test_unbiased_against_enumeration():
    each = many(score(tabular.problem(), HORIZON, POLICY, num_samples=4), PHI, 3000)
    assert deviations(each.hypergrad, EXACT) < 4
    assert np.isclose(np.mean(each.value), own(PHI), atol=4 * np.std(each.value) / np.sqrt(3000))
    assert_close(each.info.direct["l2"], np.full(3000, 0.1 * -1.0), 1.0)
    assert np.all(np.isin(each.info.samples["num"], [1, 2]))


@pytest.mark.parametrize("num_samples", [8, 32])
def test_the_standard_error_is_the_spread(num_samples):
    """The values of the others tie the terms together: their own spread would be too small by half."""
    each = many(score(discrete(), HORIZON, DISCRETE, num_samples=num_samples), LOGITS, 1000)
    stated = np.sqrt(np.mean(np.square(each.info.std_error["op"]), 0))
    ratio = stated / np.std(each.hypergrad["op"], 0)
    assert np.all((ratio > 0.93) & (ratio < (1.5 if num_samples == 8 else 1.15))), ratio


def own_sample_in_baseline():
    return Baseline(lambda: (), lambda state, values: (state, values - jnp.mean(values)))


def test_wrong_variants_are_found():
    wrong = score(discrete(), HORIZON, DISCRETE, num_samples=2, baseline=own_sample_in_baseline())
    assert deviations(many(wrong, LOGITS, 4000).hypergrad, LOGITS_EXACT) > 8
    forgetful = DISCRETE._replace(
        log_prob=lambda phi, h: DISCRETE.log_prob(
            {**phi, "num": jax.lax.stop_gradient(phi["num"])}, h
        )
    )
    wrong = score(discrete(), HORIZON, forgetful)
    assert deviations(many(wrong, LOGITS, 1000).hypergrad, LOGITS_EXACT) > 8


def test_learned_baseline():
    """With a single draw an estimate there is no other to leave in."""
    baseline = policies.running_mean(0.5)
    estimator = score(discrete(), HORIZON, DISCRETE, num_samples=1, baseline=baseline)
    state, values = estimator.init(KEY, LOGITS), []
    compiled = jax.jit(estimator.estimate)
    for key in jax.random.split(KEY, 6):
        state, estimate = compiled(key, state, LOGITS)
        values.append(float(estimate.value))
    weights = 0.5 ** np.arange(6, 0, -1)
    assert state[0] / state[1] == pytest.approx(weights @ values / weights.sum(), rel=1e-4)
    each = many(estimator, LOGITS, 4000, state=state)
    assert deviations(each.hypergrad, LOGITS_EXACT) < 4


def test_a_baseline_lowers_the_variance():
    spread = {}
    for make in (policies.no_baseline, policies.leave_one_out):
        estimator = score(discrete(5.0), HORIZON, DISCRETE, num_samples=4, baseline=make())
        each = many(estimator, LOGITS, 1000)
        spread[make] = np.std(each.hypergrad["op"], 0)
        assert deviations(each.hypergrad, LOGITS_EXACT) < 4
    assert np.all(spread[policies.leave_one_out] < 0.5 * spread[policies.no_baseline])


@pytest.mark.slow
def test_choices_of_the_optimizer_and_any_way_through():
    """Draws that the optimizer reads, and real leaves by another estimator."""
    problem = discrete()
    kinds = {**SPACE, "rate": Choice((0.1, 0.3))}
    del kinds["l2"]
    chosen = problem._replace(
        optimizer=lambda h: problem.optimizer({"rate": sp.select(h["rate"], jnp.array([0.1, 0.3]))})
    )
    phi = {**LOGITS, "rate": jnp.array([0.2, -0.1])}

    def both(phi):
        each = [own({**phi, "l2": -1.0}, rate) for rate in (0.1, 0.3)]
        return float(tabular.softmax(phi["rate"]) @ each)

    each = many(score(chosen, HORIZON, factorized(kinds), num_samples=4), phi, 3000)
    assert deviations(each.hypergrad, tabular.differences(both, phi)) < 4

    def settled(phi):
        p = tabular.probabilities(phi)
        ends = [tabular.minimum(one, phi["l2"]) for one in np.eye(6)]
        return sum(p[k] * tabular.judge(ends[k], np.eye(6)[k], phi["l2"]) for k in range(6))

    through = lambda p, n: implicit(p, n, solve=direct())  # noqa: E731
    estimator = score(tabular.problem(), 60, POLICY, num_samples=4, through=through)
    each = many(estimator, PHI, 1000)
    assert deviations(each.hypergrad, tabular.differences(settled, PHI)) < 4


@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_natural_gradient_is_that_of_the_dense_fisher_matrix(damping):
    gradient = {"op": jnp.array([0.3, -0.5, 0.4]), "num": jnp.array([1.0, 2.0]), "l2": PHI["l2"]}
    got = natural(SPACE, damping)(PHI, gradient)
    for name in ("op", "num"):
        scores = np.asarray(jax.jacobian(jax.nn.log_softmax)(PHI[name]), np.float64)
        p = tabular.softmax(np.asarray(PHI[name], np.float64))
        fisher = np.einsum("k,ki,kj->ij", p, scores, scores)
        inverse = (
            np.linalg.inv(fisher + damping * np.eye(len(p))) if damping else np.linalg.pinv(fisher)
        )
        assert_close(got[name], inverse @ np.asarray(gradient[name], np.float64), 1e-1)
    assert got["l2"] == gradient["l2"]


def test_the_estimate_preconditioned():
    steer = natural({"op": SPACE["op"], "num": SPACE["num"]}, 0.1)
    a, b = (
        jax.jit(score(discrete(), HORIZON, DISCRETE, precondition=x).estimate)(KEY, (), LOGITS)[1]
        for x in (None, steer)
    )
    assert_close(b.hypergrad, steer(LOGITS, a.hypergrad), 1e-1)
    assert_close(jax.tree.map(jnp.add, b.info.direct, b.info.response), b.hypergrad, 1e-1)


@pytest.mark.parametrize("make", [factorized, multitask])
def test_contract_of_policies(make):
    """jit = no jit, vmap = loop, no retrace, same key = same bits."""
    policy = make(SPACE)
    phi = policy.init(KEY)

    def draw(key):
        drawn = policy.sample(key, phi)
        return drawn, policy.log_prob(phi, drawn)

    chex.clear_trace_counter()
    compiled = jax.jit(chex.assert_max_traces(draw, n=1))
    keys = jax.random.split(KEY, 3)
    loop = [compiled(key) for key in keys]
    chex.assert_trees_all_equal(compiled(keys[0]), loop[0])
    chex.assert_trees_all_close(draw(keys[0]), loop[0], rtol=1e-5)
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *loop)
    chex.assert_trees_all_close(jax.jit(jax.vmap(draw))(keys), stacked, rtol=1e-5)
    chex.assert_trees_all_equal_structs(loop[0][0], SPACE)


def test_the_policy_is_what_it_says():
    outcomes = POLICY.outcomes(PHI)
    log_probs = jax.vmap(POLICY.log_prob, (None, 0))(PHI, outcomes)
    p = tabular.probabilities(PHI)
    places = np.asarray(tabular.outcome(outcomes))
    assert_close(jnp.exp(log_probs), p[places], 1e-1)
    assert sorted(places) == list(range(6))
    assert_close(POLICY.entropy(PHI), -p @ np.log(p), 1e-1)
    drawn = jax.vmap(POLICY.sample, (0, None))(jax.random.split(KEY, 20000), PHI)
    counts = np.bincount(2 * np.asarray(drawn["op"]) + np.asarray(drawn["num"]) - 1, minlength=6)
    assert np.all(np.abs(counts / 20000 - p) < 4 * np.sqrt(p / 20000))
    assert POLICY.mode(PHI)["op"] == 0 and POLICY.mode(PHI)["num"] == 1
    sp.check_value(SPACE, POLICY.mode(PHI))
    sp.check_value(POLICY.space, PHI)
    assert POLICY.entropy(POLICY.init(KEY)) == pytest.approx(np.log(6), rel=1e-5)


@pytest.mark.slow
def test_descent_comes_near_the_best_choice():
    tuner = descent(score(discrete(), HORIZON, DISCRETE), DISCRETE.space)
    state = tuner.init(KEY)
    for key in jax.random.split(KEY, 60):
        state, _ = tuner.step(key, state)
    phi = sp.constrain(DISCRETE.space, jax.tree.map(lambda x: x[0], state.unconstrained))
    ends = [own({**PHI, "op": 50 * op, "num": 50 * num}) for op in np.eye(3) for num in np.eye(2)]
    found = ends[int(tabular.outcome(DISCRETE.mode(phi)))]
    assert found < np.min(ends) + 0.1 * np.ptp(ends) and found < np.mean(ends) - 0.5
    assert DISCRETE.entropy(phi) < 0.7 * np.log(6)


def test_select_takes_indices_and_weights():
    options = {"a": jnp.arange(6.0).reshape(3, 2), "b": jnp.array([1, 2, 3])}
    picked = sp.select(jnp.int32(2), options)
    assert_close(picked["a"], np.array([4.0, 5.0]))
    assert picked["b"] == 3
    mixed = sp.select(jnp.array([0.5, 0.0, 0.5]), options)
    assert_close(mixed["a"], np.array([2.0, 3.0]))
    assert mixed["b"] == 2.0


# The relaxed problem has one choice of two, so that expectations over Gumbel noise are integrals in one
# dimension: the difference of two Gumbel variables is logistic.
ONE = {"op": Choice(("a", "b")), "num": Integer(1, 3)}
ROWS = jnp.array([[1.0, -0.5], [-0.8, 1.2]])


def bent(phi_name):
    """A problem of one relaxed leaf, far from linear in it."""

    def target(h):
        if phi_name == "op":
            return jnp.tanh(2 * sp.select(h["op"], ROWS))
        return jnp.tanh(ROWS[0] * h["num"])

    return tabular.problem()._replace(
        init=lambda key, h: jnp.zeros(2),
        loss=lambda w, h, b: 0.5 * jnp.sum((w - target(h)) ** 2),
        objective=lambda w, h, b: jnp.sum((w - 0.7) ** 4) + 0.3 * jnp.sum(target(h)),
    )


def after(problem, h):
    state = unroll(problem, h, init_state(problem, KEY, h), HORIZON)
    return problem.objective(state.params, h, ())


@pytest.mark.slow
def test_relaxations_have_their_own_expectation_and_a_bias():
    space, phi = {"op": ONE["op"]}, {"op": jnp.array([0.5, -0.3])}
    problem, wide = bent("op"), np.linspace(0, 1, 4001)[1:-1]
    noise = jnp.asarray(np.log(wide) - np.log1p(-wide))
    values = jnp.stack([after(problem, {"op": jnp.int32(k)}) for k in range(2)])
    exact = jax.grad(lambda x: jax.nn.softmax(x) @ values)(phi["op"])

    def soft(x, noise, temperature):
        y = jax.nn.sigmoid((x[0] - x[1] + noise) / temperature)
        return jnp.stack([y, 1 - y])

    def mean(x, noise, temperature):
        return after(problem, {"op": soft(x, noise, temperature)})

    def through(x, noise, temperature):
        hard = jax.nn.one_hot(jnp.where(x[0] - x[1] + noise > 0, 0, 1), 2)
        slope = jax.grad(lambda y: after(problem, {"op": y}))(hard)
        return jax.grad(lambda x: soft(x, noise, temperature) @ slope)(x)

    bias = {}
    rules = {policies.gumbel_softmax: jax.grad(mean), policies.straight_through: through}
    for make, rule in rules.items():
        each = jax.jit(jax.vmap(rule, (None, 0, None)))
        own_mean = {t: np.mean(each(phi["op"], noise, t), 0) for t in (1.0, 0.1)}
        estimator = relaxed(reverse(problem, HORIZON), space, relaxation=make(1.0), num_samples=4)
        got = many(estimator, phi, 4000)
        assert deviations(got.hypergrad, {"op": own_mean[1.0]}) < 4, make
        assert deviations(got.hypergrad, {"op": np.asarray(exact)}) > 8, "it is biased"
        bias[make] = {t: float(np.linalg.norm(own_mean[t] - exact)) for t in own_mean}
    assert bias[policies.gumbel_softmax][0.1] < 0.5 * bias[policies.gumbel_softmax][1.0]


def test_softmax_without_noise_is_plain_autodiff():
    """DARTS; and an Integer becomes its mean."""
    for name, phi in (("op", jnp.array([0.5, -0.3])), ("num", jnp.array([0.1, 0.4, -0.2]))):
        problem, space = bent(name), {name: ONE[name]}
        estimator = relaxed(
            reverse(problem, HORIZON), space, relaxation=policies.softmax(0.5), num_samples=1
        )
        got = jax.jit(estimator.estimate)(KEY, estimator.init(KEY, {name: phi}), {name: phi})[1]

        def value(x, name=name, problem=problem):
            y = jax.nn.softmax(x / 0.5)
            return after(problem, {name: y if name == "op" else y @ jnp.arange(1.0, 4.0)})

        want, slope = jax.value_and_grad(value)(phi)
        assert_close(got.value, want, 1e-1)
        assert_close(got.hypergrad[name], slope, 1e-1)
        parts = jax.tree.map(jnp.add, got.info.direct, got.info.response)
        assert_close(parts, got.hypergrad, 1e-1)


def test_a_draw_that_diverges_is_said():
    problem = discrete()
    exploding = problem._replace(
        optimizer=lambda h: problem.optimizer({"rate": jnp.where(h["op"] == 2, jnp.inf, 0.1)})
    )
    estimator = score(exploding, HORIZON, DISCRETE, num_samples=16)
    estimate = jax.jit(estimator.estimate)(KEY, (), LOGITS)[1]
    assert estimate.info.first_nonfinite >= 1
    bad = ~np.isfinite(estimate.info.values)
    assert np.array_equal(bad, np.asarray(estimate.info.samples["op"]) == 2) and bad.any()
    assert not np.isfinite(estimate.value)


CASES = {
    "space has only real leaves (x)": lambda: factorized({"x": Real(0, 1)}),
    "space['n'] has 1000 values": lambda: factorized({"n": Integer(1, 1000)}),
    "space['n'] is static": lambda: factorized({"n": Integer(1, 3, static=True)}),
    "num_samples is 0": lambda: score(tabular.problem(), 3, POLICY, num_samples=0),
    "policy is dict": lambda: score(tabular.problem(), 3, SPACE),
    "baseline is float": lambda: score(tabular.problem(), 3, POLICY, baseline=0.9),
    "decay is 1.0": lambda: policies.running_mean(1.0),
    "damping is -1": lambda: natural(SPACE, -1),
    "temperature is 0": lambda: policies.gumbel_softmax(0),
    "relaxation is 0.5": lambda: relaxed(reverse(tabular.problem(), 3), SPACE, relaxation=0.5),
    "estimator is Problem": lambda: relaxed(tabular.problem(), SPACE),
    "hparams has the leaves ['op']": lambda: score(tabular.problem(), 3, POLICY).estimate(
        KEY, (), {"op": PHI["op"]}
    ),
    "hparams['op'] has shape ()": lambda: score(tabular.problem(), 3, POLICY).estimate(
        KEY, (), {**PHI, "op": jnp.int32(1)}
    ),
    "hparams['num'] has dtype int32": lambda: reverse(tabular.problem(), 3).estimate(
        KEY, (), POLICY.mode(PHI)
    ),
    "problem.optimizer failed": lambda: score(
        tabular.problem()._replace(optimizer=lambda h: h["none"]), 3, POLICY
    ).estimate(KEY, (), PHI),
    "combinations of integers and choices": lambda: factorized(
        {str(i): Integer(1, 9) for i in range(4)}
    ).outcomes({str(i): jnp.zeros(9) for i in range(4)}),
}


@pytest.mark.parametrize("fragment", list(CASES))
def test_refused_in_one_line(fragment):
    with pytest.raises(ValueError) as caught:
        CASES[fragment]()
    message = str(caught.value)
    assert fragment in message
    assert "\n" not in message and len(message) < 500
