"""The readers of the user's files: what they accept, and what they refuse in one line."""

import gzip
import io
import re
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st

from tasks import arrays, csv_file, data, images, tabular

SHARED = Path(__file__).parents[2] / "shared" / "data"


def write(path, content):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(tmp_path, content, label=None):
    return data.read_csv(write(tmp_path / "t.csv", content), label)


def idx(shape, code=0x08, body=None):
    size = int(np.prod(shape)) if body is None else 0
    return (
        bytes([0, 0, code, len(shape)])
        + struct.pack(f">{len(shape)}I", *shape)
        + (bytes(i % 251 for i in range(size)) if body is None else body)
    )


def npy(shape, descr="<f4", body=b""):
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body


def npz(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def saved(**values):
    file = io.BytesIO()
    np.savez(file, **values)
    return file.getvalue()


# what is accepted


def test_read_csv_types_and_missing(tmp_path):
    rows = ['\ufeffsize,"colour, outside", y', "1.5,red,a", "", '?,"dark ""red""",b', " NA ,Null,a"]
    text = "\r\n".join([*rows, "-2e3,none,b"])
    table = read(tmp_path, text, "y")
    assert table.names == ["size", "colour, outside"]
    np.testing.assert_array_equal(table.columns[0], [1.5, np.nan, np.nan, -2000])
    assert list(table.columns[1]) == ["red", 'dark "red"', "Null", "none"]
    assert list(table.labels) == ["a", "b", "a", "b"]


def test_read_csv_takes_the_last_column_as_label(tmp_path):
    table = read(tmp_path, "a,b,c\n1,2,3\n4,5,6\n")
    assert (table.names, table.label_name, list(table.labels)) == (["a", "b"], "c", ["3", "6"])


def test_python_spelling_of_numbers_is_text(tmp_path):
    assert read(tmp_path, "a,y\n1_0,0\n2_0,1\n").columns[0].dtype == object


def test_encode_uses_training_statistics_only():
    column = np.array([1.0, 3.0, np.nan, 1000.0])
    colours = np.array(["r", "g", "", "unseen"], dtype=object)
    table = data.Table(["n", "c"], [column, colours], "y", np.array(["0", "1", "0", "1"]))
    inputs = data.encode(table, np.array([0, 1, 2]))
    expected = [[-1, 0, 0, 1], [1, 0, 1, 0], [0, 1, 0, 0], [998, 0, 0, 0]]  # n, n missing, g, r
    np.testing.assert_allclose(inputs, expected)
    assert inputs.dtype == np.float32


@pytest.mark.parametrize(
    "column", [[5.0, 5.0, 5.0, 5.0], [0.1, 0.1, 0.1, 0.2], [np.nan] * 4, [1e-30, 0, 0, 3e38]]
)
def test_encode_is_finite(column):
    table = data.Table(["n"], [np.array(column)], "y", np.array(["0", "1", "0", "1"]))
    inputs = data.encode(table, np.array([0, 1, 2]))
    assert np.isfinite(inputs).all()
    assert np.abs(inputs).max() <= data.MAX_SCALED


@pytest.mark.parametrize(
    ("labels", "kind", "expected"),
    [
        (["b", "a", "b"], None, [1, 0, 1]),
        (["10", "2", "2.0"], None, [1, 0, 0]),
        (["0.5", "1.5", "0.5"], None, [0.5, 1.5, 0.5]),
        (["0.5", "1.5", "0.5"], "classification", [0, 1, 0]),
        (["0", "1", "1"], "regression", [0.0, 1.0, 1.0]),
        ([str(i) for i in range(30)], None, [float(i) for i in range(30)]),
    ],
)
def test_encode_labels(labels, kind, expected):
    values, names = data.encode_labels(data.Table([], [], "y", np.array(labels)), kind)
    np.testing.assert_array_equal(values, expected)
    classes = isinstance(expected[0], int)
    assert values.dtype == (np.int32 if classes else np.float32)
    assert (names is None) != classes


@given(
    num=st.integers(1, 200),
    fractions=st.tuples(st.floats(0.01, 0.6), st.floats(0.01, 0.6)).filter(lambda f: sum(f) < 1),
    seed=st.integers(0, 5),
    num_classes=st.integers(0, 6),
)
@settings(max_examples=200, deadline=None)
@example(num=9, fractions=(0.45, 0.5), seed=0, num_classes=3)
def test_split_is_a_partition(num, fractions, seed, num_classes):
    labels = np.arange(num) % num_classes if num_classes else None
    try:
        parts = data.split(num, fractions, seed, labels)
    except ValueError as error:
        if "expected enough for a" not in str(error):
            raise
        return
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(num))


