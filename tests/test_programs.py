"""Compiled programs that the command line keeps: where, for whom, and that they change nothing but the time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hypergrad.cli import programs, terminal
from hypergrad.cli.programs import FirstStep, keep_programs
from hypergrad.study import Progress

ROOT = Path(__file__).parent.parent
NAMES = (
    "HYPERGRAD_CACHE",
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_ENABLE_COMPILATION_CACHE",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An environment that says nothing, with a cache folder of its own."""
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that what is set within a test is undone after it
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return tmp_path


@pytest.mark.parametrize(
    ("given", "environment", "expected"),
    [
        ((None, False), {}, "xdg/hypergrad"),
        ((None, False), {"XDG_CACHE_HOME": "relative", "HOME": "{}/home"}, "home/.cache/hypergrad"),
        ((None, False), {"HYPERGRAD_CACHE": "{}/named"}, "named"),
        (("{}/flag", False), {"HYPERGRAD_CACHE": "{}/named"}, "flag"),
        (("{}/flag", False), {"JAX_COMPILATION_CACHE_DIR": "{}/jax"}, "flag"),
        ((None, False), {"JAX_COMPILATION_CACHE_DIR": "{}/jax"}, None),
        ((None, False), {"HYPERGRAD_CACHE": "off"}, None),
        ((None, True), {"JAX_COMPILATION_CACHE_DIR": "{}/jax"}, None),
        (("{}/flag", True), {}, None),
    ],
)
def test_where_programs_are_kept(given, environment, expected, place, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(place))
    folder, off = given
    kept = keep_programs(folder and folder.format(place), off)
    disabled = os.environ.get("JAX_ENABLE_COMPILATION_CACHE") == "false"
    assert disabled == (off or environment.get("HYPERGRAD_CACHE") == "off")
    if expected is None:
        assert kept is None
        if not disabled:
            assert os.environ["JAX_COMPILATION_CACHE_DIR"] == f"{place}/jax", "jax's own stays"
        return
    assert kept.parent == place / expected and kept.stat().st_mode & 0o777 == 0o700
    assert kept.parent.stat().st_mode & 0o777 == 0o700
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(kept)
    assert os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] == "0", "small ones, too"


def test_each_processor_and_version_has_a_folder_of_its_own(place, monkeypatch):
    found = {keep_programs(str(place), False)}
    monkeypatch.setattr(programs.platform, "processor", lambda: "another")
    found.add(keep_programs(str(place), False))
    monkeypatch.setattr(programs, "version", lambda name: "9.9")
    found.add(keep_programs(str(place), False))
    assert len(found) == 3


def test_a_folder_that_cannot_be_used_is_said_in_one_line(place, capsys):
    (place / "file").write_text("")
    (place / "open").mkdir()
    (place / "open").chmod(0o777)
    for name, reason in (("file", "File exists"), ("open", "others can write")):
        assert keep_programs(str(place / name), False) is None
        said = capsys.readouterr().err
        assert reason in said and "--no-cache" in said and said.count("\n") == 1
        assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_the_oldest_programs_go_first(place, monkeypatch):
    monkeypatch.setattr(programs, "MAX_KEPT", 40)
    kept = keep_programs(str(place), False)
    for age in range(5):
        (kept / f"{age}-cache").write_bytes(b"x" * 10)
        os.utime(kept / f"{age}-cache", (1000 - age, 1000 - age))
    (kept / "another").write_bytes(b"x" * 100)
    keep_programs(str(place), False)
    assert {path.name for path in kept.iterdir()} == {"0-cache", "1-cache", "another"}


def test_how_long_the_first_step_took_is_known_the_next_time(place, capsys):
    kept, about = keep_programs(str(place), False), {"task": "digits", "settings": {"budget": 2}}
    now = Progress("descent", 1, 2, 0.5, 0.5, {})
    clock = iter([0.0, 12.3, 20.0, 21.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(terminal.time, "monotonic", lambda: next(clock, 30.0))
        for said in ("compiling the first step\n", "which took 12 s the last time\n"):
            bar = terminal.Bar(quiet=False, color=False, programs=kept)
            bar.callback.start(about)
            assert capsys.readouterr().err.endswith(said)
            bar.callback.step(now)
    assert FirstStep(kept, {"task": "another"}).last is None
    for text in ("", "[", "[1]", json.dumps({"x": "y"}), "[" * 10**5):
        (kept / "first_steps.json").write_text(text)
        assert FirstStep(kept, about).last is None
    assert FirstStep(None, about).last is None


@pytest.mark.slow
def test_a_study_has_the_same_bits_without_with_and_from_kept_programs(place):
    journals = []
    for index, words in enumerate((["--no-cache"], *[["--cache", str(place / "kept")]] * 2)):
        out = place / str(index)
        line = ["tune", "quadratic", "--budget", "3", "--quiet", "--out", str(out), *words]
        command = [sys.executable, "-m", "hypergrad", *line]
        subprocess.run(command, check=True, cwd=ROOT, timeout=240, capture_output=True)
        records = map(json.loads, (out / "journal.jsonl").read_text().splitlines())
        journals.append(
            [{k: v for k, v in x.items() if k not in ("seconds", "crc")} for x in records]
        )
    assert journals[0] == journals[1] == journals[2]
    (kept,) = (place / "kept").iterdir()
    assert len(list(kept.glob("*-cache"))) > 3
