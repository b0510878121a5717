"""`tune` from Python: what a study gives back, as tables, as schedules, and to callbacks."""

import errno
import importlib
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hypergrad as hg
from hypergrad.core import files
from hypergrad.report.text import number
from hypergrad.report.trials import columns
from hypergrad.searchers import Trials
from hypergrad.study import callbacks, export
from hypergrad.study.disk import description, folder, journal
from hypergrad.tuning.settings import Settings
from tasks import quadratic

ROOT = Path(__file__).parent.parent
HORIZON = 5
TASK = quadratic.task(horizon=HORIZON, num_params=2)
SMALL = {"budget": 3, "num_seeds": 1, "eval_seeds": 2}


def recorder(heard):
    return hg.Callback(
        start=lambda description: heard.append(("start", description)),
        step=lambda now: heard.append(("step", now)),
        end=lambda study: heard.append(("end", study)),
    )


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """One small study with every log, and what a callback heard of it."""
    out, heard = tmp_path_factory.mktemp("runs") / "study", []
    logs = [callbacks.jsonl(out / "log.jsonl"), recorder(heard)]
    return out, heard, hg.tune(TASK, storage=out, callbacks=logs, **SMALL)


def test_tune_returns_a_study(tuned):
    out, _, study = tuned
    assert isinstance(study, hg.Study)
    assert set(study.best) == {"lr", "momentum"} and study.best["lr"].shape == (HORIZON,)
    lowest = min(float(o.values.min()) for o in study.trials)
    assert study.best_value == pytest.approx(lowest, rel=1e-14), "a mean of the same number"
    assert study.report == out / "report.html" and study.report.is_file()
    on_disk = json.loads((out / "result.json").read_text())
    assert on_disk["digest"] == study.digest == study.result["digest"]
    shown = repr(study)
    assert shown.startswith(f"<Study: best value {number(study.best_value, 4)} of 3 trials in ")
    assert shown.endswith(f"; report: {study.report}>") and "\n" not in shown
    assert "no finite value of 0 trials" in repr(hg.Study(None, np.inf, [], False, 1.0))


def test_a_problem_with_a_space_is_tuned_like_its_task(tuned):
    _, _, study = tuned
    found = hg.tune(TASK.problem, TASK.space, horizon=HORIZON, **SMALL)
    assert found.digest == study.digest
    assert found.report is None and found.result["configurations"]["tuned"]["test"] == {}


@pytest.mark.parametrize("bad", [{"memory": 1}, {"memory": 2**30, "estimator": "forward"}])
def test_a_study_that_cannot_be_leaves_the_old_one(tuned, tmp_path, bad):
    out = tmp_path / "study"
    shutil.copytree(tuned[0], out)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match="memory is"):
        hg.tune(TASK, storage=out, overwrite=True, **SMALL, **bad)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    with pytest.raises(ValueError, match="memory is"):
        hg.tune(TASK, storage=tmp_path / "new", **SMALL, **bad)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("budget", "sizes"), [(1, [1]), (16, [16]), (17, [9, 9])])
def test_random_search_keeps_its_budget(budget, sizes):
    found = hg.tune(TASK, method="random", budget=budget, eval_seeds=2)
    assert [len(outcome.values) for outcome in found.trials] == sizes


def test_the_best_is_chosen_on_equal_seeds():
    """A trial's own value is nearly all luck here; the lowest of them is not the best."""

    def objective(params, hparams, batch):
        return hparams["momentum"] + 0.0 * jnp.sum(params) + 20.0 * batch

    noisy = TASK.problem._replace(
        objective=objective, valid_batch=lambda key: jax.random.normal(key)
    )
    task = TASK._replace(problem=noisy)
    found = hg.tune(task, method="random", budget=32, eval_seeds=2)
    trials = sorted(
        (float(value), float(momentum))
        for outcome in found.trials
        for value, momentum in zip(outcome.values, outcome.hparams["momentum"], strict=True)
    )
    assert float(found.best["momentum"]) == min(momentum for _, momentum in trials[:10])
    assert trials[0][1] > float(found.best["momentum"])


