"""Going on with a study of a task, and training one of its trials again."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.cli import main as cli
from hypergrad.core.files import read_json, write_json
from hypergrad.problem import Problem, Task
from hypergrad.space import Choice, LogReal, Real, Sequence, describe_space
from hypergrad.study import StudyWarning
from hypergrad.study.disk.journal import read_records
from hypergrad.train import split_key
from hypergrad.tuning.provenance import describe_study, final_digest, settings_of
from hypergrad.tuning.replay import replay
from hypergrad.tuning.resume import resume
from hypergrad.tuning.settings import OPTION, Settings
from hypergrad.tuning.tune import tune
from tasks import quadratic

REPORT, TUNE = map(importlib.import_module, ("hypergrad.report.page", "hypergrad.tuning.tune"))
ROOT = Path(__file__).parent.parent
TASK = quadratic.task(horizon=4, num_params=2)
SETTINGS = {
    "descent": {"budget": 4, "num_seeds": 2, "num_restarts": 2, "eval_seeds": 2, "seed": 5},
    "random": {"method": "random", "budget": 64, "eval_seeds": 2, "seed": 5},
}


class Stop(BaseException):
    """Ends the process, as far as a study can tell; an `Exception` would only end the callback."""


def stop_at(phase, done):
    def show(now):
        if (now.phase, now.done) == (phase, done):
            raise Stop

    return [hg.Callback(step=show)]


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """The report has tests of its own; drawing takes seconds."""
    monkeypatch.setattr(REPORT, "write_report", lambda folder: Path(folder) / "report.html")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Each method's study, run without a pause."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(REPORT, "write_report", lambda folder: Path(folder) / "report.html")
        for method, settings in SETTINGS.items():
            tune(TASK, storage=folder / method, **settings)
    return folder


def comparable(folder):
    result = read_json(folder / "result.json")
    del result["seconds"], result["clock"]
    return result


def lines(path):
    return [{**record, "seconds": 0} for record in read_records(path)]


@pytest.mark.parametrize(("phase", "done"), [("descent", 1), ("random", 2), ("judge", 0)])
def test_descent_goes_on_to_the_same_result(tmp_path, finished, monkeypatch, phase, done):
    path = tmp_path / "s"
    with pytest.raises(Stop):
        tune(TASK, storage=path, callbacks=stop_at(phase, done), **SETTINGS["descent"])
    tuned = hg.resume(TASK, path)
    assert comparable(path) == comparable(finished / "descent")
    for name in ("journal.jsonl", "random/journal.jsonl"):
        assert lines(path / name) == lines(finished / "descent" / name)
    assert not tuned.result["interrupted"]


def test_random_search_goes_on_and_a_finished_study_stays(tmp_path, finished):
    path = tmp_path / "s"
    with pytest.raises(Stop):
        tune(TASK, storage=path, callbacks=stop_at("random", 3), **SETTINGS["random"])
    for _ in range(2):
        resume(TASK, path)
        assert comparable(path) == comparable(finished / "random")


def test_the_final_digest_covers_baseline_and_judged_values(tmp_path, finished, monkeypatch):
    """The outcomes' digest stays what it was; a test set that changed shows in the final one alone."""
    path = tmp_path / "s"
    shutil.copytree(finished / "random", path)
    before, judge = comparable(path), TUNE.judge
    parts = {"found": hg.Study(None, 0.0, [], False, 0.0), "baseline": None, "judged": {}}
    digests = {final_digest(**parts)}
    digests.add(final_digest(**{**parts, "baseline": parts["found"]}))
    digests.add(final_digest(**{**parts, "judged": before["configurations"]}))
    assert len(digests) == 3

    def other(*args):
        judged = judge(*args)
        judged["tuned"]["test"]["mean"] += 1e-6
        return judged

    monkeypatch.setattr(TUNE, "judge", other)
    with pytest.raises(ValueError, match="was judged again, and its values differ from those in"):
        resume(TASK, path)
    assert comparable(path) == before, "a finished result is not replaced by another"
    (path / "result.json").unlink()
    after = resume(TASK, path).result
    assert after["digest"] == before["digest"] and after["final_digest"] != before["final_digest"]


