"""The contract of the estimators, over every member and every problem."""

import functools
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad import validation
from hypergrad.core.solve import neumann
from hypergrad.estimators import (
    average,
    darts,
    drift,
    es,
    forward,
    hd,
    implicit,
    mixed_mode,
    nres,
    one_step,
    pes,
    plain,
    plan,
    reverse,
    reversible,
    rtho,
    structural_zeros,
    truncated,
)
from hypergrad.estimators.advice import StructuralZeroWarning
from hypergrad.estimators.policies import factorized, mixed, relaxed, sampled, score, score_shared
from hypergrad.estimators.slopes import in_float64
from hypergrad.estimators.unrolled.adjoint import nested_checkpoint, sqrt_checkpoint
from hypergrad.testing import assert_close
from hypergrad.train import init_state, split_key, unroll
from tests.lowering import NOT_REPEATED, PLAIN
from tests.problems import ALL, CHOICES, HORIZON, choices, only, ridge, schedules, tiny, value

KEY = jax.random.key(3)
ESTIMATORS = {
    "reverse": reverse,
    "reverse_all_states": lambda p, n: reverse(p, n, backward=mixed_mode(())),
    "reverse_nested": lambda p, n: reverse(p, n, backward=mixed_mode((4, 2))),
    "reverse_plain": lambda p, n: reverse(p, n, backward=plain((3, 1))),
    "forward": forward,
    "forward_chunked": lambda p, n: forward(p, n, chunk=2),
    "truncated_window": lambda p, n: truncated(p, n, 3),
    "drift": drift,
    "reversible": reversible,
    "rtho": rtho,
    "truncated_warm": lambda p, n: truncated(p, n, 3, warm_start=True),
}
IMPLICIT = {"implicit": lambda p, n: implicit(p, n, solve=neumann(3, step_size=0.1))}
"""Differentiates no run, so that it has the contract but not the comparisons."""
ONLINE = {
    "one_step": lambda p, n: one_step(p, 2),
    "darts": lambda p, n: darts(p, 0.1, 2),
    "hd": lambda p, n: hd(p, 2),
}
"""Compared in `tests/test_online.py`, each with its own definition."""
SERVED = {
    "implicit": ("l2", "smoothing", "data_weight"),
    "darts": ("l2", "smoothing", "data_weight"),
    "hd": ("lr", "decay", "decay_scale", "momentum"),
}
"""The hparams of `tiny` and `schedules` that an estimator takes, where it refuses others."""
DRAWN = {
    "score": lambda p, n: score(p, n, factorized(CHOICES), num_samples=3),
    "score_shared": lambda p, n: score_shared(p, n, factorized(CHOICES), num_runs=2),
    "mixed": lambda p, n: mixed(p, n, factorized(CHOICES), draws=sampled(2)),
    "relaxed": lambda p, n: relaxed(reverse(p, n), CHOICES, num_samples=2),
}
"""Of a policy's parameters; `tests/test_score.py` and `tests/test_mixed.py` have their comparisons."""
EVOLUTION = {
    "es": lambda p, n: es(p, n, sigma=1e-2, num_pairs=2),
    "pes": lambda p, n: pes(p, n, 1, sigma=1e-2, num_pairs=2),
    "nres": lambda p, n: nres(p, n, 1, sigma=1e-2, num_pairs=2),
}
"""Draw, so that they are compared in `tests/test_evolution.py`, by their standard errors."""
UNDONE = ("drift", "reversible")
"""These take SGD with momentum alone; `tests/test_reversal.py` has more of it."""
MOMENTUM = ("schedules", "batch_norm_dropout")
"""Problems trained by it."""
QUICK = {
    "ridge": tuple(name for name in ESTIMATORS if name not in UNDONE),
    "schedules": ("reverse", "forward"),
    "batch_norm_dropout_nnx": ("forward",),
    "adam_dead_input": ("reverse",),
    "polyak": ("forward_chunked",),
}
"""Passes by problem in the quick suite: every pass that undoes no step, and states beside weights (momentum,
running statistics, averages, none). The slow suite has these as well, every problem and every pass:"""
SLOW = {
    **dict.fromkeys(ALL, ("reverse", "forward", "truncated_window")),
    "schedules": tuple(ESTIMATORS),
    "batch_norm_dropout": (
        *("reverse", "reverse_nested", "forward", "truncated_window", "truncated_warm", "rtho"),
        *UNDONE,
    ),
    "polyak": ("reverse", "reverse_nested", "forward", "forward_chunked", "truncated_window"),
}