def test_split_is_stratified_and_follows_its_seed():
    labels = np.repeat([0, 1], [900, 100])
    parts = data.split(1000, (0.2, 0.3), 0, labels)
    assert [len(p) for p in parts] == [500, 200, 300]
    assert [int(labels[p].sum()) for p in parts] == [50, 20, 30]
    again, other = data.split(1000, (0.2, 0.3), 0, labels), data.split(1000, (0.2, 0.3), 1, labels)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    assert not np.array_equal(parts[0], other[0])


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_read_idx(tmp_path, suffix):
    content = idx((2, 3, 4))
    path = write(tmp_path / f"i{suffix}", gzip.compress(content) if suffix else content)
    np.testing.assert_array_equal(arrays.read_idx(path), np.arange(24).reshape(2, 3, 4))


def test_read_idx_of_other_types(tmp_path):
    values = np.array([[-1.5, 2.0]])
    path = write(tmp_path / "i", idx((1, 2), 0x0E, values.astype(">f8").tobytes()))
    np.testing.assert_array_equal(arrays.read_idx(path), values)


def test_read_npz_equals_numpy(tmp_path):
    values = {"x": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "y": np.array([1, 2])}
    np.savez_compressed(tmp_path / "a.npz", **values)
    for name, value in zip("xy", arrays.read_npz(tmp_path / "a.npz", ("x", "y")), strict=True):
        np.testing.assert_array_equal(value, values[name])
        assert value.dtype == values[name].dtype


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the OpenML files in ../shared/data")
def test_openml_files():
    found = sorted((SHARED / "openml").glob("*.csv"))
    assert len(found) == 8
    for path in found:
        table = data.read_csv(path, "class")
        labels, names = data.encode_labels(table, None)
        parts = data.split(len(labels), (0.2, 0.2), 0, labels)
        inputs = data.encode(table, parts[0])
        assert names is not None and 2 <= len(names) <= 7
        assert np.isfinite(inputs).all()
        texts = [n for n, c in zip(table.names, table.columns, strict=True) if c.dtype == object]
        assert bool(texts) == (path.stem in ("car", "credit-g")), path.stem


# what is refused: content of the file, label, part of the message

CSV = {
    "empty": ("", None, "has 0 rows, expected a header and at least one example"),
    "header only": ("a,y\n", None, "has 1 rows, expected a header"),
    "ragged": ("a,y\n1,0\n\n1,2,3\n", None, "has 3 fields in row 4, expected 2"),
    "short row": ("a,b,y\n1,2,3\n1,2\n", None, "has 2 fields in row 3, expected 3"),
    "ragged behind a quoted newline": ('a,y\n"x\nz",0\n1\n', None, "has 1 fields in row 4"),
    "open quote": ('a,y\n"1,0\n', None, "is broken in line 2 (unexpected end of data)"),
    "text behind a quote": ('a,y\n"1"x,0\n', None, "is broken in line 2"),
    "huge field": (
        f"a,y\n{'x' * 200_000},0\n",
        None,
        "is broken in line 2 (field larger than field limit",
    ),
    "Latin-1": (b"a,y\n\xe9,0\n", None, "is not UTF-8 at byte 4"),
    "Latin-1, far behind": (b"a,y\n" + b"1,0\n" * 9000 + b"\xff,0\n", None, "at byte 36004"),
    "Latin-1 behind a mark": (b"\xef\xbb\xbfa,y\n\xe9,0\n", None, "is not UTF-8 at byte 7"),
    "UTF-16": ("a,y\n1,0\n".encode("utf-16-le"), None, "it has a zero byte in line 1"),
    "empty name": ("a,,y\n1,2,0\n", None, "has a column without a name"),
    "equal names": ("a,a,y\n1,2,0\n", None, "has two columns 'a', expected different names"),
    "label not there": ("size,age,y\n1,2,0\n", "siez", "label is 'siez'", "the nearest are 'size'"),
    "label missing in a row": ("a,y\n1,0\n\n2,?\n", None, "label 'y' is missing in row 4"),
    "label only": ("y\n1\n0\n", None, "has the label only"),
    "spaces": (
        "a b y\n1 2 0\n",
        None,
        "is cut at spaces, into 3 cells a row",
        "pass delimiter=' '",
    ),
    "infinity": ("a,y\n1,0\n\n-inf,1\n", None, "an infinity in column 'a', row 4: '-inf'"),
    "beyond float32": ("a,y\n1,0\n1e39,1\n", None, "an infinity in column 'a', row 3: '1e39'"),
}


