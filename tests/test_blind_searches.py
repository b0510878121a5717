"""Searches that would be blind or finished without a word: outliers, and tables that settle too soon."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.functions import hartmann, levy, rastrigin, rosenbrock, tuning
from hypergrad import schedulers, study
from hypergrad.populations import population, vectorized
from hypergrad.report import figures, style
from hypergrad.searchers import (
    SearcherWarning,
    Smoothing,
    Trials,
    bayes,
    cma_es,
    cross_entropy,
    distribution,
    evolution,
    grid,
    tpe,
)
from hypergrad.searchers.models import targets
from hypergrad.space import Choice, Integer, LogReal, Real, sample
from hypergrad.tuners import Tuner
from tasks import quadratic

KEY = jax.random.key(0)
HUGE = (1e4, 1e12, 1e25, 3e38)
TRANSFORMS = (targets.standardize, targets.power)


def told(hparams, values):
    num = len(values)
    return Trials(
        hparams, jnp.asarray(values), jnp.ones(num, jnp.int32), jnp.arange(num, dtype=jnp.int32), {}
    )


# ---- outliers


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize(("num_huge", "huge"), [(1, HUGE), (4, HUGE), (8, HUGE[1:]), (14, (1e12,))])
def test_a_huge_score_counts_like_a_failure(transform, num_huge, huge):
    scores = np.random.default_rng(0).random(24).astype(np.float32)
    filled = np.arange(24) < 22
    scores[:num_huge] = np.inf
    failed = transform(jnp.asarray(scores), filled)
    assert np.ptp(np.asarray(failed)[num_huge:22]) > 0.1, "the others are told apart"
    for value in huge:
        scores[:num_huge] = value
        np.testing.assert_array_equal(transform(jnp.asarray(scores), filled), failed)
    scores[:num_huge] = np.geomspace(1e6, 1e30, num_huge)
    if num_huge < 6:
        np.testing.assert_array_equal(transform(jnp.asarray(scores), filled), failed)


@pytest.mark.parametrize("make", [rosenbrock, hartmann, levy, rastrigin, tuning])
def test_ordinary_scores_are_left_as_they_are(make):
    """Of trials all over the space, and of more and more near the best of them."""
    function, num = make(), 64
    values = jax.vmap(lambda key: function.value(function.data, sample(function.space, key)))
    scores = jnp.sort(values(jax.random.split(KEY, num)))
    for near in (0, 16, 32, 40):
        closer = scores[0] + (scores - scores[0]) * jnp.where(jnp.arange(num) < near, 1e-2, 1)
        kept = targets.without_huge(closer, jnp.ones(num, bool))
        np.testing.assert_array_equal(kept, closer)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_scores_alike_but_for_their_size_have_the_same_targets(transform):
    scores = jnp.asarray(np.random.default_rng(1).random(16), jnp.float32)
    filled = np.ones(16, bool)
    expected = transform(scores, filled)
    np.testing.assert_allclose(transform(1e25 * scores, filled), expected, rtol=1e-4, atol=1e-5)
    many = jnp.where(jnp.arange(16) < 9, 0, jnp.arange(16.0))  # nine as good as the best
    assert len(np.unique(transform(many, filled))) == 8


@pytest.mark.slow
def test_bayes_is_as_good_with_a_huge_loss_as_with_none():
    """x > 0.9 diverges; today's regret with 1e25 there was seven digits worse."""
    space = {"x": Real(0.0, 1.0)}
    searcher = bayes(space, 32, num_initial=8)

    def regret(key, diverged):
        def generation(state, key):
            hparams = searcher.ask(key, state, 2)
            values = jnp.where(hparams["x"] > 0.9, diverged, (hparams["x"] - 0.337) ** 2)
            return searcher.tell(state, told(hparams, values)), values

        state = searcher.init(key)
        return jnp.nanmin(jax.lax.scan(generation, state, jax.random.split(key, 12))[1])

    run = jax.jit(lambda keys, diverged: jax.lax.map(lambda key: regret(key, diverged), keys))
    keys = jax.random.split(KEY, 4)
    expected = run(keys, jnp.nan)
    assert np.max(expected) < 1e-6
    for value in (1e4, 1e12, 1e25):
        np.testing.assert_allclose(run(keys, value), expected, atol=1e-7)


