"""The folder of a study: one writer at a time, and nothing counts before the disk has it."""

import contextlib
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from hypergrad import study
from hypergrad.core.files import open_file, write_json
from hypergrad.study.disk import checkpoint
from hypergrad.study.disk.folder import create, lock
from hypergrad.study.disk.journal import Journal, read_records
from tests.disk import ROOT, refused, toy

pytestmark = pytest.mark.usefixtures("no_waiting")


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


@pytest.mark.parametrize("name", [".hidden", "a/../..", "x" * 201, "a\nb"])
def test_odd_names_are_refused(tmp_path, name):
    assert "expected" in refused(create(tmp_path / name).__enter__)
    assert not list(tmp_path.iterdir())


def test_a_link_that_appears_late_is_not_followed(tmp_path):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to("file")
    for flags in (os.O_RDONLY, os.O_RDWR | os.O_CREAT):
        assert "symbolic link" in refused(open_file, tmp_path / "link", flags)
    write_json(tmp_path / "link", {"a": 1})  # takes the link's place
    assert (tmp_path / "file").read_text() == "precious"


def test_a_lock_that_a_user_removed_still_holds(tmp_path):
    with lock(tmp_path):
        (tmp_path / "lock").unlink()
        with pytest.raises(ValueError, match="in use by another process"):
            lock(tmp_path).__enter__()
    with lock(tmp_path):
        pass


def test_a_folder_with_nothing_but_leftovers_may_be_overwritten(tmp_path):
    names = ("log.jsonl", "lock", "study-copy.json", ".report.html.0123456789ab")
    for name in names:
        (tmp_path / name).write_text("")
    with create(tmp_path, overwrite=True):
        assert sorted(os.listdir(tmp_path)) == ["lock"]
    (tmp_path / "thesis.tex").write_text("years")
    with (
        pytest.raises(ValueError, match="holds something other"),
        create(tmp_path, overwrite=True),
    ):
        pass


CHILD = """
import os, sys, time
from hypergrad.study.disk.folder import lock
with lock(sys.argv[1]):
    child = os.fork()
    if child == 0 and sys.argv[2] == "leaves":
        sys.exit()  # the block too
    if child == 0:
        time.sleep(60)
        os._exit(0)
    if sys.argv[2] == "leaves":
        os.waitpid(child, 0)
    print(os.getpid(), child, flush=True)
    sys.stdin.readline()
print("left", flush=True)
sys.stdin.readline()
os._exit(0)
"""


def wait_for_lock(folder):
    """Wait until a process that was just killed is gone; a lock that stays fails the test later."""
    for _ in range(20):  # each waits half a second to be told the process
        with contextlib.suppress(ValueError), lock(folder):
            return


@pytest.mark.parametrize(
    "way",
    [
        pytest.param("leaves", marks=pytest.mark.slow),
        pytest.param("stays", marks=pytest.mark.slow),
        "is left behind",
    ],
)
def test_what_a_lock_is_to_a_forked_child(tmp_path, way):
    words = [sys.executable, "-c", CHILD, str(tmp_path), way]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    child = None
    with subprocess.Popen(words, cwd=ROOT, **pipes) as process:
        try:
            parent, child = map(int, process.stdout.readline().split())
            with pytest.raises(ValueError, match=f"in use by process {parent},"):
                lock(tmp_path).__enter__()
            if way == "is left behind":
                process.kill()
                process.wait()
                with pytest.raises(ValueError, match=f"that process {parent} started before"):
                    lock(tmp_path).__enter__()
                os.kill(child, signal.SIGKILL)
                wait_for_lock(tmp_path)
            else:
                print(file=process.stdin, flush=True)
                assert process.stdout.readline() == "left\n"
            with lock(tmp_path):
                pass
        finally:
            process.kill()
            if child:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
