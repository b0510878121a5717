"""Whole numbers on a logarithmic scale, and numbers with a step: exact, and as Optuna has them."""

import importlib
import json
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import hypergrad as hg
from hypergrad import space as sp
from hypergrad.estimators import policies
from hypergrad.report.leaves import _range
from hypergrad.schedulers.pbt import perturb
from hypergrad.searchers.grid import grid

KEY = jax.random.key(5)
SPACE = {
    "units": hg.Integer(1, 4096, log=True),
    "few": hg.Integer(2, 5, log=True),
    "top": hg.Integer(1, 2**18, log=True),
    "batch": hg.Integer(-8, 64, step=8),
    "shift": hg.Integer(0, 2**30, step=2**20),
    "rate": hg.Real(0, 1, step=0.1),
    "fine": hg.Real(-1, 3, step=2**-13),
    "odd": hg.Real(0.05, 0.75, step=0.07),
}


def values_of(dim):
    return np.asarray(dim.at(np.arange(dim.num_levels)))


def test_every_value_comes_back_to_the_bit():
    @jax.jit
    def back(values):
        one = lambda v: sp.from_unit(SPACE, sp.to_unit(SPACE, v))  # noqa: E731
        return jax.vmap(one)(values)

    num = max(dim.num_levels for dim in SPACE.values())
    values = {n: np.resize(values_of(dim), num) for n, dim in SPACE.items()}
    again = back(values)
    for name, dim in SPACE.items():
        np.testing.assert_array_equal(again[name], values[name], name)
        sp.check_value({name: dim}, {name: values_of(dim)[-1]})
        assert values_of(dim)[0] == dim.low and values_of(dim)[-1] == np.float32(dim.high)
        assert again[name].dtype == (np.int32 if isinstance(dim, hg.Integer) else real_type())


def real_type():
    return jnp.result_type(float)


def test_steps_are_rounded_once_from_decimals():
    assert hg.Real(0, 1, step=0.1).values.tolist() == [k / 10 for k in range(11)]
    assert SPACE["odd"].values.tolist() == [(5 + 7 * k) / 100 for k in range(11)]


def test_units_cover_each_value_and_the_bounds():
    units = jnp.linspace(0, 1, 4001)[:, None] * jnp.ones(sp.num_coordinates(SPACE))
    found = jax.jit(lambda u: sp.from_units(SPACE, u))(units)
    for name, dim in SPACE.items():
        values = np.asarray(found[name])
        assert values[0] == dim.low and values[-1] == np.float32(dim.high), name
        assert np.all(np.diff(values) >= 0), name
        if dim.num_levels < 100:
            np.testing.assert_array_equal(np.unique(values), values_of(dim))
    coords = sp.coordinates(SPACE)
    snapped = sp.snap(coords, units)
    np.testing.assert_allclose(snapped, sp.to_units(SPACE, found), atol=2e-7)
    inside = np.abs(snapped - units) <= sp.widths(coords, units) / 2 + 1e-6
    assert np.all(inside)


@pytest.mark.parametrize("name", ["units", "few"])
def test_a_whole_number_is_uniform_in_its_logarithm(name):
    """As Optuna: P(n) = log((n + ½) / (n − ½)) / log((high + ½) / (low − ½))."""
    dim = SPACE[name]
    keys = jax.random.split(KEY, 20_000)
    draws = np.asarray(jax.vmap(lambda k: sp.sample({"n": dim}, k)["n"])(keys))
    numbers = np.arange(dim.low, dim.high + 1)
    span = math.log((dim.high + 0.5) / (dim.low - 0.5))
    odds = np.log((numbers + 0.5) / (numbers - 0.5)) / span
    groups = np.minimum(np.floor(np.cumsum(odds) * 20), 19)
    counts, expected = (
        np.bincount(groups.astype(int), weights=w)
        for w in (np.bincount(draws, minlength=dim.high + 1)[dim.low :], odds * len(draws))
    )
    some = expected > 0
    assert stats.chisquare(counts[some], expected[some]).pvalue > 1e-4


