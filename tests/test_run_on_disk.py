"""A run on disk: whatever ends or damages it, it goes on to the same bits."""

import json
import shutil
import warnings

import jax
import numpy as np
import pytest
from hypothesis import example, given, settings as fuzz, strategies as st

from benchmarks import faults
from benchmarks.fault_cases import needs
from hypergrad import study
from hypergrad.core.files import parse_json
from hypergrad.schedulers import SCHEDULERS
from hypergrad.searchers import Trials
from hypergrad.study import StudyWarning
from hypergrad.study.disk import checkpoint
from hypergrad.study.disk.description import decode_key, encode_key
from hypergrad.study.disk.journal import encode_line
from hypergrad.study.disk.machine import describe_machine, machine_differences
from hypergrad.tuners import METHODS, Tuner
from tests.disk import KEY, end_after, one_line, refused, same, toy

pytestmark = pytest.mark.usefixtures("no_waiting")


@pytest.mark.parametrize("every", [0.0, 1e9])
@pytest.mark.parametrize("num_steps", [1, 3, 6])
def test_resumed_is_the_same_to_the_bit(tmp_path, whole, num_steps, every):
    end_after(num_steps, tmp_path / "s", every)
    new = []
    found = study.resume_run(toy(), tmp_path / "s", lambda index, *_: new.append(index))
    same(found.trials, whole.trials)
    same(found.best, whole.best)
    assert found.best_value == whole.best_value and found.digest == whole.digest
    assert new == list(range(num_steps, 6))
    again = study.resume_run(toy(), tmp_path / "s")
    assert again.digest == whole.digest and len(checkpoint.steps(tmp_path / "s")) <= 2


def test_ctrl_c_keeps_the_last_whole_step(tmp_path, whole):
    def stop(index, outcome, best):
        if index == 2:
            raise KeyboardInterrupt

    path = tmp_path / "s"
    found = study.run(toy(), KEY, 6, stop, storage=path, checkpoint_seconds=1e9)
    assert found.interrupted and checkpoint.steps(path) == [3]
    assert study.resume_run(toy(), path).digest == whole.digest


def test_a_step_that_differs_from_its_record_is_refused(tmp_path):
    end_after(4, tmp_path / "s", every=1e9)
    message = refused(study.resume_run, toy(shift=1e-3), tmp_path / "s")
    assert "step 0 was repeated, and its hparams 'a' differ" in message


@pytest.mark.parametrize("trial", [0, 3, 7])
def test_replay_makes_a_trial_again(kept, whole, trial):
    found = study.replay_trial(toy(), kept, trial)
    assert (found.step, found.member) == divmod(trial, 2)
    expected = jax.tree.map(lambda x: x[found.member], whole.trials[found.step].hparams)
    same(found.trials.hparams, expected)
    assert "differ from its record" in refused(study.replay_trial, toy(1e-3), kept, trial)


@pytest.mark.parametrize("trial", [8, -1, "x"])
def test_replay_names_the_trials_there_are(kept, trial):
    assert "0 to 7" in refused(study.replay_trial, toy(), kept, trial)


LONG = (
    *("bayes", "controller", "optuna_cma", "prior", "tpe"),
    *("random-flatness", "random-hyperband", "random-pb2"),
)
"""Methods that take a second or more to compile."""


@pytest.mark.parametrize(
    "method",
    [pytest.param(m, marks=[pytest.mark.slow] if m in LONG else []) for m in faults.CASES],
)
def test_every_method_resumes_to_the_same_bits(tmp_path, method):
    faults.stopped(method, tmp_path / "s", 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert faults.go_on(method, tmp_path / "s").digest == faults.undisturbed(method)


SMALL = {"flips": 3, "full disks": 2}


@pytest.mark.parametrize("fault", SMALL)
def test_faults_lose_nothing(tmp_path, fault):
    tried = {"flips", "refused in one line", "made again", "points", "stopped"}
    for method in faults.QUICK_CASES:
        count = faults.FAULTS[fault](tmp_path, method, SMALL[fault])
        assert not any(value for name, value in count.items() if name not in tried), count


def test_faults_leave_out_no_method():
    """A method that a table gets is tried by itself; one without its library is named."""
    names = {*METHODS, *(f"random-{name}" for name in SCHEDULERS if name != "full")}
    assert {*faults.CASES, *faults.MISSING} == names
    assert {method for _, method, _ in faults.attempts(False)} >= {*faults.CASES}
    assert all(needs(name) for name in faults.MISSING)


@pytest.mark.slow
def test_killed_at_any_instant(tmp_path):
    count = faults.kills(tmp_path, "random", 3, faults.NUM_STEPS)
    assert count["SIGKILL"] == count["SIGTERM"] == count["SIGHUP"] == 1
    assert not any(count[name] for name in ("records lost", "failed resumes", "other digests"))


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["endings", "closed outputs"])
def test_whole_studies_end_well(tmp_path, fault):
    count = faults.FAULTS[fault](tmp_path, "random", 1)
    tried = {*(f"ended in {phase}" for phase in ("judge", "result", "report"))}
    tried |= {"too late", "outputs closed"}
    assert not any(value for name, value in count.items() if name not in tried), count
    assert sum(count.values()) >= 1