def test_a_problem_on_disk_has_a_report_and_is_resumed(tuned, tmp_path):
    def stop(now):
        if now.done == 2:
            raise KeyboardInterrupt

    where = {"horizon": HORIZON, "storage": tmp_path / "b"}
    part = hg.tune(TASK.problem, TASK.space, callbacks=[hg.Callback(step=stop)], **where, **SMALL)
    whole = tuned[2]
    assert part.interrupted and len(part.trials) == 2 and not whole.interrupted
    heard = []
    space = TASK.space
    again = hg.resume(TASK.problem, tmp_path / "b", space=space, callbacks=[recorder(heard)])
    assert again.digest == whole.digest and not again.interrupted
    assert [n.done for kind, n in heard if kind == "step" and n.phase == "descent"] == [3]
    assert "<svg" in again.report.read_text()


def test_callbacks_hear_everything_in_order(tuned):
    _, heard, study = tuned
    assert [kind for kind, _ in heard] == ["start", *["step"] * (len(heard) - 2), "end"]
    assert heard[0][1]["settings"]["budget"] == 3
    assert files.to_plain(heard[0][1]) == files.read_json(tuned[0] / "study.json")
    assert heard[-1][1] is study
    steps = [now for kind, now in heard if kind == "step"]
    assert list(dict.fromkeys(now.phase for now in steps)) == ["descent", "random", "judge"]
    for now, outcome in zip(steps, study.trials, strict=False):
        assert now.value == float(outcome.values.min())
        assert now.hparams["lr"].shape == (HORIZON,)
        assert now.numbers["hypergrad_norm"] == float(outcome.info["hypergrad_norm"][0])
    assert [now.done for now in steps if now.phase == "descent"] == [1, 2, 3]


def test_a_callback_that_fails_is_left_out_and_the_study_goes_on(tuned):
    _, _, study = tuned
    calls = []

    def fail(now):
        calls.append(now)
        raise OSError("disk full\nreally")

    heard = []
    with pytest.warns(hg.study.CallbackWarning, match="at step .OSError: disk full really"):
        found = hg.tune(TASK, callbacks=[hg.Callback(step=fail), recorder(heard)], **SMALL)
    assert found.digest == study.digest and len(calls) == 1 and heard[-1][0] == "end"


def test_end_is_heard_when_the_study_fails(tmp_path, monkeypatch):
    heard, out = [], tmp_path / "s"
    problem = TASK.problem._replace(train_batch=lambda key, step: 1 / 0)
    with pytest.raises(ValueError):
        hg.tune(problem, TASK.space, horizon=HORIZON, callbacks=[recorder(heard)], **SMALL)
    assert not heard, "what is refused beforehand never started"

    write = files.write_all

    def full(fd, data):
        if b'"step": 2' in data:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(fd, data)

    monkeypatch.setattr(journal, "write_all", full)
    words = {"method": "random", "population": 1, "generations": 4, "storage": out}
    with pytest.raises(ValueError, match=r"cannot write .*No space left on device; make room"):
        hg.tune(TASK, callbacks=[callbacks.jsonl(out / "log.jsonl"), recorder(heard)], **words)
    assert [kind for kind, _ in heard] == ["start", "step", "step", "end"]
    assert heard[-1] == ("end", None)
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert log[-1] == {"event": "end", "failed": True} and len(log) == 4
    assert len(list(journal.read_records(out / "journal.jsonl"))) == 2