def pairs(quick, slow):
    """The pairs of a problem and a pass; those in `slow` alone are marked."""
    return [
        pytest.param(
            problem, name, marks=() if name in quick.get(problem, ()) else pytest.mark.slow
        )
        for problem in {**quick, **slow}
        for name in dict.fromkeys((*quick.get(problem, ()), *slow.get(problem, ())))
    ]


EXACT = [name for name in ESTIMATORS if not name.startswith("truncated")]


def final(problem, hparams, key, window=HORIZON):
    """The objective by plain code; all but the last `window` steps carry no derivative."""
    run_key, valid_key = split_key(key)
    early = hparams if window == HORIZON else jax.lax.stop_gradient(hparams)
    state = init_state(problem, run_key, early)
    if window < HORIZON:
        state = unroll(problem, early, state, HORIZON - window)
    state = unroll(problem, hparams, state, window)
    return problem.objective(state.params, hparams, problem.valid_batch(valid_key))


@functools.cache
def case(problem_name):
    problem, hparams = ALL[problem_name]()
    validation.validate(problem, hparams, HORIZON)
    return problem, hparams


@functools.cache
def reference(problem_name, window):
    """The value and its gradient by plain code, compiled once for all passes of the problem."""
    problem, hparams = case(problem_name)
    return jax.jit(jax.value_and_grad(lambda h: final(problem, h, KEY, window)))(hparams)


@pytest.mark.parametrize(("problem_name", "name"), pairs(QUICK, SLOW))
def test_equals_plain_autodiff(problem_name, name):
    problem, hparams = case(problem_name)
    if PLAIN and name == "reversible":
        pytest.skip(NOT_REPEATED)
    estimator = ESTIMATORS[name](problem, HORIZON)
    with warnings.catch_warnings():
        if name in EXACT:  # a window does not reach the hparams of `init`, and says so
            warnings.simplefilter("error", StructuralZeroWarning)
        start = estimator.init(KEY, hparams)
        estimate = jax.jit(estimator.estimate)(KEY, start, hparams)[1]
    expected_value, expected = reference(problem_name, HORIZON if name in EXACT else 3)
    assert_close(estimate.value, expected_value)
    scale = optax.tree.norm(expected)
    assert scale > 1e-4
    for got, want in zip(
        jax.tree.leaves(estimate.hypergrad), jax.tree.leaves(expected), strict=True
    ):
        assert jnp.all(jnp.abs(got - want) <= 2e-5 * scale), name
    parts = jax.tree.map(jnp.add, estimate.info.direct, estimate.info.response)
    assert_close(parts, estimate.hypergrad)
    assert estimate.info.first_nonfinite == -1
    if hasattr(estimate.info, "sensitivity"):
        assert jnp.all(jnp.isfinite(estimate.info.sensitivity))


def bits(tree):
    """The leaves, keys as their numbers: numpy cannot compare keys."""

    def plain(x):
        return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x

    return [plain(x) for x in jax.tree.leaves(tree)]


def assert_close_in_float32(actual, expected):
    """With x64 on, too, flax keeps params in float32: no result is closer than they are."""
    narrow = (jax.tree.map(lambda x: x.astype(jnp.float32), t) for t in (actual, expected))
    assert_close(*narrow)


MADE = ESTIMATORS | IMPLICIT | ONLINE | DRAWN | EVOLUTION
PASSES = ("reverse", "forward", "truncated_window")
ALONE = ("truncated_warm", "rtho", *IMPLICIT, *ONLINE, *UNDONE, *EVOLUTION)
"""These share the passes: one problem is enough for each."""


