"""The gradient of a policy over shared weights: direct part and response against enumeration, closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.core.solve import cg, direct, identity, neumann
from hypergrad.core.types import Variables
from hypergrad.estimators.policies import (
    Network,
    at_rest,
    enumerated,
    factorized,
    independent,
    left_out,
    mixture,
    multitask,
    no_baseline,
    running_mean,
    sampled,
    shared,
    sizes,
    unrolled,
)
from hypergrad.problem import Problem
from hypergrad.space import Choice, Integer, LogReal, Real, Sequence
from hypergrad.testing import assert_close
from models.policies import Recurrent, functions
from tests import tabular
from tests.tabular import SPACE, TWO, deviations

HORIZON = 5
KEY = jax.random.key(1)
POLICY = factorized(SPACE)
PHI = {"op": jnp.array([0.4, -0.2, 0.1]), "num": jnp.array([0.3, -0.5]), "l2": jnp.array(-1.0)}
SMALL = {"op": jnp.array([0.3, -0.4]), "l2": jnp.array(-1.0)}
CHOICE = {"op": TWO["op"], "l2": TWO["l2"]}


def wide(tree):
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), tree)


def estimate(estimator, phi, num=1):
    """The last of `num` estimates in a row."""
    state, step = estimator.init(KEY, phi), jax.jit(estimator.estimate)
    found = None
    for index in range(num):
        state, found = step(jax.random.fold_in(KEY, index), state, phi)
    return found


def run_once(estimator, phi):
    return jax.jit(lambda phi: estimator.estimate(KEY, estimator.init(KEY, phi), phi))(phi)


def recurrent(space, width=6):
    heads = sizes(space)
    return Network(*functions(Recurrent(heads.num_heads, heads.size, width)))


def trained(phi, start=(0.0, 0.0, 0.0), num_steps=HORIZON):
    p, w = tabular.probabilities(phi), np.array(start)
    for _ in range(num_steps):
        w = w - tabular.RATE * tabular.slope(w, p, phi["l2"])
    return w


@pytest.mark.parametrize("num", [1, 2])
def test_unrolled_is_exact_by_enumeration(num):
    """The second window starts where the first ended, which counts as given."""
    start = trained(PHI, num_steps=HORIZON * (num - 1))
    want, response, value = tabular.parts(lambda phi: trained(phi, start), PHI)
    with jax.enable_x64(True):
        for answer in (unrolled(), left_out()):
            est = shared(tabular.problem(), HORIZON, POLICY, response=answer, draws=enumerated())
            got = estimate(est, wide(PHI), num)
            assert_close(got.value, value)
            assert_close(got.info.direct, want)
            if answer.sees == ("objective",):
                assert got.info.response_norm == 0 and got.info.cosine == 0
                break
            assert_close(got.info.response, response)
            assert_close(got.hypergrad, jax.tree.map(np.add, want, response))
            norms = optax.tree.norm(want) * optax.tree.norm(response)
            assert_close(got.info.cosine, optax.tree.vdot(want, response) / norms)
            assert int(got.info.step) == HORIZON * num
    for name in PHI:
        exact = want[name] + response[name]
        assert np.linalg.norm(response[name]) > 0.1 * np.linalg.norm(exact), "cannot be left out"


@pytest.mark.slow
def test_a_window_is_the_last_steps():
    start = trained(PHI, num_steps=3)
    response = tabular.parts(lambda phi: trained(phi, start, 2), PHI)[1]
    est = shared(
        tabular.problem(), HORIZON, POLICY, response=unrolled(2), draws=enumerated(), scale=0.5
    )
    got = estimate(est, PHI)
    assert_close(got.info.response, jax.tree.map(lambda x: 0.5 * x, response), 100.0)


def rest(phi):
    return tabular.minimum(tabular.probabilities(phi), phi["l2"])


@pytest.mark.parametrize("solve", [direct(), cg(), neumann(400)])
def test_at_rest_is_the_closed_form_by_enumeration(solve):
    want, response, value = tabular.parts(rest, PHI)
    with jax.enable_x64(True):
        est = shared(tabular.problem(), 400, POLICY, response=at_rest(solve), draws=enumerated())
        got = estimate(est, wide(PHI))
        assert_close(got.value, value)
        assert_close(got.info.direct, want)
        assert_close(got.info.response, response, 1e5)
        assert got.info.residual < 1e-6


def still(alike=False):
    """The problem at the minimum of its expected loss, where training does not move it."""
    p = tabular.probabilities(SMALL)
    matrices = np.stack([tabular.A[0]] * 6) if alike else tabular.A.copy()
    if not alike:  # a flat option and a steep one
        matrices[0], matrices[2] = 0.1 * tabular.A[0], 3.0 * tabular.A[2]
    l2 = float(np.exp(-1.0))
    hessian = np.einsum("k,kij->ij", p, matrices) + l2 * np.eye(3)
    w = np.linalg.solve(hessian, np.einsum("k,kij,kj->i", p, matrices, tabular.C))
    plain = tabular.problem()

    def loss(w, h, batch):
        gap = w - jnp.asarray(tabular.C)[tabular.outcome(h)]
        a = jnp.asarray(matrices)[tabular.outcome(h)]
        return 0.5 * gap @ a @ gap + 0.5 * jnp.exp(h["l2"]) * jnp.sum(w**2)

    problem = plain._replace(
        init=lambda key, h: jnp.asarray(w), loss=loss, optimizer=lambda h: optax.sgd(0.0)
    )
    return problem, w, matrices, p[[0, 2]], l2


def implicit_mean(num_samples, alike=False):
    """The exact mean of the response of `op` at rest with S draws each, and what it should be."""
    _, w, matrices, q, l2 = still(alike)
    kinds = (0, 2)
    slopes = np.stack([matrices[k] @ (w - tabular.C[k]) for k in kinds])
    scores = np.eye(2) - q
    cross = sum(q[i] * np.outer(slopes[i], scores[i]) for i in range(2))
    pull = w - q @ tabular.D[list(kinds)]
    inverse = np.zeros((3, 3))
    for num in range(num_samples + 1):
        share = np.array([num, num_samples - num]) / num_samples
        chance = float(np.prod([(num_samples - i) / (i + 1) for i in range(num)]))
        chance *= q[0] ** num * q[1] ** (num_samples - num)
        mean = sum(share[i] * matrices[kinds[i]] for i in range(2)) + l2 * np.eye(3)
        inverse += chance * np.linalg.inv(mean)
    whole = sum(q[i] * matrices[kinds[i]] for i in range(2)) + l2 * np.eye(3)
    return -cross.T @ inverse @ pull, -cross.T @ np.linalg.solve(whole, pull)


def many(estimator, phi, num):
    keys = jax.random.split(jax.random.key(3), num)
    state = estimator.init(KEY, phi)
    return jax.jit(jax.vmap(lambda k: estimator.estimate(k, state, phi)[1]))(keys)


@pytest.mark.slow
def test_the_bias_at_rest_falls_as_one_over_samples():
    sizes = (2, 4, 8, 16, 32)
    bias = [np.linalg.norm(np.subtract(*implicit_mean(n))) for n in sizes]
    scaled = np.array(sizes) * bias
    assert np.all(np.abs(scaled / scaled[-1] - 1) < 0.3), scaled
    assert abs(scaled[-2] / scaled[-1] - 1) < 0.05, scaled
    problem, exact = still()[0], implicit_mean(2)[1]
    est = shared(problem, 1, factorized(CHOICE), response=at_rest(direct()), draws=sampled(2))
    each = many(est, SMALL, 20000)
    assert deviations({"op": each.info.response["op"]}, {"op": implicit_mean(2)[0]}) < 4
    assert deviations({"op": each.info.response["op"]}, {"op": exact}) > 5, "it is biased"


@pytest.mark.slow
def test_at_rest_is_unbiased_where_the_curvature_is_not_drawn():
    problem = still(alike=True)[0]
    biased, exact = implicit_mean(4, alike=True)
    np.testing.assert_allclose(biased, exact, rtol=1e-12)
    est = shared(problem, 1, factorized(CHOICE), response=at_rest(direct()), draws=sampled(4))
    each = many(est, SMALL, 20000)
    assert deviations({"op": each.info.response["op"]}, {"op": exact}) < 4
    assert deviations({"op": each.info.response["op"]}, {"op": 0 * exact}) > 8


def one_step(num_samples, rate=0.9):
    """Exact means for one step from zero with S draws: the pathwise response of `op`, and the unbiased one."""
    q = tabular.probabilities(SMALL)[[0, 2]]
    slopes = np.stack([tabular.slope(np.zeros(3), np.eye(6)[k], -1.0) for k in (0, 2)])
    p, scores = tabular.probabilities(SMALL), np.eye(2) - q
    path, exact = np.zeros(2), np.zeros(2)
    for num in range(num_samples + 1):
        counts = np.array([num, num_samples - num])
        chance = float(np.prod(q**counts))
        chance *= float(np.prod([(num_samples - i) / (i + 1) for i in range(num)]))
        w = -rate * counts @ slopes / num_samples
        adjoint = w - p @ tabular.D
        for k in range(2):
            others = (counts @ slopes - slopes[k]) / (num_samples - 1)
            part = adjoint @ (slopes[k] - others) * scores[k]
            path -= chance * counts[k] / num_samples * rate * part
        exact += chance * tabular.judge(w, p, -1.0) * (counts @ scores)
    return path, exact


@pytest.mark.slow
def test_the_bias_of_unrolled_draws_falls_as_one_over_samples():
    sizes = (2, 4, 8, 16, 32)
    scaled = np.array([n * np.linalg.norm(np.subtract(*one_step(n))) for n in sizes])
    assert np.all(np.abs(scaled / scaled[-1] - 1) < 0.1), scaled
    problem = tabular.problem()._replace(optimizer=lambda h: optax.sgd(0.9))
    est = shared(problem, 1, factorized(CHOICE), draws=sampled(2))
    each = many(est, SMALL, 20000)
    path, exact = one_step(2)
    assert deviations({"op": each.info.response["op"]}, {"op": path}) < 4
    assert deviations({"op": each.info.response["op"]}, {"op": exact}) > 5, "it is biased"

    def judge(f):
        """The direct part: E over runs, with the probabilities of the objective's draw moved."""
        runs = tabular.runs(tabular.probabilities(SMALL), 1, 2)
        return sum(
            chance
            * tabular.judge(
                tabular.descend(shares, -1.0, 1, 0.9), tabular.probabilities(f), f["l2"]
            )
            for shares, chance in runs
        )

    assert deviations(each.info.direct, tabular.differences(judge, SMALL)) < 4