def test_log_and_steps_are_those_of_optuna():
    optuna = pytest.importorskip("optuna")
    from hypergrad.searchers.optuna.parameters import parameters

    found = {one.name: one for one in parameters(SPACE)}
    assert found["units"].distribution == optuna.distributions.IntDistribution(1, 4096, log=True)
    assert found["batch"].distribution == optuna.distributions.IntDistribution(-8, 64, step=8)
    assert found["rate"].distribution == optuna.distributions.FloatDistribution(0, 1, step=0.1)
    names = tuple(sorted(SPACE))
    for i, name in enumerate(names):
        dim, one = SPACE[name], found[name]
        for value in values_of(dim)[:: max(1, dim.num_levels // 50)].tolist():
            units = np.full(len(names), 0.5)
            units[i] = one.unit(value)
            assert sp.from_unit(SPACE, jnp.asarray(units))[name] == value
            assert one.value(units[i]) == pytest.approx(value, rel=1e-7)
        assert one.value(0.0) == dim.low and one.value(1.0) == dim.high


def test_trials_of_optuna_off_the_grid_are_left_out():
    optuna = pytest.importorskip("optuna")
    from hypergrad.searchers.optuna import import_trials

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    free = {
        "x": optuna.distributions.FloatDistribution(0, 1),
        "n": optuna.distributions.IntDistribution(0, 9),
    }
    for x, n in ((0.3, 4), (0.35, 4), (0.7, 5), (1.0, 8)):
        params = {"x": x, "n": n}
        study.add_trial(optuna.create_trial(params=params, distributions=free, value=x))
    space = {"x": hg.Real(0, 1, step=0.1), "n": hg.Integer(0, 8, step=2)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = import_trials(study, space).hparams
    assert found["n"].tolist() == [4, 8]
    np.testing.assert_array_equal(found["x"], jnp.asarray([0.3, 1.0]))


def test_spaces_with_steps_read_back():
    described = json.loads(json.dumps(sp.describe_space(SPACE), allow_nan=False))
    assert sp.space_from_description(described) == SPACE
    old = {"n": {"kind": "Integer", "low": 1, "high": 3, "default": None, "static": False}}
    assert sp.space_from_description(old) == {"n": hg.Integer(1, 3)}
    assert _range(SPACE["units"]) == (1, 4096, True)
    assert _range(SPACE["batch"]) == (-8, 64, False)


def test_defaults():
    start = sp.default(SPACE)
    assert start["units"] == 64 and start["few"] == 3 and start["batch"] == 24
    assert start["rate"] == 0.5 and start["odd"] == jnp.asarray(0.4)
    static = hg.Integer(8, 64, static=True, step=8)
    assert sp.default({"n": static}) == {"n": 32}
    assert sp.from_unit({"n": static}, jnp.ones(1)) == {"n": 64}
    sp.check_value(SPACE, start)


@pytest.mark.slow
def test_grid_takes_values_of_the_scale():
    space = {"n": hg.Integer(1, 64, log=True)}
    units = grid(space, 7, shuffle=False)
    asked = units.ask(KEY, units.init(KEY), 7)["n"]
    assert asked.tolist() == [1, 2, 4, 8, 16, 32, 64]
    space = {"x": hg.Real(0, 1, step=0.25)}
    few = grid(space, 3, shuffle=False)
    assert few.ask(KEY, few.init(KEY), 3)["x"].tolist() == [0, 0.5, 1]
    assert grid(space, 100).init(KEY).order.shape == (5,)


def test_perturbed_values_stay_on_the_grid_and_move():
    space = {
        "rate": hg.Real(0, 1, step=0.1),
        "batch": hg.Integer(-64, 64, step=8),
        "below": hg.Integer(-9, -1),
    }
    explore = jax.jit(lambda k, h: perturb(space, resample=0.0)(k, h, None))
    start = {"rate": 0.5, "batch": -24, "below": -3}
    num = 16
    many = {n: jnp.full(num, x, jnp.result_type(type(x))) for n, x in start.items()}
    many = many | {
        "batch": many["batch"].astype(jnp.int32),
        "below": many["below"].astype(jnp.int32),
    }
    moved = explore(KEY, many)
    for name, dim in space.items():
        found = np.asarray(moved[name])
        assert np.all(np.isin(found, values_of(dim))) and not np.any(found == many[name]), name
        assert len(np.unique(found)) == 2


@pytest.mark.slow
def test_a_policy_over_steps_is_that_over_their_places():
    """The value, density and hypergradient of a step k are those of the whole number k."""
    steps, whole = {"x": hg.Real(-1, 1, step=0.25)}, {"x": hg.Integer(0, 8)}
    even = {"x": hg.Integer(2, 18, step=2)}
    phi = {"x": jnp.linspace(-1.0, 1.0, 9)}
    for make in (policies.factorized, policies.multitask):
        a, b, c = make(steps), make(whole), make(even)
        phi = a.init(KEY)
        phi = jax.tree.map(lambda x: x + jnp.linspace(-1, 1, x.size).reshape(x.shape), phi)
        for key in jax.random.split(KEY, 4):
            x, k, n = (p.sample(key, phi)["x"] for p in (a, b, c))
            assert x == -1 + 0.25 * k and n == 2 + 2 * k
            assert x.dtype == real_type() and n.dtype == jnp.int32
            np.testing.assert_allclose(a.log_prob(phi, {"x": x}), b.log_prob(phi, {"x": k}))
            np.testing.assert_allclose(c.log_prob(phi, {"x": n}), b.log_prob(phi, {"x": k}))
        assert a.mode(phi)["x"] == -1 + 0.25 * b.mode(phi)["x"]
    relaxed = policies.relax(steps, policies.softmax(), KEY, {"x": jnp.zeros(9)})
    np.testing.assert_allclose(relaxed["x"], 0, atol=1e-6)


REFUSED = {
    "high is 60 in Integer, expected low + k * step = 56 or 64; pass one of them": lambda: (
        hg.Integer(8, 60, step=8)
    ),
    "high is 1 in Real, expected low + k * step = 0.9 or 1.2": lambda: hg.Real(0, 1, step=0.3),
    "default is 12 in Integer, expected low + k * step = 8 or 16": lambda: hg.Integer(
        8, 64, 12, step=8
    ),
    "default is 0.55 in Real, expected low + k * step = 0.5 or 0.6": lambda: hg.Real(
        0, 1, 0.55, step=0.1
    ),
    "high is 1.0 in Real, expected low + k * step = 0.9 or 1.2": lambda: hg.Real(0, 1.0, step=0.3),
    "step is 2 in Integer, expected 1 with log=True": lambda: hg.Integer(1, 9, log=True, step=2),
    "low is 0 in Integer, expected at least 1 with log=True": lambda: hg.Integer(0, 9, log=True),
    "high is 1000000 in Integer, expected at most 262144 with log=True; use LogReal": lambda: (
        hg.Integer(1, 10**6, log=True)
    ),
    "log is 10 in Integer, expected True or False": lambda: hg.Integer(1, 9, log=10),
    "step is 0 in Integer, expected a whole number of at least 1": lambda: hg.Integer(1, 9, step=0),
    "step is 0.5 in Integer": lambda: hg.Integer(1, 9, step=0.5),
    "step is 0 in Real, expected a positive number": lambda: hg.Real(0, 1, step=0),
    "step is True in Real": lambda: hg.Real(0, 1, step=True),
    "step is 1e-07 in Real, expected at most 65536 values": lambda: hg.Real(0, 1, step=1e-7),
    "step is 0.0001 in Real, expected at least 0.000488": lambda: hg.Real(2000, 2001, step=1e-4),
    "shape is (3,) in Real, expected () with a step": lambda: hg.Real(0, 1, shape=(3,), step=0.1),
    "expected one without a step": lambda: hg.Sequence(hg.Real(0, 1, step=0.1), 5),
    "hparams['x'] holds 0.25, expected 0 + k * 0.1": lambda: sp.check_value(
        {"x": hg.Real(0, 1, step=0.1)}, {"x": 0.25}
    ),
    "hparams['n'] holds 12, expected 8 + k * 8": lambda: sp.check_value(
        {"n": hg.Integer(8, 64, step=8)}, {"n": 12}
    ),
    "space['x'] is Real with step=0.1, expected a real dimension": lambda: sp.unconstrain(
        {"x": hg.Real(0, 1, step=0.1)}, {"x": 0.5}
    ),
}


@pytest.mark.parametrize("fragment", REFUSED)
def test_invalid_steps_are_refused_in_one_line(fragment):
    with pytest.raises(ValueError) as caught:
        REFUSED[fragment]()
    assert fragment in str(caught.value) and "\n" not in str(caught.value)


def test_numpy_steps_are_numbers():
    assert hg.Real(0, np.float32(1), step=np.float64(0.25)) == hg.Real(0, 1, step=0.25)
    assert hg.Integer(8, 64, step=np.int64(8)) == hg.Integer(8, 64, step=8)


def test_a_study_gives_its_values_back_to_the_bit(tmp_path, monkeypatch):
    """Killed, resumed, and read from the journal, under a scheduler that perturbs."""
    monkeypatch.setattr(
        importlib.import_module("hypergrad.report.page"), "write_report", lambda folder: folder
    )
    space = {
        "lr": hg.Real(0.05, 0.4, step=0.05),
        "width": hg.Integer(1, 64, log=True),
        "rows": hg.Integer(8, 64, step=8),
    }
    problem = hg.Problem(
        init=lambda key, h: jnp.ones(2),
        loss=lambda p, h, b: jnp.sum(p**2) / h["width"] + 0 * h["rows"],
        objective=lambda p, h, b: jnp.sum(p**2) + jnp.abs(h["rows"] - 24) / 64,
        optimizer=lambda h: optax.sgd(h["lr"]),
        train_batch=lambda key, step: (),
        valid_batch=lambda key: (),
    )
    task = hg.Task("steps", problem, space, 4, None, "", True)
    settings = {"method": "random", "scheduler": "pbt", "population": 4, "generations": 4}
    whole = hg.tune(task, storage=tmp_path / "a", **settings)

    def stop(now):
        if now.done == 2:
            raise KeyboardInterrupt

    hg.tune(task, storage=tmp_path / "b", callbacks=[hg.Callback(step=stop)], **settings)
    again = hg.resume(task, tmp_path / "b")
    assert again.digest == whole.digest
    for name, dim in space.items():
        drawn = np.concatenate([one.hparams[name] for one in again.trials])
        assert np.all(np.isin(drawn, values_of(dim))), name
        assert again.best[name] in values_of(dim)
        sp.check_value({name: dim}, {name: again.best[name]})
