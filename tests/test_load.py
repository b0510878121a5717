"""Large studies: more members than memory, and the benchmark that measures how a study grows."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import hypergrad as hg
from benchmarks import load
from hypergrad import study
from hypergrad.tuning import build
from hypergrad.tuning.settings import Settings
from tasks import quadratic
from tests.disk import KEY, ROOT, refused, toy

MANY = {"method": "random", "population": 64, "generations": 1}
TASK = quadratic.task(horizon=3, num_params=2)
BYTES = jnp.zeros(()).dtype.itemsize * (2 + 2) + 4 + 4 + 8
"""Of one member's state: weights and momentum, step and step of the schedule, and the key."""


@pytest.mark.parametrize("room", [BYTES * 63, BYTES])
def test_members_that_no_memory_holds_are_refused_before_there_is_a_study(
    tmp_path, monkeypatch, room
):
    monkeypatch.setattr(build, "total_memory", lambda: room)
    message = refused(lambda: hg.tune(TASK, storage=tmp_path / "s", **MANY))
    assert "population is 64, whose training states take" in message
    assert f"pass e.g. population={max(1, room // (4 * BYTES))}, and more generations" in message
    assert not list(tmp_path.iterdir())


def test_members_that_fit_are_not(monkeypatch):
    monkeypatch.setattr(build, "total_memory", lambda: BYTES * 4)
    build.build(TASK, Settings("random", population=4, generations=1))


def test_total_memory_is_that_of_the_machine():
    assert 2**28 < build.total_memory() < 2**50


def test_a_step_out_of_memory_ends_in_one_line_and_the_study_goes_on_elsewhere(tmp_path, whole):
    small, steps = toy(), []

    def step(key, state):
        steps.append(1)
        if len(steps) == 4:
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Out of memory allocating\n 9 bytes."
            )
        return small.step(key, state)

    call = lambda: study.run(small._replace(step=step), KEY, 6, storage=tmp_path / "s")  # noqa: E731
    message = refused(call)
    assert "needs more memory than the device has (RESOURCE_EXHAUSTED" in message
    assert "smaller population" in message and "`hypergrad resume`" in message
    assert study.resume_run(small, tmp_path / "s").digest == whole.digest


def test_another_error_of_the_device_stays_as_it_is():
    def step(key, state):
        raise jax.errors.JaxRuntimeError("INTERNAL: odd")

    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        study.run(toy()._replace(step=step), KEY, 6)


@pytest.mark.parametrize("case", ["trials, 1 a step", "studies in one folder"])
def test_what_is_measured_loses_nothing(tmp_path, case):
    found = load.CASES[case](6, tmp_path)
    assert found["lost"] == (0, "count")
    assert all(value >= 0 for value, _ in found.values())


def test_sizes_grow_tenfold_and_the_quick_ones_are_small():
    assert load.FULL.keys() == load.QUICK.keys() == load.CASES.keys()
    assert load.FULL["trials, 1 a step"] == (10_000, 100_000)
    assert load.FULL["members"][-1] == 10_000 and load.FULL["studies in one folder"][-1] == 64
    assert load.FULL["dimensions of one leaf"][-1] == 2_000


@pytest.mark.slow
def test_the_quick_form_measures_every_case(tmp_path):
    out = tmp_path / "load.jsonl"
    words = [sys.executable, "-m", "benchmarks", "load", "--quick", "--out", str(out)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()][1:]
    assert {row["case"] for row in rows} == set(load.CASES)
    assert not any(row["value"] for row in rows if row["metric"] in ("lost", "exit status"))
    assert "| times |" in done.stdout.replace("  ", " ")
