"""What a study must not believe: another task, another generator, what lies in its folder, a file's name."""

import json
import os
import re
import unicodedata
import warnings

import jax
import numpy as np
import pytest
from click.shell_completion import ShellComplete

from hypergrad import study
from hypergrad.cli import main as cli, terminal
from hypergrad.core.files import write_json
from hypergrad.study import Progress, StudyWarning, jsonl
from hypergrad.study.disk.description import mend_description
from hypergrad.study.disk.folder import create
from hypergrad.study.disk.journal import Journal, encode_line
from tests.disk import KEY, ROOT, toy

STEPS = 6


def stopped(folder, tuner, after=3):
    """A study that Ctrl-C ended, with a checkpoint at its very last step."""

    def stop(index, outcome, best):
        if index == after - 1:
            raise KeyboardInterrupt

    found = study.run(tuner, KEY, STEPS, stop, storage=folder)
    assert found.interrupted and len(found.trials) == after
    return folder


def test_another_task_is_noticed_by_the_step_made_again(tmp_path):
    folder = stopped(tmp_path / "s", toy())
    with pytest.raises(ValueError, match="step 0 was repeated, and its hparams"):
        study.resume_run(toy(shift=1e-3), folder)
    whole = study.run(toy(), KEY, STEPS)
    assert study.resume_run(toy(), folder).digest == whole.digest


def test_another_generator_is_refused(tmp_path):
    folder = stopped(tmp_path / "s", toy())
    with jax.default_prng_impl("rbg"), pytest.raises(ValueError, match="prng_impl is 'rbg'"):
        study.resume_run(toy(), folder)


@pytest.mark.parametrize("name", ["study.json", "study-copy.json"])
def test_every_flipped_bit_of_what_a_study_is_is_mended(tmp_path, name):
    folder = stopped(tmp_path / "s", toy(), after=1)
    good = (folder / name).read_bytes()
    for place in range(0, len(good), 31):
        bad = bytearray(good)
        bad[place] ^= 1 << place % 8
        (folder / name).write_bytes(bad)
        with pytest.warns(StudyWarning, match=f"{name}' was damaged|{name} of .* is damaged"):
            mend_description(folder)
        assert (folder / name).read_bytes() == good
    (folder / name).unlink()
    if name == "study.json":
        with pytest.warns(StudyWarning, match="damaged or missing"):
            assert study.read_description(folder)["num_steps"] == STEPS


def test_both_damaged_is_a_refusal(tmp_path):
    folder = stopped(tmp_path / "s", toy(), after=1)
    for name in ("study.json", "study-copy.json"):
        (folder / name).write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        study.resume_run(toy(), folder)


def test_records_after_damage_are_compared_however_often_it_is_killed(tmp_path):
    folder = stopped(tmp_path / "s", toy(), after=4)
    for file in folder.glob("checkpoint-*"):
        file.unlink()
    path = folder / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1].replace(b"0", b"1") + b"".join(lines[2:]))
    first = b"".join(path.read_bytes().splitlines(keepends=True)[1:])
    Journal(path).close()  # killed before it made a step again
    path.write_bytes(lines[0].replace(b"0", b"1"))
    journal = Journal(path)  # a second damage, and killed once more
    assert journal.count == 0 and "journal-damaged-2.jsonl" in journal.damage
    journal.close()
    assert (folder / "journal-damaged.jsonl").read_bytes() == first, "never written over"
    journal = Journal(path)
    found = {step: journal.record(step) for step in range(5)}
    assert journal.damage is None and found[0] is found[1] is found[4] is None
    journal.close()
    assert [found[step]["step"] for step in (2, 3)] == [2, 3]

    other = dict(found[3], values=[0.0, 0.0])
    kept = first.splitlines(keepends=True)
    (folder / "journal-damaged.jsonl").write_bytes(b"".join(kept[:2]) + encode_line(other))
    with pytest.raises(ValueError, match="step 3 was repeated, and its values differ"):
        study.resume_run(toy(), folder)
    (folder / "journal-damaged.jsonl").write_bytes(first)
    assert study.resume_run(toy(), folder).digest == study.run(toy(), KEY, STEPS).digest
    with create(folder, overwrite=True):
        assert os.listdir(folder) == ["lock"]