def test_lost_records_and_checkpoints_are_made_again(kept, whole):
    path = kept / "journal.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:1]))
    with pytest.warns(StudyWarning) as caught:
        assert study.resume_run(toy(), kept).digest == whole.digest
    assert ["1 whole records, expected" in str(w.message) for w in caught] == [True, True]
    path.unlink()
    for file in kept.glob("checkpoint-*"):
        file.unlink()
    assert study.resume_run(toy(), kept).digest == whole.digest


def count_up():
    """A tuner of the host whose steps cost microseconds."""

    def step(key, state):
        values = np.array([state["n"] / 3.0, 1.0 / (state["n"] + 1)])
        index = np.arange(2)
        return {"n": state["n"] + 1}, Trials({"a": values}, values, index, index, {})

    return Tuner(lambda key: {"n": np.int32(0)}, step)


FEWER = fuzz().max_examples // 4


parts = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["nan", "inf", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=6,
)  # fmt: skip


forged = st.builds(
    lambda step, changes: {"step": step, **changes},
    st.integers(0, 5),
    st.dictionaries(
        st.sampled_from(["hparams", "values", "steps", "parent", "info", "seconds"]), parts
    ),
)


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """A study of `count_up` that was ended after four of its five steps, with checkpoints at 3 and 4."""

    def stop(index, outcome, best):
        if index == 3:
            raise faults.Stop

    path = tmp_path_factory.mktemp("counted") / "s"
    with pytest.raises(faults.Stop):
        study.run(count_up(), KEY, 5, stop, storage=path, checkpoint_seconds=0.0)
    return path, study.run(count_up(), KEY, 5).digest


def resumed(counted, tmp_path_factory, change):
    """Resume a copy of the study whose journal's lines are `change`d, twice; None where it is refused."""
    path = tmp_path_factory.mktemp("fuzz") / "s"
    shutil.copytree(counted[0], path)
    lines = (path / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (path / "journal.jsonl").write_bytes(change(lines))
    for _ in range(2):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = study.resume_run(count_up(), path)
        except ValueError as error:
            one_line(error)
            return None
    return found


@given(st.integers(0, 3), st.integers(0, 150), st.integers(0, 3), st.binary(max_size=60))
@fuzz(max_examples=FEWER)
def test_any_damage_of_a_journal_resumes_to_the_same(
    counted, tmp_path_factory, line, at, cut, noise
):
    """Bytes put in the place of others: what is whole is used, what is not is made again."""

    def change(lines):
        data = b"".join(lines)
        at_byte = min(len(data), sum(map(len, lines[:line])) + at)
        return data[:at_byte] + noise + data[at_byte + cut * len(noise) :]

    assert resumed(counted, tmp_path_factory, change).digest == counted[1]


@given(forged, st.integers(0, 3), st.booleans())
@example({"step": 0, "steps": []}, 0, True)
@fuzz(max_examples=FEWER)
def test_forged_records_are_refused_in_one_line_or_make_no_difference(
    counted, tmp_path_factory, record, place, instead
):
    """Records under a checksum that is right, of any content; steps that are made again find them out."""

    def change(lines):
        honest = parse_json(lines[min(record["step"], 3)], "line")
        del honest["crc"]
        lines[place : place + instead] = [encode_line({**honest, **record})]
        return b"".join(lines)

    found = resumed(counted, tmp_path_factory, change)
    assert found is None or len(found.trials) == 5


def test_a_machine_that_cannot_repeat_the_bits_is_refused():
    here = describe_machine()
    assert machine_differences(here) == []
    assert "num_devices is" in refused(machine_differences, {**here, "num_devices": 8})
    other = {**here, "cores": 99, "versions": {**here["versions"], "jax": "0.1"}}
    notes = machine_differences(other)
    assert len(notes) == 2 and "was '0.1'" in notes[1]


@pytest.mark.parametrize("key", [KEY, jax.random.PRNGKey(3), jax.random.key(2, impl="rbg")])
def test_keys_survive(key):
    found = decode_key(json.loads(json.dumps(encode_key(key))))
    assert found.dtype == key.dtype
    same(jax.random.key_data(found), jax.random.key_data(key))
