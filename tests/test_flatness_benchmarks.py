"""What the benchmarks of flatness-guided search compute from their results."""

from functools import partial
from itertools import combinations
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import false_discovery_control, mannwhitneyu

from benchmarks import fghpo, pools, runtime
from benchmarks.fghpo import CONTROL, SCORE
from benchmarks.networks import MEASURES, auc
from benchmarks.record import Figure, Results
from benchmarks.tables import load
from hypergrad.schedulers import Rung, blended, matched, pareto
from hypergrad.searchers import Trials, random as at_random
from hypergrad.space import Integer, LogReal, to_units


def case_of(**scores):
    return {name: {SCORE: list(values)} for name, values in scores.items()}


def test_significant_pairs_are_those_of_benjamini_and_hochberg():
    """Those up to the last k of m whose p is at most 5 % k / m: fewer than are below 5 % alone."""
    random = np.random.default_rng(1)
    case = case_of(**{f"{i}": random.normal(0.25 * i, 1, 12) for i in range(8)})
    pairs = list(combinations(case, 2))
    alone = np.array([mannwhitneyu(case[a][SCORE], case[b][SCORE]).pvalue for a, b in pairs])
    passed = [k for k in range(1, 29) if sorted(alone)[k - 1] <= 0.05 * k / 28]
    found = np.array([fghpo.differences(case)[pair] != 0 for pair in pairs])
    assert len(passed) < found.sum() == max(passed) < np.sum(alone <= 0.05)
    assert max(alone[found]) < min(alone[~found])
    np.testing.assert_array_equal(found, false_discovery_control(alone) <= 0.05)


def test_constant_scores_do_not_differ():
    assert set(fghpo.differences(case_of(a=[1.0] * 5, b=[1.0] * 5)).values()) == {0}


def test_a_difference_points_where_the_test_does():
    """One repeat that went astray turns the mean, not the test: 19 of 20 are better."""
    case = case_of(a=[0.0] + [0.98] * 19, b=[0.97] * 20)
    assert np.mean(case["a"][SCORE]) < np.mean(case["b"][SCORE])
    assert fghpo.differences(case) == {("a", "b"): 1, ("b", "a"): -1}


def test_wins_and_losses_are_counted_by_that_direction():
    case = case_of(**{CONTROL: [0.97] * 20, "a": [0.0] + [0.98] * 19})
    for found in case.values():
        found["epochs"] = 240
    rows = [
        [cell.strip() for cell in row.split("|")] for row in fghpo.compared({"x": case}).split("\n")
    ]
    assert rows[2][1] == CONTROL and rows[2][3] == "0 / 0 / 1"
    assert rows[3][1] == "a" and rows[3][3:5] == ["1 / 0 / 0", "1 / 0 / 0"]


def test_repeats_are_drawn_again_for_all_data_sets_at_once():
    """Sets that repeat one another are no more evidence than one; drawn one by one they would seem so."""
    one = np.random.default_rng(0).normal(size=(1, 20))
    low, high = fghpo.interval(np.repeat(one, 12, 0))
    assert (low, high) == pytest.approx(fghpo.interval(one), abs=1e-12)
    assert high - low == pytest.approx(2 * 1.96 * one.std() / np.sqrt(20), rel=0.1)
    assert high - low > 2 * (2 * 1.96 * one.std() / np.sqrt(12 * 20))


def test_an_interval_for_other_data_sets_holds_how_much_sets_differ():
    gaps = np.repeat(np.arange(12.0)[:, None], 20, 1)  # every repeat alike
    assert fghpo.interval(gaps) == (5.5, 5.5)
    low, high = fghpo.interval(gaps, other_sets=True)
    assert high - low == pytest.approx(2 * 1.96 * np.arange(12).std() / np.sqrt(12), rel=0.1)


@pytest.mark.parametrize("ranking", [pareto, matched(0.8), blended(0.6)])
def test_the_sharper_comes_first_where_rankings_are_turned_round(ranking):
    """Of two settings that are equally good; a measure that says nothing comes last still."""
    measures, values = jnp.array([1.0, 2.0, 0.0, jnp.nan]), jnp.array([0.2, 0.2, 0.2, 0.2])
    flat, sharp = ranking(measures, values), fghpo.sharpest(ranking)(measures, values)
    assert flat[0] < flat[1] and sharp[1] < sharp[0]
    assert max(sharp[:2]) < min(sharp[2:]) and max(flat[:2]) < min(flat[2:])


def test_the_area_under_the_curve_by_hand():
    """Of 2 x 3 pairs four are in order, one is turned and one ties."""
    scores, labels = jnp.array([0.9, 0.4, 0.4, 0.5, 0.1]), jnp.array([1, 1, 0, 0, 0])
    both = jnp.stack([1 - scores, scores], 1)
    assert auc(both, labels) == pytest.approx((4 + 0.5) / 6)
    assert auc(jnp.full((5, 2), 0.5), labels) == pytest.approx(0.5)
    # of three classes the mean of 3 of 3 pairs, 3 of 4, 2 of 3
    scores = jnp.array([[0.9, 0.0, 0.1], [0.1, 0.2, 0.7], [0.0, 0.6, 0.4], [0.2, 0.3, 0.5]])
    assert auc(scores, jnp.array([0, 1, 1, 2])) == pytest.approx((1 + 3 / 4 + 2 / 3) / 3)