@pytest.mark.parametrize("answer", [unrolled(), at_rest(direct())])
def test_no_gradient_leaks_past_the_draws(answer):
    """A baseline lowers the variance of both terms, and does not move their mean."""
    problem = tabular.problem() if answer.sees[-1] == "optimizer" else still()[0]
    shifted = problem._replace(
        loss=lambda w, h, b: problem.loss(w, h, b) + 3.0 * jnp.sum(w),
        objective=lambda w, h, b: problem.objective(w, h, b) + 100.0,
    )
    each = many(
        shared(shifted, 1, factorized(CHOICE), response=answer, draws=sampled(4)), SMALL, 2000
    )
    for part in (each.info.direct["op"], each.info.response["op"]):
        assert np.std(part) < 5.0, "a constant that all draws share adds no noise"


SCHEDULE = {
    "op": Choice(("a", "b")),
    "l2": Real(-3.0, 1.0, -1.0),
    "rate": Sequence(LogReal(0.05, 0.5, 0.2), 4, knots=2),
}


def scheduled():
    problem = tabular.problem()
    return problem._replace(optimizer=lambda h: optax.sgd(hg.schedule(h["rate"])))


@pytest.mark.slow
def test_heads_against_finite_differences():
    """Choices, log-normal heads and the knots of a schedule, through the whole window, in float64."""
    policy = multitask(SCHEDULE, recurrent(SCHEDULE, 3))
    est = shared(scheduled(), 4, policy, draws=enumerated())
    with jax.enable_x64(True):
        phi = wide(policy.init(KEY))
        rough = jax.tree.map(
            lambda x: x + 0.3 * jnp.sin(jnp.arange(x.size) + 1.0).reshape(x.shape), phi
        )
        way = jax.tree.map(lambda x: jnp.cos(7.0 * jnp.arange(x.size) + 0.5).reshape(x.shape), phi)

        @jax.jit
        def found(phi):
            return est.estimate(KEY, est.init(KEY, phi), phi)[1]

        def at(s):
            return float(found(jax.tree.map(lambda x, d: x + s * d, rough, way)).value)

        got = float(optax.tree.vdot(found(rough).hypergrad, way))
        want = (at(1e-5) - at(-1e-5)) / 2e-5
        assert abs(got - want) < 1e-6 * max(1.0, abs(want)), (got, want)
        rate = found(rough).info.response
        assert optax.tree.norm(rate) > 1e-3