@pytest.mark.parametrize(
    ("problem_name", "name"),
    pairs(
        {"tiny": (*PASSES, *ALONE), "choices": tuple(DRAWN)},
        {
            "schedules": (*PASSES, *ALONE),
            **dict.fromkeys(
                ("ridge", "batch_norm_dropout", "adam_dead_input", "recurrent", "polyak"), PASSES
            ),
        },
    ),
)
def test_contract(problem_name, name):
    if PLAIN and name == "reversible":
        pytest.skip(NOT_REPEATED)
    problem, hparams = {**ALL, "tiny": tiny, "choices": choices}[problem_name]()
    if name in SERVED:
        problem, hparams = only(problem, hparams, set(SERVED[name]) & set(hparams))
    if name in EVOLUTION:
        problem, hparams = only(problem, hparams, ("lr", "scale"))
    estimator = MADE[name](problem, HORIZON)
    state = estimator.init(KEY, hparams)
    chex.clear_trace_counter()  # which knows functions by their place in the source
    compiled = jax.jit(chex.assert_max_traces(estimator.estimate, n=1))
    first = compiled(KEY, state, hparams)
    again = compiled(KEY, state, jax.tree.map(lambda x: x * 1.0, hparams))
    chex.assert_trees_all_equal_structs(first[1].hypergrad, hparams)
    chex.assert_trees_all_equal_shapes_and_dtypes(first[1].hypergrad, hparams)
    chex.assert_trees_all_equal_structs(first[0], state)
    chex.assert_trees_all_equal(bits(first), bits(again))
    other = compiled(jax.random.key(4), state, hparams)
    keeps = problem_name == "ridge" or name == "nres"  # which draws anew when its runs begin anew
    assert (other[1].value != first[1].value) or keeps, "the key has no effect"
    if name in ("score", "score_shared", "es", "nres"):
        return  # what follows compiles twice more: one of those that draw is enough, and `pes` for these
    if name != "mixed" and problem_name in ("tiny", "ridge", "schedules", "choices"):
        with jax.disable_jit(problem_name == "ridge"):
            eager = estimator.estimate(KEY, state, hparams)[1].hypergrad
        assert_close_in_float32(eager, first[1].hypergrad)

    if problem_name not in ("tiny", "schedules", "recurrent") and name != "mixed":
        return  # the transforms compile once more: these problems are enough for them
    keys = jax.random.split(KEY, 2)
    many = jax.tree.map(lambda x: jnp.stack([x, 0.9 * x]), hparams)

    def scanned(key, hparams):
        """Let the state pass through `scan`, and the whole through `vmap`: one program for both."""

        def body(carry, key):
            carry, estimate = estimator.estimate(key, carry, hparams)
            return carry, estimate.hypergrad

        return jax.lax.scan(body, state, key[None])[1]

    batched = jax.jit(jax.vmap(scanned))(keys, many)
    for i in range(2):
        one = compiled(keys[i], state, jax.tree.map(lambda x, i=i: x[i], many))[1].hypergrad
        assert_close_in_float32(jax.tree.map(lambda x, i=i: x[i, 0], batched), one)


@pytest.mark.parametrize(
    "problem_name",
    [
        pytest.param("schedules", marks=pytest.mark.slow),
        pytest.param("batch_norm_dropout", marks=pytest.mark.slow),
        "adam_dead_input",
    ],
)
def test_finite_differences_in_float64(problem_name):
    with jax.enable_x64(True):
        problem, hparams = ALL[problem_name]()
        problem = in_float64(problem)
        hparams = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), hparams)
        objective = jax.jit(lambda h: final(problem, h, KEY))
        random = np.random.default_rng(1)
        directions = jax.tree.map(lambda x: random.normal(size=x.shape), hparams)
        slope = {}
        for name in hparams:
            sides = [
                objective({**hparams, name: hparams[name] + sign * 1e-6 * directions[name]})
                for sign in (1, -1)
            ]
            slope[name] = (sides[0] - sides[1]) / 2e-6
        estimators = [reverse(problem, HORIZON), forward(problem, HORIZON, chunk=8)]
        if problem_name in MOMENTUM:
            estimators.append(drift(problem, HORIZON))
            if not PLAIN:
                estimators.append(reversible(problem, HORIZON))
        for estimator in estimators:
            grads = jax.jit(estimator.estimate)(KEY, (), hparams)[1].hypergrad
            largest = max(abs(float(s)) for s in slope.values())
            for name in hparams:
                got = jnp.sum(grads[name] * directions[name])
                assert abs(got - slope[name]) <= 1e-6 * largest + 1e-6 * abs(slope[name]), name


def test_ridge_at_convergence_has_the_closed_form():
    from tasks import ridge as ridge_task

    made = ridge_task.task(horizon=400)
    penalty = np.full(8, 0.1)
    value_exact, grad_exact = ridge_task.exact(penalty, ridge_task.make_data(8, 0))
    estimator = reverse(made.problem, 400)
    hparams = {"penalty": jnp.asarray(penalty, jnp.float32)}
    estimate = jax.jit(estimator.estimate)(KEY, (), hparams)[1]
    assert_close(estimate.value, value_exact, 1.0)
    assert_close(estimate.hypergrad["penalty"], grad_exact, 1.0)