def test_bayesmarks_score():
    """100 % at the best, 0 at the median and beyond it, and for what diverged."""
    losses = np.array([0.1, 0.2, 0.3, 0.5, np.nan])
    assert pools.normalized(losses) == pytest.approx([1, 0.5, 0, 0, 0])


def test_the_penalty_is_divided_by_the_batch_that_is_trained():
    """90 samples make batches of 90 at most; scikit-learn divides α by as many."""
    large, small = (pools.groups_of("iris", num, False) for num in (1000, 90))
    for whole, cut, batch in zip(large, small, pools.BATCHES, strict=True):
        assert (whole.batch, cut.batch) == (batch, min(batch, 90))
        alphas = [group.batch * group.settings.decay for group in (whole, cut)]
        assert alphas[0] == pytest.approx(alphas[1], rel=1e-5)


SMOOTH = {"rate": LogReal(1e-4, 1.0), "units": Integer(1, 64)}


def smooth_pool():
    """200 settings, lowest at a rate of 1e-2 and 32 units: in `fghpo`'s table, at every epoch."""
    draw = np.random.default_rng(0)
    rate, units = 10 ** draw.uniform(-4, 0, 200), draw.integers(1, 65, 200)
    values = (np.log10(rate) + 2) ** 2 / 4 + (units / 32 - 1) ** 2
    pool = {"rate": jnp.asarray(rate, jnp.float32), "units": jnp.asarray(units)}
    curve = np.broadcast_to(values, (len(fghpo.READ), 200))
    return pool, {"curve": jnp.asarray(curve, jnp.float32)}


def test_the_nearest_setting_that_was_not_tried_by_hand():
    """Rates count by their logarithm: 1e-3 is nearer to 1e-4 than to 1e-1."""
    space = {"rate": LogReal(1e-4, 1.0), "units": Integer(1, 10)}
    pool = {"rate": jnp.array([1e-4, 1e-1, 1e-3]), "units": jnp.array([5, 5, 10])}
    units = to_units(space, pool)
    np.testing.assert_allclose(units, [[0, 0.45], [0.75, 0.45], [0.25, 0.95]], atol=1e-6)
    wanted = jnp.array([0.25, 0.45])  # away by 0.25, 0.5 and 0.5
    tried = jnp.zeros(3, bool)
    assert pools.nearest(units, wanted, tried) == 0
    assert pools.nearest(units, wanted + jnp.array([0.01, 0]), tried.at[0].set(True)) == 1
    assert pools.nearest(units, wanted, jnp.array([True, True, False])) == 2


@pytest.mark.slow
def test_a_searcher_is_told_of_what_was_trained():
    """Not of what it suggested; a generation has no setting twice."""
    told = []
    inner = at_random(SMOOTH)._replace(tell=lambda state, trials: told.append(trials.hparams))
    pool, _ = smooth_pool()
    searcher = pools.on_pool(SMOOTH, pool)(inner)
    state = searcher.init(jax.random.key(0))
    rows = searcher.ask(jax.random.key(1), state, 30)["row"]
    assert len(set(rows.tolist())) == 30
    values, steps = jnp.zeros(30), jnp.ones(30, jnp.int32)
    _, tried = searcher.tell(state, Trials({"row": rows}, values, steps, steps, {}))
    np.testing.assert_array_equal(told[0]["units"], pool["units"][rows])
    np.testing.assert_array_equal(np.flatnonzero(tried), np.sort(rows))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["BOHB", "TuRBO-like"])
def test_searches_of_a_pool_learn_and_try_nothing_twice(name):
    """At most 240 epochs; better than random settings of the pool, by a Mann-Whitney test over 20 seeds."""
    pool, table = smooth_pool()
    given = pools.on_pool(SMOOTH, pool)
    learning = fghpo.learning(SMOOTH, given)
    methods = {
        name: learning[name],
        "random": fghpo.one_by_one(lambda: given(at_random(SMOOTH))),
    }
    keys = jax.vmap(jax.random.key)(jnp.arange(20))
    found = {}
    for label, method in methods.items():
        trials = jax.jit(jax.vmap(partial(method, table)))(keys)
        rows = np.asarray(trials.hparams["row"]).reshape(20, -1)
        steps = np.asarray(trials.steps).reshape(20, -1)
        assert all(len(set(of)) == len(of) for of in rows.tolist()), label
        assert set(steps.sum(1)) == {230 if label == "BOHB" else fghpo.BUDGET}
        ends = np.where(steps == fghpo.EPOCHS, np.asarray(table["curve"])[-1][rows], np.inf)
        found[label] = ends.min(1)
    assert mannwhitneyu(found[name], found["random"], alternative="less").pvalue < 0.01