def quadrature(mean, std, function, num=60):
    nodes, weights = np.polynomial.hermite_e.hermegauss(num)
    return sum(w * function(mean + std * x) for x, w in zip(nodes, weights, strict=True)) / np.sqrt(
        2 * np.pi
    )


@pytest.mark.slow
def test_credit_is_the_score_function_of_the_window():
    """A learning rate that the response does not see: E[f] over its normal, by quadrature."""
    space = {"op": TWO["op"], "rate": LogReal(0.01, 1.0, 0.3)}
    problem = tabular.problem()
    policy = multitask(space, width=0.6)
    phi = policy.init(KEY)
    p = np.zeros(6)
    p[[0, 2]] = 0.5

    def after(z):
        rate = 0.01 * 100 ** (1 / (1 + np.exp(-z)))
        return tabular.judge(tabular.descend(p, -1.0, 2, rate), p, -1.0)

    middle = np.log(np.log(0.3 / 0.01) / np.log(1.0 / 0.3))
    step = 1e-4
    sides = [quadrature(middle + s, 0.6, after) for s in (step, -step)]
    exact = (sides[0] - sides[1]) / (2 * step)
    answer = at_rest(direct())
    est = shared(problem, 2, policy, response=answer, draws=enumerated(), credit=no_baseline())
    got = many(est, phi, 20000).info.response[:, 0, 0]
    assert deviations({"mean": got}, {"mean": np.array(exact)}) < 4
    assert deviations({"mean": got}, {"mean": np.zeros(())}) > 8
    refused = shared(problem, 2, policy, response=at_rest(), draws=enumerated())
    state = refused.init(KEY, phi)
    with pytest.raises(
        ValueError, match=r"hparams\['rate'\] acts through problem.optimizer, which"
    ):
        refused.estimate(KEY, state, phi)


