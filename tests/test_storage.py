"""A study on disk: what is written is kept, what is damaged is noticed, what is hostile is refused."""

import importlib
import json
import os
import shutil
import subprocess
import sys
import threading
import tracemalloc
import warnings
import zipfile
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings as fuzz, strategies as st

from benchmarks import faults
from hypergrad import study
from hypergrad.cli import main as cli
from hypergrad.report.results import load_results
from hypergrad.searchers import Trials
from hypergrad.study import StudyWarning
from hypergrad.study.disk import checkpoint
from hypergrad.study.disk.description import decode_key, encode_key
from hypergrad.study.disk.files import open_file, parse_json, read_json, write_json
from hypergrad.study.disk.folder import create
from hypergrad.study.disk.journal import Journal, encode_line, read_records, scan
from hypergrad.study.disk.machine import describe_machine, differences
from hypergrad.tuners import Tuner
from hypergrad.tuning.provenance import describe_study
from hypergrad.tuning.settings import Settings
from tasks import quadratic

ROOT = Path(__file__).parent.parent
KEY = jax.random.key(3)
NUM = 4


def refused(call, *args):
    """Call, expect a refusal in one line, and return it."""
    with pytest.raises(ValueError) as caught:
        call(*args)
    return one_line(caught.value)


def one_line(error):
    message = str(error)
    assert "\n" not in message and len(message) < 700
    return message


