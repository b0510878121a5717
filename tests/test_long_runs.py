"""Runs longer than memory: states in the memory of the host, and on disk."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.export
import pytest

from hypergrad.core import stored
from hypergrad.estimators import DamagedWarning, mixed_mode, reverse, reverse_on_disk
from hypergrad.estimators.unrolled import adjoint, on_disk, run_folder
from tests.disk import KEY, refused
from tests.problems import HORIZON, tiny


def estimate_of(backward):
    problem, hparams = tiny()
    return reverse(problem, HORIZON, backward=backward).estimate, hparams


# ---- on the host


@pytest.fixture
def apart(monkeypatch):
    """Take the device for one with memory of its own; on a CPU, copies are where the host's are."""
    monkeypatch.setattr(adjoint, "check_host_memory", lambda: None)


def test_an_offload_needs_memory_besides_the_hosts():
    estimate, hparams = estimate_of(mixed_mode((3,), offload=True))
    message = refused(estimate, KEY, (), hparams)
    assert message.startswith("offload is True on a device of platform 'cpu'")


@pytest.mark.parametrize(
    "checkpoint", [(3,), *(pytest.param(c, marks=pytest.mark.slow) for c in (None, (), (4, 2)))]
)
def test_an_offload_changes_no_number(apart, checkpoint):
    found = [
        jax.jit(jax.vmap(estimate, (0, None, None)))(jax.random.split(KEY, 2), (), hparams)[1]
        for estimate, hparams in map(
            estimate_of, [mixed_mode(checkpoint), mixed_mode(checkpoint, offload=True)]
        )
    ]
    chex.assert_trees_all_close(*found, rtol=1e-6)


@pytest.mark.parametrize("platform", ["cuda", pytest.param("tpu", marks=pytest.mark.slow)])
def test_stored_states_go_to_the_host_and_come_back(apart, platform):
    counts = []
    for offload in (False, True):
        estimate, hparams = estimate_of(mixed_mode((3,), offload=offload))
        lowered = jax.export.export(jax.jit(estimate), platforms=[platform])(KEY, (), hparams)
        text = lowered.mlir_module()
        counts.append([text.count(f'placement = "{kind}"') for kind in ("pinned_host", "device")])
    # the weights and their momentum
    assert counts == [[0, 0], [2, 2]]


# ---- on disk

STEPS = 6


@pytest.fixture(scope="module")
def long(tmp_path_factory, no_waiting):
    """One run on disk: the function, its hparams, its folder, what it returned and what it reported."""
    problem, hparams = tiny()
    folder, heard = tmp_path_factory.mktemp("long") / "run", []
    made = []
    with pytest.MonkeyPatch.context() as patch:
        make = on_disk._programs
        patch.setattr(on_disk, "_programs", lambda problem: made.append(make(problem)) or made[0])
        estimate = reverse_on_disk(
            problem, STEPS, folder, segment=2, checkpoint=(), report=heard.append
        )
    return estimate, hparams, folder, estimate(KEY, hparams), heard[:], made[0]


def same(left, right):
    chex.assert_trees_all_equal(left, right)


def killed_after(num, monkeypatch, run):
    """Call a run that is ended after it has written `num` files."""
    count = []

    def write(*args):
        stored.write_tree(*args)
        count.append(1)
        if len(count) == num:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(on_disk, "write_tree", write)
        with pytest.raises(KeyboardInterrupt):
            run()


def test_a_run_on_disk_is_reverse(long):
    _, hparams, folder, found, heard, programs = long
    expected = reverse(tiny()[0], STEPS, backward=mixed_mode(())).estimate
    chex.assert_trees_all_close(found, jax.jit(expected)(KEY, (), hparams)[1], rtol=1e-5, atol=1e-7)
    assert programs.train._cache_size() == programs.pull._cache_size() == 1
    assert [(one.phase, one.done) for one in heard] == [
        *(("forward", i) for i in range(4)),
        *(("backward", i) for i in range(1, 4)),
    ]
    assert {one.total for one in heard} == {3} and "of 3 segments" in str(heard[0])
    assert not any(folder.iterdir())