def mixing():
    """Three losses that a choice picks or mixes, with an optimizer of plain gradient descent."""
    targets = jnp.asarray([[1.0, -1.0], [0.3, 0.2], [-0.5, 2.0]])

    def loss(w, h, batch):
        return jnp.sum((w - hg.select(h["op"], targets)) ** 2) * (
            1 + hg.select(h["op"], jnp.arange(3.0))
        )

    return Problem(
        init=lambda key, h: jnp.array([0.5, 0.1]),
        loss=loss,
        objective=lambda w, h, batch: jnp.sum(jnp.cos(w + hg.select(h["op"], targets))),
        optimizer=lambda h: optax.sgd(0.05),
        train_batch=lambda key, step: (),
        valid_batch=lambda key: (),
    )


def test_darts_of_both_orders():
    """∇_φ f(w − ξ ∇_w L(w, φ), φ), with and without the derivative of the inner step."""
    policy, problem = mixture({"op": Choice(("a", "b", "c"))}), mixing()
    phi = {"op": jnp.array([0.2, -0.5, 0.3])}

    def second(phi, frozen):
        h, g = ({"op": jax.nn.softmax(x["op"])} for x in (phi, frozen))
        w = jnp.array([0.5, 0.1])
        w = w - 0.05 * jax.grad(problem.loss)(w, g, ())
        return problem.objective(w, h, ())

    for answer, want in (
        (unrolled(), jax.grad(lambda phi: second(phi, phi))(phi)),
        (left_out(), jax.grad(second)(phi, phi)),
    ):
        got = estimate(shared(problem, 1, policy, response=answer, draws=sampled(1)), phi)
        assert_close(got.hypergrad, want)
    assert jax.tree.map(int, policy.mode(phi)) == {"op": 2}
    with pytest.raises(ValueError, match="policy is a mixture, which has no outcomes"):
        policy.outcomes(phi)