@pytest.mark.parametrize(
    "make",
    [
        cross_entropy,
        *(pytest.param(make, marks=pytest.mark.slow) for make in (tpe, cma_es, evolution)),
    ],
)
def test_searches_by_rank_do_not_see_how_bad_a_trial_is(make):
    """They ask for the same trials after NaN and after any huge loss."""
    space = {"x": Real(0.0, 1.0), "k": Choice(("a", "b", "c"))}
    searcher = make(space)
    ask, tell = jax.jit(searcher.ask, static_argnums=2), jax.jit(searcher.tell)

    def asked(diverged):
        state = searcher.init(KEY)
        for generation in range(3):
            hparams = ask(jax.random.fold_in(KEY, generation), state, 32)
            values = jnp.where(hparams["x"] > 0.9, diverged, (hparams["x"] - 0.337) ** 2)
            state = tell(state, told(hparams, values))
        return jax.tree.leaves(ask(KEY, state, 32))

    expected = asked(jnp.nan)
    for value in (1e4, 1e12, 1e25):
        for got, wanted in zip(asked(value), expected, strict=True):
            np.testing.assert_array_equal(got, wanted)


# ---- tables


def test_tables_follow_the_elites_slowly():
    """Where one value is the best of every generation, it takes 30 generations to be the only one."""
    space = {"k": Choice(tuple("abcdefghijk")), "n": Integer(1, 8), "x": Real(0.0, 1.0)}
    law = distribution(space, atoms={"x": 11})
    params, units = law.start, jnp.zeros((4, 3))
    for step in range(1, 31):
        params = law.blend(params, law.fit(params, units, jnp.ones(4)), step)
        assert not law.settled(params, 0.0, 1e-3), step
    assert law.settled(params, 0.0, 1e-2), "it gets there"


@pytest.mark.parametrize(("make", "most"), [(levy, 1.6), (rastrigin, 0.5)])
def test_cross_entropy_over_tables_finds_the_best(make, most):
    function, size = make(), 16
    law = distribution(function.space, atoms=11)
    search = cross_entropy(function.space, rho=0.25, family=lambda _: law)
    values_of = jax.vmap(function.value, (None, 0))

    def run(key):
        def generation(state, key):
            hparams = search.ask(key, state, size)
            values = values_of(function.data, hparams)
            return search.tell(state, told(hparams, values)), values

        first, rest = jax.random.split(key)
        return jnp.min(jax.lax.scan(generation, search.init(first), jax.random.split(rest, 32))[1])

    found = jax.jit(jax.vmap(run))(jax.random.split(KEY, 20))
    assert np.median(found) - function.least < most


def tuner_of(searcher, space, size=16):
    ask, tell = jax.jit(searcher.ask, static_argnums=2), jax.jit(searcher.tell)

    def step(key, state):
        hparams = ask(key, state, size)
        trials = told(hparams, jnp.abs(hparams["k"] - 1.0))
        state = tell(state, trials)
        return state, trials._replace(info=searcher.info(state))

    return Tuner(searcher.init, step)


@pytest.mark.parametrize(("tables", "warned"), [(0.9, True), (0.2, False)])
def test_tables_that_settle_early_are_named_once(tables, warned):
    space = {"k": Choice(("a", "b", "c"))}
    family = distribution(space, smoothing=Smoothing(tables=tables))
    searcher = cross_entropy(space, rho=0.25, family=lambda _: family)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SearcherWarning)
        study.run(tuner_of(searcher, space), KEY, 30)
    texts = [str(w.message) for w in caught if w.category is SearcherWarning]
    assert len(texts) == warned
    assert not warned or "settled on one value after 3 of 30 generations" in texts[0], texts