def refusal(function, *args, **kwargs):
    with pytest.raises(ValueError) as caught:
        function(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    assert "expected" in message or "cannot be read" in message
    return message


@pytest.mark.parametrize("name", CSV)
def test_read_csv_refuses(tmp_path, name):
    content, label, *fragments = CSV[name]
    message = refusal(read, tmp_path, content, label)
    assert all(fragment in message for fragment in fragments), message
    assert "t.csv" in message


IDX = {
    "empty": (b"", "starts with nothing, expected the magic number"),
    "text": (b"hello", "starts with 68656c6c"),
    "unknown type": (b"\0\0\x0a\x01\0\0\0\x01x", "starts with 00000a01"),
    "no sizes": (b"\0\0\x08\0", "starts with 00000800"),
    "cut header": (b"\0\0\x08\x03\0\0\0\x01", "ends in its header, expected 3 sizes"),
    "truncated": (idx((10, 28, 28))[:-1], "holds 7839 bytes, expected 7840 bytes"),
    "longer": (idx((3,)) + b"x", "holds more, expected 3 bytes for shape (3,)"),
    "no examples": (idx((0, 28, 28)), "declares the shape (0, 28, 28)"),
    "255 axes": (idx((1,) * 255), "expected at most 8 sizes"),
    "too big": (idx((2**31, 8), body=b""), "declares 17179869184 bytes, expected at most"),
}
GZIP = {
    "not gzip": (idx((3,)), "cannot be read (Not a gzipped file"),
    "cut": (gzip.compress(idx((100, 28)))[:-20], "cannot be read"),
    "bad checksum": (gzip.compress(idx((3,)))[:-8] + bytes(8), "cannot be read (CRC check failed"),
}


@pytest.mark.parametrize("name", IDX)
def test_read_idx_refuses(tmp_path, name):
    content, fragment = IDX[name]
    for path in (write(tmp_path / "i", content), write(tmp_path / "i.gz", gzip.compress(content))):
        assert fragment in refusal(arrays.read_idx, path)


@pytest.mark.parametrize("name", GZIP)
def test_read_gzip_refuses(tmp_path, name):
    content, fragment = GZIP[name]
    assert fragment in refusal(arrays.read_idx, write(tmp_path / "i.gz", content))


NPZ = {
    "text": (b"hello", "is no npz file"),
    "npy": (npy((1,), body=bytes(4)), "is no npz file"),
    "no such array": (saved(a=np.zeros(2)), "has no array 'x', expected x, y; it has 'a'"),
    "objects": (saved(x=np.array([{}], dtype=object), y=np.zeros(1)), "holds Python objects"),
    "texts": (saved(x=np.array(["a"]), y=np.zeros(1)), "array 'x', holds <U1, expected numbers"),
    "declares too much": (npz(x=npy((10**13,)), y=b""), "declares the shape (10000000000000,)"),
    "declares 100 GB": (npz(x=npy((25, 10**9)), y=b""), "at most 1073741824 bytes"),
    "negative": (npz(x=npy((-3,)), y=b""), "declares the shape (-3,)"),
    "empty": (saved(x=np.zeros((0, 4)), y=np.zeros(0)), "declares the shape (0, 4)"),
    "truncated": (npz(x=npy((10,), body=bytes(39)), y=b""), "holds 39 bytes, expected 40 bytes"),
    "longer": (npz(x=npy((10,), body=bytes(41)), y=b""), "holds more, expected 40 bytes"),
    "no header": (npz(x=b"hello", y=b""), "array 'x', cannot be read"),
    "long header": (npz(x=npy((1,) * 9000), y=b""), "cannot be read (Header info length"),
}


@pytest.mark.parametrize("name", NPZ)
def test_read_npz_refuses(tmp_path, name):
    content, fragment = NPZ[name]
    path = write(tmp_path / "a.npz", content)
    assert fragment in refusal(arrays.read_npz, path, ("x", "y"))


@pytest.mark.parametrize(
    "reader", [lambda p: data.read_csv(p, None), arrays.read_idx, arrays.npz_names]
)
def test_missing_file_and_folder(tmp_path, reader):
    said = {tmp_path / "nowhere": "a file that is not there", tmp_path: "a folder, expected a file"}
    for path, what in said.items():
        with pytest.raises(ValueError, match=f"data is '{re.escape(str(path))}', {what}"):
            reader(path)


def test_size_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_file, "MAX_BYTES", 10)
    assert "has over 10 bytes" in refusal(read, tmp_path, "a,y\n1,0\n2,1\n")


