"""JSON files of a study: whole or refused, of bounded size and depth."""

import json
import tracemalloc

import pytest

from hypergrad.core.files import parse_json, read_json, to_plain, write_json
from tests.disk import refused

pytestmark = pytest.mark.usefixtures("no_waiting")


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


def test_a_date_is_no_number(tmp_path):
    import datetime

    with pytest.raises(ValueError, match="of type date, expected numbers, text"):
        to_plain({"when": datetime.date(1979, 5, 27)})


def test_brackets_take_no_more_room_than_their_file():
    data = b"[" * 2**24
    tracemalloc.start()
    with pytest.raises(ValueError, match="nested too deep"):
        parse_json(data, "it")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * len(data)
