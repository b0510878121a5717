"""What the study of flatness computes from its trained networks, on made-up values."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import flatness_theory as theory, networks, own_batches, tables
from benchmarks.configurations import GRID, RATES, SIZES
from hypergrad.curvature.models import loss_of

NUM = len(GRID)


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(theory, "RESAMPLES", 60)


def grid(**columns):
    """Return results that hold these columns of a trained grid, `[seeds, settings]`."""
    kept = {name: np.asarray(x).tolist() for name, x in columns.items()}
    return SimpleNamespace(cases={"made up": {"grid": kept}})


def test_violations_by_hand():
    """Of three settings and two seeds, one network diverged: 1.5 of 5 are violated."""
    nan = float("nan")
    made = grid(**{
        "violated_full_1": [[0.5, 0.0, 0.0], [1.0, 0.0, nan]],
        "violated_last_layer_1": np.ones((2, 3)),
        "violated_full_20": np.zeros((2, 3)),
        "violated_last_layer_20": np.full((2, 3), nan),
    })  # fmt: skip
    found = {f.metric: f.value for f in theory.violations(made, "made up")}
    assert found["full, epoch 1"] == [
        0.3,
        0.0,
        0.75,
    ]  # all draws of one setting: 0 at least, 1.5 / 2 at most
    assert found["last_layer, epoch 1"] == [1, 1, 1] and found["full, epoch 20"] == [0, 0, 0]
    assert "last_layer, epoch 20" not in found


def test_a_setting_keeps_its_seeds_in_the_bootstrap(random, few):
    """A second seed that says the same adds nothing: drawn apart, it would narrow every interval by √2."""
    values = random.uniform(size=(1, NUM))
    assert theory.share(np.tile(values, (2, 1))) == theory.share(values)

    measures = {"measure": random.normal(size=(1, NUM))}
    targets = {"test AUC": measures["measure"] + 2 * random.normal(size=(1, NUM))}
    control = random.normal(size=(1, NUM))
    once = theory.correlated(measures, targets, control)
    twice = theory.correlated(
        *({name: np.tile(x, (2, 1)) for name, x in many.items()} for many in (measures, targets)),
        np.tile(control, (2, 1)),
    )
    assert set(once) == set(twice) and len(once) == 4
    for key, found in once.items():
        np.testing.assert_allclose(found, twice[key], atol=2e-4)
    value, low, high = once["measure", "test AUC"]
    assert low < value < high and high - low == pytest.approx(4 * 0.9 / NUM**0.5, rel=0.4)


def test_one_rate_can_say_the_opposite_of_all(random, few):
    """What rises with the rate and falls within it."""
    place = np.searchsorted(RATES, GRID[:, 3])
    noise = random.uniform(size=(2, NUM))
    found = theory.correlated(
        {"measure": place - noise}, {"test AUC": place + noise}, random.normal(size=(2, NUM))
    )
    assert found["measure", "test AUC"][1] > 0.5
    assert found["measure", theory.FEW][1] > 0.5
    assert found["measure", theory.WITHIN] == [-1, -1, -1]


def test_partial_rank_correlation_is_that_of_residuals(random):
    a, b, c = random.normal(size=(3, 40))
    x, y, z = map(theory.ranks, (a + c, b - c, c))
    left = [v - z * (v @ z) / (z @ z) for v in (x, y)]
    assert theory.at_equal(x, y, z) == pytest.approx(np.corrcoef(*left)[0, 1], abs=1e-12)
    by_hand = theory.at_equal(
        *map(theory.ranks, np.array([[1, 2, 3, 4], [1, 3, 2, 4], [2, 1, 4, 3]]))
    )
    assert by_hand == pytest.approx((0.8 - 0.6 * 0) / np.sqrt(1 - 0.6**2))  # ρ: 0.8, 0.6 and 0


def test_ranks_share_ties_and_a_constant_says_nothing():
    np.testing.assert_array_equal(theory.ranks(np.array([3.0, 1.0, 3.0, 9.0])), [0, -1.5, 0, 1.5])
    assert np.isnan(theory.correlation(theory.ranks(np.ones(4)), theory.ranks(np.arange(4))))


@pytest.mark.slow
def test_auc_counts_pairs(random):
    labels = jnp.asarray(random.integers(3, size=30))
    scores = jnp.asarray(random.integers(5, size=(30, 3)) / 5)  # with many ties
    by_pairs = []
    for c in range(3):
        above = scores[labels == c, c][:, None] - scores[labels != c, c][None]
        by_pairs.append(np.mean(np.sign(above) / 2 + 0.5))
    assert networks.auc(scores, labels) == pytest.approx(np.mean(by_pairs), abs=1e-6)
    two = jnp.stack([1 - scores[:, 1], scores[:, 1]], 1)
    assert networks.auc(two, (labels == 1).astype(int)) == pytest.approx(by_pairs[1], abs=1e-6)


def test_a_bound_is_violated_on_the_minibatches_where_it_is_larger():
    bound = jnp.array([[1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 1.0, 1.0]])
    exact = {
        "full": jnp.full((2, 4), 2.0),
        "last_layer": jnp.array([[0.0] * 4, [0, 0, 0, jnp.inf]]),
    }
    found = networks.violations(bound, exact)
    np.testing.assert_array_equal(found["violated_full"], [0.5, 0])
    np.testing.assert_array_equal(found["violated_last_layer"], [1, np.nan])


@pytest.mark.slow
def test_the_last_layer_in_closed_form(random):
    """With its bias the norm is the library's; without, and relative flatness, that of its matrix."""
    width, depth = 5, 1
    of = networks.settings(np.array([width]), np.array([depth]), np.array([0.1]))
    drawn = networks.begin(jax.random.split(jax.random.key(0), 1), of, networks.Sizes(3, 3, 1, 5))
    params = jax.tree.map(lambda x: x[0], drawn.params)
    batch = networks.Split(random.normal(size=(4, 3)).astype(np.float32), np.array([0, 1, 2, 0]))
    model = networks.network(width, depth)
    inputs, probabilities = own_batches.last(model, params, batch.inputs)
    with_bias, alone = own_batches.last_norms(inputs, probabilities)
    found = jax.jit(jax.hessian(lambda layer: loss_of(model)([*params[:-1], layer], batch)))(
        params[-1]
    )
    blocks = [block for rows in found.values() for block in rows.values()]
    exact = np.sqrt(sum(float(jnp.sum(block**2)) for block in blocks))
    kernel, weights = np.asarray(found["kernel"]["kernel"]), np.asarray(params[-1]["kernel"])
    assert with_bias == pytest.approx(exact, rel=1e-5)
    assert alone == pytest.approx(np.linalg.norm(kernel), rel=1e-5) and alone < with_bias
    by_definition = np.einsum("rs,rt,qsqt->", weights, weights, kernel)
    relative = own_batches.relative_last(model, params, batch)
    assert relative == pytest.approx(by_definition, rel=1e-4)