def test_quadratic_recurrence():
    from tasks import quadratic

    lr, momentum = np.full(12, 0.1), 0.5
    with jax.enable_x64(False):
        made = quadratic.task(horizon=12)
        hparams = {"lr": jnp.asarray(lr, jnp.float32), "momentum": jnp.float32(momentum)}
        estimate = jax.jit(reverse(made.problem, 12).estimate)(KEY, (), hparams)[1]
    assert_close(estimate.value, quadratic.exact(lr, momentum, 5, 0), 1.0)
    for step in (0, 11):
        moved = [quadratic.exact(lr + s * 1e-6 * np.eye(12)[step], momentum, 5, 0) for s in (1, -1)]
        assert_close(estimate.hypergrad["lr"][step], (moved[0] - moved[1]) / 2e-6, 1.0)


@pytest.mark.slow
def test_unroll_takes_every_transform():
    problem, hparams = ridge()

    def objective(h, checkpoint=()):
        state = unroll(problem, h, init_state(problem, KEY, h), HORIZON, checkpoint=checkpoint)
        return problem.objective(state.params, h, problem.valid_batch(KEY))

    grads = jax.grad(objective)(hparams)
    for checkpoint in ((1,), (3,), (3, 1), (4, 2, 1)):
        assert_close(jax.grad(objective)(hparams, checkpoint), grads, 1e-1)
        assert_close(jax.jacfwd(objective)(hparams, checkpoint), grads, 1e-1)
    hessian = jax.hessian(objective)(hparams)["l2"]["l2"]
    slopes = [jax.grad(objective)({"l2": hparams["l2"] + s * 1e-2})["l2"] for s in (1, -1)]
    assert abs(hessian - (slopes[0] - slopes[1]) / 2e-2) < 1e-2 * abs(hessian)
    many = {"l2": jnp.linspace(-2.0, 0.0, 3)}
    batched = jax.vmap(jax.grad(objective))(many)["l2"]
    for i in range(3):
        assert_close(batched[i], jax.grad(objective)({"l2": many["l2"][i]})["l2"], 1e-1)


@pytest.mark.slow
def test_bfloat16_params():
    problem, hparams = schedules()
    narrow = problem._replace(
        init=lambda key, h: jax.tree.map(lambda x: x.astype(jnp.bfloat16), problem.init(key, h))
    )
    state = init_state(narrow, KEY, hparams)
    after = unroll(narrow, hparams, state, HORIZON)
    assert jax.tree.map(jnp.result_type, after) == jax.tree.map(jnp.result_type, state)
    wide = jax.jit(reverse(problem, HORIZON).estimate)(KEY, (), hparams)[1]
    for name in ("reverse", "reverse_plain"):
        got = jax.jit(ESTIMATORS[name](narrow, HORIZON).estimate)(KEY, (), hparams)[1]
        assert jax.tree.map(jnp.result_type, got.hypergrad) == jax.tree.map(
            jnp.result_type, hparams
        )
        a, b = (
            jnp.concatenate([x.ravel() for x in jax.tree.leaves(t.hypergrad)]) for t in (got, wide)
        )
        assert jnp.vdot(a, b) > 0.98 * jnp.linalg.norm(a) * jnp.linalg.norm(b)


def test_first_nonfinite_step_and_growth():
    problem, hparams = ridge()
    exploding = problem._replace(optimizer=lambda h: optax.sgd(1e200))
    info = jax.jit(reverse(exploding, HORIZON).estimate)(KEY, (), hparams)[1].info
    assert 1 <= info.first_nonfinite <= 3
    only_objective = problem._replace(objective=lambda p, h, b: jnp.nan * jnp.sum(p) * h["l2"])
    info = jax.jit(forward(only_objective, HORIZON).estimate)(KEY, (), hparams)[1].info
    assert info.first_nonfinite == HORIZON
    unstable = problem._replace(optimizer=lambda h: optax.sgd(2.0))
    grown = jax.jit(reverse(unstable, HORIZON).estimate)(KEY, (), hparams)[1].info
    calm = jax.jit(reverse(problem, HORIZON).estimate)(KEY, (), hparams)[1].info
    assert grown.growth > 1.5 and calm.growth < 1.0
    ratio = grown.sensitivity[0] / grown.sensitivity[-1]
    assert ratio > 1.5 ** (HORIZON - 2)