def test_bombs_are_not_unpacked(tmp_path):
    zeros = bytes(2**27)
    bombs = [
        (arrays.read_idx, write(tmp_path / "i.gz", gzip.compress(idx((3,)) + zeros, 1))),
        (
            lambda p: arrays.read_npz(p, ("x",)),
            write(tmp_path / "a.npz", npz(x=npy((3,), body=zeros))),
        ),
    ]
    del zeros
    for reader, path in bombs:
        assert path.stat().st_size < 2**20
        tracemalloc.start()
        assert "holds more" in refusal(reader, path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**22


@pytest.mark.parametrize(
    ("labels", "kind", "fragment"),
    [
        (["1", "1"], None, "has one class, '1', expected at least two"),
        (["1", "1.0"], None, "has one class"),
        (["a", "a"], "classification", "has one class, 'a'"),
        (["2.5", "2.5"], "regression", "has one class"),
        (["a", "b"], "regression", "is not numeric"),
        (["1", "1e400"], None, "holds NaN or infinity"),
        (["1", "-nan"], "regression", "holds NaN or infinity"),
        (["1", "2"], "ranking", "kind is 'ranking'"),
    ],
)
def test_encode_labels_refuses(labels, kind, fragment):
    table = data.Table([], [], "y", np.array(labels))
    assert fragment in refusal(data.encode_labels, table, kind)


def test_encode_refuses():
    labels = np.repeat("0", 2000)
    names = np.array([f"id{i}" for i in range(2000)], dtype=object)
    table = data.Table(["who"], [names], "y", labels)
    assert "2000 different texts in column 'who'" in refusal(data.encode, table, np.arange(2000))
    late = np.array(["", "", "late"], dtype=object)
    table = data.Table(["c"], [late], "y", labels[:3])
    assert "has no feature with a known value" in refusal(data.encode, table, np.arange(2))


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.0, 0.2), (0.7, 0.7), (-0.1, 0.2)])
def test_split_refuses_fractions(fractions):
    assert "fractions is" in refusal(data.split, 30, fractions, 0)


def test_split_refuses_too_few():
    message = refusal(data.split, 6, (0.2, 0.2), 0, np.arange(6))
    assert "6 examples of 6 classes, expected enough for a validation set" in message


@pytest.mark.parametrize("batch_size", [0, -1, 11, 2.0, True, "8"])
def test_check_batch_refuses(batch_size):
    assert f"batch_size is {batch_size!r}, expected 1 to 10" in refusal(
        data.check_batch, batch_size, 10
    )


def test_tabular_refuses(tmp_path):
    rows = "".join(f"{i},{i % 2}\n" for i in range(30))
    path = str(write(tmp_path / "t.csv", "a,y\n" + rows))
    assert "batch_size is 64, expected 1 to 18" in refusal(tabular.task, data=path, batch_size=64)
    assert "width is 0" in refusal(tabular.task, data=path, batch_size=4, width=0)
    assert "label is 'y', expected none" in refusal(tabular.task, data="iris", label="y")
    assert "horizon is 0" in refusal(tabular.task, data=path, horizon=0)
    assert "decimal is given with the bundled 'iris'" in refusal(
        tabular.task, data="iris", decimal=","
    )