def test_a_run_goes_on_from_wherever_it_was_killed(long, monkeypatch):
    estimate, hparams, folder, found, *_ = long
    for num in range(1, 7):
        killed_after(num, monkeypatch, lambda: estimate(KEY, hparams))
        assert (folder / "run.json").exists()
        same(estimate(KEY, hparams), found)
    assert not any(folder.iterdir())


def test_what_a_damaged_file_held_is_computed_again(long, monkeypatch):
    estimate, hparams, folder, found, *_ = long
    for num, names in ((2, ["state-0000000004"]), (5, ["state-0000000002", "adjoint-0000000002"])):
        killed_after(num, monkeypatch, lambda: estimate(KEY, hparams))
        for name in names:
            path = folder / f"{name}.npz"
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
        with pytest.warns(DamagedWarning, match="computed again"):
            same(estimate(KEY, hparams), found)


def test_other_runs_are_refused(long, monkeypatch):
    estimate, hparams, folder, *_ = long
    killed_after(3, monkeypatch, lambda: estimate(KEY, hparams))
    assert "the key or the hparams" in refused(estimate, jax.random.key(5), hparams)
    problem = tiny()[0]
    other = problem._replace(loss=lambda *args: 1.01 * problem.loss(*args))
    with run_folder.one_writer(folder):
        assert "another run uses" in refused(estimate, KEY, hparams)
    longer = reverse_on_disk(problem, STEPS, folder, segment=3, checkpoint=())
    assert "differs in segment" in refused(longer, KEY, hparams)
    changed = reverse_on_disk(other, STEPS, folder, segment=2, checkpoint=())
    assert "gave other numbers" in refused(changed, KEY, hparams)
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    assert "'notes.txt'" in refused(estimate, KEY, hparams)
    (folder / "notes.txt").unlink()


def test_the_host_drives_it(long):
    estimate, hparams, *_ = long
    for call in (
        jax.jit(estimate),
        jax.vmap(estimate, (None, 0)),
        lambda key, h: jax.jit(lambda: estimate(KEY, hparams))(),
    ):
        stacked = jax.tree.map(lambda x: x[None], hparams)
        assert "is traced, expected numbers" in refused(call, KEY, stacked)


def test_a_disk_without_room_is_refused_in_one_line(long, monkeypatch):
    estimate, hparams, folder, found, *_ = long
    usage = shutil.disk_usage(folder)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=4000))
        assert "expected 0.0 MB for 3 states" in refused(estimate, KEY, hparams)

    def full(file, **arrays):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(stored.np, "savez", full)
        message = refused(estimate, KEY, hparams)
    assert "make room, then call it again" in message
    same(estimate(KEY, hparams), found)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"horizon": 0}, "horizon is 0"),
        ({"folder": 3}, "folder is 3"),
        ({"segment": 0}, "segment is 0"),
        ({"checkpoint": 3}, "checkpoint is 3"),
        ({"report": 3}, "report is 3"),
    ],
)
def test_arguments_are_checked_at_the_door(arguments, named):
    given = {"problem": tiny()[0], "horizon": 4, "folder": "x"} | arguments
    assert named in refused(lambda: reverse_on_disk(**given))


@pytest.mark.slow
@pytest.mark.parametrize("when", [("forward", 2), ("backward", 1)])
def test_a_process_that_is_killed(tmp_path, when):
    script = """
import os, sys
from tests.disk import KEY
from tests.problems import tiny
from hypergrad.estimators import reverse_on_disk
import numpy as np, jax
def report(p):
    if str((p.phase, p.done)) == sys.argv[2]:
        os.kill(os.getpid(), 9)
problem, hparams = tiny()
found = reverse_on_disk(problem, 7, sys.argv[1], segment=3, report=report)(KEY, hparams)
print(b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(found)).hex())
"""

    def run(place, end):
        words = [sys.executable, "-c", script, str(tmp_path / place), str(end)]
        here = Path(__file__).parent.parent
        env = os.environ | {"PYTHONPATH": str(here)}
        return subprocess.run(words, capture_output=True, text=True, cwd=here, env=env, check=False)

    assert run("a", when).returncode == -signal.SIGKILL
    again, never = run("a", None), run("b", None)
    assert again.returncode == 0 and again.stdout == never.stdout
