"""Training undone on the way back, exactly in integers and nearly in floating point, or refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad.estimators import advice, average, drift, reverse, reversible
from hypergrad.estimators.base import temporary_bytes
from hypergrad.estimators.slopes import in_float64
from hypergrad.estimators.unrolled.integers import DIGIT, capacity, grow, shrink
from hypergrad.problem import Problem
from hypergrad.space import schedule
from hypergrad.testing import assert_close
from tests.lowering import NOT_REPEATED, PLAIN

KEY = jax.random.key(5)
_random = np.random.default_rng(3)
X = _random.normal(size=(40, 12)) / 3
Y = np.tanh(X @ _random.normal(size=12)) + 0.1 * _random.normal(size=40)


def sgd(h):
    return optax.sgd(jnp.exp(h["log_rate"]), momentum=h["momentum"])


def regression(optimizer=sgd, num=12, dtype=jnp.float32):
    """Two leaves, minibatches, a smooth loss that is not quadratic."""
    inputs = jnp.asarray(np.tile(X, (1, -(-num // 12)))[:, :num], dtype)
    targets = jnp.asarray(Y, dtype)

    def loss(w, h, batch):
        error = jnp.tanh(batch[0] @ w["slope"] + w["shift"]) - batch[1]
        return jnp.mean(error**2) + jnp.exp(h["log_l2"]) * jnp.sum(w["slope"] ** 2)

    def train_batch(key, step):
        index = jax.random.randint(key, (8,), 0, 24)
        return inputs[index], targets[index]

    return Problem(
        init=lambda key, h: {
            "slope": 0.3 * jax.random.normal(key, (num,), dtype),
            "shift": jnp.zeros((), dtype),
        },
        loss=loss,
        objective=lambda w, h, batch: loss(w, {**h, "log_l2": -30.0}, batch),
        optimizer=optimizer,
        train_batch=train_batch,
        valid_batch=lambda key: (inputs[24:], targets[24:]),
    )


def hparams(momentum=0.9, dtype=jnp.float32, **others):
    given = {"log_rate": -3.0, "momentum": momentum, "log_l2": -4.0, **others}
    return {name: jnp.asarray(x, dtype) for name, x in given.items()}


HORIZON = 120
NUM_SEGMENTS = 6  # of drift at its default, which allows for a momentum of 0.8
ESTIMATORS = {
    "reverse": lambda p: reverse(p, HORIZON),
    "reversible": lambda p: reversible(p, HORIZON, limit=32.0),
    "drift": lambda p: drift(p, HORIZON),
    "drift, no second look": lambda p: drift(p, HORIZON, tolerance=float("inf")),
}


@functools.cache
def program(name):
    return jax.jit(ESTIMATORS[name](regression()).estimate)


def run(name, h, key=KEY):
    """Compiled once for all tests in float32."""
    return program(name)(key, (), h)[1]


def run_new(estimator, h):
    return jax.jit(estimator.estimate)(KEY, (), h)[1]


@pytest.mark.parametrize("wide", [False, True])
def test_products_are_undone_to_the_bit(wide):
    with jax.enable_x64(wide):
        word, real, bits = (np.int64, np.float64, 64) if wide else (np.int32, np.float32, 32)
        random = np.random.default_rng(0)
        num = 100_000
        factor = random.uniform(0.25, 1.0, num)
        factor[::3] = random.integers(64, 256, num)[::3] / 256 + random.choice([0, 1e-7, 0.0039])
        size = 2.0 ** random.uniform(0, bits - 2, num)
        value = (random.choice([-1, 1], num) * size).astype(word)
        rest = random.integers(0, 2 ** (bits - 11), num).astype(word)
        factor = factor.astype(real)
        product, full = jax.jit(shrink)(value, rest, factor)
        back, emptied = jax.jit(grow)(product, full, factor)
        assert np.array_equal(back, value) and np.array_equal(emptied, rest)
        error = np.asarray(product, np.longdouble) - value * factor.astype(np.longdouble)
        rounding = np.finfo(real).eps * np.abs(value) / 100
        assert np.all(np.abs(error) <= 1.5 + rounding)


def test_the_stack_has_room_for_the_declared_momentum_whatever_the_data():
    for momentum, decays in ((0.9, False), (0.9, True), (0.3, False)):
        factors = [momentum, 255 / 256][: 1 + decays]
        interval = capacity(factors, 32)
        # the fullest digit at every step is the worst that data can do
        rest, value = jnp.full((1,), DIGIT, jnp.int32), jnp.full((1,), -1, jnp.int32)
        seen = [rest]
        for _ in range(interval):
            for factor in factors:
                value, rest = shrink(value, rest | DIGIT, jnp.float32(factor))
                seen.append(rest)
        assert all(r[0] > 0 for r in seen), "overflow"
        assert seen[-1][0] > 2**21, "stored too early"


@pytest.mark.parametrize("momentum", [0.9, 0.999])
def test_both_agree_with_reverse(momentum):
    h = hparams(momentum, log_rate=-3.0 if momentum < 0.99 else -6.0)
    expected, exact, near = (run(name, h) for name in ("reverse", "reversible", "drift"))
    assert exact.info.exact and exact.info.first_nonfinite == -1
    assert_close(exact.value, expected.value, 1e-1)
    assert_close(exact.hypergrad, expected.hypergrad, 1.0)
    assert near.value == expected.value
    assert near.info.num_recomputed <= 1 and 0 < near.info.mismatch < 0.05
    assert_close(near.hypergrad, expected.hypergrad, 1e-1)
    for info in (exact.info, near.info):
        assert_close(info.sensitivity, expected.info.sensitivity, 1.0)
        assert_close(info.growth, expected.info.growth, 1.0)


@pytest.mark.slow
def test_float64_agrees_tightly():
    with jax.enable_x64(True):
        problem, h = in_float64(regression(dtype=jnp.float64)), hparams(dtype=jnp.float64)
        expected = run_new(reverse(problem, 60), h)
        for estimator in (reversible(problem, 60), drift(problem, 60)):
            got = run_new(estimator, h)
            assert got.hypergrad["momentum"].dtype == jnp.float64
            assert_close(got.hypergrad, expected.hypergrad, 1e-2)  # 1.5e-10
        assert got.info.num_recomputed == 0


@pytest.mark.parametrize("momentum", [0.0, 0.2])
def test_drift_computes_again_what_it_cannot_undo(momentum):
    h = hparams(momentum)
    expected, got = run("reverse", h), run("drift", h)
    assert got.info.num_recomputed == NUM_SEGMENTS and not got.info.mismatch < 1e-3
    assert_close(got.hypergrad, expected.hypergrad, 1e-1)
    # a wrong result must be one without the second look
    wrong = run("drift, no second look", h).hypergrad["log_l2"]
    assert not np.allclose(wrong, expected.hypergrad["log_l2"], rtol=0.1)


@pytest.mark.slow
def test_drift_under_vmap_computes_again_for_the_member_that_needs_it():
    each = [hparams(0.9), hparams(0.05)]
    many = jax.tree.map(lambda a, b: jnp.stack([a, b]), *each)
    single = program("drift")
    got = jax.jit(jax.vmap(lambda h: single(KEY, (), h)[1]))(many)
    # with other minibatches the leaf of one entry happens to stand still at both ends of a segment
    assert got.info.num_recomputed[0] <= 1 and got.info.num_recomputed[1] == NUM_SEGMENTS
    for i, h in enumerate(each):
        one = jax.tree.map(lambda x, i=i: x[i], got.hypergrad)
        assert_close(one, run("reverse", h).hypergrad, 1e-1)


def test_a_momentum_below_the_declared_one_gives_no_number():
    h = hparams(0.3)
    got = run("reversible", h)
    assert not got.info.exact and got.info.first_nonfinite == -1
    assert jnp.isfinite(got.value) and jnp.isnan(got.hypergrad["log_l2"])
    assert_close(got.value, run("reverse", h).value, 1e-1)


def test_a_number_out_of_range_is_reported_with_its_step():
    h = hparams(log_l2=2.5, log_rate=-1.5)  # diverges, slowly at first
    got, expected = run("reversible", h), run("reverse", h)
    assert 0 < got.info.first_nonfinite < HORIZON and not got.info.largest < 32
    assert jnp.isnan(got.value) and jnp.isnan(got.hypergrad["log_rate"])
    assert expected.info.first_nonfinite == -1 or (
        got.info.first_nonfinite < expected.info.first_nonfinite
    )


def scheduled_momentum(values):
    """Momentum of its own for every step."""

    def init(params):
        return jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params)

    def update(grads, state, params=None):
        count, trace = state
        trace = jax.tree.map(lambda g, v: g + schedule(values)(count) * v, grads, trace)
        return trace, (count + 1, trace)

    return optax.GradientTransformation(init, update)


def everything(h):
    """Clipped, L2, per-step momentum, another rate for each leaf, decoupled decay of one of them."""
    rates = {name: optax.scale_by_learning_rate(schedule(h[name])) for name in ("slope", "shift")}
    return optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.add_decayed_weights(h["coupled"]),
        scheduled_momentum(h["momentum"]),
        optax.add_decayed_weights(h["decay"], mask={"slope": True, "shift": False}),
        optax.partition(rates, {"slope": "slope", "shift": "shift"}),
    )


def for_each_leaf(h):
    """Momentum of its own for each leaf."""
    parts = {name: optax.sgd(h["rate"], momentum=h[name]) for name in ("slope", "shift")}
    return optax.partition(parts, {"slope": "slope", "shift": "shift"})


def moving_average(h):
    return optax.chain(optax.ema(h["momentum"]), optax.scale_by_learning_rate(0.3))


SCHEDULES = {
    "momentum": np.linspace(0.95, 0.85, 60), "slope": np.linspace(0.1, 0.01, 60),
    "shift": np.full(60, 0.03), "decay": 0.05, "coupled": 0.01,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the hypergradient of hparams")
@pytest.mark.parametrize(
    ("optimizer", "others", "made"),
    [
        (everything, SCHEDULES, (drift, reversible)),
        (for_each_leaf, {"rate": 0.05, "slope": 0.9, "shift": 0.85}, (reversible,)),
        (moving_average, {}, (drift,)),
    ],
)
def test_variants_of_momentum(optimizer, others, made):
    problem = regression(optimizer)
    h = {**hparams(), **{name: jnp.asarray(x, jnp.float32) for name, x in others.items()}}
    expected = run_new(reverse(problem, 60), h)
    for make in made:
        if PLAIN and make is reversible:
            pytest.skip(NOT_REPEATED)
        got = run_new(make(problem, 60), h)
        assert_close(got.value, expected.value, 1e-1)
        error = optax.tree.norm(optax.tree.sub(got.hypergrad, expected.hypergrad))
        assert error <= 1e-4 * optax.tree.norm(expected.hypergrad), (error, got.info)


@pytest.mark.slow
def test_bfloat16_params_are_trained_in_integers():
    narrow, h = regression(dtype=jnp.bfloat16), hparams(log_rate=-5.0)
    got, wide = run_new(reversible(narrow, HORIZON), h), run("reverse", h)
    assert got.info.exact and got.hypergrad["momentum"].dtype == jnp.float32
    a, b = (jnp.stack(jax.tree.leaves(x.hypergrad)) for x in (got, wide))
    assert jnp.vdot(a, b) > 0.98 * jnp.linalg.norm(a) * jnp.linalg.norm(b)
    with pytest.raises(ValueError, match="has dtype bfloat16, expected float32 or float64"):
        drift(narrow, 12).estimate(KEY, (), h)


@pytest.mark.slow
def test_drift_does_not_lose_a_small_leaf_beside_a_large_one():
    """The large leaf comes back to 1e-6; the small one, at a lower momentum, does not."""

    def loss(w, h, batch):
        small = jnp.mean(jnp.cos(w["small"] / 1e-4 - jnp.arange(4.0)))
        return 0.5 * jnp.sum((w["large"] - 1e3) ** 2) + 1e-8 * small

    def optimizer(h):
        by = {"large": optax.sgd(0.01, momentum=0.9), "small": optax.sgd(0.05, momentum=h["m"])}
        return optax.partition(by, {"large": "large", "small": "small"})

    problem = Problem(
        init=lambda key, h: {"large": jnp.full(50, 900.0), "small": 1e-4 * jnp.arange(1.0, 5.0)},
        loss=loss,
        objective=lambda w, h, batch: jnp.sum(jnp.sin(w["small"] / 1e-4)),
        optimizer=optimizer,
        train_batch=lambda key, step: (),
        valid_batch=lambda key: (),
    )
    h = {"m": jnp.float32(0.4)}
    expected, got = run_new(reverse(problem, 30), h), run_new(drift(problem, 30), h)
    limit = 3 * jnp.finfo(got.info.mismatch.dtype).eps ** 0.5
    assert got.info.num_recomputed >= 1 and got.info.mismatch > limit
    assert_close(got.hypergrad, expected.hypergrad, 1.0)
    mixed = problem._replace(
        init=lambda key, h: {"large": jnp.ones(3, jnp.float32), "small": jnp.ones(4, jnp.bfloat16)}
    )
    with pytest.raises(ValueError, match="params have the dtypes bfloat16 and float32"):
        drift(mixed, 5).estimate(KEY, (), h)


def test_advice_says_what_to_do():
    far = run("reversible", hparams(log_l2=2.5, log_rate=-1.5))
    assert ["beyond `limit`" in line for line in advice(far)] == [True]
    below = run("reversible", hparams(0.3))
    assert ["smallest momentum" in line for line in advice(below)] == [True]
    missed = run("drift, no second look", hparams(0.2))
    assert any("missed the stored state" in line for line in advice(missed))
    assert not advice(run("drift", hparams()))


def test_an_estimate_in_integers_has_no_derivative():
    with pytest.raises(ValueError, match="integers have no derivative"):
        jax.jacfwd(lambda h: ESTIMATORS["reversible"](regression()).estimate(KEY, (), h)[1].value)(
            hparams()
        )


def test_memory_is_a_fraction_of_a_bit_a_parameter_and_step():
    problem, h, horizon = regression(num=20_000), hparams(), 200 * 123
    estimator = reversible(problem, horizon, min_momentum=0.9)
    compiled = jax.jit(estimator.estimate).lower(KEY, (), h).compile()
    assert 8 * temporary_bytes(compiled) / horizon / 20_001 <= 0.35


def test_bits_are_kept_under_vmap():
    h = hparams()
    estimator = average(ESTIMATORS["reversible"](regression()), 2)
    compiled = jax.jit(estimator.estimate)
    got = compiled(KEY, estimator.init(KEY, h), h)[1]
    assert jnp.all(got.info.each.exact)
    assert all("mostly noise" in line for line in advice(got)), "of two seeds"
    (line,) = advice(compiled(KEY, estimator.init(KEY, h), hparams(0.3))[1])
    assert line.startswith("in 2 of 2 estimates training did not come back to the bits")
    each = [run("reverse", h, key).hypergrad for key in jax.random.split(KEY, 2)]
    assert_close(got.hypergrad, jax.tree.map(lambda a, b: (a + b) / 2, *each), 1.0)


PROBLEM = regression()
REFUSED = {
    "keeps 0 float arrays for the 2 of params": lambda h: optax.sgd(0.1),
    "keeps 4 float arrays": lambda h: optax.adam(0.1),
    "departs from v ← m v + G(g, w), w ← D w − rate v by": lambda h: optax.sgd(
        0.1, momentum=0.9, nesterov=True
    ),
    "departs from v": lambda h: optax.lion(0.1),
    "departs from v ← m v": lambda h: optax.rmsprop(0.1),
    "departs": lambda h: optax.chain(optax.sgd(0.1, momentum=0.9), optax.clip(1.0)),
    "is 0, expected a number above 0": lambda h: optax.sgd(0.1, momentum=0.0),
    "is 1, expected a number above 0 and below 1": lambda h: optax.sgd(0.1, momentum=1.0),
    "is 1.5, expected": lambda h: optax.sgd(0.1, momentum=1.5),
    "in bfloat16, expected float32": lambda h: optax.sgd(
        0.1, momentum=0.9, accumulator_dtype=jnp.bfloat16
    ),
    "of shape (12,)": lambda h: optax.chain(
        optax.trace(0.9), optax.stateless(lambda u, p: jax.tree.map(lambda x: -X[0] * x, u))
    ),
    "by 9e-01 on params['slope']": lambda h: optax.chain(  # a rate by fan-in, as in muP
        optax.sgd(0.1, momentum=0.9),
        optax.stateless(lambda u, p: jax.tree.map(lambda x: x / x.size, u)),
    ),
    "on params['shift'], expected": lambda h: optax.chain(  # not seen in the first steps
        optax.trace(0.9),
        optax.conditionally_transform(optax.clip(1e-2), lambda step: step >= 4),
        optax.scale(-0.1),
    ),
    "problem.optimizer failed on": lambda h: optax.chain(
        optax.trace(0.9), optax.polyak_sgd(max_learning_rate=1.0)
    ),
}


@pytest.mark.filterwarnings("ignore:the hypergradient of hparams")
@pytest.mark.parametrize("make", [drift, pytest.param(reversible, marks=pytest.mark.slow)])
@pytest.mark.parametrize("fragment", list(REFUSED))
def test_optimizers_that_cannot_be_undone_are_refused_in_one_line(make, fragment):
    with pytest.raises(ValueError) as caught:
        make(PROBLEM._replace(optimizer=REFUSED[fragment]), 5).estimate(KEY, (), hparams())
    message = str(caught.value)
    assert fragment in message and "problem.optimizer" in message
    assert "\n" not in message and len(message) < 500


ARGUMENTS = {
    "min_momentum is 0,": lambda: drift(PROBLEM, 5, min_momentum=0),
    "min_momentum is 1.0,": lambda: reversible(PROBLEM, 5, min_momentum=1.0),
    "min_momentum is 1.2,": lambda: drift(PROBLEM, 5, min_momentum=1.2),
    "min_momentum is 0.1, expected the smallest momentum of the run in [0.25, 1)": lambda: (
        reversible(PROBLEM, 5, min_momentum=0.1)
    ),
    "min_momentum is None": lambda: reversible(PROBLEM, 5, min_momentum=None),
    "tolerance is 0": lambda: drift(PROBLEM, 5, tolerance=0),
    "limit is -1": lambda: reversible(PROBLEM, 5, limit=-1),
    "horizon is 0": lambda: reversible(PROBLEM, 0),
    "min_momentum is 0.8, expected at most 0.5, the momentum": lambda: reversible(
        PROBLEM._replace(optimizer=lambda h: optax.sgd(0.1, momentum=0.5)), 5
    ).estimate(KEY, (), hparams()),
}


@pytest.mark.filterwarnings("ignore:the hypergradient of hparams")
@pytest.mark.parametrize("fragment", list(ARGUMENTS))
def test_arguments_are_refused_in_one_line(fragment):
    with pytest.raises(ValueError) as caught:
        ARGUMENTS[fragment]()
    assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)