@pytest.mark.parametrize("make", [independent, pytest.param(recurrent, marks=pytest.mark.slow)])
def test_a_policy_is_a_distribution(make):
    space = {"op": Choice(("a", "b", "c")), "num": Integer(2, 3), "x": Real(0.0, 1.0, 0.25)}
    policy = multitask(space, make(space))
    phi = jax.tree.map(
        lambda x: x + 0.4 * jnp.sin(jnp.arange(x.size) + 2.0).reshape(x.shape), policy.init(KEY)
    )
    held = policy.given(KEY)
    outcomes = jax.jit(held.outcomes)(phi)
    log_probs = jax.jit(jax.vmap(policy.log_prob, (None, 0)))
    probs = jnp.exp(log_probs(phi, outcomes))
    assert_close(jnp.sum(probs), 1.0)
    assert np.ptp(outcomes["x"]) == 0, "all draws of a window share the real leaves"
    keys = jax.random.split(KEY, 4000)
    drawn = jax.jit(jax.vmap(lambda k: held.sample(k, phi)))(keys)
    for i in range(6):
        same = (drawn["op"] == outcomes["op"][i]) & (drawn["num"] == outcomes["num"][i])
        error = np.sqrt(probs[i] * (1 - probs[i]) / len(keys))
        assert abs(np.mean(same) - probs[i]) < 4 * error
    reals = jax.jit(jax.vmap(lambda k: policy.sample(k, phi)["x"]))(keys)
    assert np.std(reals) > 0.02, "without it each has noise of its own"
    if make is independent:
        exact = -float(jnp.sum(probs * jnp.log(probs)))
        assert_close(jax.jit(policy.entropy)(phi), exact, 100.0)
    both = jax.jit(jax.vmap(lambda k: held.draw(k, phi)))(keys)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), both[0], drawn)
    again = log_probs(phi, drawn)
    assert_close(both[1], again, 10.0)
    density = jax.jit(policy.log_density)(phi, {**jax.tree.map(lambda x: x[0], outcomes)})
    assert list(density) == ["x"] and np.isfinite(density["x"])
    at_zero = jax.jit(policy.mode)(policy.init(KEY))
    assert abs(float(at_zero["x"]) - 0.25) < 0.02
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.tree.map(jnp.shape, at_zero),
        {"op": (), "num": (), "x": ()},
    )


@pytest.mark.slow
def test_the_entropy_of_a_recurrent_policy_has_the_right_derivative():
    space = {"op": Choice(("a", "b", "c")), "num": Integer(2, 3)}
    policy = multitask(space, recurrent(space))
    phi = jax.tree.map(
        lambda x: x + 0.3 * jnp.sin(jnp.arange(x.size) + 2.0).reshape(x.shape), policy.init(KEY)
    )

    def exact(phi):
        log = jax.vmap(policy.log_prob, (None, 0))(phi, policy.outcomes(phi))
        return -jnp.sum(jnp.exp(log) * log)

    def again(phi):
        return policy.log_prob(phi, policy.sample(KEY, phi))

    drawn = jax.jit(jax.grad(lambda phi: policy.draw(KEY, phi)[1]))(phi)
    assert_close(drawn, jax.jit(jax.grad(again))(phi))
    value, slope = jax.jit(jax.value_and_grad(exact))(phi)
    got_value, got = jax.jit(jax.value_and_grad(policy.entropy))(phi)
    assert abs(got_value - value) < 0.05 * value
    gap = optax.tree.norm(jax.tree.map(jnp.subtract, got, slope))
    assert gap < 0.25 * optax.tree.norm(slope)


def test_weights_that_are_not_finite_start_anew():
    plain = tabular.problem()
    problem = plain._replace(
        objective=lambda w, h, b: plain.objective(w, h, b),
        optimizer=lambda h: optax.sgd(1e200),
    )
    est = shared(problem, 4, POLICY, response=left_out(), draws=enumerated())
    state, step = est.init(KEY, PHI), jax.jit(est.estimate)
    for _ in range(2):
        state, found = step(KEY, state, PHI)
    assert int(found.info.first_nonfinite) >= 0 and int(found.info.step) == 4
    again = shared(plain, 4, POLICY, response=left_out(), draws=enumerated(), restart_every=8)
    assert [int(estimate(again, PHI, n).info.step) for n in (1, 2, 3)] == [4, 8, 4]