@pytest.mark.parametrize(
    ("parts", "fragment"),
    [
        ({"test": lambda p, h: h["decay"]}, "task.test failed on the given hparams: hparams or"),
        ({"test": lambda p, h: p[:, None]}, "returned an array of shape (2, 1)"),
        ({"test": lambda p, h: p @ jnp.ones(9)}, "task.test failed on the given hparams: "),
        ({"test": lambda p, h: p.sum()}, "task.test returned an array of shape ()"),
        ({"test": lambda p, h: p[None]}, "of shape (1, 2) and dtype float"),
        ({"test": lambda p, h: p[:0]}, "of shape (0,)"),
        ({"test": lambda p, h: p + 1j}, "expected one real score an example"),
        ({"test": lambda p, h: None}, "task.test returned None"),
        ({"test": 3}, "task.test is 3, expected a function or None"),
        ({"snippet": lambda h: 1 / 0}, "task.snippet failed on the given hparams: division by"),
        ({"snippet": lambda h: h["lr"]}, f"task.snippet returned an array of shape ({HORIZON},)"),
        ({"snippet": "text"}, "task.snippet is 'text', expected a function or None"),
        ({"notes": "text"}, "task.notes is 'text', expected tables by their titles"),
        ({"notes": {"a": [{"b": 1}, {"c": 1}]}}, "expected tables by their titles"),
        ({"notes": {"a": [{"b": np.zeros(2)}]}}, "expected tables by their titles"),
    ],
)
def test_what_a_task_does_at_the_end_is_tried_before_the_start(parts, fragment, tmp_path):
    with pytest.raises(ValueError) as caught:
        hg.tune(TASK._replace(**parts), storage=tmp_path / "s", **SMALL)
    assert fragment in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "s").exists()


def test_a_snippet_that_fails_in_the_end_loses_no_study():
    default = hg.space.default(TASK.space)["momentum"]

    def snippet(hparams):
        return "fine" if hparams["momentum"] == default else 1 / 0

    task = TASK._replace(snippet=snippet, notes={"Columns": [{"name": "x", "missing": 0}]})
    found = hg.tune(task, method="random", budget=1, eval_seeds=2)
    assert found.result["snippet"] is None and found.result["notes"] == task.notes
    assert "task.snippet failed on" in found.result["warnings"][0]


@pytest.mark.parametrize("name", ["study-copy.json", "study.json"])
def test_a_full_disk_at_the_start_leaves_no_dead_end(name, tmp_path, monkeypatch):
    out, heard, write = tmp_path / "s", [], files.write_json

    def full(path, value):
        if path.name == name:
            raise ValueError(f"cannot write {name}: No space left")
        write(path, value)

    monkeypatch.setattr(description, "write_json", full)
    words = {"method": "random", "budget": 1, "storage": out}
    with pytest.raises(ValueError, match="No space left"):
        hg.tune(TASK, callbacks=[callbacks.jsonl(out / "log.jsonl"), recorder(heard)], **words)
    assert not heard and set(os.listdir(out)) <= {"lock", "study-copy.json"}
    with folder.create(out):
        assert os.listdir(out) == ["lock"], "the next `tune` finds it free"


def test_a_study_ended_as_the_first_listener_starts_can_be_resumed(tmp_path, monkeypatch):
    def stop(description):
        raise KeyboardInterrupt

    out = tmp_path / "s"
    words = {"method": "random", "budget": 1, "storage": out}
    with pytest.raises(KeyboardInterrupt):
        hg.tune(TASK, callbacks=[hg.Callback(start=stop)], **words)
    monkeypatch.setattr(
        importlib.import_module("hypergrad.tuning.resume"), "complete", lambda work, *_: work.folder
    )
    assert hg.resume(TASK, out).path == out


def test_jsonl(tuned):
    out, heard, _ = tuned
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == [kind for kind, _ in heard]
    for line, (kind, now) in zip(lines, heard, strict=True):
        if kind == "step":
            assert line["value"] == now.value and line["numbers"] == now.numbers
            assert {k: np.shape(v) for k, v in line["hparams"].items()} == {
                k: np.shape(v) for k, v in now.hparams.items()
            }


def replay_events(callback, tuned):
    """Tell a callback what another heard."""
    _, heard, _ = tuned
    for kind, value in heard:
        getattr(callback, kind)(value)