def test_optunas_search_of_a_pool_learns_and_tries_nothing_twice():
    """The last of twelve is better than the first four, which are drawn at random."""
    pytest.importorskip("optuna")
    pool, table = smooth_pool()
    values = np.asarray(table["curve"][-1])
    rows = np.array([pools.optuna_on_pool(SMOOTH, pool, values, seed) for seed in range(10)])
    assert rows.shape == (10, fghpo.TRIALS) and all(len(set(of)) == len(of) for of in rows)
    first, last = values[rows[:, :4]].ravel(), values[rows[:, -1]]
    assert mannwhitneyu(last, first, alternative="less").pvalue < 0.01


@pytest.mark.parametrize("name", ["iris", "mnist"])
def test_settings_of_a_pool_lie_in_the_space_they_were_drawn_from(name):
    """From one end of each dimension to the other, and each setting is the one that is trained."""
    space, drawn = pools.drawn_from(name, quick=False)
    units = np.asarray(to_units(space, drawn))
    assert np.all((units >= 0) & (units <= 1))
    assert units.min(0).max() < 0.2 and units.max(0).min() > 0.8
    last = pools.groups_of(name, 90, False)[-1]
    same = {n: np.asarray(x)[last.rows] for n, x in drawn.items()}
    np.testing.assert_allclose(same["rate"], last.settings.rate)
    if name == "mnist":
        np.testing.assert_array_equal(2 ** same["log2_width"], last.settings.width)
    else:  # 90 samples make one batch: α is what was drawn all the same
        np.testing.assert_allclose(same["alpha"], last.settings.decay * 90, rtol=1e-5)
        beta = 1 / (1 + np.exp(-same["odds_1"]))
        np.testing.assert_allclose(beta, last.settings.beta_1, rtol=1e-5)


def column_of(top):
    values = np.full(60, 9.0)
    values[list(top)] = 0.0
    return values


def test_overlap_of_the_ten_best(tmp_path):
    """Ten that stay are 1; where five of ten change, 5 of 15 are in both."""
    drawn = np.random.default_rng(0).permutation(60)[: fghpo.FIRST]
    first, other = drawn[:10], [*drawn[:5], *drawn[20:25]]
    trained = Results(tmp_path / "grid.jsonl", "configurations", {})
    columns = {"auc_test": np.ones(60)}
    for epoch in range(1, 11):
        columns[f"theorem_1_{epoch}"] = column_of(first if epoch < 4 else other)
        columns[f"auc_valid_{epoch}"] = 1 - column_of(first)
    trained.add("x", [Figure("grid", name, list(c), "", 0) for name, c in columns.items()])
    flat, good = fghpo.overlap(trained, "x", np.array([0]))
    assert flat.value == pytest.approx([1] * 3 + [5 / 15] * 7, abs=1e-4)
    assert good.value == [1.0] * 10


SECONDS = {
    "epoch of 1": 1.0, "epoch of 10": 5.0, "epoch of 50": 20.0,
    "validation of 1": 0.1, "validation of 10": 0.4, "validation of 50": 2.0,
}  # fmt: skip


def test_a_search_costs_its_epochs_and_its_validations():
    """Once for every network that is compared or ends: 60 of halving, 12 of a search of whole trainings."""
    names = [*runtime.SEARCHES, "TPE (Optuna)"]
    took = SECONDS | dict.fromkeys(MEASURES, 3.0) | {f"search by {name}": 0.5 for name in names}
    found = runtime.costs({part: {"time, median": value} for part, value in took.items()})
    halving = (20 + 2.0) + (19 * 5 + 0.4)
    assert found[CONTROL] == pytest.approx((halving, 240 + 60 * 0.1, 0, 0.5))
    assert found["FGHPO full"] == pytest.approx((halving, 240 + 60 * 0.1, 3, 0.5))
    a_dozen = 20 * (5 + 2 / 40 * 15) + (0.4 + 2 / 40 * 1.6)  # between populations of 10 and 50
    assert found["random"] == pytest.approx((a_dozen, 240 + 12 * 0.1, 0, 0.5))
    assert found["TPE"] == found["TPE (Optuna)"] == pytest.approx((241.2, 241.2, 0, 0.5))
    assert len(found) == 7 + len(MEASURES) and "search by TPE (Optuna)" in took
    assert runtime.counted(((Rung(4, 2), Rung(1, 5)), (Rung(2, 5),))) == (4 * 2 + 3 + 10, 7)
    epochs, validations = runtime.counted(fghpo.bohb_brackets())
    assert found["BOHB"][1] == pytest.approx(epochs + 0.1 * validations) and epochs <= 240


def test_ladders_are_those_of_the_searches():
    """What the seconds are counted by is what the kept results say was trained."""
    kept = load(Path(fghpo.__file__).parent / "results" / "fghpo.jsonl")
    for name, ladder in runtime.ladders().items():
        for case in kept.cases.values():
            assert case[name]["epochs"] == runtime.counted(ladder)[0], name