@pytest.mark.slow
def test_a_window_that_diverged_is_dropped():
    """The weights before it go on without its momenta, and it counts as the bound; else new ones do."""
    space = {"op": TWO["op"], "rate": LogReal(0.01, 100.0, 0.1)}
    problem = tabular.problem()._replace(optimizer=lambda h: optax.sgd(h["rate"], 0.5))
    policy = multitask(space, width=0.05)
    phi = policy.init(KEY)
    steep = phi.at[0, 0].add(5.0)
    settings = {"response": at_rest(direct()), "draws": enumerated(), "credit": no_baseline()}
    est = shared(problem, 20, policy, **settings)
    start = est.init(KEY, phi)
    kept, good = jax.jit(est.estimate)(KEY, start, phi)
    state, bad = jax.jit(est.estimate)(KEY, kept, steep)
    assert not good.info.diverged and good.info.direct_norm > 0 and kept.last == good.value
    assert bad.info.diverged and bad.info.direct_norm == 0
    assert_close(bad.info.response_norm, bad.info.credit)
    assert not bad.value <= 11 * start.first and int(bad.info.step) == 40
    assert_close(state.params, kept.params)
    assert int(state.run.train.step) == 20 and state.last == kept.last
    assert not np.any(state.run.train.opt_state[0].trace) and np.any(
        kept.run.train.opt_state[0].trace
    )
    held = policy.given(jax.random.split(jax.random.split(KEY, 4)[0])[0])
    once = held.sample(jax.random.split(jax.random.split(KEY, 4)[0])[1], steep)
    score = jax.grad(lambda f: policy.log_density(f, once)["rate"])(steep)
    gain = float(bad.info.credit / optax.tree.norm(score))
    assert abs(gain - (11 * start.first - kept.last)) < 0.5 * start.first, "of the bound"
    worse = kept._replace(last=2 * start.first)
    state, _ = jax.jit(est.estimate)(KEY, worse, steep)
    assert int(state.run.train.step) == 0 and state.last == start.first
    assert_close(state.params, start.params)
    wide = shared(problem, 20, policy, far=float("inf"), **settings)
    found = jax.jit(wide.estimate)(KEY, kept, phi.at[0, 0].add(1.6))[1]
    assert not found.info.diverged and found.value > 11 * start.first


def _est(problem=None, space=None, phi=None, **settings):
    policy = factorized(SPACE if space is None else space)
    est = shared(problem or tabular.problem(), 3, policy, **{"draws": enumerated(), **settings})
    phi = policy.init(KEY) if phi is None else phi
    return est.estimate(KEY, est.init(KEY, phi), phi)


def _stateful():
    plain = tabular.problem()
    return plain._replace(
        init=lambda key, h: Variables(jnp.zeros(3), {"mean": jnp.zeros(3)}),
        loss=lambda p, h, b: (plain.loss(p.params, h, b), {"mean": p.params}),
        objective=lambda p, h, b: plain.objective(p.params, h, b),
    )


def _born():
    plain = tabular.problem()
    return plain._replace(init=lambda key, h: h["size"] * jnp.ones(3))


def _network(out=3, state=()):
    return Network(
        lambda key: jnp.zeros(out),
        lambda phi: jnp.zeros(2),
        lambda phi, state, index: phi,
        lambda phi, state_, index, value: state_ if state == () else jnp.zeros(state),
    )


CASES = {
    "policy is dict": lambda: shared(tabular.problem(), 3, SPACE),
    "draws is 8": lambda: shared(tabular.problem(), 3, POLICY, draws=8),
    "response is str": lambda: shared(tabular.problem(), 3, POLICY, response="none"),
    "num_samples is 0": lambda: shared(tabular.problem(), 3, POLICY, draws=sampled(0)),
    "horizon is 0": lambda: shared(tabular.problem(), 0, POLICY),
    "scale is -1": lambda: shared(tabular.problem(), 3, POLICY, scale=-1),
    "far is 0": lambda: shared(tabular.problem(), 3, POLICY, far=0),
    "credit is float": lambda: shared(tabular.problem(), 3, POLICY, credit=0.9),
    "window is 5, expected at most horizon = 3": lambda: _est(response=unrolled(5)),
    "window is 0": lambda: unrolled(0),
    "solve is 5": lambda: at_rest(5),
    "max_residual is 0": lambda: at_rest(max_residual=0),
    "hparams['l2'] acts through problem.loss, which this": lambda: _est(
        tabular.problem()._replace(objective=lambda w, h, b: jnp.sum(w**2) + 0.0 * h["op"]),
        response=left_out(),
    ),
    "hparams['rate'] acts through problem.optimizer, which": lambda: _est(
        space=TWO, response=at_rest(), credit=running_mean()
    ),
    "hparams['size'] acts through problem.init alone": lambda: _est(
        _born(), {**CHOICE, "size": Real(0.0, 1.0)}
    ),
    "hparams['unused'] acts through nothing": lambda: _est(space={**CHOICE, "unused": Real(0.0, 1.0)}),
    "problem.init returned Variables": lambda: _est(_stateful(), response=at_rest()),
    "hparams has the leaves ['op']": lambda: _est(phi={"op": PHI["op"]}),
    "use estimators.reverse(...)": lambda: multitask({"l2": SPACE["l2"]}),
    "network is int": lambda: multitask(SPACE, 5),
    "width is -1": lambda: multitask(SPACE, width=-1),
    "network emits (3,), expected outputs of shape (2,)": lambda: multitask(CHOICE, _network()),
    "network reads into a state of shapes (5,)": lambda: multitask(CHOICE, _network(2, 5)),
}  # fmt: skip