def test_only_tables_can_settle():
    for dim, there in ((Choice(("a", "b")), True), (Real(0.0, 1.0), False)):
        searcher = cross_entropy({"x": dim})
        assert ("tables_settled" in searcher.info(searcher.init(KEY))) == there


# ---- counts and shares of numpy


def test_settings_may_be_scalars_of_numpy():
    space = {"x": LogReal(1e-3, 1.0), "k": Choice(("a", "b", "c"))}
    makers = {
        tpe: {"capacity": 200, "num_initial": 10, "share": 0.25, "num_candidates": 16},
        bayes: {"capacity": 200, "num_initial": 10},
        cross_entropy: {"rho": 0.25, "keep": 2},
        evolution: {"num_members": 8, "crossover": 0.5},
        cma_es: {"num_members": 8, "sigma": 0.25},
        grid: {"num_levels": 5},
    }
    for make, settings in makers.items():
        ours = make(space, **settings)
        theirs = make(space, **{name: numpy_of(value) for name, value in settings.items()})
        shapes = [jax.eval_shape(s.init, KEY) for s in (ours, theirs)]
        assert shapes[0] == shapes[1]
        asked = [jax.eval_shape(lambda s=s: s.ask(KEY, s.init(KEY), 16)) for s in (ours, theirs)]
        assert asked[0] == asked[1]


def numpy_of(value):
    return np.uint8(value) if isinstance(value, int) else np.float32(value)


def test_schedulers_take_scalars_of_numpy():
    task = quadratic.task(horizon=9, num_params=2)
    members = population(task.problem, layout=vectorized())
    keys = jax.random.split(KEY, 9)
    hparams = jax.vmap(lambda key: sample(task.space, key))(keys)
    explore = schedulers.perturb(task.space, factor=np.float32(1.5))
    many = {
        schedulers.full: {"num_steps": 200},
        schedulers.halving: {"num_steps": 200, "min_steps": 3, "eta": 3.0},
        schedulers.hyperband: {"num_steps": 81, "min_steps": 9, "eta": 3.0},
        lambda **s: schedulers.pbt(explore=explore, **s): {"num_steps": 200, "period": 50},
    }
    for make, settings in many.items():
        theirs = {name: numpy_of(value) for name, value in settings.items()}
        shapes = [
            jax.eval_shape(lambda h, s=s, make=make: make(**s)(members, KEY, h), hparams)
            for s in (settings, theirs)
        ]
        assert shapes[0] == shapes[1]


# ---- reports


@pytest.mark.parametrize("huge", HUGE)
def test_a_huge_value_does_not_flatten_a_figure(huge):
    best = np.linspace(1.0, -1.0, 20)  # an axis that cannot be logarithmic
    trace = {"trainings": np.arange(20.0), "value": best.copy(), "best": best.copy()}
    trace["value"][5] = trace["value"][0] = trace["best"][0] = huge
    figure = figures.objective(trace, None, huge, "loss")
    low, high = figure.axes[0].get_ylim()
    assert -1.5 < low < -1 and 0.5 < high < 1.5
    legend = " ".join(text.get_text() for text in figure.legends[0].get_texts())
    assert "off the scale" in legend and "default (off the scale)" in legend
    plane = np.linspace(0, 1, 25).reshape(5, 5)
    plane[4, 4] = huge
    assert 1 < style.scale_ceiling(plane.ravel()) < 4


def test_a_logarithmic_axis_shows_all_decades():
    best = np.geomspace(1e4, 1e-4, 20)
    trace = {"trainings": np.arange(20.0), "value": best, "best": best}
    low, high = figures.objective(trace, None, np.nan, "loss").axes[0].get_ylim()
    assert low < 1e-4 and high > 1e4