def test_tensorboard(tuned, tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    replay_events(hg.study.tensorboard(tmp_path), tuned)
    (path,) = tmp_path.iterdir()
    content, scalars = path.read_bytes(), {}
    while content:  # length, its CRC, the event, its CRC
        (length,) = struct.unpack("<Q", content[:8])
        event = Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]
        for value in event.summary.value:
            scalars.setdefault(value.tag, {})[event.step] = value.simple_value
    _, _, study = tuned
    values = [float(o.values.min()) for o in study.trials]
    assert scalars["descent/value"] == pytest.approx({i + 1: v for i, v in enumerate(values)})
    assert list(scalars["schedule/lr"].values()) == pytest.approx(study.best["lr"].tolist())
    assert {"descent/hypergrad_norm", "random/best", "descent/hparams.momentum"} <= set(scalars)


def test_wandb_offline(tuned, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    replay_events(hg.study.wandb(tmp_path), tuned)
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    expected = (b"descent/hypergrad_norm", b"random/best", b"best_value", b"eval_seeds")
    deadline = time.monotonic() + 30  # its own process closes the file a little later
    while any(text not in path.read_bytes() for text in expected):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_library_is_said_at_once(name, tmp_path, monkeypatch):
    module = {"tensorboard": "tensorboardX"}.get(name, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf"log '{name}' needs {module}.*hypergrad-jax\[{name}\]"):
        hg.study.log(name, tmp_path)
    assert not list(tmp_path.iterdir())


# trials


def outcome(values, hparams, **info):
    num = len(values)
    return Trials(hparams, np.array(values), np.full(num, 7), np.arange(num), info)


OUTCOMES = [
    outcome([2.0, 1.0], {"lr": np.ones((2, 3)), "value": np.array([5, 6])}, rank=np.array([0, 1])),
    outcome([np.nan], {"lr": np.zeros((1, 3)), "value": np.array([7])}, done=np.array(True)),
]


def test_columns():
    table = columns(OUTCOMES)
    np.testing.assert_array_equal(table["trial"], [0, 1, 2])
    np.testing.assert_array_equal(table["step"], [0, 0, 1])
    np.testing.assert_array_equal(table["member"], [0, 1, 0])
    np.testing.assert_array_equal(table["value"], [2, 1, np.nan])
    np.testing.assert_array_equal(table["value_"], [5, 6, 7])
    np.testing.assert_array_equal(table["rank"], [0, 1, np.nan])
    assert table["lr"].shape == (3, 3) and "done" not in table
    assert all(len(column) == 0 for column in columns([]).values())


def test_trials_are_a_frame(tuned):
    pandas = pytest.importorskip("pandas")
    _, _, study = tuned
    frame = study.table()
    assert isinstance(frame, pandas.DataFrame) and len(frame) == 3 and frame.index.name == "trial"
    best = frame["value"].idxmin()
    assert frame["value"][best] == pytest.approx(study.best_value, rel=1e-14)
    np.testing.assert_array_equal(frame["lr"][best], study.best["lr"])
    assert frame["momentum"].dtype == np.asarray(study.best["momentum"]).dtype


def test_trials_without_pandas(tuned, monkeypatch):
    _, _, study = tuned
    monkeypatch.setitem(sys.modules, "pandas", None)
    table = study.table()
    assert isinstance(table, dict) and table["lr"].shape == (3, HORIZON)


def test_to_xarray(tuned):
    pytest.importorskip("xarray")
    _, _, study = tuned
    data = study.to_xarray()
    assert data["lr"].dims == ("trial", "lr_0") and data["lr"].shape == (3, HORIZON)
    best = data.isel(trial=int(np.argmin(data["value"].data)))
    np.testing.assert_array_equal(best["lr"], study.best["lr"])


def test_to_xarray_without_it(tuned, monkeypatch):
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(ValueError, match=r"pip install 'hypergrad-jax\[xarray\]'"):
        tuned[2].to_xarray()


# schedules


def test_a_learned_schedule_is_optax_s(tuned):
    _, _, study = tuned
    schedule = study.schedule("lr")
    at = np.array([schedule(count) for count in range(HORIZON)])
    np.testing.assert_array_equal(at, study.best["lr"])
    assert jax.jit(schedule)(jnp.int32(HORIZON + 9)) == study.best["lr"][-1]


def test_a_schedule_through_json_keeps_its_bits(tuned, tmp_path):
    _, _, study = tuned
    study.export(tmp_path / "tuned.json")
    schedule = hg.load_schedule(tmp_path / "tuned.json", "lr")
    again = np.array([schedule(count) for count in range(HORIZON)])
    assert again.tobytes() == study.best["lr"].tobytes() and again.dtype == study.best["lr"].dtype
    read = export.read_hparams(tmp_path / "tuned.json")
    assert set(read) == set(study.best) and read["momentum"] == study.best["momentum"]


def test_schedules_that_are_none(tuned):
    _, _, study = tuned
    with pytest.raises(ValueError, match="did you mean 'lr'"):
        study.schedule("lrs")
    with pytest.raises(ValueError, match="is one value, expected a schedule"):
        study.schedule("momentum")
    with pytest.raises(ValueError, match="no finite objective"):
        study._replace(best=None).hparams()


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        ("", "is not valid JSON"),
        ("[" * 100_000, "is nested too deep"),
        ("{}", "is not a file of tuned hyperparameters"),
        ("[]", "the whole is a list, expected an object"),
        ('{"format": "hypergrad.hparams", "version": 2}', "version 1"),
        ('{"format": "hypergrad.hparams", "version": 1}', "has no hparams"),
        ("[1, [2]]", "something other than finite numbers"),
        ("[1, NaN]", "something other than finite numbers"),
        ("{}", "something other than finite numbers"),
        ("[]", "is one value, expected a schedule"),
    ],
)
def test_schedule_files_refused(content, fragment, tmp_path):
    if "finite" in fragment or "schedule" in fragment:
        content = f'{{"format": "hypergrad.hparams", "version": 1, "hparams": {{"lr": {content}}}}}'
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError) as caught:
        hg.load_schedule(tmp_path / "a.json", "lr")
    assert fragment in str(caught.value) and "\n" not in str(caught.value)