@pytest.mark.parametrize("fragment", list(CASES))
def test_refused_in_one_line(fragment):
    with pytest.raises(ValueError) as caught:
        CASES[fragment]()
    message = str(caught.value)
    assert fragment in message
    assert "\n" not in message and len(message) < 500


@pytest.mark.slow
def test_no_real_leaf_is_plain_enas():
    problem = tabular.problem()
    policy = multitask({"op": SPACE["op"], "num": SPACE["num"]})
    assert policy.given is None and policy.log_density is None
    got = estimate(
        shared(problem, 3, policy, response=left_out(), draws=sampled(8)), policy.init(KEY)
    )
    assert np.isfinite(got.value) and got.info.direct_norm > 0


def test_equal_rewards_teach_nothing_and_nan_shows():
    plain = tabular.problem()
    flat = plain._replace(objective=lambda w, h, b: jnp.sum(w**2) + 0.1 * h["l2"])
    got = estimate(shared(flat, 3, POLICY, response=left_out(), draws=sampled(4)), PHI)
    assert max(np.abs(got.info.direct[name]).max() for name in ("op", "num")) < 1e-7
    bad = plain._replace(
        objective=lambda w, h, b: jnp.where(h["op"] == 1, jnp.nan, plain.objective(w, h, b))
    )
    got = estimate(shared(bad, 3, POLICY, response=left_out(), draws=enumerated()), PHI)
    assert np.isnan(got.value) and int(got.info.first_nonfinite) == 3


def test_where_the_loss_bends_down_the_response_is_damped_and_says_so():
    """That of the damped Hessian; one whose solve is worse than none is left out."""
    problem, w, matrices, q, l2 = still()
    bent = problem._replace(loss=lambda w, h, b: problem.loss(w, h, b) - 0.6 * jnp.sum(w**2))
    whole = sum(q[i] * matrices[k] for i, k in enumerate((0, 2))) + (l2 - 1.2) * np.eye(3)
    pull = w - q @ tabular.D[[0, 2]]
    lowest = np.linalg.eigvalsh(whole)[0]
    assert lowest < -0.1
    slopes = [matrices[k] @ (w - tabular.C[k]) for k in (0, 2)]
    cross = sum(q[i] * np.outer(slopes[i], np.eye(2)[i] - q) for i in range(2))

    def found(answer):
        return run_once(
            shared(bent, 1, factorized(CHOICE), response=answer, draws=enumerated()), SMALL
        )

    state, got = found(at_rest())
    damping = float(got.info.damping)
    assert 0.1 <= lowest + damping < 3.0
    v = np.linalg.solve(whole + damping * np.eye(3), pull)
    assert_close(state.solution, v, 100.0)
    assert_close(got.info.response["op"], -cross.T @ v, 100.0)
    assert got.info.residual < 1e-4 and not got.info.refused
    state, strict = found(at_rest(identity(10.0)))
    assert strict.info.refused and strict.info.response_norm == 0 and not np.any(state.solution)
    residual = np.linalg.norm(pull - 10.0 * whole @ pull) / np.linalg.norm(pull)
    assert abs(strict.info.residual - residual) < 1e-3 * residual, "which it still reports"
    assert_close(strict.hypergrad, got.info.direct)


@pytest.mark.slow
def test_a_response_that_is_not_finite_is_left_out():
    def broken(matvec, b, start=None, tolerance=None):
        x, info = direct()(matvec, b)
        return x * jnp.nan, info

    est = shared(tabular.problem(), 3, POLICY, response=at_rest(broken), draws=sampled(4))
    got = estimate(est, PHI, 2)
    assert got.info.refused and got.info.response_norm == 0
    assert_close(got.hypergrad, got.info.direct)
