"""The next step begins before the last one is recorded, and takes its memory: what counts does not change."""

import os
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from benchmarks import faults
from hypergrad import study
from hypergrad.core.tree import is_taken
from hypergrad.searchers import Trials
from hypergrad.study.disk import checkpoint
from hypergrad.study.disk.journal import Journal, read_records
from hypergrad.tuners import Tuner
from hypergrad.tuners.base import on_device
from tests.disk import KEY, ROOT, refused, same

pytestmark = pytest.mark.usefixtures("no_waiting")


def init(key):
    return {"wide": jnp.zeros(3), "key": key, "count": jnp.zeros((), jnp.int32)}


def advance(key, state):
    draw = jax.random.normal(key, (2,))
    wide = state["wide"] + draw[0] / 3
    state = {"wide": wide, "key": jax.random.fold_in(state["key"], 1), "count": state["count"] + 1}
    index = jnp.arange(2, dtype=jnp.int32)
    info = {"bits": jax.random.key_data(state["key"])[None].repeat(2, 0)}
    return state, Trials({"a": draw}, draw + wide[0], index, index, info)


DEVICE = on_device(init, advance)


@pytest.fixture(scope="module")
def undisturbed():
    """The run of the same steps, each waited for."""
    return study.run(Tuner(DEVICE.init, DEVICE.step), KEY, 6)


def test_a_step_begins_before_the_last_is_recorded_and_takes_its_memory(
    tmp_path, monkeypatch, undisturbed
):
    events, append = [], Journal.append

    def begin(key, state):
        events.append("begin")
        made = DEVICE.begin(key, state)
        assert is_taken(state)
        return made

    def noted(journal, record):
        events.append(f"record {record['step']}")
        append(journal, record)

    monkeypatch.setattr(Journal, "append", noted)
    told = lambda step, *_: events.append(f"told {step}")  # noqa: E731
    found = study.run(DEVICE._replace(begin=begin), KEY, 4, told, storage=tmp_path / "s")
    want = ["begin", "begin", "record 0", "told 0", "begin", "record 1", "told 1"]
    want += ["begin", "record 2", "told 2", "record 3", "told 3"]
    assert events == want
    same(found.trials, undisturbed.trials[:4])


@pytest.mark.parametrize("every", [0.0, 1e9])
@pytest.mark.parametrize("num_steps", [1, 3, 6])
def test_a_run_that_ends_goes_on_to_the_same_bits(tmp_path, undisturbed, num_steps, every):
    def stop(step, told, best):
        if step + 1 == num_steps:
            raise faults.Stop

    with pytest.raises(faults.Stop):
        study.run(DEVICE, KEY, 6, stop, storage=tmp_path / "s", checkpoint_seconds=every)
    assert (num_steps in checkpoint.steps(tmp_path / "s")) == (every == 0)
    assert study.resume_run(DEVICE, tmp_path / "s").digest == undisturbed.digest


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("takes", [False, True])
def test_exhausted_memory_loses_no_record(tmp_path, monkeypatch, undisturbed, takes, late):
    """A step whose state is still there is taken again; else the run ends, with all that was told on disk."""
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")
    begun, told, wait = [], [], jax.block_until_ready

    def begin(key, state):
        begun.append(1)
        if len(begun) == 4 and takes:
            DEVICE.begin(key, state)
        if len(begun) == 4:
            if not late:
                raise error
            return "exhausted"
        return DEVICE.step(key, state)

    def waiting(made):
        if isinstance(made, str):
            raise error
        return wait(made)

    monkeypatch.setattr(jax, "block_until_ready", waiting)

    def call():
        tuner = DEVICE._replace(begin=begin)
        note = lambda step, *_: told.append(step)  # noqa: E731
        return study.run(tuner, KEY, 6, note, storage=tmp_path / "s", checkpoint_seconds=0.0)

    if not takes:
        assert call().digest == undisturbed.digest
        return
    assert "needs more memory than the device has (RESOURCE_EXHAUSTED" in refused(call)
    assert told == [0, 1, 2]
    assert [r["step"] for r in read_records(tmp_path / "s" / "journal.jsonl")] == told
    assert study.resume_run(DEVICE, tmp_path / "s").digest == undisturbed.digest


def test_ctrl_c_ends_after_the_step_that_has_begun(tmp_path, undisturbed):
    def press(step, told, best):
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)

    # a suite that runs in the background passes on that Ctrl-C is ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        found = study.run(DEVICE, KEY, 6, press, storage=tmp_path / "s", checkpoint_seconds=1e9)
    finally:
        signal.signal(signal.SIGINT, before)
    assert found.interrupted and len(found.trials) == 3
    assert checkpoint.steps(tmp_path / "s") == [3]
    assert study.resume_run(DEVICE, tmp_path / "s").digest == undisturbed.digest


KILLED = """
import os, signal, sys
from hypergrad import study
from hypergrad.study.disk.journal import Journal
from tests.disk import KEY
from tests.test_ahead import DEVICE

append = Journal.append
def killed(journal, record):
    if record["step"] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    append(journal, record)
Journal.append = killed
study.run(DEVICE, KEY, 6, storage=sys.argv[1], checkpoint_seconds=0.0)
"""


@pytest.mark.slow
def test_killed_between_the_next_step_and_the_record(tmp_path, undisturbed):
    command = [sys.executable, "-c", KILLED, str(tmp_path / "s")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == -signal.SIGKILL
    assert len(list(read_records(tmp_path / "s" / "journal.jsonl"))) == 2
    assert study.resume_run(DEVICE, tmp_path / "s").digest == undisturbed.digest