@pytest.fixture(scope="module", autouse=True)
def no_waiting():
    """Do not wait for the disk; what a disk keeps, and when it is asked to, has a test of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: None)
        yield


def test_the_disk_is_waited_for_before_anything_counts(tmp_path, monkeypatch):
    events = []
    real = os.replace

    def fsync(fd):
        events.append("folder" if os.path.isdir(f"/proc/self/fd/{fd}") else "file")

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("rename"), real(a, b)))
    write_json(tmp_path / "a.json", {"a": 1})
    assert events == ["file", "rename", "folder"]
    journal = Journal(tmp_path / "journal.jsonl")
    events.clear()
    journal.append({"step": 0, "values": [1.0]})
    assert events == ["file"]
    journal.close()
    checkpoint.save(tmp_path, 1, {"x": np.ones(2)})
    assert events == ["file", *["file", "rename", "folder"] * 2]


# ---- a tuner that costs nothing, with every kind of leaf


def toy(shift=0.0):
    """Draw two members a step from a state with every kind of leaf; a host function, no jit."""

    def init(key):
        return {
            "wide": jnp.zeros(3),
            "half": jnp.zeros(2, jnp.bfloat16),
            "key": key,
            "old_key": jax.random.PRNGKey(1),
            "weak": jnp.asarray(1.0),
            "host": np.zeros(2),
            "count": 0,
            "none": None,
            "empty": jnp.zeros((0, 3)),
        }

    def step(key, state):
        draw = jax.random.normal(key, (2,)) + shift
        state = {
            **state,
            "wide": state["wide"] + draw[0] / 3,
            "half": state["half"] + draw.astype(jnp.bfloat16),
            "key": jax.random.fold_in(state["key"], 1),
            "weak": state["weak"] * 0.7,
            "host": state["host"] + np.asarray(draw, np.float64) / 7,
            "count": state["count"] + 1,
        }
        values = draw + state["wide"][0] + float(state["host"].sum()) + state["weak"]
        values = jnp.where(state["count"] == 3, jnp.array([jnp.nan, -jnp.inf]), values)
        hparams = {"a": draw, "half": jnp.stack([state["half"]] * 2), "n": jnp.arange(2)}
        info = {"bits": jax.random.key_data(state["key"]), "odd": draw > 0, "z": -0.0 * draw}
        index = jnp.arange(2, dtype=jnp.int32)
        return state, Trials(hparams, values, index, index, info)

    return Tuner(init, step)


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.asarray(x).dtype == np.asarray(y).dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.fixture(scope="module")
def whole():
    return study.run(toy(), KEY, 6)


@pytest.fixture
def kept(tmp_path):
    """A study of the toy that was ended after four of its six steps."""
    end_after(4, tmp_path / "study")
    return tmp_path / "study"


def end_after(num_steps, folder, every=0.0):
    def stop(index, outcome, best):
        if index + 1 == num_steps:
            raise faults.Stop

    with pytest.raises(faults.Stop):
        study.run(toy(), KEY, 6, stop, storage=folder, checkpoint_seconds=every)


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
    assert "step 0 was made again, and its hparams 'a' differ" in message


@pytest.mark.parametrize("trial", [0, 3, 7])
def test_replay_makes_a_trial_again(kept, whole, trial):
    found = study.replay_trial(toy(), kept, trial)
    assert (found.step, found.member) == divmod(trial, 2)
    expected = jax.tree.map(lambda x: x[found.member], whole.trials[found.step].hparams)
    same(found.outcome.hparams, expected)
    assert "differ from its record" in refused(study.replay_trial, toy(1e-3), kept, trial)


@pytest.mark.parametrize("trial", [8, -1, "x"])
def test_replay_names_the_trials_there_are(kept, trial):
    assert "0 to 7" in refused(study.replay_trial, toy(), kept, trial) or trial != 8


@pytest.mark.parametrize("method", faults.CASES)
def test_every_method_resumes_to_the_same_bits(tmp_path, method):
    faults.stopped(method, tmp_path / "s", 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert faults.go_on(method, tmp_path / "s").digest == faults.undisturbed(method)


# ---- small versions of benchmarks/faults.py


SMALL = {"flips": 8, "full disks": 4}


@pytest.mark.parametrize("fault", SMALL)
def test_faults_lose_nothing(tmp_path, fault):
    for count in faults.FAULTS[fault](tmp_path, SMALL[fault]).values():
        tried = {"flips", "refused in one line", "made again", "points", "stopped"}
        assert not any(value for name, value in count.items() if name not in tried), count


def test_every_prefix_of_a_journal(tmp_path):
    lines = [encode_line({"step": i, "values": [i / 3]}) for i in range(20)]
    data, path = b"".join(lines), tmp_path / "journal.jsonl"
    for cut in range(len(data) + 1):
        path.unlink(
            missing_ok=True
        )  # some file systems wait for the disk where a file is cut short
        path.write_bytes(data[:cut])
        num_read = sum(1 for _ in read_records(path))
        journal = Journal(path)
        rest, num = cut, 0
        while num < 20 and rest >= len(lines[num]) - 1:
            rest, num = rest - len(lines[num]), num + 1
        assert journal.count == num_read == num
        if num < 20:
            journal.append({"step": num, "values": [num / 3]})
        journal.close()
        assert path.read_bytes() == b"".join(lines[: num + 1])


def test_killed_at_any_instant(tmp_path):
    for count in faults.kills(tmp_path, 4, faults.NUM_STEPS).values():
        assert count["kills"] and not any(
            count[name] for name in ("records lost", "failed resumes", "other digests")
        )


# ---- the journal


def write_records(path, num):
    journal = Journal(path)
    for step in range(num):
        journal.append({"step": step, "values": [step / 3]})
    journal.close()


def damage(path, line, change):
    lines = path.read_bytes().splitlines(keepends=True)
    lines[line] = change(lines[line])
    path.write_bytes(b"".join(lines))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda line: line.replace(b"0.3", b"0.4"), "does not match its checksum"),
        (lambda line: b"", "is of step 2"),
        (lambda line: line + line, "is of step 1"),
        (lambda line: b"\n", "does not match its checksum"),
        (lambda line: line.replace(b"\n", b" "), "does not match its checksum"),
    ],
)
def test_damage_in_the_middle_names_the_line(tmp_path, change, found):
    path = tmp_path / "journal.jsonl"
    write_records(path, 4)
    damage(path, 1, change)
    message = refused(list, read_records(path))
    assert "line " in message and found in message and "hypergrad resume" in message
    journal = Journal(path)
    assert journal.count in (1, 2) and found in journal.damage
    assert journal.record(3) == {"step": 3, "values": [1.0]}, "later records are still compared"
    assert (tmp_path / "journal-damaged.jsonl").exists()
    journal.close()


def test_a_torn_line_is_ignored_by_readers_and_cut_off_by_the_writer(tmp_path):
    path = tmp_path / "journal.jsonl"
    write_records(path, 2)
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(b'{"crc": "0000')
    assert len(list(read_records(path))) == 2 and path.stat().st_size > size
    journal = Journal(path)
    assert "cut off" in journal.damage and path.stat().st_size == size
    journal.close()


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


def test_a_record_too_long_is_refused_before_it_is_written(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    big = {"step": 0, "values": "x" * 70 * 2**20}
    assert "expected at most 64 MB" in refused(journal.append, big)
    assert journal.count == 0 and (tmp_path / "journal.jsonl").stat().st_size == 0
    journal.close()


@given(st.binary(max_size=400), st.integers(0, 200), st.integers(0, 3))
@fuzz(deadline=None)
def test_any_bytes_are_read_or_refused(tmp_path_factory, noise, place, mode):
    path = tmp_path_factory.mktemp("fuzz") / "journal.jsonl"
    good = b"".join(encode_line({"step": i, "values": [0.5]}) for i in range(4))
    sealed = b'{"crc": "%08x", %s' % (zlib.crc32(noise + b"\n"), noise + b"\n")
    parts = (noise, good[:place] + noise + good[place:], good[:place] + noise, good + sealed)
    path.write_bytes(parts[mode])
    try:
        list(read_records(path))
    except ValueError as error:
        one_line(error)
    journal = Journal(path)
    journal.append({"step": journal.count, "values": []})
    journal.close()
    assert sum(1 for _ in read_records(path)) == journal.count


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


# ---- checkpoints


def test_a_checkpoint_keeps_every_kind_of_leaf(tmp_path):
    state = {
        "bfloat16": jnp.asarray([1.5, jnp.nan, -0.0], jnp.bfloat16),
        "float8": jnp.ones(3, jnp.float8_e4m3fn),
        "float16": jnp.ones((2, 1), jnp.float16),
        "bool": jnp.array([True, False]),
        "scalar": jnp.float32(0.1),
        "rbg": jax.random.key(5, impl="rbg"),
        "keys": jax.random.split(KEY, 3),
        "old": jax.random.PRNGKey(7),
        "transposed": np.arange(6.0).reshape(2, 3).T,
        "numpy": np.float64(0.1),
        "int": 3,
        "float": 0.1,
        "flag": True,
        "empty": jnp.zeros((0, 4)),
    }
    checkpoint.save(tmp_path, 5, state)
    found = checkpoint.load(tmp_path, 5, jax.tree.map(lambda x: x, state))
    for name, value in state.items():
        assert type(found[name]) is type(value) or isinstance(value, jax.Array), name
        assert str(jnp.asarray(found[name]).dtype) == str(jnp.asarray(value).dtype), name
        if name in ("rbg", "keys"):
            same(jax.random.key_data(found[name]), jax.random.key_data(value))
        else:
            same(found[name], value)


def test_weak_types_are_stripped_before_they_can_matter():
    state = checkpoint.without_weak_types({"x": jnp.asarray(1.0), "key": KEY, "n": 1})
    assert not state["x"].weak_type and state["n"] == 1


def test_a_checkpoint_of_another_tuner_is_refused(tmp_path):
    checkpoint.save(tmp_path, 1, {"a": jnp.zeros(3)})
    for like in ({"a": jnp.zeros(3, jnp.int32)}, {"b": jnp.zeros(3)}):
        assert "of another tuner" in refused(checkpoint.load, tmp_path, 1, like)
    with (tmp_path / "checkpoint-0000000001.npz").open("ab") as file:
        file.truncate(10**6)
    assert "expected at most" in refused(checkpoint.load, tmp_path, 1, {"a": jnp.zeros(3)})
    assert "expected an array" in refused(checkpoint.save, tmp_path, 2, {"a": object()})


def test_restored_arrays_find_the_compiled_program(tmp_path):
    state = {"x": jnp.ones(3), "key": KEY}
    step = jax.jit(lambda s: {**s, "x": s["x"] * 2})
    checkpoint.save(tmp_path, 1, step(state))
    step(checkpoint.load(tmp_path, 1, state))
    assert step._cache_size() < 2  # 0 where jax did not keep it for its fast path


@pytest.mark.parametrize("hurt", ["npz", "json"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(kept, whole, hurt):
    newest, older = checkpoint.steps(kept)
    path = kept / f"checkpoint-{newest:010d}.{hurt}"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.warns(StudyWarning, match="an earlier one"):
        assert study.resume_run(toy(), kept).digest == whole.digest
    assert older == newest - 1


# ---- writers and readers


def test_a_second_writer_is_refused_at_once_and_told_the_process(kept):
    script = (
        "import sys, time\nfrom hypergrad.study.disk.folder import lock\n"
        f"with lock({str(kept)!r}):\n    print('locked', flush=True)\n    time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert holder.stdout.readline() == b"locked\n"
        message = refused(study.resume_run, toy(), kept)
        assert f"in use by process {holder.pid}," in message
        assert len(list(read_records(kept / "journal.jsonl"))) == 4, "a reader needs no lock"
        assert study.replay_trial(toy(), kept, 1).step == 0
        assert f"process {holder.pid}," in refused(create(kept, True).__enter__)
    finally:
        holder.kill()
        holder.wait()
    assert not study.resume_run(toy(), kept).interrupted, "the lock goes with the process"


def test_one_of_eight_threads_wins(tmp_path):
    barrier, won, lost = threading.Barrier(8), [], []

    def race():
        barrier.wait()
        try:
            with create(tmp_path / "s"):
                won.append(1)
                barrier.wait()
        except ValueError as error:
            lost.append(str(error))
            barrier.wait()

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and all(f"process {os.getpid()}," in text for text in lost)


def test_readers_see_whole_records_only(tmp_path):
    path, done, seen = tmp_path / "journal.jsonl", threading.Event(), []
    journal = Journal(path)

    def watch():
        while not done.is_set():
            found = list(read_records(path))
            assert found == [{"step": i, "values": [0.5] * 50} for i in range(len(found))]
            seen.append(len(found))

    thread = threading.Thread(target=watch)
    thread.start()
    for step in range(60):
        journal.append({"step": step, "values": [0.5] * 50})
    done.set()
    thread.join()
    journal.close()
    assert seen and seen == sorted(seen)


@pytest.mark.parametrize("name", ["a b", ".hidden", "a/../..", "ü", "x" * 200, "a\nb"])
def test_odd_names_are_refused(tmp_path, name):
    assert "expected" in refused(create(tmp_path / name).__enter__)
    assert not list(tmp_path.iterdir())


# ---- machines


def test_a_machine_that_cannot_repeat_the_bits_is_refused():
    here = describe_machine()
    assert differences(here) == []
    assert "num_devices is" in refused(differences, {**here, "num_devices": 8})
    other = {**here, "cores": 99, "versions": {**here["versions"], "jax": "0.1"}}
    notes = differences(other)
    assert len(notes) == 2 and "was '0.1'" in notes[1]


@pytest.mark.parametrize("key", [KEY, jax.random.PRNGKey(3), jax.random.key(2, impl="rbg")])
def test_keys_survive(key):
    found = decode_key(json.loads(json.dumps(encode_key(key))))
    assert found.dtype == key.dtype
    same(jax.random.key_data(found), jax.random.key_data(key))


# ---- hostile folders: no code is run, nothing outside is written, memory is bounded


def sealed(name, **entries):
    """Change entries of a JSON file, and give it its checksum again."""

    def apply(folder):
        write_json(folder / name, read_json(folder / name) | entries)

    return apply


def raw(name, content):
    def apply(folder):
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(content)

    return apply


def resealed(name, body):
    """Put hostile bytes under a checksum that is right."""

    def apply(folder):
        import hashlib

        seal = hashlib.sha256(body).hexdigest().encode()
        (folder / name).write_bytes(b'{\n "sha256": "%s",%s' % (seal, body))

    return apply


def link(name, target):
    def apply(folder):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(folder.parent / "outside" / target)

    return apply


def hard_link(name):
    def apply(folder):
        (folder / name).unlink(missing_ok=True)
        os.link(folder.parent / "outside" / "file", folder / name)

    return apply


def pipe(name):
    def apply(folder):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return apply


def sparse(name, size):
    def apply(folder):
        with open(folder / name, "wb") as file:
            file.truncate(size)

    return apply


def line(body):
    """Append a line with a right checksum to the journal."""

    def apply(folder):
        with (folder / "journal.jsonl").open("ab") as file:
            file.write(b'{"crc": "%08x", %s' % (zlib.crc32(body), body))

    return apply


def npz(**changes):
    """Rewrite the newest checkpoint as a hostile archive, with a manifest that fits it."""

    def apply(folder):
        newest = checkpoint.steps(folder)[0]
        path = folder / f"checkpoint-{newest:010d}.npz"
        with zipfile.ZipFile(path) as archive:
            members = {i.filename: archive.read(i) for i in archive.infolist()}
        members = {changes.get("rename", {}).get(n, n): data for n, data in members.items()}
        members |= changes.get("add", {})
        with zipfile.ZipFile(path, "w", changes.get("compress", zipfile.ZIP_STORED)) as archive:
            for name, data in members.items():
                archive.writestr(name, data)
        with open(path, "rb") as file:
            about = {"bytes": path.stat().st_size, "npz": checkpoint._digest(file)}
        sealed(path.with_suffix(".json").name, **about)(folder)

    return apply


class Bomb:
    """What unpickling would run."""

    def __reduce__(self):
        return (os.system, ("touch pwned",))


def object_array():
    import io

    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.array([Bomb()], object), allow_pickle=True)
    return buffer.getvalue()


def header(text):
    text = text.ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


HUGE = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}"
CODE = b"{'descr': __import__('os').system('touch pwned'), 'fortran_order': False, 'shape': ()}"
NEST = b"[" * 5000 + b"]" * 5000
KEY_OF = {"impl": "threefry2x32", "data": [0, 0]}
HOSTILE = {
    "study: link": link("study.json", "file"),
    "study: link to a device": link("study.json", "../../../../dev/zero"),
    "study: pipe": pipe("study.json"),
    "study: sparse": sparse("study.json", 2**40),
    "study: empty": raw("study.json", b""),
    "study: nested": resealed("study.json", b' "a": ' + NEST + b"}"),
    "study: nested, unclosed": raw("study.json", b"[" * 10**6),
    "study: many lists": resealed("study.json", b' "a": [' + b"[]," * 2 * 10**6 + b"[]]}"),
    "study: long number": resealed("study.json", b' "num_steps": ' + b"9" * 10**5 + b"}"),
    "study: no UTF-8": raw("study.json", b"\xff\xfe" * 100),
    "study: steps": sealed("study.json", num_steps=10**12),
    "study: steps as text": sealed("study.json", num_steps="6"),
    "study: steps true": sealed("study.json", num_steps=True),
    "study: seconds": sealed("study.json", checkpoint_seconds="now"),
    "study: key": sealed("study.json", key={"impl": "os.system", "data": [0, 0]}),
    "study: key's size": sealed("study.json", key={"impl": None, "data": [0] * 10**5}),
    "study: key's numbers": sealed("study.json", key={**KEY_OF, "data": [2**40, -1]}),
    "study: key as a list": sealed("study.json", key=[0, 0]),
    "study: key of a list": sealed("study.json", key={"impl": [], "data": [0, 0]}),
    "study: machine": sealed("study.json", machine=[]),
    "study: platform": sealed("study.json", machine={"platform": "../../x"}),
    "study: format": sealed("study.json", format=99),
    "journal: link": link("journal.jsonl", "file"),
    "journal: link to nothing": link("journal.jsonl", "new"),
    "journal: hard link": hard_link("journal.jsonl"),
    "journal: pipe": pipe("journal.jsonl"),
    "journal: sparse": sparse("journal.jsonl", 2**40),
    "journal: folder": lambda f: ((f / "journal.jsonl").unlink(), (f / "journal.jsonl").mkdir()),
    "journal: nested": raw("journal.jsonl", b'{"crc": "00000000", "step": 0, "a": ' + NEST),
    "journal: nested, sealed": line(b'"step": 4, "values": ' + NEST + b"}\n"),
    "journal: words": line(b'"step": 4, "values": ["__import__", "os"]}\n'),
    "journal: huge step": line(b'"step": 99999999, "values": [1.0, 2.0]}\n'),
    "journal: other record": line(b'"step": 4, "values": {"a": 1}}\n'),
    "journal aside: link": lambda f: (
        link("journal-damaged.jsonl", "file")(f),
        damage(f / "journal.jsonl", 1, lambda text: text.replace(b"0", b"1")),
    ),
    "temporary: link": link("study.json.tmp", "file"),
    "lock: link": link("lock", "file"),
    "lock: hard link": hard_link("lock"),
    "lock: pipe": pipe("lock"),
    "checkpoint: link": link("checkpoint-0000000004.npz", "file"),
    "checkpoint: ahead": sealed("checkpoint-0000000004.json", step=3),
    "checkpoint: leaves": sealed("checkpoint-0000000004.json", leaves=["x"] * 1000),
    "checkpoint: size": sealed("checkpoint-0000000004.json", bytes=2**50),
    "checkpoint: sparse": sparse("checkpoint-0000000004.npz", 2**40),
    "npz: traversal": npz(rename={"000000.npy": "../../outside/new"}),
    "npz: absolute": npz(add={"/tmp/hypergrad-pwned": b"x"}),
    "npz: bomb": npz(add={"000000.npy": b"\0" * 2 * 10**8}, compress=zipfile.ZIP_DEFLATED),
    "npz: compressed": npz(compress=zipfile.ZIP_DEFLATED),
    "npz: header of a bomb": npz(add={"000001.npy": header(HUGE)}),
    "npz: header of code": npz(add={"000001.npy": header(CODE)}),
    "npz: header nested": npz(add={"000001.npy": header(b"(" * 100)}),
    "npz: header cut": npz(add={"000001.npy": b"\x93NUMPY\x01\x00\xff\xff{"}),
    "npz: pickle": npz(add={"000001.npy": object_array()}),
    "npz: no array": npz(add={"000001.npy": b"x"}),
    "npz: no archive": raw("checkpoint-0000000004.npz", b"PK\x03\x04" * 100),
    "figures: link": link("figures", ""),
    "result: nested": resealed("result.json", b' "configurations": ' + NEST + b"}"),
    "result: sparse": sparse("result.json", 2**40),
    "result: link": link("result.json", "file"),
    "log: link": link("log.jsonl", "file"),
    "log: hard link": hard_link("log.jsonl"),
    "log: pipe": pipe("log.jsonl"),
    "log: folder": lambda f: (f / "log.jsonl").mkdir(),
    "random: link": link("random", ""),
    "random: file": raw("random", b"x"),
    "result: hard link": hard_link("result.json"),
    "copy: hard link": hard_link("study-copy.json"),
    "copy: pipe": pipe("study-copy.json"),
}


@pytest.fixture
def harm(tmp_path, monkeypatch):
    """Watch a folder's surroundings; at the end nothing outside is new, changed or run."""
    monkeypatch.chdir(tmp_path)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("precious")

    def check():
        assert [p.name for p in outside.iterdir()] == ["file"]
        assert (outside / "file").read_text() == "precious"
        assert sorted(tmp_path.iterdir()) == before and not list(tmp_path.rglob("pwned"))
        assert not Path("/tmp/hypergrad-pwned").exists()

    before = sorted({*tmp_path.iterdir(), tmp_path / "study"})
    return check


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_folders_do_no_harm(case, harm, kept, whole):
    HOSTILE[case](kept)
    tracemalloc.start()
    outcomes = []
    for call in (lambda: study.resume_run(toy(), kept), lambda: study.replay_trial(toy(), kept, 7)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                outcomes.append(call())
            except ValueError as error:
                one_line(error)
    refused(load_results, kept)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 * 2**20
    assert all(found.digest == whole.digest for found in outcomes if isinstance(found, study.Run))
    harm()


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A study of a task as `hypergrad tune` leaves it when killed, but that the toy trained."""
    task, chosen = quadratic.task(), Settings(method="random", population=2, generations=6)

    def stop(index, outcome, best):
        if index == 3:
            raise faults.Stop

    about = describe_study(task, chosen, {"cost": 2})
    path = tmp_path_factory.mktemp("tuned") / "study"
    with pytest.raises(faults.Stop):
        study.run(toy(), KEY, 6, stop, storage=path, details=about, checkpoint_seconds=0.0)
    return path


@pytest.fixture
def of_task(tmp_path, tuned, monkeypatch):
    """A copy of it, in a process where nothing is compiled, judged or drawn."""
    tuning, resuming = map(
        importlib.import_module, ("hypergrad.tuning.tune", "hypergrad.tuning.resume")
    )
    valid = {"mean": 0.0, "low": 0.0, "high": 0.0, "values": [0.0]}
    judged = {"tuned": {"hparams": {"lr": 0.1}, "valid": valid, "test": {}}}
    monkeypatch.setattr(resuming, "build", lambda *_: (toy(), 2))
    monkeypatch.setattr(tuning, "choose", lambda *_: ({"lr": 0.1}, 0.0))
    monkeypatch.setattr(tuning, "judge", lambda *_: judged)
    monkeypatch.setattr(tuning, "_report", lambda path: path)
    return shutil.copytree(tuned, tmp_path / "study")


@pytest.mark.parametrize("case", ["nothing", *HOSTILE])
def test_hostile_folders_do_no_harm_through_the_command_line(case, of_task, harm, whole, capsys):
    HOSTILE.get(case, lambda folder: None)(of_task)
    module = ROOT / "tasks" / "quadratic.py"
    status = cli.main(["resume", str(of_task), f"{module}:task", "--log", "jsonl", "--json"])
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert (
        answer["status"] == status and "Traceback" not in err and (status == 0 or case != "nothing")
    )
    if status == 0:
        assert read_json(of_task / "result.json")["digest"] == whole.digest
    else:
        assert status == 2 and one_line(answer["error"])
    assert (status == 0) == bool((of_task / "result.json").is_file()) or case.startswith("result")
    harm()


def test_a_link_that_appears_late_is_not_followed(tmp_path):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to("file")
    for flags in (os.O_RDONLY, os.O_RDWR | os.O_CREAT):
        assert "symbolic link" in refused(open_file, tmp_path / "link", flags)
    write_json(tmp_path / "link", {"a": 1})  # takes the link's place
    assert (tmp_path / "file").read_text() == "precious"


def test_there_are_forty_hostile_folders():
    assert len(HOSTILE) >= 40


# ---- JSON


def test_json_keeps_what_is_written_and_notices_any_flip(tmp_path):
    path = tmp_path / "a.json"
    value = {"a": [1, 0.1, None, 'x\n"[{\\'], "b": {"c": True}, "n": float("nan")}
    write_json(path, value)
    assert read_json(path) == value | {"n": None}
    data = path.read_bytes()
    for place in range(len(data)):
        hurt = bytearray(data)
        hurt[place] ^= 1 << place % 8
        path.write_bytes(hurt)
        refused(read_json, path)


def test_strings_and_escapes_do_not_count_as_nesting(tmp_path):
    text = json.dumps({"a": "[" * 100 + '\\"' + "{" * 100, "b": '\\\\"[', "c": [[]]}).encode()
    assert parse_json(text, "x")["c"] == [[]]
    deep = b'{"a": ' + b"[" * 32 + b"]" * 32 + b"}"
    assert "nested too deep" in refused(parse_json, deep, "x")


def test_scan_ends_with_the_file(tmp_path):
    path = tmp_path / "j"
    write_records(path, 3)
    with path.open("rb") as file:
        found = scan(file, "j")
    assert (len(found.whole), found.end, found.damage) == (3, path.stat().st_size, None)