def test_structural_zeros_are_named():
    problem, hparams = schedules()
    hparams = {"rate": value(0.1), "l2": value(0.1), "bits": value(3.2)}

    def loss(p, h, b):
        penalty = h["l2"] * sum(jnp.sum(w**2) for w in p.values())
        return jnp.mean((b[0] @ p["one"]) ** 2) + penalty * jnp.round(h["bits"])

    signed = problem._replace(
        init=lambda key, h: problem.init(key, {"scale": 0.5}),
        loss=loss,
        objective=lambda p, h, b: jnp.mean((b[0] @ p["one"]) ** 2),
        optimizer=lambda h: optax.lion(h["rate"]),
    )
    assert structural_zeros(signed, hparams, HORIZON) == ["bits", "l2"]
    smooth = signed._replace(optimizer=lambda h: optax.sgd(h["rate"]))
    assert structural_zeros(smooth, hparams, HORIZON) == ["bits"]
    with pytest.warns(StructuralZeroWarning, match="hparams\\['l2'\\]"):
        jax.jit(reverse(signed, HORIZON).estimate)(KEY, (), hparams)


def test_a_window_names_what_acts_before_it():
    problem, hparams = schedules()
    with pytest.warns(StructuralZeroWarning, match=r"hparams\['scale'\].*the initial weights"):
        jax.eval_shape(truncated(problem, HORIZON, 3).estimate, KEY, (), hparams)


def test_a_loop_of_unknown_length_is_named():
    problem, hparams = ridge()
    searched = problem._replace(optimizer=lambda h: optax.lbfgs())
    with pytest.raises(ValueError, match=r"problem has a loop of unknown length.*'forward'"):
        jax.eval_shape(reverse(searched, 3).estimate, KEY, (), hparams)


def test_custom_rules_go_through_every_pass():
    """The loss's own backward rule is differentiated forwards; a wrong one would show in the value."""

    @jax.custom_vjp
    def square(x):
        return jnp.sum(x**2)

    square.defvjp(lambda x: (jnp.sum(x**2), x), lambda x, bar: (2 * bar * x,))
    problem, hparams = ridge()
    custom = problem._replace(
        loss=lambda w, h, b: problem.loss(w, {"l2": -20.0}, b) + jnp.exp(h["l2"]) * square(w)
    )
    usual = custom._replace(
        loss=lambda w, h, b: problem.loss(w, {"l2": -20.0}, b) + jnp.exp(h["l2"]) * jnp.sum(w**2)
    )
    expected = jax.grad(lambda h: final(usual, h, KEY))(hparams)
    for estimator in (reverse(custom, HORIZON), forward(custom, HORIZON)):
        assert_close(jax.jit(estimator.estimate)(KEY, (), hparams)[1].hypergrad, expected, 1.0)


def test_plan_keeps_the_budget():
    problem, hparams = schedules()
    roomy = plan(problem, hparams, 64, 2**30)
    assert roomy.checkpoint == ()
    lean = plan(problem, hparams, 64, roomy.num_bytes - 1)
    assert lean.checkpoint and lean.num_bytes < roomy.num_bytes
    with pytest.raises(ValueError, match="memory is 10 bytes, expected at least"):
        plan(problem, hparams, 64, 10)


def test_segments():
    assert sqrt_checkpoint(1000) == (25,) or sqrt_checkpoint(1000) == (40,)
    assert sqrt_checkpoint(1) == ()
    assert nested_checkpoint(1000, 2) == (100, 10)
    for num in (1, 2, 7, 97):
        for segment in sqrt_checkpoint(num):
            assert 1 < segment <= num


@pytest.mark.slow
def test_average_is_the_mean_with_its_standard_error():
    problem, hparams = schedules()
    single = reverse(problem, HORIZON)
    estimator = average(single, 3)
    state = estimator.init(KEY, hparams)
    estimate = jax.jit(estimator.estimate)(KEY, state, hparams)[1]
    each = [single.estimate(k, (), hparams)[1].hypergrad["lr"] for k in jax.random.split(KEY, 3)]
    assert_close(estimate.hypergrad["lr"], jnp.mean(jnp.stack(each), 0), 1.0)
    error = jnp.std(jnp.stack(each), 0, ddof=1) / np.sqrt(3)
    assert_close(estimate.info.std_error["lr"], error, 1.0)