def test_the_ten_flattest_are_compared_without_zeros(random):
    values = random.uniform(0.1, 1, size=(2, NUM))
    assert theory.overlap(values, values) == [1, 1, 1]
    assert theory.overlap(values, 1 - values)[0] < 0.1
    gone = np.where(random.uniform(size=values.shape) < 0.3, 0, values)
    assert theory.overlap(gone, np.where(gone == 0, 2, gone)) == [1, 1, 1]


def test_learners_are_compared_with_intervals(random, few):
    norm, net = random.uniform(size=(2, 24)), random.uniform(5, 6, size=(2, NUM))
    made = theory.compare_learners(norm, -norm, net, net)
    found = {figure.metric: figure.value for figure in made}
    assert found["naive Bayes"] == [-1, -1, -1] and found["networks"] == [1, 1, 1]
    assert found["flattest ten that are naive Bayes"] == [1, 1, 1]  # all of them are flatter
    assert found["best ten that are naive Bayes"] == [0, 0, 0]
    value, low, high = found["both"]
    assert low <= value <= high and value < 1


def test_the_first_epoch_was_trained_as_before():
    """The kept columns are of the same networks, but for some whose rate makes differences of rounding grow."""
    kept = tables.load(tables.ROOT / "benchmarks" / "results" / "own_batches.jsonl")
    assert set(kept.cases) <= set(SIZES) and len(kept.cases) >= 4
    for case in kept.cases.values():
        assert case["check"]["own: equal validation AUC"] > 0.85
        assert np.shape(case["own"]["section_3"]) == (2, NUM)