def test_damage_is_told_in_the_result(tmp_path, finished):
    path = tmp_path / "s"
    shutil.copytree(finished / "random", path)
    data = bytearray((path / "journal.jsonl").read_bytes())
    data[40] ^= 1
    (path / "journal.jsonl").write_bytes(data)
    with pytest.warns(StudyWarning) as caught:
        tuned = resume(TASK, path)
    assert "line 1 of" in str(caught[0].message)
    assert "line 1 of" in tuned.result["warnings"][0]
    assert tuned.result["digest"] == comparable(finished / "random")["digest"]


@pytest.mark.parametrize(
    ("task", "fragment"),
    [
        (3, "task is int"),
        (TASK._replace(name="other"), "task is 'other', expected 'quadratic'"),
        (quadratic.task(horizon=5, num_params=2), "horizon is 5, expected 4"),
        (
            TASK._replace(space={"lr": Real(0, 1)}),
            "the space changed since the study was started: 'lr' is Real(low=0, high=1",
        ),
        (TASK._replace(test=lambda params, h: params), "test_resume.py changed since"),
    ],
)
def test_another_task_is_refused(finished, task, fragment):
    with pytest.raises(ValueError) as caught:
        resume(task, finished / "descent")
    assert fragment in str(caught.value) and "\n" not in str(caught.value)