def test_what_json_cannot_say_is_not_exported(tmp_path):
    with pytest.raises(ValueError, match="expected finite numbers"):
        export.write(tmp_path / "a.json", {"lr": np.array([1.0, np.nan])})
    assert not list(tmp_path.iterdir())


def test_an_export_touches_its_own_file_alone(tmp_path):
    """Eight at once, beside the user's own files; the one there is then is whole."""
    path = tmp_path / "real" / "a.json"
    path.parent.mkdir()
    (path.parent / "a.json.tmp").write_text("mine")
    link = tmp_path / "link.json"
    link.symlink_to(path)
    errors = []

    def work(number):
        try:
            for _ in range(20):
                export.write(link, {"lr": np.full(1000, number)})
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and link.is_symlink()
    assert len(set(export.read_hparams(path)["lr"].tolist())) == 1
    assert sorted(os.listdir(path.parent)) == ["a.json", "a.json.tmp"]
    assert (path.parent / "a.json.tmp").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "fragment"),
    [
        (".", "a folder, expected a file; write e.g. ./hparams.json"),
        ("folder/", "a folder, expected a file; write e.g. folder/hparams.json"),
        ("pipe", "not a regular file, expected one, or a new name"),
        ("absent/a.json", "in a folder that is not there"),
    ],
)
def test_places_that_take_no_export(name, fragment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("folder")
    os.mkfifo("pipe")
    with pytest.raises(ValueError) as caught:
        export.write(name, {"lr": 0.1})
    assert fragment in str(caught.value) and "\n" not in str(caught.value)
    assert sorted(os.listdir()) == ["folder", "pipe"] and not os.listdir("folder")


# settings


def test_settings_are_read_without_jax():
    script = "import sys, hypergrad.tuning.settings, hypergrad.cli.studyfile; print('jax' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "False"


def test_every_public_name_is_there():
    for name in hg.__all__:
        assert getattr(hg, name) is not None
    assert hg.Settings is Settings and callable(hg.resume) and callable(hg.tune)
    importlib.import_module("hypergrad.tuning.resume")
    assert callable(hg.resume), "the package gives the name to the function"