def test_a_log_follows_no_link_and_waits_for_no_pipe(tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("mine\n")
    os.link(outside, tmp_path / "hard")
    os.symlink(outside, tmp_path / "soft")
    os.mkfifo(tmp_path / "pipe")
    for name in ("hard", "soft", "pipe"):
        with pytest.raises((ValueError, OSError)):
            jsonl(tmp_path / name).start({"a": 1})
    assert outside.read_text() == "mine\n"
    jsonl(tmp_path / "log").start({"a": 1})
    assert json.loads((tmp_path / "log").read_text()) == {"event": "start", "a": 1}


def test_a_log_goes_on_after_a_line_that_was_cut(tmp_path):
    (tmp_path / "log").write_text('{"event": "start"}\n{"event": "st')
    jsonl(tmp_path / "log").start({"a": 1})
    jsonl(tmp_path / "log").start({"a": 2})
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[1] == '{"event": "st' and [json.loads(x).get("a") for x in lines[2:]] == [1, 2]


def test_an_export_says_what_the_study_warned_of(tmp_path, capsys):
    write_json(tmp_path / "study.json", {"format": 3, "task": "t", "method": "random"})
    result = {
        "configurations": {"tuned": {"hparams": {"lr": 0.1}}},
        "warnings": ["no trial had a finite objective; 'tuned' shows the defaults"],
        "interrupted": True,
    }
    write_json(tmp_path / "result.json", result)
    assert cli.main(["export", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["hparams"] == {"lr": 0.1}
    assert "warning: the study was ended by Ctrl-C" in err and "shows the defaults" in err


def finished_by_a_stranger(folder):
    """A study whose texts are for a terminal: they clear it, set its title, and turn a line around."""
    evil = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e\x7f\udc9b"
    folder.mkdir()
    description = {"format": 3, "task": evil, "method": "random", "command": evil}
    write_json(folder / "study.json", description)
    valid = {"mean": 0.1, "low": 0.1, "high": 0.1, "values": [0.1]}
    one = {"hparams": {f"lr{evil}": 0.1, "kind": evil}, "valid": valid, "test": {}}
    result = {
        "configurations": {"tuned": one, f"x{evil}": one},
        "metric": {"name": evil},
        "warnings": [f"warned{evil}"],
        "notes": {evil: [{evil: evil}]},
        "interrupted": True,
    }
    write_json(folder / "result.json", result)
    return evil


def controls(text):
    return [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c not in "\n\t"]


@pytest.mark.parametrize("shown", [[], ["--json"], ["--quiet"]])
@pytest.mark.parametrize("command", ["export", "report", "resume", "replay", "flatness", "list"])
def test_a_strangers_study_does_not_steer_the_terminal(
    tmp_path, command, shown, capsys, monkeypatch
):
    folder = tmp_path / "a study"
    evil = finished_by_a_stranger(folder)
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "t.py").write_text(f"def task(*, data):\n    {evil[:-1]!r}\n")
    monkeypatch.chdir(tmp_path)
    place = [] if command == "list" else [str(folder)]
    rest = {"replay": ["0", f"t{evil[:-1]}"], "resume": [f"t{evil[:-1]}"]}.get(command, [])
    status = cli.main([command, *place, *rest, *shown])
    out, err = capsys.readouterr()
    assert not controls(out + err)
    assert status == (0 if command in ("export", "report", "list") else 2)
    if command == "export":
        assert "warned" in err
        assert json.loads(out)["hparams"] == {f"lr{evil}": 0.1, "kind": evil}, "escaped, not lost"
        file = tmp_path / "exported.json"
        assert cli.main(["export", str(folder), "--out", str(file)]) == 0
        assert not controls(file.read_text())


def test_a_result_is_printed_without_control_characters(capsys):
    evil = "\x1b[2J\u202e"
    valid = {"mean": 0.1, "low": 0.1, "high": 0.1}
    one = {"valid": valid, "test": valid}
    result = {"metric": {"name": evil}, "configurations": {evil: one}, "warnings": [f"a{evil}\nb"]}
    more = {"clock": {evil: 1.0}, "trace": {"trainings": [1.0]}, "num_seeds": 1, "seconds": 1.0}
    terminal.print_result({**result, **more})
    terminal.print_notes({evil: [{evil: evil}]})
    with terminal.printing_warnings():
        warnings.warn(f"c{evil}", StudyWarning, stacklevel=1)
    bar = terminal.Bar(quiet=False, color=False)
    bar.callback.step(Progress("random", 1, 1, 0.1, 0.1, {f"lr{evil}": evil}))
    out, err = capsys.readouterr()
    assert not controls(out + err) and "warning: a\ufffd[2J\ufffd b" in out and "warning: c" in err


def test_every_line_of_the_command_line_is_said():
    """`print` would let control characters through."""
    for path in (ROOT / "hypergrad" / "cli").glob("*.py"):
        calls = re.findall(r"(?<![\w.])print\(|click\.echo|sys\.std\w+\.write", path.read_text())
        assert calls == (["print("] if path.name == "lines.py" else []), path.name


def test_completion_offers_no_name_that_a_shell_would_expand(tmp_path, monkeypatch):
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    for name in ("good", "$(touch${IFS}pwned)", "`touch${IFS}pwned`", "a b", "x*"):
        (tasks / f"{name}.py").write_text("def task(): pass\n")
    monkeypatch.chdir(tmp_path)
    shell = ShellComplete(cli.GROUP, {}, "hypergrad", "_HYPERGRAD_COMPLETE")
    offered = [one.value for one in shell.get_completions(["tune"], "")]
    assert offered == ["", "good"] and sorted(os.listdir(tmp_path)) == ["tasks"]


def test_trials_are_found_by_any_whole_number(tmp_path):
    folder = stopped(tmp_path / "s", toy())
    assert study.replay_trial(toy(), folder, np.int64(3)).step == 1
    for trial in (-1, 6, "x", 1.5):
        with pytest.raises(ValueError, match="from 0 to 5; the study has 6 trials"):
            study.replay_trial(toy(), folder, trial)


def test_what_cannot_be_resumed_does_not_start(tmp_path):
    for name, settings in {
        "a": {"checkpoint_seconds": -1},
        "b": {"checkpoint_seconds": np.inf},
    }.items():
        with pytest.raises(ValueError, match="checkpoint_seconds"):
            study.run(toy(), KEY, 2, storage=tmp_path / name, **settings)
        assert not (tmp_path / name / "study.json").exists()
    with pytest.raises(ValueError, match="num_steps"):
        study.run(toy(), KEY, 10**6 + 1, storage=tmp_path / "c")


@pytest.mark.parametrize("words", [["report"], ["resume"], ["export"], ["replay"]])
def test_what_the_system_refuses_is_said_in_one_line(words, capsys):
    rest = ["0", "quadratic"] if words == ["replay"] else []
    assert cli.main([*words, "a" * 300, *rest, "--json"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["status"] == 2 and err.count("\n") == 1


def test_resume_with_another_argument_is_refused(tmp_path, capsys):
    out = str(tmp_path / "s")
    words = ["tune", "quadratic", "--horizon", "3", "--method", "random", "--budget", "4"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert cli.main([*words, "--eval-seeds", "2", "--out", out, "--quiet"]) == 0
    capsys.readouterr()
    assert cli.main(["resume", out, "quadratic", "--arg", "num_params=3"]) == 2
    assert "num_params is 3, expected None as the study has it" in capsys.readouterr().err


def test_flags_go_before_the_study_file(tmp_path, capsys):
    file = tmp_path / "s.toml"
    file.write_text(
        'task = "quadratic"\nmethod = "random"\nbudget = 4\neval_seeds = 2\n'
        "[arg]\nhorizon = 6\nnum_params = 3\n"
    )
    out = tmp_path / "s"
    words = ["run", str(file), "--horizon", "4", "--arg", "num_params=2", "--quiet"]
    assert cli.main([*words, "--out", str(out)]) == 0
    about = json.loads((out / "study.json").read_text())
    assert about["task_arguments"] == {"horizon": 4, "num_params": 2} and about["horizon"] == 4