LR = {"lr": LogReal(0.1, 1)}
CHANGED_SPACES = {
    "a bound": (LR, {"lr": LogReal(0.1, 2)}, "'lr' is LogReal(low=0.1, high=2", "was LogReal(low=0.1, high=1"),
    "a kind": (LR, {"lr": Real(0.1, 1)}, "'lr' is Real(low=0.1", ", was LogReal(low=0.1"),
    "a leaf more": (LR, LR | {"b": Real(0, 1)}, "'b' is Real(low=0", ", was not there; expected"),
    "a leaf less": (LR | {"b": Real(0, 1)}, LR, "'b' is not there, was Real(low=0", ""),
    "another name": (LR, {"r": LR["lr"]}, "'lr' is not there, was LogReal(", ", and so did 'r'; expected"),
    "a renamed option": (
        LR | {"kind": Choice(("adam", "sgd"))},
        LR | {"kind": Choice(("adam", "momentum"))},
        "'kind' is Choice(options=('adam', 'momentum')",
        ", was Choice(options=('adam', 'sgd')",
    ),
    "options turned around": (
        LR | {"kind": Choice(("a", "b"))},
        LR | {"kind": Choice(("b", "a"))},
        "'kind' is Choice(options=('b', 'a')",
        ", was Choice(options=('a', 'b')",
    ),
    "a length": (
        {"lr": Sequence(LR["lr"], 4)},
        {"lr": Sequence(LR["lr"], 5)},
        "'lr' is Sequence(",
        ", was Sequence(",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGED_SPACES)
def test_a_changed_space_is_said_by_its_leaf(case):
    """What it is, what it was, and what to do: in one line, which names a way to go on with the trials."""
    was, here, is_now, was_then = CHANGED_SPACES[case]
    settings = Settings(method="random", budget=4)
    described = describe_study(TASK, settings, {"space": describe_space(was)})
    described = json.loads(json.dumps(described))
    with pytest.raises(ValueError, match="space changed") as caught:
        settings_of(TASK._replace(space=here), described, False)
    message = str(caught.value)
    assert is_now in message and was_then in message and "\n" not in message
    assert "restore it, or start a new study in another folder (warm_start takes" in message
    with pytest.raises(ValueError, match="space changed"):  # sources may change so, a space may not
        settings_of(TASK._replace(space=here), described, True)


@pytest.mark.parametrize(
    ("entries", "fragment"),
    [
        ({"cost": -1}, "cost is -1"),
        ({"cost": "x"}, "cost is 'x'"),
        ({"settings": {"method": "__import__"}}, "method is '__import__'"),
        (
            {"settings": {"metod": "random"}},
            "settings of the study cannot be used (setting of tune is 'metod'",
        ),
        ({"settings": {"seed": "x"}}, "settings of the study cannot be used (seed is 'x'"),
        (
            {"settings": {"estimator": ["x"]}},
            "settings of the study cannot be used (estimator is ['x']",
        ),
        ({"settings": {"memory": "x"}}, "settings of the study cannot be used (memory is 'x'"),
    ],
)
def test_entries_that_cannot_be_are_refused(tmp_path, finished, entries, fragment):
    path = tmp_path / "s"
    shutil.copytree(finished / "descent", path)
    write_json(path / "study.json", read_json(path / "study.json") | entries)
    with pytest.raises(ValueError) as caught:
        resume(TASK, path)
    assert fragment in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("method", SETTINGS)
def test_replay_trains_the_same_run_again(finished, method):
    found = replay(TASK, finished / method, 5)
    step, member = (2, 1) if method == "descent" else (0, 5)
    assert (found.trial.step, found.trial.member) == (step, member)
    record = list(read_records(finished / method / "journal.jsonl"))[step]
    assert float(found.trial.trials.values) == record["values"][member]
    assert found.hparams["momentum"] == record["hparams"]["momentum"][member]
    assert found.losses.shape == ((2 if method == "descent" else 1), 4)
    assert found.first_nonfinite is None and np.isfinite(found.losses).all()


def exploding():
    """A run whose loss is log(1 − x t) at step t: not finite from step 1 / x on."""

    def loss(params, hparams, batch):
        return params**2 * 0 + jnp.log(1 - hparams["x"] * batch)

    problem = Problem(
        init=lambda key, h: jnp.zeros(()),
        loss=loss,
        objective=lambda params, h, batch: loss(params, h, 5.0),
        optimizer=lambda h: optax.sgd(0.1),
        train_batch=lambda key, step: step.astype(jnp.float32),
        valid_batch=lambda key: (),
    )
    return Task(
        "exploding", problem, {"x": Real(0.26, 0.32)}, 6, lambda p, h: p[None], "none", False
    )


@pytest.mark.slow
def test_replay_shows_where_it_went_wrong(tmp_path):
    task = exploding()
    with pytest.raises(Stop):
        tune(
            task,
            method="random",
            budget=16,
            storage=tmp_path / "s",
            callbacks=stop_at("random", 1),
        )
    found = replay(task, tmp_path / "s", 2, debug_nans=True)
    assert found.first_nonfinite == 4 and np.isnan(found.losses[0, 4:]).all()
    assert "log" in found.where and "test_resume.py" in found.where


@pytest.mark.slow
def test_replay_looks_at_the_validation_batch_of_the_trial(tmp_path):
    """The objective of a descent is not finite on one batch alone, which its estimate drew."""

    def task_of(bad):
        def objective(params, hparams, batch):
            return params**2 + jnp.log(jnp.abs(batch - bad))

        problem = exploding().problem._replace(
            loss=lambda params, h, batch: (params - h["x"]) ** 2,
            objective=objective,
            valid_batch=jax.random.uniform,
        )
        return exploding()._replace(name="spot", problem=problem)

    def first(bad, name):
        with pytest.raises(Stop):
            tune(
                task_of(bad),
                method="descent",
                budget=16,
                num_seeds=1,
                storage=tmp_path / name,
                callbacks=stop_at("descent", 1),
            )
        return replay(task_of(bad), tmp_path / name, 0, debug_nans=True)

    plain = first(9.0, "plain")
    assert plain.where is None and np.isfinite(plain.trial.trials.values)
    key = jax.random.wrap_key_data(jnp.asarray(plain.trial.trials.info["key"]))
    spot = first(float(jax.random.uniform(split_key(key)[1])), "spot")
    assert np.isfinite(spot.losses).all() and not np.isfinite(spot.trial.trials.values)
    assert "log" in spot.where and "test_resume.py" in spot.where


def test_the_command_line(tmp_path, finished, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    out = str(tmp_path / "s")
    words = (
        "tune quadratic --horizon 4 --arg num_params=2 --budget 32 --method random --quiet --out"
    )
    assert cli.main([*words.split(), out]) == 0
    before = comparable(tmp_path / "s")
    (tmp_path / "s" / "result.json").unlink()
    assert cli.main(["resume", out]) == 2
    assert "TASK is missing, expected that of the study, 'quadratic'" in capsys.readouterr().err
    assert cli.main(["resume", out, "quadratic", "--quiet"]) == 0
    assert comparable(tmp_path / "s") == before
    assert cli.main(["replay", out, "17", "quadratic", "--debug-nans"]) == 0
    text = capsys.readouterr().out
    assert "trial 17: step 1, member 1" in text and "every training loss is finite" in text
    assert "first bad operation: none" in text
    assert cli.main(["replay", out, "99", "quadratic"]) == 2
    assert "0 to 31" in capsys.readouterr().err
    assert cli.main(["resume", str(tmp_path / "nowhere"), "quadratic"]) == 2
    assert "does not exist" in capsys.readouterr().err


def last_event(path):
    """The last whole line of a log that a process is writing: its phase and how many steps are done."""
    try:
        rows = (path / "log.jsonl").read_text().splitlines()
        now = json.loads(rows[-1])
    except (OSError, IndexError, ValueError):
        return None
    return now.get("phase"), now.get("done")


KILLS = {
    "baseline": lambda path: (path / "random" / "journal.jsonl").is_file(),
    "judging": lambda path: last_event(path) == ("judge", 0),
    "report": lambda path: (path / "result.json").is_file(),
}


@pytest.mark.slow
def test_a_whole_tune_killed_in_its_later_phases(tmp_path, monkeypatch):
    """kill -9 in the baseline, while judging and before the report; then it ends as if undisturbed."""
    path = tmp_path / "s"
    words = ["quadratic", "--log", "jsonl", "--quiet", "--horizon", "4", "--arg", "num_params=2"]
    # the command line makes every core a device unless told otherwise; this process has one, and goes on below
    one = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=1"
    monkeypatch.setenv("XLA_FLAGS", one)
    settings = {"budget": 4, "num_seeds": 1, "eval_seeds": 2, "seed": 5}
    flags = [w for name, value in settings.items() for w in (OPTION[name].flag, str(value))]
    for phase, reached in KILLS.items():
        command = ["resume", str(path)] if path.exists() else ["tune", *flags, "--out", str(path)]
        said = tmp_path / f"{phase}.txt"
        with said.open("w") as stderr:  # a pipe that nobody reads would fill, and stop the process
            process = subprocess.Popen(
                [sys.executable, "-m", "hypergrad", *command, *words],
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                cwd=ROOT,
            )
        deadline, there = time.monotonic() + 240, False
        while not there and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
            there = reached(path)
        process.kill()
        ended = (there, process.wait())
        assert ended == (True, -signal.SIGKILL), f"{phase}: {ended}, {said.read_text()}"
    assert (path / "result.json").is_file() and not (path / "report.html").exists()

    tuned = resume(TASK, path)
    whole = tune(TASK, storage=tmp_path / "whole", **settings)
    assert comparable(path) == comparable(tmp_path / "whole")
    assert tuned.result["final_digest"] == whole.result["final_digest"]
    for name in ("journal.jsonl", "random/journal.jsonl"):
        assert lines(path / name) == lines(tmp_path / "whole" / name)


def test_the_seed_decides_everything(finished):
    about = json.loads((finished / "random" / "study.json").read_text())
    tune_key = jax.random.split(jax.random.key(5), 3)[0]
    assert about["key"]["data"] == np.asarray(jax.random.key_data(tune_key)).tolist()
    assert about["width"] == 16 and about["sources"].keys() == {"quadratic.py"}


@pytest.mark.parametrize("what", ["journal", "folder"])
def test_what_vanishes_while_a_study_is_judged_ends_in_an_error(tmp_path, finished, what):
    path = tmp_path / "s"

    def vanish(now):
        if (now.phase, now.done) == ("judge", 1):
            (path / "journal.jsonl").unlink() if what == "journal" else path.rename(tmp_path / "t")

    with pytest.raises(ValueError, match="was deleted or renamed while the study runs"):
        tune(TASK, storage=path, callbacks=[hg.Callback(step=vanish)], **SETTINGS["random"])
    place = path if what == "journal" else tmp_path / "t"
    assert not (place / "result.json").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        resume(TASK, place)
    assert comparable(place) | {"warnings": []} == comparable(finished / "random")
