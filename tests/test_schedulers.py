"""Schedulers: who is trained how far, on learning curves that are known exactly."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad import curvature, schedulers, searchers, study
from hypergrad.curvature import supremum
from hypergrad.populations import Population, chunked, looped, partitioned, population, vectorized
from hypergrad.problem import Examples, Problem
from hypergrad.schedulers import (
    Rung,
    blended,
    flatness,
    flattest,
    full,
    halving,
    hyperband,
    lowest_value,
    matched,
    pareto,
    pbt,
    perturb,
    reach,
    staged,
    traverse,
)
from hypergrad.schedulers.base import Periods, geometric_rungs, num_halvings
from hypergrad.schedulers.hyperband import brackets, num_trials
from hypergrad.schedulers.pb2 import time_varying
from hypergrad.schedulers.pbt import choose_parents
from hypergrad.searchers import Searcher, Trials
from hypergrad.searchers.models import gaussian_process as gp
from hypergrad.space import (
    Choice,
    Integer,
    LogReal,
    Real,
    Sequence,
    dynamic,
    sample,
    sample_constant,
)
from hypergrad.study.disk import records
from hypergrad.tuners import search
from tests.lowering import wide_results

KEY = jax.random.key(0)

CURVE = Problem(
    init=lambda key, h: jnp.zeros(()),
    loss=lambda w, h, b: -w * h["rate"],
    objective=lambda w, h, b: h["end"] + h["start"] / (1 + w),
    optimizer=lambda h: optax.sgd(1.0),
    train_batch=lambda key, step: (),
    valid_batch=lambda key: (),
)
"""After t steps w = rate·t, so that the objective is end + start / (1 + rate·t); a rate of NaN diverges."""
MEMBERS = population(CURVE, layout=vectorized())
HOST = population(CURVE, layout=looped(2))


def curves(num, seed=0):
    random = np.random.default_rng(seed)
    columns = random.uniform(0.1, 1.0, (3, num))
    return dict(zip(("rate", "end", "start"), jnp.asarray(columns, jnp.float32), strict=True))


def at(hparams, steps):
    h = {name: np.asarray(x, np.float64) for name, x in hparams.items()}
    return h["end"] + h["start"] / (1 + h["rate"] * np.asarray(steps))


def shift(key, hparams, history):
    return hparams | {"end": hparams["end"] + 0.01}


def steepness(w, h):
    return (h["end"] - h["start"]) * w


def compiled(scheduler, members=MEMBERS):
    """Return hparams -> outcome, as one program."""

    def run(hparams):
        return scheduler(members, KEY, hparams)

    return jax.jit(run)


SCHEDULERS = {
    "full": (full(9), 12),
    "halving": (halving(9, min_steps=1, eta=3.0), 12),
    "staged": (staged([Rung(12, 2), Rung(5, 4), Rung(5, 7), Rung(1, 9)]), 12),
    "hyperband": (hyperband(9, min_steps=3, eta=3.0), num_trials(9, min_steps=3, eta=3.0)),
    "pbt": (pbt(9, shift, period=3, fraction=0.25), 12),
    "reach": (reach(0.5, 9, every=2), 12),
    "flatness": (flatness(steepness, 9, first_steps=2, num_kept=4), 12),
}


@pytest.mark.parametrize("name", list(SCHEDULERS))
def test_contract(name):
    scheduler, num = SCHEDULERS[name]
    hparams = curves(num)
    hparams["rate"] = hparams["rate"].at[3].set(jnp.nan)
    chex.clear_trace_counter()

    def run(key, h):
        return scheduler(MEMBERS, key, h)

    jitted = jax.jit(chex.assert_max_traces(run, n=1))
    trials = jitted(KEY, hparams)
    assert isinstance(trials, Trials)
    assert trials.values.shape == trials.steps.shape == trials.parent.shape == (num,)
    assert trials.steps.dtype == trials.parent.dtype == jnp.int32
    assert trials.info["key"].shape == (num, 2) and trials.info["diverged"].shape == (num,)
    assert int(trials.steps.max()) == 9 and int(trials.steps.min()) >= 1
    assert jax.tree.map(jnp.shape, trials.hparams) == jax.tree.map(jnp.shape, hparams)
    # the same again, and from the host, where nothing is compiled as a whole
    for other in (jitted(KEY, hparams), scheduler(HOST, KEY, hparams)):
        chex.assert_trees_all_close(other, trials, rtol=1e-6)
    best = int(np.nanargmin(np.where(trials.steps == 9, trials.values, np.nan)))
    assert np.isfinite(trials.values[best]) and best != 3
    assert not wide_results(jax.jit(run), KEY, hparams)
    restored = records.decode(records.encode(0, trials), trials)
    np.testing.assert_array_equal(restored.values, trials.values)


@pytest.mark.parametrize("name", ["halving", "pbt"])
def test_a_study_and_its_generations_as_one_program(name):
    scheduler, num = SCHEDULERS[name]
    space = {"rate": Real(0.1, 1.0), "end": Real(0.1, 1.0), "start": Real(0.1, 1.0)}
    tuner = search(MEMBERS, searchers.random(space), scheduler, num)
    found = study.run(tuner, KEY, 2)
    full_ones = np.concatenate([o.values[o.steps == 9] for o in found.trials])
    assert found.best_value == full_ones.min()
    assert study.run(tuner, KEY, 2).digest == found.digest
    # two generations as one program
    state = tuner.init(KEY)
    keys = jnp.stack([jax.random.fold_in(jax.random.split(KEY)[1], i) for i in range(2)])
    scanned = jax.lax.scan(lambda s, k: tuner.step(k, s), state, keys)[1]
    for i in range(2):
        np.testing.assert_allclose(scanned.values[i], found.trials[i].values, rtol=1e-6)


def test_when_a_trial_was_there_is_noted():
    hparams = curves(6)
    found = [at(hparams, steps) for steps in range(10)]
    target = float(np.median(found[4])) + 1e-3
    for every in (1, 4):
        outcome = compiled(reach(target, 9, every=every))(hparams)
        looks = sorted({*range(every, 9, every), 9})
        for member in range(6):
            there = [steps for steps in looks if found[steps][member] <= target]
            assert outcome.info["reached"][member] == (there or [-1])[0]
        np.testing.assert_allclose(outcome.values, found[9], rtol=1e-6)
    assert len(set(np.asarray(outcome.info["reached"]).tolist())) > 1
    scores = searchers.steps_to(target)(outcome)
    reached = np.asarray(outcome.info["reached"])
    assert (scores[reached < 0] > 9).all() and (scores[reached >= 0] <= 9).all()


def test_halving_promotes_exactly_the_best():
    hparams = curves(20)
    outcome = compiled(halving(16, min_steps=1, eta=2.0))(hparams)
    alive = np.arange(20)
    for level, (num, compared) in enumerate([(20, 0), (10, 1), (5, 2), (2, 4), (1, 8)]):
        alive = alive[np.argsort(at(hparams, compared)[alive], kind="stable")[:num]]
        assert set(np.flatnonzero(outcome.info["rung"] >= level)) == set(alive)
    reached = np.array([1, 2, 4, 8, 16])[np.asarray(outcome.info["rung"])]
    np.testing.assert_array_equal(outcome.steps, reached)
    np.testing.assert_allclose(outcome.values, at(hparams, reached), rtol=1e-5)
    # everybody goes on from where it stopped
    assert outcome.info["budget"] == 20 * 1 + 10 * 1 + 5 * 2 + 2 * 4 + 1 * 8 == outcome.steps.sum()


def test_halving_at_the_edges():
    run = compiled(halving(9, min_steps=1, eta=3.0))
    one = run(curves(1))
    assert one.steps.tolist() == [9] and one.info["rung"].tolist() == [2]
    ties = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], (9,)), curves(1))
    assert run(ties).steps.tolist() == [9, 3, 3, 1, 1, 1, 1, 1, 1]
    lost = curves(9) | {"rate": jnp.full(9, jnp.nan)}
    outcome = run(lost)
    assert np.isnan(outcome.values).all() and outcome.steps.max() == 9
    assert outcome.info["diverged"].tolist() == [0] * 9
    low = curves(9)
    low["end"] = low["end"].at[4].set(-jnp.inf)
    assert run(low).info["rung"][4] == 0  # -inf is no objective


def test_a_rung_may_rank_by_something_else():
    def flatness(population, hparams, states, values):
        return -values, {"steepness": values}

    hparams = curves(8)
    outcome = compiled(staged([Rung(8, 2, rank=flatness), Rung(3, 5)]))(hparams)
    worst = np.argsort(-at(hparams, 2))[:3]
    assert set(np.flatnonzero(outcome.info["rung"])) == set(worst)
    np.testing.assert_allclose(outcome.info["steepness"], at(hparams, 2), rtol=1e-5)


def test_flatness_is_algorithm_1():
    """N_1 = 20 for an epoch, those with a positive measure ranked by it, N_2 = 5 to the end."""
    hparams = curves(20) | {"rate": curves(20)["rate"].at[7].set(jnp.nan)}
    run = compiled(flatness(steepness, 9, first_steps=2, num_kept=5))
    outcome = run(hparams)
    mu = np.asarray((hparams["end"] - hparams["start"]) * 2 * hparams["rate"])
    np.testing.assert_allclose(outcome.info["flatness"], mu, rtol=1e-5)
    assert (mu < 0).sum() > 3 and np.isnan(mu).sum() == 1
    order = np.argsort(np.where(mu > 0, mu, np.inf), kind="stable")
    assert set(np.flatnonzero(outcome.info["rung"])) == set(order[:5])
    np.testing.assert_array_equal(outcome.steps, np.where(outcome.info["rung"], 9, 2))
    assert outcome.info["budget"] == 20 * 2 + 5 * 7
    whole = compiled(flatness(steepness, 9, first_steps=9))(hparams)
    assert whole.steps.tolist() == [9] * 20


def test_what_is_discarded_never_wins():
    """Twelve trials, two of a positive measure: the other three of the five that go on are discarded ones."""
    hparams = curves(12) | {"rate": curves(12)["rate"].at[7].set(jnp.nan)}
    low = int(np.argmin(hparams["end"]))
    for some in ([2, 9], []):
        some = [i for i in some if i != low]
        flat = jnp.zeros(12).at[jnp.asarray(some, int)].set(1.0).at[4].set(jnp.nan)
        whole = {**hparams, "flat": flat, "end": hparams["end"].at[low].set(-1.0)}
        for first in (2, 9):
            scheduler = flatness(lambda w, h: h["flat"], 9, first_steps=first, num_kept=5)
            outcome = compiled(scheduler)(whole)
            kept = np.isin(np.arange(12), some)
            np.testing.assert_array_equal(outcome.info["discarded"], ~kept)
            np.testing.assert_array_equal(np.isfinite(outcome.values), kept)
            assert np.isnan(outcome.values[7]) and (outcome.steps == 9).sum() >= 5
            assert list(np.flatnonzero(np.isfinite(searchers.base.final_values(outcome)))) == some
    ranked = compiled(flatness(lambda w, h: h["flat"], 9, num_kept=5, ranking=lowest_value))(whole)
    assert np.flatnonzero(ranked.info["discarded"]).tolist() == [7]


def test_rankings():
    values = jnp.array([4.0, 1.0, 3.0, 2.0, jnp.nan, 5.0])
    measures = jnp.array([1.0, 6.0, 2.0, 5.0, 3.0, 0.0])
    order = {
        flattest: [0, 2, 4, 3, 1],
        lowest_value: [1, 3, 2, 0, 5],
        pareto: [
            1,
            3,
            2,
            0,
        ],  # one front, in the order of the objective; a measure of 0 is no information
        matched(0.5): [2, 3, 1, 0, 5],
        blended(0.0): [1, 3, 2, 0, 5],
        blended(1.0): [0, 2, 3, 1, 5],
    }
    for ranking, expected in order.items():
        score = np.asarray(jax.jit(ranking)(measures, values))
        found = [i for i in np.argsort(score, kind="stable") if np.isfinite(score[i])]
        assert found == expected, ranking
    # fronts against their definition
    both = np.random.default_rng(0).uniform(0.1, 1.0, (2, 30))
    left, fronts = set(range(30)), []
    while left:
        front = {i for i in left if not any(np.all(both[:, j] < both[:, i]) for j in left)}
        fronts += sorted(front, key=lambda i: both[1, i])
        left -= front
    score = jax.jit(pareto)(*jnp.asarray(both))
    assert np.argsort(score).tolist() == fronts


def test_the_supremum_over_minibatches():
    random = np.random.default_rng(1)
    inputs = jnp.asarray(random.normal(size=(10, 2)), jnp.float32)
    problem = Problem(
        init=lambda key, h: jax.random.normal(key, (2,)),
        loss=lambda w, h, x: jnp.mean((x @ w) ** 2) * h["scale"],
        objective=lambda w, h, b: jnp.sum(w**2),
        optimizer=lambda h: optax.sgd(0.1 * h["scale"]),
        train_batch=lambda key, step: inputs[jax.random.randint(key, (3,), 0, 10)],
        valid_batch=lambda key: (),
        train_set=Examples(10, lambda index: inputs[index]),
    )

    def norm(loss, w, batch):
        return curvature.frobenius(loss, w, batch).value

    measure = supremum(problem, norm, batch_size=4)
    hparams = {"scale": jnp.array([1.0, 2.0, 3.0])}
    parts = [np.asarray(inputs[i : i + 4]) for i in (0, 4)]
    exact = max(np.linalg.norm(2 * x.T @ x / 4) for x in parts)
    space = {"scale": Choice((1.0, 2.0, 3.0), static=True), "other": Real(0.0, 1.0)}
    groups = partitioned(problem, space, lambda p: population(p, layout=looped()))
    for members, given in (
        (population(problem, layout=vectorized()), hparams),
        (population(problem, layout=looped(2), num_seeds=2), hparams),
        (groups, {"scale": jnp.array([0, 1, 2]), "other": jnp.zeros(3)}),
    ):
        states = members.init(jax.random.split(KEY, 3), given)
        np.testing.assert_allclose(
            members.measure(measure, given, states), exact * np.array([1, 2, 3]), rtol=1e-5
        )
    drawn = supremum(problem, norm, num_batches=2)(jnp.ones(2), {"scale": 1.0})
    batches = [problem.train_batch(jax.random.fold_in(KEY, i), i) for i in range(2)]
    np.testing.assert_allclose(
        drawn, max(np.linalg.norm(2 * x.T @ x / 3) for x in map(np.asarray, batches)), rtol=1e-5
    )


def test_a_walk_along_the_front():
    space = {"a": Real(0.0, 1.0), "n": Integer(0, 10), "kind": Choice(("x", "y"))}
    hparams = {
        "a": jnp.array([0.0, 0.5, 1.0, 0.9]),
        "n": jnp.array([0, 10, 5, 1]),
        "kind": jnp.array([0, 1, 0, 0]),
    }
    scores = jnp.array([[1.0, 9.0], [3.0, 3.0], [9.0, 1.0], [9.0, 9.0]])
    walk = jax.jit(lambda h, s, key: traverse(space, h, s, 4, key))
    found = walk(hparams, scores, None)
    np.testing.assert_allclose(found["a"], [0.125, 0.375, 0.625, 0.875], rtol=1e-6)
    assert found["n"].tolist() == [3, 8, 9, 6] and found["kind"].tolist() == [0, 1, 1, 0]
    lost = walk(hparams, jnp.full((4, 2), jnp.nan), KEY)
    assert np.isfinite(lost["a"]).all()
    one = walk(hparams, scores[:, :1].repeat(2, 1), None)
    assert one["a"].tolist() == [0.0] * 4


@pytest.mark.parametrize("eta", [1.01, 1.2, 1.5, 2.0, 3.0])
def test_every_rung_trains(eta):
    for num_steps in (1, 7, 10, 27, 100):
        last = num_halvings(num_steps, 1, eta)
        rungs = geometric_rungs(20, num_steps, last, eta)
        assert np.all(np.diff([0, *(r.steps for r in rungs)]) > 0)
        assert rungs[0].num == 20 and rungs[-1].steps == num_steps
    # the members of a rung are those that are left when its steps begin
    assert [tuple(r[:2]) for r in geometric_rungs(20, 10, 8, 1.3)][:3] == [(20, 1), (15, 2), (9, 3)]


def test_the_brackets_are_those_of_the_paper():
    table = [[(r.num, r.steps) for r in rungs] for rungs in brackets(81, eta=3.0)]
    assert table == [
        [(81, 1), (27, 3), (9, 9), (3, 27), (1, 81)],
        [(34, 3), (11, 9), (3, 27), (1, 81)],
        [(15, 9), (5, 27), (1, 81)],
        [(8, 27), (2, 81)],
        [(5, 81)],
    ]
    assert num_trials(81, eta=3.0) == 143
    assert [r[0] for r in brackets(100, min_steps=30, eta=2.0)] == [(2, 50, None), (2, 100, None)]
    assert len(brackets(1000, eta=10.0)) == 4 and len(brackets(243, eta=3.0)) == 6


def test_hyperband_halves_every_bracket_by_itself():
    num = num_trials(9, eta=3.0)
    hparams = curves(num)
    outcome = jax.jit(lambda h: hyperband(9, eta=3.0)(MEMBERS, KEY, h))(hparams)
    budget, start = 0, 0
    for level, rungs in enumerate(brackets(9, eta=3.0)):
        inside = np.arange(start, start + rungs[0].num)
        assert np.all(np.asarray(outcome.info["bracket"])[inside] == level)
        alive, before = inside, 0
        for rung in rungs:
            alive = alive[np.argsort(at(hparams, before)[alive], kind="stable")[: rung.num]]
            budget, before = budget + rung.num * (rung.steps - before), rung.steps
        assert set(inside[np.asarray(outcome.steps)[inside] == 9]) == set(alive)
        start += rungs[0].num
    assert outcome.info["budget"] == budget == outcome.steps.sum()


def test_hyperband_asks_its_searcher_between_brackets():
    """A searcher that lowers `end` by what it was told: each bracket has to start below the one before."""

    def tell(state, outcome):
        return jnp.minimum(state, jnp.nanmin(outcome.hparams["end"])) - 1.0

    def ask(key, state, num):
        return curves(num) | {"end": jnp.full(num, state)}

    scheduler = hyperband(9, eta=3.0, searcher=Searcher(lambda key: jnp.float32(0), ask, tell))
    hparams = curves(num_trials(9, eta=3.0))
    outcome = compiled(scheduler)(hparams)
    bracket = np.asarray(outcome.info["bracket"])
    np.testing.assert_array_equal(
        outcome.hparams["end"][bracket == 0], hparams["end"][bracket == 0]
    )
    assert set(np.asarray(outcome.hparams["end"])[bracket == 1].tolist()) == {-1.0}
    assert set(np.asarray(outcome.hparams["end"])[bracket == 2].tolist()) == {-2.0}
    np.testing.assert_allclose(outcome.values, at(outcome.hparams, outcome.steps), rtol=1e-5)


def test_pbt_copies_weights_and_hparams():
    hparams = curves(10)
    outcome = compiled(pbt(6, shift, period=2, fraction=0.3))(hparams)
    parent = np.asarray(outcome.parent)
    assert len(set(parent.tolist())) < 10  # some were copied
    schedule = {name: np.asarray(outcome.info[f"schedule.{name}"]) for name in hparams}
    assert schedule["end"].shape == (10, 3)
    for i in range(10):
        # a member's first settings are those of the ancestor it names
        assert schedule["end"][i, 0] == hparams["end"][parent[i]]
        assert schedule["end"][i, 2] == outcome.hparams["end"][i]
        # copies carry weights: w is the sum of the line's rates, two steps each
        w = 2 * np.cumsum(schedule["rate"][i].astype(np.float64))
        curve = schedule["end"][i] + schedule["start"][i] / (1 + w)
        np.testing.assert_allclose(outcome.info["curve"][i], curve, rtol=1e-5)
        moved = np.diff(schedule["end"][i])
        assert np.all((np.abs(moved) < 1e-7) | (np.abs(moved - 0.01) < 1e-6))
    np.testing.assert_allclose(outcome.values, outcome.info["curve"][:, 2], rtol=1e-6)
    assert outcome.steps.tolist() == [6] * 10


@pytest.mark.slow
def test_pbt_leaves_the_schedule_that_a_member_was_trained_with():
    """Another run from its start with the schedule that came out arrives at the same weights."""
    steps = 6
    space = {
        "rate": Sequence(Real(0.1, 1.0), steps),
        "end": Real(0.1, 1.0),
        "start": Real(0.1, 1.0),
    }
    problem = CURVE._replace(
        loss=lambda w, h, t: -w * h["rate"][t], train_batch=lambda key, step: step
    )
    hparams = curves(10)
    hparams["rate"] = jnp.broadcast_to(hparams["rate"][:, None], (10, steps))
    scheduler = pbt(steps, perturb(space, draw=sample_constant), period=2, fraction=0.3)
    outcome = compiled(scheduler, population(problem, layout=vectorized()))(hparams)
    rates = np.asarray(outcome.hparams["rate"], np.float64)
    assert np.any(rates != rates[:, :1])
    assert np.all(rates[:, ::2] == rates[:, 1::2])
    h = {n: np.asarray(x, np.float64) for n, x in outcome.hparams.items()}
    again = h["end"] + h["start"] / (1 + rates.sum(1))
    np.testing.assert_allclose(outcome.values, again, rtol=1e-5)
    falling = {"rate": Sequence(Real(0.1, 1.0), steps, decreasing=True)}
    history = Periods({}, jnp.zeros((3, 10)), jnp.zeros((3, 10)), jnp.int32(1))
    first = {"rate": jnp.broadcast_to(jnp.linspace(0.6, 0.3, steps), (10, steps))}
    moved = np.asarray(jax.jit(perturb(falling, resample=0.0))(KEY, first, history)["rate"])
    assert np.all(np.diff(moved) <= 0) and np.all(moved[:, :2] == first["rate"][:, :2])
    assert np.all(moved[:, -1] != first["rate"][:, -1])


def test_sources_are_the_best_and_the_replaced_the_worst():
    choose = jax.jit(choose_parents, static_argnums=2)
    values = jnp.array([5.0, 1.0, 9.0, jnp.nan, 2.0, 7.0, 3.0, 8.0])
    for seed in range(5):
        source, moved = map(np.asarray, choose(jax.random.key(seed), values, 0.25))
        assert np.flatnonzero(moved).tolist() == [2, 3]
        assert set(source[moved]) <= {1, 4} and np.all(source[~moved] == np.flatnonzero(~moved))
    many_lost = jnp.array([jnp.nan, 1.0, jnp.nan, jnp.inf, 2.0])
    source, moved = map(np.asarray, choose(KEY, many_lost, 0.2))
    assert np.flatnonzero(moved).tolist() == [0, 2, 3] and set(source[moved]) == {1}
    for lost in (jnp.full(4, jnp.nan), jnp.full(1, jnp.nan), jnp.ones(1)):
        source, moved = map(np.asarray, choose(KEY, lost, 0.5))
        assert not moved.any() and source.tolist() == list(range(len(lost)))
    ties, moved = map(np.asarray, choose(KEY, jnp.ones(4), 0.5))
    assert set(ties[moved]) <= {0, 1} and np.flatnonzero(moved).tolist() == [2, 3]


def test_pbt_revives_what_diverged():
    """A member that diverged in the first period goes on from a healthy one."""
    hparams = curves(6)
    hparams["rate"] = hparams["rate"].at[1].set(jnp.nan)
    run = compiled(pbt(4, shift, period=2, fraction=0.2))
    outcome = run(hparams)
    assert np.isfinite(outcome.values).all() and outcome.info["diverged"].tolist() == [-1] * 6
    assert outcome.parent[1] != 1
    alone = run(curves(1))
    assert alone.parent.tolist() == [0] and np.isfinite(alone.values).all()
    lost = curves(6) | {"rate": jnp.full(6, jnp.nan)}
    assert np.isnan(run(lost).values).all()


def test_perturb_stays_inside_and_moves_as_the_paper():
    space = {
        "lr": LogReal(1e-3, 1.0),
        "rates": Sequence(LogReal(1e-3, 1.0), 3),
        "layers": Integer(1, 9),
        "kind": Choice(("a", "b", "c")),
        "width": Integer(2, 5, static=True),
    }
    keys = jax.random.split(KEY, 200)
    hparams = jax.jit(jax.vmap(lambda k: sample(dynamic(space), k)))(keys)
    hparams = jax.tree.map(np.asarray, hparams)
    for resample in (0.25, 0.0):
        some = space if not resample else {n: space[n] for n in ("lr", "kind")}
        given = {n: hparams[n] for n in some}
        moved = jax.jit(perturb(some, resample=resample))(KEY, given, None)
        moved = jax.tree.map(np.asarray, moved)
        assert jax.tree.map(lambda x: x.dtype, moved) == jax.tree.map(lambda x: x.dtype, given)
        for name, low, high in (
            ("lr", 1e-3, 1),
            ("rates", 1e-3, 1),
            ("layers", 1, 9),
            ("kind", 0, 2),
        ):
            if name in some:
                assert np.all((moved[name] >= low * 0.999999) & (moved[name] <= high))
        ratio = np.asarray(moved["lr"] / hparams["lr"])
        inside = (hparams["lr"] > 2e-3) & (hparams["lr"] < 0.8)
        stepped = np.isclose(ratio, 1.2) | np.isclose(ratio, 0.8)
        assert np.mean(stepped[inside]) == pytest.approx(1 - resample, abs=0.1)
    # the last: nothing is drawn anew
    np.testing.assert_array_equal(moved["width"], hparams["width"])
    np.testing.assert_array_equal(moved["kind"], hparams["kind"])
    assert np.all((moved["layers"] != hparams["layers"]) | np.isin(hparams["layers"], (1, 9)))
    spread = np.asarray(moved["rates"] / hparams["rates"])
    one_step = np.all((hparams["rates"] > 2e-3) & (hparams["rates"] < 0.8), axis=1)
    assert np.allclose(spread[one_step], spread[one_step][:, :1])


@pytest.mark.slow
def test_halving_over_static_shapes():
    space = {"rate": Real(0.1, 1.0), "size": Integer(1, 2, static=True)}
    problem = CURVE._replace(
        init=lambda key, h: jnp.zeros(h["size"]),
        loss=lambda w, h, b: -jnp.sum(w) * h["rate"],
        objective=lambda w, h, b: jnp.sum(1 / (1 + w)),
    )
    members = partitioned(problem, space, lambda p: population(p, layout=chunked(2)))
    tuner = search(members, searchers.random(dynamic(space)), halving(4, min_steps=2, eta=2.0), 6)
    outcome = study.run(tuner, KEY, 1).trials[0]
    expected = outcome.hparams["size"] / (1 + outcome.hparams["rate"] * outcome.steps)
    np.testing.assert_allclose(outcome.values, expected, rtol=1e-5)
    assert sorted(outcome.steps.tolist()) == [2, 2, 2, 4, 4, 4]


def test_the_best_of_a_study_is_trained_to_the_end():
    """A trial that was stopped early at a low objective does not win: nobody trained it further."""
    rising = CURVE._replace(objective=lambda w, h, b: w * (1 + h["rate"]))
    space = {"rate": Real(0.1, 1.0), "end": Real(0.1, 1.0), "start": Real(0.1, 1.0)}
    tuner = search(
        population(rising, layout=vectorized()), searchers.random(space), halving(8, eta=2.0), 8
    )
    found = study.run(tuner, KEY, 2)
    ends = np.concatenate([o.values[o.steps == 8] for o in found.trials])
    assert found.best_value == ends.min() > min(o.values.min() for o in found.trials)


NO_MEMBERS = MEMBERS._replace(init=None)
"""A population that cannot be trained: what is refused with it is refused before."""

REFUSED = {
    "num_steps is 0": lambda: full(0),
    "eta is 1, expected a number in (1, inf)": lambda: halving(9, eta=1),
    "eta is nan": lambda: hyperband(9, eta=float("nan")),
    "min_steps is 10, expected at most num_steps = 9": lambda: halving(9, min_steps=10),
    "min_steps is 0": lambda: hyperband(9, min_steps=0),
    "rungs is ()": lambda: staged([]),
    "rungs[1] has 6 members and 4 steps": lambda: staged([Rung(5, 2), Rung(6, 4)]),
    "rungs[1] has 3 members and 2 steps": lambda: staged([Rung(5, 2), Rung(3, 2)]),
    "hparams has 4 members, expected 12 for the first rung": lambda: SCHEDULERS["staged"][0](
        MEMBERS, KEY, curves(4)
    ),
    "hparams has 2 members, expected at least 3, the brackets": lambda: hyperband(9)(
        MEMBERS, KEY, curves(2)
    ),
    "measure is None": lambda: flatness(None, 9),
    "num_kept is 0": lambda: flatness(steepness, 9, num_kept=0),
    "ranking returned the shape (3,), expected (4,)": lambda: flatness(
        steepness, 9, ranking=lambda m, v: jnp.zeros(3)
    )(NO_MEMBERS, KEY, curves(4)),
    "ranking returned the shape (), expected (4,)": lambda: flatness(
        steepness, 9, ranking=lambda m, v: jnp.min(m)
    )(NO_MEMBERS, KEY, curves(4)),
    "ranking is a function of (share), expected a function (measures [M], obj": lambda: flatness(
        steepness, 9, ranking=matched
    ),
    "measure is a function of (loss, params, batch, radius, num_steps), expected": lambda: flatness(
        curvature.sam, 9
    ),
    "share is 2": lambda: matched(2),
    "first_steps is 10": lambda: flatness(steepness, 9, first_steps=10),
    "measure returned the shape (4, 2), expected (4,)": lambda: flatness(
        lambda w, h: jnp.ones(2), 9
    )(MEMBERS, KEY, curves(4)),
    "batch_size is 3 for a problem with no training set": lambda: supremum(
        CURVE, jnp.sum, batch_size=3
    ),
    "scores has shape (4,)": lambda: traverse(
        {"a": Real(0, 1)}, {"a": jnp.ones(4)}, jnp.ones(4), 2
    ),
    "population has no `measure`": lambda: flatness(steepness, 9)(
        MEMBERS._replace(measure=Population._field_defaults["measure"]), KEY, curves(4)
    ),
    "period is 4, expected a divisor of num_steps = 9": lambda: pbt(9, shift, period=4),
    "target is nan, expected a finite number": lambda: reach(float("nan"), 9),
    "every is 0": lambda: reach(0.5, 9, every=0),
    "period is 0": lambda: pbt(9, shift, period=0),
    "explore is None": lambda: pbt(9, None, period=3),
    "fraction is 0.6": lambda: pbt(9, shift, period=3, fraction=0.6),
    "factor is 1": lambda: perturb({"a": Real(0, 1)}, factor=1),
    "resample is 2": lambda: perturb({"a": Real(0, 1)}, resample=2),
    "space['a'] is 3": lambda: perturb({"a": 3}),
}


@pytest.mark.parametrize("fragment", list(REFUSED))
def test_refused_in_one_line(fragment):
    with pytest.raises(ValueError) as caught:
        REFUSED[fragment]()
    assert fragment in str(caught.value) and "\n" not in str(caught.value)


def test_every_scheduler_is_named():
    assert set(SCHEDULERS) <= set(schedulers.__all__)


@pytest.mark.slow
def test_pb2_explores_where_the_objective_fell_most():
    """The best rate is a function of time: low early and high late, as the changes of the others show."""
    space = {"rate": Real(0.0, 1.0), "kind": Choice(("a", "b", "c"))}
    num_periods, num = 4, 12
    random = np.random.default_rng(0)
    rate = random.uniform(0, 1, (num_periods, num)).astype(np.float32)
    kind = random.integers(0, 3, (num_periods, num)).astype(np.int32)
    change = 4 * (rate - 0.8) ** 2 + 0.5 * (kind != 1) - 1
    starts = np.full((num_periods, num), 5.0, np.float32)
    starts[0] = np.nan
    values = (starts + change).astype(np.float32)
    values[2, 3] = np.nan  # one diverged
    explore = jax.jit(schedulers.pb2(space, kappa=0.5, capacity=32))
    given = {"rate": jnp.full(num, 0.1), "kind": jnp.zeros(num, jnp.int32)}
    seen = Periods({"rate": rate, "kind": kind}, values, starts, jnp.int32(3))
    moved = explore(KEY, given, seen)
    assert np.median(np.abs(np.asarray(moved["rate"]) - 0.8)) < 0.15
    assert np.mean(np.asarray(moved["kind"]) == 1) > 0.5
    assert moved["kind"].dtype == jnp.int32 and moved["rate"].dtype == given["rate"].dtype
    few = explore(KEY, given, seen._replace(moved=jnp.arange(num) == 5))
    gone = np.arange(num) != 5  # those that go on do so, and only the copy is sent elsewhere
    np.testing.assert_allclose(np.asarray(few["rate"])[gone], 0.1, atol=1e-6)
    assert abs(float(few["rate"][5]) - 0.8) < 0.15
    nothing = explore(KEY, given, seen._replace(num=jnp.int32(1)))
    assert len(np.unique(nothing["rate"])) == num, "nothing known yet: anywhere"
    with pytest.raises(ValueError, match="kappa is -1"):
        schedulers.pb2(space, kappa=-1)
    with pytest.raises(ValueError, match=r"space\['n'\] is static"):
        schedulers.pb2({"n": Integer(1, 2, static=True)})


def test_the_process_of_pb2_is_the_papers():
    """Against the dense posterior in float64: the mean of the data, the deviation of the hallucinations too."""
    scale, omega, amplitude, noise = np.array([0.4, 0.7]), 0.3, 1.3, 0.05
    kernel = gp.prior_kernel(3)._replace(
        scale=jnp.log(jnp.array([*scale, -2 / np.log(1 - omega)])),
        amplitude=jnp.log(amplitude),
        noise=jnp.log(noise),
    )
    random = np.random.default_rng(1)
    units = random.uniform(0, 1, (14, 3))
    units[:, 1] = (random.integers(0, 3, 14) + 0.5) / 3  # an option
    units[:, 2] = random.integers(0, 5, 14)  # the period
    seen, chosen, at = units[:8], units[8:11], units[11:]
    targets = random.normal(size=8)

    def k(a, b):
        x = np.exp(-((a[:, None, 0] - b[:, 0]) ** 2) / (2 * scale[0] ** 2))
        option = np.where(a[:, None, 1] != b[:, 1], np.exp(-1 / scale[1]), 1)
        return amplitude * x * option * (1 - omega) ** (np.abs(a[:, None, 2] - b[:, 2]) / 2)

    def dense(rows):
        inverse = np.linalg.inv(k(rows, rows) + (noise + gp.noise_floor()) * np.eye(len(rows)))
        return k(at, rows) @ inverse

    both = np.concatenate([seen, chosen])
    covariance = time_varying(np.array([True, False]))

    @jax.jit
    def ours(units, targets, mask):
        posterior = gp.condition(kernel, covariance, units, targets, mask)
        for row in range(8, 11):
            posterior = gp.believe(posterior, covariance, jnp.asarray(both[row]), row)
        return gp.predict(posterior, covariance, jnp.asarray(at))

    room = np.concatenate([seen, np.zeros((3, 3))])
    mean, std = ours(
        jnp.asarray(room), jnp.asarray(np.append(targets, [0.0] * 3)), np.arange(11) < 8
    )
    np.testing.assert_allclose(mean, dense(seen) @ targets, atol=2e-4)
    variance = amplitude - np.sum(dense(both) * k(at, both), 1)
    np.testing.assert_allclose(std, np.sqrt(variance), rtol=1e-3)


@pytest.mark.slow
def test_pb2_forgets_what_no_longer_holds():
    """ω is fitted: it is large where the best rate moves with time, and small where it stays."""
    random = np.random.default_rng(2)
    rate, time = random.uniform(0, 1, (2, 48)).astype(np.float32)
    units, mask = jnp.stack([rate, time], 1), jnp.ones(48, bool)
    fit = jax.jit(
        lambda y: gp.fit_covariance(
            gp.prior_kernel(2), time_varying(np.array([True])), units, y, mask
        )
    )

    def omega(targets):
        return 1 - np.exp(
            -2 / np.exp(float(fit((targets - targets.mean()) / targets.std()).scale[1]))
        )

    assert omega((rate - time) ** 2) > 2 * omega((rate - 0.5) ** 2)


@pytest.mark.slow
def test_pb2_in_a_population_with_schedules():
    space = {"rate": Sequence(Real(0.1, 1.0), 6), "end": Real(0.0, 1.0), "start": Real(0.5, 1.0)}
    curve = CURVE._replace(
        loss=lambda w, h, b: -w * jnp.mean(h["rate"]),
        objective=lambda w, h, b: h["end"] + h["start"] / (1 + w),
    )
    scheduler = pbt(6, schedulers.pb2(space, capacity=16), period=2, fraction=0.25)
    hparams = jax.vmap(lambda key: sample(space, key))(jax.random.split(KEY, 8))
    members = population(curve, layout=vectorized())
    outcome = jax.jit(lambda key, h: scheduler(members, key, h))(KEY, hparams)
    found = {n: np.asarray(x) for n, x in outcome.info.items() if n.startswith("schedule.")}
    rates = found["schedule.rate"]  # [N, periods, steps]
    np.testing.assert_array_equal(rates[:, 0, :2], rates[:, 1, :2])
    np.testing.assert_array_equal(rates[:, 1, 2:4], rates[:, 2, 2:4])
    copied = np.any(rates[:, 0] != rates[:, 2], axis=-1)
    assert copied.any() and not copied.all()
    for member in np.flatnonzero(np.any(rates[:, 0] != rates[:, 1], axis=-1)):
        assert len(np.unique(rates[member, 1, 2:])) == 1, "one value from the present on"
    best = float(outcome.values.min())
    assert best <= float(full(6)(members, KEY, hparams).values.min())
