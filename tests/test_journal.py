"""The journal of a study: whole records are kept, torn ones cut off, damage is named and kept aside."""

import threading
import zlib

import pytest
from hypothesis import given, settings as fuzz, strategies as st

from hypergrad.study.disk.journal import Journal, encode_line, read_records, scan
from tests.disk import damage, one_line, refused, write_records

pytestmark = pytest.mark.usefixtures("no_waiting")


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


def test_scan_ends_with_the_file(tmp_path):
    path = tmp_path / "j"
    write_records(path, 3)
    with path.open("rb") as file:
        found = scan(file, "j")
    assert (len(found.whole), found.end, found.damage) == (3, path.stat().st_size, None)


def test_a_record_that_is_being_written_is_no_damage(tmp_path):
    """A reader looks at the file's size once, so that the rest of a line is not taken for a line."""
    path = tmp_path / "journal.jsonl"
    lines = [encode_line({"step": i, "values": [1.0] * 50}) for i in range(3)]
    path.write_bytes(b"".join(lines[:2]) + lines[2][:40])

    class Growing:
        def __init__(self, file):
            self.file, self.fileno = file, file.fileno

        def readline(self, size):
            line = self.file.readline(size)
            if line and not line.endswith(b"\n"):  # the writer goes on between two reads
                with open(path, "ab") as more:
                    more.write(lines[2][40:])
            return line

    with open(path, "rb") as file:
        found = scan(Growing(file), str(path))
    assert len(found.whole) == 2 and found.damage is None
    assert len(list(read_records(path))) == 3


def test_no_record_is_acknowledged_that_no_reader_takes():
    with pytest.raises(ValueError, match="expected at most 64 MB; take fewer trials"):
        encode_line({"step": 0, "values": [[1]] * 10**6})
