"""What a study begins with: a prior, and the trials of an earlier one."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hypergrad as hg
from hypergrad import space as sp
from hypergrad.cli import main as cli
from hypergrad.searchers import SEARCHERS, Prior, Trials, first_then, prior, random
from hypergrad.space import Choice, Integer, LogReal, Real, Sequence
from hypergrad.study import StudyWarning
from hypergrad.tuners import readers_of
from hypergrad.tuning import warm_start
from hypergrad.tuning.build import build, check_task
from hypergrad.tuning.settings import check_settings
from tasks import quadratic

KEY = jax.random.key(3)
SPACE = {"lr": LogReal(1e-4, 1.0), "kind": Choice(("relu", "tanh")), "decay": Real(0.0, 1.0)}
SMALL = {"population": 4, "generations": 2, "eval_seeds": 2, "num_seeds": 1}
TASK = quadratic.task(horizon=4, num_params=2)


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """A random study to begin others with."""
    out = tmp_path_factory.mktemp("before") / "run"
    return out, hg.tune(TASK, method="random", storage=out, **SMALL)


def start_of_descent(settings):
    """Where the first restart of a descent starts, as the front door builds it."""
    chosen = check_settings({"num_seeds": 1, **settings})
    check_task(TASK, chosen)
    state = build(TASK, chosen)[0].init(KEY)
    return sp.constrain(TASK.space, jax.tree.map(lambda x: x[0], state.unconstrained))


# ---- priors


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (1e-3, [1e-3, 0.15]),
        ([1e-3, 0.3], [1e-3, 0.3]),
        (Prior(1e-3, 0.2), [1e-3, 0.2]),
        (np.float32(0.5), [0.5, 0.15]),
        ((jnp.array([0.5, 0.25]), 1), [[0.5, 0.25], 1.0]),
        ("tanh", ["tanh", 0.15]),
    ],
)
def test_a_prior_is_kept_as_json(given, kept):
    found = check_settings({"prior": {"lr": given}}).prior
    assert found == {"lr": kept} and json.loads(json.dumps(found)) == found
    assert check_settings({"prior": found}).prior == found


@pytest.mark.parametrize(
    "bad", [[1, 2, 3], [1e-3, 0.0], [1e-3, 1.5], [1e-3, "x"], [1e-3, True], [], [1, float("nan")]]
)
def test_an_invalid_prior_is_refused(bad):
    with pytest.raises(
        ValueError, match=r"prior for 'lr' is .*expected a value, or a value and its"
    ):
        check_settings({"prior": {"lr": bad}})


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in readers_of("prior") if n in SEARCHERS])
def test_first_trials_are_near_the_prior(name):
    told = {"lr": Prior(1e-3, 0.05), "kind": Prior("tanh", 0.05)}
    found = {}
    for given in (told, None):
        if name != "cross_entropy" and given is None:
            continue  # compiling takes long
        searcher = SEARCHERS[name].make(SPACE, 64, 32, given)
        ask = jax.jit(lambda key, searcher=searcher: searcher.ask(key, searcher.init(key), 32))
        hparams = jax.vmap(ask)(jax.random.split(KEY, 4))
        at = np.log10(np.asarray(hparams["lr"])).ravel()
        found[given is not None] = np.mean(np.abs(at + 3) < 0.4), np.mean(hparams["kind"])
    assert found[True][0] > 0.6 and found[True][1] > 0.6
    if name == "cross_entropy":
        assert found[False][0] < 0.4 and 0.3 < found[False][1] < 0.7


def test_first_then_asks_the_first_and_then_the_other():
    space = {"a": Real(0, 1), "n": Integer(0, 9)}
    first = prior(space, {"a": Prior(0.9, 0.01)}, uniform=0.0)
    searcher = first_then(first, random(space), 6)
    state, shapes = searcher.init(KEY), None
    low = []
    for generation in range(4):
        hparams = searcher.ask(jax.random.fold_in(KEY, generation), state, 4)
        low.append(float(jnp.min(hparams["a"])))
        values = jnp.asarray(hparams["a"])
        told = Trials(hparams, values, jnp.full(4, 5), jnp.arange(4), {})
        state = searcher.tell(state, told)
        now = [(x.shape, x.dtype) for x in jax.tree.leaves(state)]
        assert shapes in (None, now)
        shapes = now
    assert min(low[:2]) > 0.8, "two generations from the prior, the second because 4 < 6"
    assert min(low[2:]) < 0.8 and int(state.num_told) == 6
    with pytest.raises(ValueError, match="num is 0"):
        first_then(first, random(space), 0)
    with pytest.raises(ValueError, match="works on the host"):
        first_then(first, random(space)._replace(host=True), 2)


def test_a_descent_starts_at_its_prior():
    given = {"lr": 0.1, "momentum": [0.3, 0.5]}
    start = start_of_descent({"prior": given})
    np.testing.assert_allclose(start["lr"], 0.1, rtol=1e-5)
    np.testing.assert_allclose(start["momentum"], 0.3, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prior": {"lrr": 0.1}, "method": "prior"}, "leaf of prior is 'lrr'.*did you mean 'lr'"),
        (
            {"prior": {"lr": 1e9}, "method": "prior"},
            r"prior\['lr'\] is near 1000000000.0, expected.*holds 1e\+09",
        ),
        ({"prior": {"lr": "x"}, "method": "prior"}, r"prior\['lr'\] is near 'x'"),
        ({"prior": {"lr": 0.1}, "method": "random"}, "prior is given with method 'random'"),
        ({"prior": 3, "method": "prior"}, "prior is 3, expected values by the names"),
        ({"method": "prior"}, "prior is None, expected what.*--prior lr=1e-3"),
        ({"warm_start": "x", "method": "grid"}, "warm_start is given with method 'grid'"),
        ({"warm_start": "no/where", "method": "tpe"}, "no/where' does not exist"),
        ({"warm_start": 3, "method": "tpe"}, "warm_start is 3, expected the folder"),
    ],
)
def test_invalid_arguments_are_refused(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        hg.tune(TASK, **{**SMALL, **settings})
    assert "\n" not in str(caught.value)


# ---- earlier trials


def test_trials_are_read_as_they_were(before):
    out, found = before
    read = warm_start.read_trials(out, TASK.space)
    for name, leaf in read.hparams.items():
        np.testing.assert_array_equal(leaf, np.concatenate([o.hparams[name] for o in found.trials]))
    np.testing.assert_array_equal(read.values, np.concatenate([o.values for o in found.trials]))
    best = warm_start.best_trial(read)
    values = np.concatenate([o.values for o in found.trials])
    np.testing.assert_array_equal(best["lr"], read.hparams["lr"][np.argmin(values)])


def test_trials_outside_the_space_are_left_out(before):
    out, _ = before
    whole = warm_start.read_trials(out, TASK.space)
    rates = np.sort(whole.hparams["lr"][:, 0])
    element = TASK.space["lr"].element
    split = float(np.sqrt(rates[3] * rates[4]))
    narrow = {**TASK.space, "lr": Sequence(LogReal(split, element.high), TASK.horizon)}
    with pytest.warns(StudyWarning, match="4 of 8 trials lie outside the space"):
        kept = warm_start.read_trials(out, narrow)
    assert len(kept.values) == 4 and kept.hparams["lr"].min() > split
    tiny = {**TASK.space, "lr": Sequence(LogReal(1e-9, 1e-8), TASK.horizon)}
    with pytest.raises(ValueError, match="none of whose 8 trials is within the space"):
        warm_start.read_trials(out, tiny)
    with pytest.raises(ValueError, match=r"whose trials have the leaves \['lr', 'momentum'\]"):
        warm_start.read_trials(out, {"lr": TASK.space["lr"]})
    longer = {**TASK.space, "lr": Sequence(element, 9)}
    with pytest.raises(
        ValueError, match="whose trials have other shapes or kinds of numbers in step 0"
    ):
        warm_start.read_trials(out, longer)


def test_schedules_that_change_are_not_for_a_search():
    space = {"lr": Sequence(Real(0, 1), 20), "x": Real(0, 1)}
    lr = np.full((3, 20), 0.5)
    lr[1, 7] = 0.6
    told = Trials({"lr": lr, "x": np.zeros(3)}, np.arange(3.0), np.ones(3), np.arange(3), {})
    assert warm_start.held_trials(told, space, "runs/a").values.tolist() == [0.0, 2.0]
    lr[:, 3] = 0.9
    with pytest.raises(ValueError, match="whose schedules all change over time"):
        warm_start.held_trials(told, space, "runs/a")


@pytest.mark.slow
def test_a_search_begins_with_earlier_trials_and_resumes(before, tmp_path):
    out, found = tmp_path / "earlier", before[1]
    shutil.copytree(before[0], out)
    settings = {"method": "cross_entropy", **SMALL, "population": 16, "warm_start": out}
    told = hg.tune(TASK, storage=tmp_path / "warm", **settings)
    state = build(TASK, check_settings({**settings, "warm_start": str(out)}))[0].init(KEY)
    best = sorted(np.concatenate([o.values for o in found.trials]))
    assert int(state.step) == 1 and float(state.gamma) == best[int(state.num_elites) - 1]
    described = json.loads((tmp_path / "warm" / "study.json").read_text())
    assert described["settings"]["warm_start"] == str(out.resolve())
    (tmp_path / "warm" / "result.json").unlink()
    assert hg.resume(TASK, tmp_path / "warm").digest == told.digest

    journal = out / "journal.jsonl"
    journal.write_bytes(journal.read_bytes().splitlines(keepends=True)[0])
    with pytest.raises(ValueError, match="are not those that the study began with"):
        hg.resume(TASK, tmp_path / "warm")
    with pytest.raises(ValueError, match="the folder of this study too"):
        hg.tune(TASK, storage=out, overwrite=True, **settings)


def test_a_descent_starts_from_the_best_trial(before):
    out, found = before
    best = warm_start.best_trial(warm_start.read_trials(out, TASK.space))
    lowest = min(zip(np.concatenate([o.values for o in found.trials]), range(8), strict=True))
    assert (
        best["momentum"] == np.concatenate([o.hparams["momentum"] for o in found.trials])[lowest[1]]
    )
    start = start_of_descent({"warm_start": str(out)})
    np.testing.assert_allclose(start["lr"], best["lr"], rtol=1e-4)
    both = start_of_descent({"warm_start": str(out), "prior": {"momentum": 0.5}})
    np.testing.assert_allclose(both["lr"], best["lr"], rtol=1e-4)
    np.testing.assert_allclose(both["momentum"], 0.5, rtol=1e-4)


# ---- the command line and study files


@pytest.mark.slow
def test_the_command_line_and_study_files(before, tmp_path, capsys):
    out, _ = before
    (tmp_path / "task.py").write_text(
        "from tasks import quadratic\n\n\ndef task():\n"
        "    return quadratic.task(horizon=4, num_params=2)\n"
    )
    name, words = f"{tmp_path / 'task.py'}:task", ["--population", "4", "--generations", "1"]
    words += ["--eval-seeds", "2", "--json", "--devices", "1"]
    run = tmp_path / "a"
    assert (
        cli.main(
            [
                "tune",
                name,
                "--method",
                "prior",
                "--prior",
                "lr=0.1:0.05",
                "--prior",
                "momentum=0.5",
                "--out",
                str(run),
                *words,
            ]
        )
        == 0
    )
    settings = json.loads((run / "study.json").read_text())["settings"]
    assert settings["prior"] == {"lr": [0.1, 0.05], "momentum": [0.5, 0.15]}

    file = tmp_path / "study.toml"
    file.write_text(
        f'task = "{name}"\nmethod = "cross_entropy"\npopulation = 16\ngenerations = 1\neval_seeds = 2\n'
        f'devices = 1\nout = "{tmp_path / "b"}"\nwarm_start = "{out}"\n\n[prior]\nlr = 0.1\n'
        "momentum = [0.5, 0.3]\n"
    )
    assert cli.main(["run", str(file), "--prior", "lr=0.2", "--quiet"]) == 0
    settings = json.loads((tmp_path / "b" / "study.json").read_text())["settings"]
    assert settings["prior"] == {"lr": [0.2, 0.15], "momentum": [0.5, 0.3]}
    assert settings["warm_start"] == str(out.resolve())
    capsys.readouterr()

    for bad, message in [
        (["--prior", "lr"], "--prior is 'lr', expected NAME=VALUE[:SPREAD]"),
        (["--prior", "lr=0.1:7"], "--prior for 'lr' is [0.1, 7.0], expected"),
        (["--prior", "momentun=0.1"], "did you mean 'momentum'?"),
        (["--warm-start", str(tmp_path)], "which has no trials yet"),
        (["--warm-start", ""], "--warm-start is '', expected a text"),
    ]:
        assert cli.main(["tune", name, "--method", "tpe", *bad, *words]) == 2
        assert message in capsys.readouterr().err
    file.write_text(file.read_text().replace("momentum = [0.5, 0.3]", "momentum = [0.5, 3]"))
    assert cli.main(["run", str(file)]) == 2
    assert "prior for 'momentum' is [0.5, 3], expected" in capsys.readouterr().err
