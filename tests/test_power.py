"""A study whose disk loses its power: the model of the disk, and that it finds a wait that is left out."""

import os
import random

import pytest

from benchmarks import faults, power
from hypergrad import study
from hypergrad.core import files
from hypergrad.study.disk import journal
from tests.disk import KEY, toy

NUM = 25


def drawn(tmp_path, act, num=40):
    """What a disk may hold after `act` and a loss of power: {file: bytes} for several draws."""
    root = tmp_path / "disk"
    root.mkdir()
    disk, found = power.Disk(root, random.Random(0)), []
    with power.watched(disk, lambda: None):
        act(root)
    disk.look()
    for index in range(num):
        disk.after_power_loss(tmp_path / str(index))
        kept = (tmp_path / str(index)).rglob("*")
        found.append({path.name: path.read_bytes() for path in kept if path.is_file()})
    return found


def put(path, data, wait=True):
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.write(fd, data)
    if wait:
        os.fsync(fd)
    os.close(fd)


def test_what_was_not_waited_for_may_be_lost(tmp_path):
    found = drawn(tmp_path, lambda root: put(root / "a", b"x" * 1500, wait=False), 200)
    assert {} in found, "its name"
    kept = [one["a"] for one in found if one]
    assert b"" in kept and b"x" * 1500 in kept, "its bytes"
    assert any(set(data) == {0, ord("x")} for data in kept), "page by page"


def test_a_wait_for_the_file_keeps_its_bytes_and_one_for_the_folder_its_name(tmp_path):
    def act(root):
        put(root / "a", b"x" * 1500)
        files.sync_folder(root)

    assert drawn(tmp_path, act) == [{"a": b"x" * 1500}] * 40


def test_a_rename_that_was_not_waited_for_leaves_the_old_file_or_the_new(tmp_path):
    def act(root):
        put(root / "a", b"old")
        files.sync_folder(root)
        put(root / "b", b"new")
        os.replace(root / "b", root / "a")

    found = {one["a"] for one in drawn(tmp_path, act)}
    assert found == {b"old", b"new"}


def test_a_folder_that_its_parent_does_not_know_is_gone(tmp_path):
    def act(root):
        (root / "s").mkdir()
        put(root / "s" / "a", b"x")
        files.sync_folder(root / "s")

    found = drawn(tmp_path, act)
    assert {} in found and {"a": b"x"} in found


@pytest.fixture
def of_toy(monkeypatch, whole):
    """The benchmark with a study that costs nothing."""

    def go_on(method, folder, num_steps=6, on_step=None):
        if study.has_begun(folder):
            return study.resume_run(toy(), folder, on_step)
        return study.run(toy(), KEY, 6, on_step, storage=folder, checkpoint_seconds=0.0)

    monkeypatch.setattr(faults, "go_on", go_on)
    monkeypatch.setattr(faults, "undisturbed", lambda method: whole.digest)


def losses(tmp_path):
    count = faults.power_losses(tmp_path, "toy", NUM)
    assert count["losses"] == NUM and count["instants"] >= 40
    return count["records lost"], count["failed resumes"], count["other digests"]


def test_no_acknowledged_step_is_lost(tmp_path, of_toy):
    assert losses(tmp_path) == (0, 0, 0)


LEFT_OUT = {
    "the wait for a record": [(journal, "sync")],
    "the wait for a folder": [(files, "sync_folder"), (journal, "sync_folder")],
    "every wait": [(m, name) for m in (files, journal) for name in ("sync", "sync_folder")],
}


@pytest.mark.parametrize("case", LEFT_OUT)
def test_a_wait_that_is_left_out_is_found(tmp_path, of_toy, monkeypatch, case):
    """Else the test above could not fail."""
    for module, name in LEFT_OUT[case]:
        monkeypatch.setattr(module, name, lambda *_: None)
    assert any(losses(tmp_path))