IMAGES = {
    "flat labels": (
        {"x": np.zeros((4, 2, 2)), "y": np.zeros((4, 1), int)},
        "labels of shape (4, 1)",
    ),
    "lengths": ({"x": np.zeros((4, 2, 2)), "y": np.zeros(3, int)}, "expected one label for each"),
    "float labels": ({"x": np.zeros((4, 2, 2)), "y": np.zeros(4)}, "labels of float64"),
    "negative": ({"x": np.zeros((4, 2)), "y": np.array([0, 1, -1, 0])}, "labels from -1 to 1"),
    "huge label": ({"x": np.zeros((4, 2)), "y": np.array([0, 1, 10**9, 0])}, "expected 0 to 999"),
    "NaN": ({"x": np.full((4, 2), np.nan), "y": np.array([0, 1, 0, 1])}, "holds NaN or infinity"),
    "one class": ({"x": np.zeros((4, 2)), "y": np.zeros(4, int)}, "one class among the training"),
    "flat images for a cnn": (
        {"x": np.zeros((4, 2)), "y": np.array([0, 1] * 2)},
        "pass model='mlp'",
    ),
    "test of another shape": (
        {
            "x_train": np.zeros((4, 2, 2)),
            "y_train": np.array([0, 1] * 2),
            "x_test": np.zeros((4, 3, 3)),
            "y_test": np.array([0, 1] * 2),
        },
        "test images of shape (3, 3), expected the same",
    ),
    "test labels left out": (
        {"x_train": np.zeros((4, 2)), "y_train": np.zeros(4, int), "x_test": np.zeros((4, 2))},
        "has no array 'y_test'",
    ),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images_refuses(tmp_path, name):
    values, fragment = IMAGES[name]
    np.savez(tmp_path / "a.npz", **values)
    sizes = {"num_train": 2, "num_valid": 1, "num_test": 1, "batch_size": 2}
    # one seed of this split has both classes in training
    model_and_seed = {"model": "cnn" if "cnn" in name else "mlp", "seed": 2}
    message = refusal(images.task, data=str(tmp_path / "a.npz"), **sizes, **model_and_seed)
    assert fragment in message, message


def test_images_refuses_arguments(tmp_path):
    path = str(tmp_path)
    assert "expected train-images-idx3-ubyte or t10k" in refusal(images.task, data=path)
    assert "expected a folder or an npz file" in refusal(images.task, data=str(tmp_path / "no"))
    assert "model is 'vit', expected one of cnn, resnet, mlp" in refusal(
        images.task, data=path, model="vit"
    )
    assert "num_test is 0" in refusal(images.task, data=path, num_test=0)
    np.savez(tmp_path / "a.npz", x=np.zeros((9, 4)), y=np.arange(9))
    message = refusal(images.task, data=str(tmp_path / "a.npz"))
    assert "num_train + num_valid + num_test is 10000, expected at most the 9 images" in message


# anything else: no exception but ours


def only_value_errors(reader, path):
    try:
        reader(path)
    except ValueError as error:
        if str(path) not in str(error) or "\n" in str(error):
            raise


fields = st.text(st.characters(codec="utf-8"), max_size=6) | st.sampled_from(
    ["", "?", "nan", "1", "2.5", "-inf", '"', '"a\n"', "1e999", "é", "\0", "\r"]
)
tables = st.lists(st.lists(fields, max_size=4).map(",".join), max_size=6).map("\n".join)


@pytest.mark.parametrize(
    ("reader", "name", "content"),
    [
        (lambda path: data.read_csv(path, "z"), "a.csv", '"a\nb",y\n1,2\n'),
        (lambda path: arrays.read_npz(path, ("x",)), "a.npz", npz(**{"a\nb": b""})),
    ],
)
def test_names_with_line_breaks_stay_in_one_line(tmp_path, reader, name, content):
    assert r"'a\nb'" in refusal(reader, write(tmp_path / name, content))


@given(content=tables.map(str.encode) | st.binary(max_size=60))
@example(content=b"a,y\n1,0\r2,1\n")
@example(content=b"a\0,y\n\0,1\n")
def test_read_csv_fuzz(tmp_path, content):
    only_value_errors(lambda path: data.read_csv(path, None), write(tmp_path / "f.csv", content))


mutations = st.lists(st.tuples(st.integers(0, 10**4), st.integers(0, 255)), max_size=4)


def mutate(content, changes, cut):
    changed = bytearray(content)
    for position, byte in changes:
        changed[position % len(changed)] = byte
    return bytes(changed[: len(changed) - cut])


@given(
    content=st.binary(max_size=30)
    | st.builds(mutate, st.just(idx((3, 4))), mutations, st.integers(0, 14)),
    zipped=st.booleans(),
    changes=mutations,
)
def test_read_idx_fuzz(tmp_path, content, zipped, changes):
    if zipped:
        content = mutate(gzip.compress(content, mtime=0), changes, 0)
    path = write(tmp_path / ("f.gz" if zipped else "f"), content)
    only_value_errors(arrays.read_idx, path)


@given(
    content=st.binary(max_size=40)
    | st.builds(
        mutate,
        st.sampled_from(
            [npz(x=npy((2, 2), body=bytes(range(16)))), saved(x=np.arange(4), y=np.ones(2))]
        ),
        mutations,
        st.integers(0, 40),
    )
)
def test_read_npz_fuzz(tmp_path, content):
    path = write(tmp_path / "f.npz", content)
    only_value_errors(lambda p: arrays.read_npz(p, ("x",)), path)
