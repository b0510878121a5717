"""Implicit hypergradients against closed forms, finite differences and unrolling, and their certificate."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad import tuners
from hypergrad.core import solve as solvers
from hypergrad.core.types import Variables
from hypergrad.estimators import advice, average, implicit, plain, reverse, truncated
from hypergrad.estimators.advice import StructuralZeroWarning
from hypergrad.estimators.implicit.response import (
    best_response,
    full_batch,
    gauss_newton,
    hessian_of_loss,
    next_batch,
)
from hypergrad.problem import Problem
from hypergrad.space import Real
from hypergrad.testing import (
    assert_close,
    geometric,
    quadratic_bilevel,
    ridge,
    ridge_many,
    weighted_least_squares,
)
from hypergrad.train import averaged, init_state, split_key, unroll

KEY = jax.random.key(5)
STEPS = 400
CLOSED = {f.__name__: f for f in (ridge, ridge_many, weighted_least_squares, quadratic_bilevel)}


def estimate(estimator, hparams, key=KEY):
    return jax.jit(estimator.estimate)(key, estimator.init(key, hparams), hparams)[1]


def total(solved):
    return jax.tree.map(np.add, solved.direct, solved.response)


@pytest.mark.parametrize(
    ("name", "wide"), [*((name, True) for name in CLOSED), ("ridge_many", False)]
)
def test_closed_forms(name, wide):
    with jax.enable_x64(wide):
        solved = CLOSED[name]()
        got = estimate(implicit(solved.problem, STEPS), solved.hparams)
        scale = 1e-2 if wide else 1.0
        assert_close(got.value, solved.value, scale)
        assert_close(got.info.direct, solved.direct, scale)
        assert_close(got.info.response, solved.response, scale)
        assert_close(got.hypergrad, total(solved), scale)
        assert got.info.converged and got.info.smallest_curvature > 0
        assert got.info.horizon == STEPS and got.info.first_nonfinite == -1
        assert not advice(got)


def test_solvers_and_curvatures():
    with jax.enable_x64(True):
        solved = ridge_many()
        outputs = lambda w, h, batch: (batch[0] @ w, w)  # noqa: E731

        def convex(z, h, batch):
            penalty = 0.5 * jnp.sum(jnp.exp(h["log_l2"]) * z[1] ** 2)
            return 0.5 * jnp.mean((z[0] - batch[1]) ** 2) + penalty

        exact = {
            "gmres": {"solve": solvers.gmres()},
            "fixed_point": {"solve": solvers.fixed_point()},
            "gauss_newton": {"curvature": gauss_newton(outputs, convex)},
        }
        biased = {
            "identity": {"solve": solvers.identity()},
            "wrong curvature": {
                "curvature": lambda *args: lambda u: 2 * hessian_of_loss(*args)(u)  # deliberately
            },
        }
        for name, settings in exact.items():
            got = estimate(implicit(solved.problem, STEPS, **settings), solved.hparams)
            assert got.info.converged, name
            assert_close(got.hypergrad, total(solved), 1.0)
        for name, settings in biased.items():
            got = estimate(implicit(solved.problem, STEPS, **settings), solved.hparams)
            with pytest.raises(AssertionError):
                assert_close(got.hypergrad, total(solved), 1e5)
            cosine = np.vdot(got.hypergrad["log_l2"], total(solved)["log_l2"])
            assert cosine > 0, name


def test_the_neumann_series_is_truncated_descent_at_the_minimum():
    """K terms with step α are K steps of full-batch gradient descent with rate α, from the minimum on."""
    with jax.enable_x64(True):
        solved = weighted_least_squares()
        rate = 0.2
        problem = solved.problem._replace(optimizer=lambda h: optax.sgd(rate))
        for num_terms in (2, 20):
            window = estimate(truncated(problem, 2000, num_terms), solved.hparams)
            solve = solvers.neumann(num_terms, step_size=rate)
            series = estimate(implicit(problem, 2000, solve=solve), solved.hparams)
            assert_close(series.hypergrad, window.hypergrad, 1e-2)
        with pytest.raises(AssertionError):
            assert_close(series.hypergrad, total(solved), 1e3)


def network(horizon=3000):
    """A small smooth net with penalties a layer and example weights, trained to rest."""
    random = np.random.default_rng(3)
    x, noise = random.normal(size=(2, 12, 3)), 0.3 * random.normal(size=(2, 12))
    y = np.sin(x.sum(-1)) + noise
    train, valid = ((jnp.asarray(x[i]), jnp.asarray(y[i])) for i in range(2))

    def outputs(w, h, batch):
        return jnp.tanh(batch[0] @ w["one"]) @ w["two"], w

    def convex(z, h, batch):
        made, w = z
        fit = jnp.mean(jnp.exp(h["weight"]) * (made - batch[1]) ** 2)
        penalties = [jnp.exp(h["log_l2"][i]) * jnp.sum(w[n] ** 2) for i, n in enumerate(w)]
        return fit + sum(penalties)

    def init(key, h):
        a, b = jax.random.split(key)
        one = jax.random.normal(a, (3, 4), train[0].dtype)
        return {"one": one, "two": jax.random.normal(b, (4,), train[0].dtype)}

    problem = Problem(
        init=init,
        loss=lambda w, h, batch: convex(outputs(w, h, batch), h, batch),
        objective=lambda w, h, batch: jnp.mean((outputs(w, h, batch)[0] - batch[1]) ** 2),
        optimizer=lambda h: optax.sgd(0.1, momentum=0.9),
        train_batch=lambda key, step: train,
        valid_batch=lambda key: valid,
    )
    hparams = {"log_l2": jnp.asarray([-3.0, -4.0]), "weight": jnp.linspace(-0.5, 0.5, 12)}
    return problem, hparams, outputs, convex


def test_finite_differences_on_a_small_net():
    with jax.enable_x64(True):
        problem, hparams, _, _ = network()
        got = estimate(implicit(problem, 3000), hparams)
        assert got.info.gradient_norm < 1e-9 and not advice(got)

        @jax.jit
        def value(h):
            final = unroll(problem, h, init_state(problem, split_key(KEY)[0], h), 3000)
            return problem.objective(final.params, h, problem.valid_batch(KEY))

        random = np.random.default_rng(0)
        for name in hparams:
            direction = random.normal(size=hparams[name].shape)
            moved = [{**hparams, name: hparams[name] + s * 1e-5 * direction} for s in (1, -1)]
            slope = (value(moved[0]) - value(moved[1])) / 2e-5
            assert abs(np.vdot(got.hypergrad[name], direction) - slope) < 1e-6 * abs(slope), name
        response = jax.jit(best_response(problem, 3000))
        grads = jax.jit(
            jax.grad(
                lambda h: problem.objective(
                    response(h, split_key(KEY)[0]), h, problem.valid_batch(KEY)
                )
            )
        )(hparams)
        assert_close(grads, got.hypergrad, 1e-1)


@pytest.mark.slow
def test_the_error_is_of_the_order_of_the_gradient():
    with jax.enable_x64(True):
        solved = ridge()
        early, late = (estimate(implicit(solved.problem, num), solved.hparams) for num in (3, 12))
        errors = [
            abs(float(e.hypergrad["log_l2"] - total(solved)["log_l2"])) for e in (early, late)
        ]
        norms = [float(e.info.gradient_norm) for e in (early, late)]
        assert errors[0] > 1e-3 and norms[0] > 3 * norms[1]
        assert 0.2 < (errors[0] / norms[0]) / (errors[1] / norms[1]) < 5
        # the certificate says by how much the objective is still off
        for got in (early, late):
            assert abs(got.info.gap - (got.value - solved.value)) < 0.3 * abs(got.info.gap)
        assert any("has not come to rest" in line for line in advice(early))
        # whatever constant the objective has
        objective = solved.problem.objective
        lifted = solved.problem._replace(objective=lambda *args: objective(*args) + 1e3)
        above = estimate(implicit(lifted, 3), solved.hparams)
        assert_close(above.info.unrest, early.info.unrest, 1e3)
        assert any("has not come to rest" in line for line in advice(above))


@pytest.mark.slow
def test_best_response_takes_every_transform():
    """Ridge: w*(λ) = (A + e^λ I)⁻¹ b, so that every derivative is known."""
    with jax.enable_x64(True):
        solved = ridge()
        respond = best_response(solved.problem, STEPS)
        inputs, targets = solved.problem.train_batch(KEY, 0)

        def exact(h):
            a = inputs.T @ inputs / 30 + jnp.exp(h["log_l2"]) * jnp.eye(4)
            return jnp.linalg.solve(a, inputs.T @ targets / 30)

        def both(transform, *args):
            made = [jax.jit(transform(f))(*args) for f in (lambda h: respond(h, KEY), exact)]
            assert_close(*made, 1.0)

        h = solved.hparams
        tangent = {"log_l2": jnp.asarray(1.0)}
        both(lambda f: lambda h: jax.jvp(f, (h,), (tangent,)), h)
        both(lambda f: jax.hessian(lambda h: jnp.sum(f(h) ** 3)), h)
        both(
            lambda f: jax.vmap(jax.grad(lambda h: jnp.sum(f(h) ** 3))),
            {"log_l2": jnp.linspace(-2.0, 0.0, 3)},
        )


@pytest.mark.slow
def test_minibatches_are_unbiased():
    """Each estimate is noise about the closed form; a wrong one is more than four standard errors off."""
    with jax.enable_x64(True):
        solved = quadratic_bilevel(batch_size=2)
        many = average(implicit(solved.problem, 60, batch=next_batch), 400)
        got = estimate(many, solved.hparams)
        error = got.info.std_error["point"]
        assert np.all(np.abs(got.hypergrad["point"] - total(solved)["point"]) < 4 * error)
        assert np.all(error < 0.15)
        wrong = average(implicit(solved.problem, 60, solve=solvers.identity()), 400)
        got = estimate(wrong, solved.hparams)
        off = np.abs(got.hypergrad["point"] - total(solved)["point"]) / got.info.std_error["point"]
        assert np.max(off) > 20


@pytest.mark.slow
def test_carried_state_follows_the_weights():
    with jax.enable_x64(True):
        solved = ridge()
        same = averaged(solved.problem, 0.9)
        got = estimate(implicit(same, STEPS), solved.hparams)
        assert_close(got.hypergrad, total(solved), 1e-1)

        def loss(p, h, batch):
            value = solved.problem.loss(p.params, h, batch)
            scale = h["tilt"] * jnp.mean(batch[0] @ p.params) + jnp.sum(p.params**2)
            return value, {
                "mean": 0.8 * p.state["mean"] + 0.2 * scale,
                "count": p.state["count"] + 1,
            }

        problem = solved.problem._replace(
            init=lambda key, h: Variables(jnp.zeros(4), {"mean": jnp.zeros(()), "count": 0}),
            loss=loss,
            objective=lambda p, h, batch: (
                solved.problem.objective(p.params, h, batch) + jnp.sin(p.state["mean"])
            ),
        )
        hparams = {**solved.hparams, "tilt": jnp.asarray(0.7)}
        unrolled = estimate(reverse(problem, STEPS, backward=plain()), hparams)
        got = estimate(implicit(problem, STEPS), hparams)
        assert_close(got.hypergrad, unrolled.hypergrad, 1e-1)
        assert abs(got.hypergrad["tilt"]) > 1e-2
        respond = best_response(problem, STEPS)
        run_key, valid_key = split_key(KEY)
        grads = jax.jit(
            jax.grad(
                lambda h: problem.objective(respond(h, run_key), h, problem.valid_batch(valid_key))
            )
        )(hparams)
        assert_close(grads, unrolled.hypergrad, 1e-1)


def test_warm_starts_and_shrinking_tolerances():
    with jax.enable_x64(True):
        solved = quadratic_bilevel()
        warm = implicit(solved.problem, 15, warm_start=True)
        state = warm.init(KEY, solved.hparams)
        step = jax.jit(warm.estimate)
        errors, iterations = [], []
        for _ in range(6):
            state, got = step(KEY, state, solved.hparams)
            errors.append(np.linalg.norm(got.hypergrad["point"] - total(solved)["point"]))
            iterations.append(int(got.info.iterations))
        assert state.iteration == 6 and state.train.step == 90
        assert errors[-1] < 1e-3 * errors[0] and iterations[-1] <= iterations[0]

        hoag = implicit(
            solved.problem, 1000, warm_start=True, tolerance=lambda k: 0.5 * 0.1 ** k.astype(float)
        )
        state, step = hoag.init(KEY, solved.hparams), jax.jit(hoag.estimate)
        before = 0
        for k in range(5):
            state, got = step(KEY, state, solved.hparams)
            assert got.info.gradient_norm <= 0.5 * 0.1**k and got.info.residual <= 0.5 * 0.1**k
            assert (
                before < state.train.step < 1000 and got.info.horizon == state.train.step - before
            )
            before = int(state.train.step)
        assert_close(got.hypergrad, total(solved), 1e5)


@pytest.mark.slow
def test_hypertorch_logistic_regression():
    """The notebook of prolearner/hypertorch prints these losses, in 144 seconds."""
    random = np.random.RandomState(1)
    oracle, x = random.randn(20), random.randn(1000, 20)
    y = (x @ oracle + 0.1 * random.randn(1000) > 0).astype(float)
    order = random.permutation(1000)  # as scikit-learn's train_test_split does it
    valid, train = (
        (jnp.asarray(x[part], jnp.float32), jnp.asarray(y[part], jnp.float32))
        for part in (order[:500], order[500:])
    )

    def entropy(w, batch):
        return jnp.mean(optax.sigmoid_binary_cross_entropy(batch[0] @ w, batch[1]))

    problem = Problem(
        init=lambda key, h: jnp.zeros(20),
        loss=lambda w, h, batch: entropy(w, batch) + 0.5 * jnp.sum(h["l2"] * w**2),
        objective=lambda w, h, batch: entropy(w, batch),
        optimizer=lambda h: optax.sgd(0.1),
        train_batch=lambda key, step: train,
        valid_batch=lambda key: valid,
    )
    estimator = implicit(problem, 100, solve=solvers.neumann(10, step_size=0.1))
    outer = optax.sgd(1.0, momentum=0.9)
    hparams = {"l2": jnp.ones(20)}

    def body(carry, _):
        hparams, opt_state, state = carry
        state, got = estimator.estimate(KEY, state, hparams)
        updates, opt_state = outer.update(got.hypergrad, opt_state)
        hparams = jax.tree.map(
            lambda x: jnp.maximum(x, 1e-8), optax.apply_updates(hparams, updates)
        )
        return (hparams, opt_state, state), got.value

    carry = (hparams, outer.init(hparams), estimator.init(KEY, hparams))
    _, values = jax.jit(lambda carry: jax.lax.scan(body, carry, None, length=991))(carry)
    printed = {0: 0.574399, 10: 0.533768, 100: 0.285354, 990: 0.280506}
    for step, value in printed.items():
        assert abs(values[step] - value) < 1e-3, (step, values[step])


@pytest.mark.slow
def test_descent_and_average_take_it():
    solved = quadratic_bilevel(batch_size=4)
    estimator = average(implicit(solved.problem, 30), 2)
    space = {"point": Real(-3.0, 3.0, default=2.0, shape=(3,))}
    tuner = tuners.descent(estimator, space, optimizer=optax.adam(0.2), num_restarts=2)
    state = tuner.init(KEY)
    values = []
    for key in jax.random.split(KEY, 15):
        state, outcome = tuner.step(key, state)
        values.append(outcome.values)
    assert np.min(values[-1]) < np.max(values[0]) - 0.1
    assert np.all(outcome.steps == 30) and not np.any(outcome.info["skipped"])


def test_negative_curvature_is_reported_and_gauss_newton_cures_it():
    with jax.enable_x64(True):
        problem, hparams, outputs, convex = network()
        problem = problem._replace(
            init=lambda key, h: jax.tree.map(lambda x: 3 * x, network()[0].init(key, h)),
            optimizer=lambda h: optax.sgd(1e-3),
        )
        got = estimate(implicit(problem, 1), hparams)
        assert got.info.smallest_curvature <= 0 and not got.info.converged
        assert np.isinf(got.info.condition)
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(got.hypergrad))
        assert any("not positive definite" in line for line in advice(got))
        cured = implicit(problem, 1, curvature=gauss_newton(outputs, convex))
        got = estimate(cured, hparams)
        assert got.info.smallest_curvature > 0 and got.info.converged


def test_a_solver_that_does_not_converge_says_so():
    solved = ridge_many()
    got = estimate(implicit(solved.problem, STEPS, solve=solvers.cg(1)), solved.hparams)
    assert not got.info.converged and got.info.residual > 1e-3
    assert any("left a relative residual" in line for line in advice(got))
    slow = solved.problem._replace(optimizer=lambda h: optax.sgd(100.0))
    got = estimate(implicit(slow, 100), solved.hparams)
    assert got.info.first_nonfinite >= 0 and any("not finite" in line for line in advice(got))


def test_bfloat16_weights():
    solved = ridge_many()
    init = solved.problem.init
    problem = solved.problem._replace(init=lambda key, h: init(key, h).astype(jnp.bfloat16))
    got = estimate(implicit(problem, 100), solved.hparams)
    assert got.hypergrad["log_l2"].dtype == solved.hparams["log_l2"].dtype
    narrow = jax.tree.map(lambda x: x.astype(jnp.float32), got.hypergrad)
    assert_close(narrow, total(solved), 1e3)  # 0.3: eight bits of weights


def refused(problem, hparams, make=implicit, **settings):
    def attempt():
        made = make(problem, 5, **settings)
        if make is best_response:
            return jax.eval_shape(made, hparams, KEY)
        return jax.eval_shape(made.estimate, KEY, made.init(KEY, hparams), hparams)

    with pytest.raises(ValueError) as caught:
        attempt()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message


def test_what_acts_through_the_optimizer_is_refused_by_name():
    solved = ridge()
    rate = {**solved.hparams, "lr": jnp.float32(0.1), "momentum": jnp.float32(0.5)}

    def tuned(h):
        return optax.sgd(h["lr"], momentum=0.9)

    problem = solved.problem._replace(optimizer=tuned)
    plain_rate = {"log_l2": rate["log_l2"], "lr": rate["lr"]}
    for make in (implicit, best_response):
        message = refused(problem, plain_rate, make)
        assert (
            "hparams['lr'] acts on training through problem.optimizer or problem.init alone"
            in message
        )
        assert "reverse(...)" in message
    moment = problem._replace(optimizer=lambda h: optax.sgd(0.1, momentum=h["momentum"]))
    assert "'momentum'" in refused(moment, {k: rate[k] for k in ("log_l2", "momentum")})
    decayed = problem._replace(
        optimizer=lambda h: optax.chain(optax.add_decayed_weights(h["lr"]), optax.sgd(0.1))
    )
    assert "'lr'" in refused(decayed, plain_rate)
    started = geometric(5)
    assert "'rates'" in refused(started.problem, started.hparams)
    scale = started.problem._replace(optimizer=lambda h: optax.sgd(0.1))
    assert "'scale'" in refused(scale, {"scale": started.hparams["scale"]})
    # of a leaf that the loss reads too nothing is missing at rest: the way there does not matter
    both = solved.problem._replace(optimizer=lambda h: optax.sgd(0.3 * jax.nn.sigmoid(h["log_l2"])))
    with pytest.warns(StructuralZeroWarning, match="counts as zero"):
        got = estimate(implicit(both, 2000), solved.hparams)
    assert_close(got.hypergrad, total(solved))


def rate_and_penalty():
    """Ridge regression with its rate and the logarithm of its penalty in one leaf."""
    solved = ridge()
    problem = solved.problem._replace(
        loss=lambda w, h, b: solved.problem.loss(w, {"log_l2": h["x"][1]}, b),
        objective=lambda w, h, b: solved.problem.objective(w, {"log_l2": h["x"][1]}, b),
        optimizer=lambda h: optax.sgd(h["x"][0]),
    )
    return problem, {"x": jnp.asarray([0.05, -1.0])}


def test_what_acts_through_loss_and_optimizer_is_warned_of_by_name():
    problem, hparams = rate_and_penalty()
    line = (
        r"^the implicit hypergradient leaves out what hparams\['x'\] does through problem.optimizer"
    )
    with pytest.warns(StructuralZeroWarning, match=line) as caught:
        got = estimate(implicit(problem, 10), hparams)
    assert "split the leaf" in str(caught[0].message) and "\n" not in str(caught[0].message)
    unrolled = estimate(reverse(problem, 10), hparams)
    assert got.hypergrad["x"][0] == 0 and abs(unrolled.hypergrad["x"][0]) > 0.1

    respond = best_response(problem, 10)
    with pytest.warns(StructuralZeroWarning, match=line):
        jax.eval_shape(respond, hparams, KEY)
    # one number that is a penalty of the loss and a decay of the optimizer, and one that scales the start
    solved = ridge()
    decay = solved.problem._replace(
        optimizer=lambda h: optax.chain(
            optax.add_decayed_weights(jnp.exp(h["log_l2"])), optax.sgd(0.1)
        )
    )
    start = solved.problem._replace(init=lambda key, h: h["log_l2"] * jnp.ones(4))
    for both in (decay, start):
        with pytest.warns(StructuralZeroWarning, match=r"leaves out what hparams\['log_l2'\]"):
            jax.eval_shape(best_response(both, 10), solved.hparams, KEY)
    with warnings.catch_warnings():
        warnings.simplefilter("error", StructuralZeroWarning)
        jax.eval_shape(best_response(solved.problem, 10), solved.hparams, KEY)


def test_losses_without_a_minimum_are_refused():
    solved = ridge()
    linear = solved.problem._replace(loss=lambda w, h, b: jnp.sum(w) * jnp.exp(h["log_l2"]))
    for make in (implicit, best_response):
        assert "problem.loss is linear in the params" in refused(linear, solved.hparams, make)

    def loss(p, h, batch):
        return jnp.sum(p.params**2 * p.state) * jnp.exp(h["log_l2"]), p.state

    reads = solved.problem._replace(
        init=lambda key, h: Variables(jnp.ones(4), jnp.ones(())),
        loss=loss,
        objective=lambda p, h, batch: jnp.sum(p.params),
    )
    assert "problem.loss reads its carried state" in refused(reads, solved.hparams)
    assert "problem.train_set is None" in refused(solved.problem, solved.hparams, batch=full_batch)
    assert "hparams['log_l2'] has dtype int32" in refused(solved.problem, {"log_l2": jnp.int32(1)})
    for settings in (
        {"solve": "cg"},
        {"curvature": 1},
        {"tolerance": 0.1},
        {"batch": 32},
        {"batch": lambda state: 0},
        {"solve": solvers.cg},
    ):
        name = next(iter(settings))
        assert refused(solved.problem, solved.hparams, **settings).startswith(f"{name} is ")
    with pytest.raises(ValueError, match=r"batch is .*, expected a function of \(problem, state\)"):
        best_response(solved.problem, 5, batch=lambda state: 0)
    with pytest.raises(ValueError, match="horizon is 0"):
        implicit(solved.problem, 0)
    with pytest.raises(ValueError, match="curvature is gauss_newton itself"):
        implicit(solved.problem, 5, curvature=gauss_newton)
    with pytest.raises(ValueError, match=r"hparams\['log_l2'\] has dtype int32"):
        best_response(solved.problem, 5)({"log_l2": jnp.int32(1)}, jax.random.key(0))


def test_an_unread_leaf_is_warned_of():
    solved = ridge()
    hparams = {**solved.hparams, "idle": jnp.float32(1.0)}
    with pytest.warns(StructuralZeroWarning, match="'idle'"):
        got = estimate(implicit(solved.problem, 5), hparams)
    assert got.hypergrad["idle"] == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error", StructuralZeroWarning)
        # the sign of Lion stops an unrolled derivative, and not this one
        lion = solved.problem._replace(optimizer=lambda h: optax.lion(1e-3))
        estimate(implicit(lion, 5), solved.hparams)
