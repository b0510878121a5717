"""What the benchmarks of flatness-guided search compute from their results."""

from itertools import combinations
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import false_discovery_control, mannwhitneyu

from benchmarks import fghpo, pools, runtime
from benchmarks.fghpo import CONTROL, SCORE
from benchmarks.networks import MEASURES, auc
from benchmarks.record import Figure, Results
from benchmarks.tables import load
from hypergrad.schedulers import blended, matched, pareto
from hypergrad.schedulers.base import Rung


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
