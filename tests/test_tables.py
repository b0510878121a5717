"""Tables as spreadsheets export them: every cell is read as a person would read it, or refused by its place."""

import csv
import io
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st

from tasks import csv_file, data
from tasks.cells import MISSING
from tasks.data import Dialect

SHARED = Path(__file__).parents[2] / "shared" / "cases" / "csv"
NUM = 40
LABELS = [("a", "b")[i % 2] for i in range(NUM)]
COUNT, HALVES = np.arange(NUM), np.arange(NUM) / 2


def lines(form, header="x,y,t"):
    return "\n".join([header, *(form.format(i=i, y=i / 2, t=LABELS[i]) for i in range(NUM))])


def day(i):
    return f"2024-01-{i % 28 + 1:02d}"


CASES = {
    "currency_pct": (lines("${i},{i}%,{t}"), COUNT, COUNT / 100),
    "dates": (
        "x,y,t\n" + "\n".join(f"{day(i)},{i},{LABELS[i]}" for i in range(NUM)),
        19723 + COUNT % 28,
        COUNT,
    ),
    "index_column": (lines("{i},{i},{y},{t}", ",x,y,t"), COUNT, HALVES),
    "quoted_decimal_comma": (lines('{i},"{i},5",{t}'), COUNT, COUNT + 0.5),
    "semicolon": (lines("{i};{y};{t}", "x;y;t"), COUNT, HALVES),
    "semicolon_decimal_comma": (lines("{i};{i},5;{t}", "x;y;t"), COUNT, COUNT + 0.5),
    "sep_line": ("sep=,\n" + lines("{i},{y},{t}"), COUNT, HALVES),
    "tab": (lines("{i}\t{y}\t{t}", "x\ty\tt"), COUNT, HALVES),
    "thousands": (lines('{i},"1,{i:03d}",{t}'), COUNT, 1000 + COUNT),
    "trailing_comma": (lines("{i},{y},{t},", "x,y,t,"), COUNT, HALVES),
    "unicode_minus": (
        lines("{i},{y},{t}") + "\n\u22125,1,a",
        np.append(COUNT, -5),
        np.append(HALVES, 1),
    ),
}


def read(tmp_path, content, label=None, **dialect):
    path = tmp_path / "t.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return data.read_csv(path, label, Dialect(**dialect))


def column(tmp_path, cells, *, header="x;t", **dialect):
    """Read a column of a file cut at semicolons, which says nothing of decimals, with what it was taken as."""
    rows = [f"{cell};{LABELS[i % NUM]}" for i, cell in enumerate(cells)]
    table = read(tmp_path, "\n".join([header, *rows]), "t", **dialect)
    return (table.columns[0] if table.columns else None), table.taken[0]


def refusal(tmp_path, cells, **dialect):
    with pytest.raises(ValueError) as caught:
        column(tmp_path, cells, **dialect)
    message = str(caught.value)
    assert "\n" not in message and "expected" in message and "t.csv" in message
    return message


@pytest.mark.parametrize("name", CASES)
def test_exports_are_read_as_a_person_would_read_them(tmp_path, name):
    content, *expected = CASES[name]
    contents = [content]
    if (SHARED / f"{name}.csv").is_file():
        contents.append((SHARED / f"{name}.csv").read_bytes())
    for one in contents:
        table = read(tmp_path, one, "t")
        assert table.names == ["x", "y"]
        assert list(table.labels) == [*LABELS, "a"][: len(expected[0])]
        for values, right in zip(table.columns, expected, strict=True):
            np.testing.assert_allclose(values, right[: len(values)], rtol=1e-15)


ODD = {
    "1,234": 1234,
    "\u22125": -5,
    "$5": 5,
    "(5)": -5,
    "1'234": 1234,
    "1e5": 1e5,
    "1\u00a0234": 1234,
}


@pytest.mark.parametrize("cell", [*ODD, "", "NA", "n/a", "#N/A", "<NA>", "-", ".", "?", "NULL"])
def test_one_odd_cell_leaves_a_column_of_numbers(tmp_path, cell):
    x = np.random.default_rng(0).normal(size=200)
    rows = "\n".join(f"{v:.6f},{'ab'[int(v > 0)]}" for v in x[:-1])
    table = read(tmp_path, f'x,t\n{rows}\n"{cell}",a\n', "t")
    np.testing.assert_allclose(table.columns[0][:-1], x[:-1], atol=1e-6)
    np.testing.assert_equal(table.columns[0][-1], ODD.get(cell, np.nan))
    assert table.taken[0]["missing"] == (cell not in ODD)
    assert cell in ODD or cell == "" or f"{cell!r} (1)" in table.taken[0]["note"]


NOT_NUMBERS = ["#DIV/0!", "#REF!", "#VALUE!", "TRUE", "1.2.3", "'5", "5 kg", "5-", "abc", "12:30"]
NOT_NUMBERS += ["1_0", "5%", "2024-01-01", "1,2345", "0x1F", "$5M", "\x1b[31m"]


@pytest.mark.parametrize("cell", NOT_NUMBERS)
def test_what_cannot_be_taken_names_row_column_and_text(tmp_path, cell):
    cells = [f"{v:.4f}" for v in np.random.default_rng(0).normal(size=99)]
    message = refusal(tmp_path, [*cells[:50], cell, *cells[50:]])
    assert (
        f"holds {cell!r} in column 'x', row 52, where 99 of 100 cells are plain numbers" in message
    )
    assert "pass kinds={'x': 'number'} to count it as missing" in message
    values, taken = column(tmp_path, [*cells, cell], kinds={"x": "number"})
    assert np.isnan(values[-1]) and np.isfinite(values[:-1]).all()
    assert taken["missing"] == 1 and repr(cell)[:8] in taken["note"]


# numbers


def test_a_column_of_thousands_or_decimals_is_refused(tmp_path):
    message = refusal(tmp_path, ["1,234", "2,345", "3,456"])
    assert "holds '1,234' in column 'x', row 2, which is 1234 or 1.234" in message
    assert message.endswith("pass decimal='.' or decimal=','")
    assert "which is 1.234 or 1234" in refusal(tmp_path, ["5", "1.234"])
    for decimal, right in ((".", 1234), (",", 1.234)):
        values, taken = column(tmp_path, ["1,234", "2,345"], decimal=decimal)
        assert values[0] == right and f"= {right}" in taken["example"]


def test_another_column_decides_between_thousands_and_decimals(tmp_path):
    for other, right in (("0,5", 1.234), ("0.5", 1234), ("1 000,25", 1.234)):
        rows = "\n".join(f"1,234;{other};{t}" for t in "ab")
        assert read(tmp_path, f"x;z;t\n{rows}").columns[0][0] == right
    rows = "1,234;0.5;0,5;a\n2,345;0.5;0,5;b"
    with pytest.raises(ValueError, match=r"which is 1234 or 1\.234"):
        read(tmp_path, f"x;z;w;t\n{rows}")


def test_points_stay_decimals_in_a_file_cut_at_commas(tmp_path):
    assert read(tmp_path, "x,t\n1.234,a\n2.345,b\n").columns[0][0] == 1.234


def test_percentages_and_currencies_are_not_mixed(tmp_path):
    assert "where 9 of 10 cells are percentages" in refusal(tmp_path, [*["5%"] * 9, "0.05"])
    assert "where 9 of 10 cells are numbers in $" in refusal(tmp_path, [*["$5"] * 9, "€5"])
    np.testing.assert_allclose(column(tmp_path, ["5%", "0", "7.5 %"])[0], [0.05, 0, 0.075])
    np.testing.assert_allclose(column(tmp_path, ["$5", "6", "-$7"])[0], [5, 6, -7])


def test_infinities_are_refused(tmp_path):
    assert "an infinity in column 'x', row 3: '-inf'" in refusal(tmp_path, ["1", "-inf"])


# times


def test_a_column_of_days_or_months_is_refused(tmp_path):
    message = refusal(tmp_path, ["05/05/2020", "03/04/2020"])
    assert "holds '03/04/2020' in column 'x', row 3, which is 2020-04-03 or 2020-03-04" in message
    assert message.endswith("pass dates='day' or dates='month'")
    values, taken = column(tmp_path, ["03/04/2020", "05/06/2020"], dates="month")
    assert values[0] == 18325 and taken["example"] == "03/04/2020 = 2020-03-04"
    assert column(tmp_path, ["03/04/2020", "31/06/2020", "31/05/2020"][::2])[0][0] == 18355
    assert column(tmp_path, ["05/05/2020", "06/06/2020"])[0][0] == 18387


def test_forms_of_times_are_not_mixed(tmp_path):
    assert "'1:02:03' in column 'x', row 11" in refusal(tmp_path, [*["59:30"] * 9, "1:02:03"])
    assert "'1:30' in column 'x'" in refusal(tmp_path, [*["1:30 PM"] * 9, "1:30"])
    assert "'2020' in column 'x'" in refusal(tmp_path, [*[day(i) for i in range(9)], "2020"])
    values, taken = column(tmp_path, [*[day(i) for i in range(9)], "n/a"])
    assert np.isnan(values[-1]) and (taken["kind"], taken["missing"]) == ("time", 1)


# other columns


def test_booleans(tmp_path):
    values, taken = column(tmp_path, ["TRUE", "False", "true", "NA"])
    np.testing.assert_array_equal(values, [1, 0, 1, np.nan])
    assert (taken["kind"], taken["missing"]) == ("boolean", 1)
    assert list(column(tmp_path, ["yes", "no", "yes"])[0]) == ["yes", "no", "yes"]


def test_words_are_missing_in_numbers_and_not_in_texts(tmp_path):
    texts, taken = column(tmp_path, ["red", "NA", "", "-"] * 3)
    assert list(texts[:4]) == ["red", "NA", "", "-"]
    assert taken["missing"] == 3 and taken["note"] == "3 different; not missing: '-' (3), 'NA' (3)"
    texts, taken = column(tmp_path, ["red", "NA", "", "-"], missing=["na"])
    assert list(texts) == ["red", "", "", "-"] and taken["missing"] == 2
    assert "holds 'NA'" in refusal(tmp_path, ["1", "2", "NA"], missing=[])
    for word in MISSING:
        assert np.isnan(column(tmp_path, ["1.5", "2", word.upper()])[0][-1])


def test_categories_of_numbers_and_texts_stay_categories(tmp_path):
    cells = ["2", "3", "4", "5more"] * 10
    assert list(column(tmp_path, cells)[0]) == cells
    assert "'more' in column 'x'" in refusal(tmp_path, [*["2", "4"] * 20, "more"])
    numbers = [f"{v:.3f}" for v in np.random.default_rng(0).normal(size=30)]
    assert "'unknown' in column 'x', row 2" in refusal(tmp_path, ["unknown"] * 60 + numbers)
    assert list(column(tmp_path, [*cells[:2], "x"], kinds={"x": "text"})[0]) == ["2", "3", "x"]


def test_a_column_of_several_kinds_is_never_categories(tmp_path):
    for cells in (["1.5", "1,5"], ["5%", "5"], ["2020", "2020-01-05"], ["1", "TRUE"], ["$5", "€5"]):
        assert f"holds {cells[1]!r} in column 'x'" in refusal(tmp_path, [cells[0], *cells * 20])


def test_failed_formulas_are_no_categories(tmp_path):
    assert "holds '#DIV/0!'" in refusal(tmp_path, ["1", "2", "#DIV/0!"] * 9)
    message = refusal(tmp_path, ["red", "blue", "#REF!"] * 9)
    assert "row 4, where a formula failed" in message and "missing=['#REF!']" in message
    assert list(column(tmp_path, ["red", "#REF!"], missing=["#REF!"])[0]) == ["red", ""]
    assert "holds 'free'" in refusal(tmp_path, ["$1.50", "$2", "free"] * 9)


def test_texts_that_hardly_repeat_are_refused(tmp_path):
    cells = [f"{i} kg" for i in range(NUM)]
    assert "holds '0 kg' in column 'x', row 2, where 40 of 40 texts occur once" in refusal(
        tmp_path, cells
    )
    assert list(column(tmp_path, cells, kinds={"x": "text"})[0]) == cells


def test_index_columns_are_left_out(tmp_path):
    for header, cells in {
        ";x;t": ["3", "1", "2"],
        "Unnamed: 0;x;t": ["0", "1", "2"],
        "id;x;t": ["1", "2", "3"],
        "x;t": ["Mazda RX4", "Datsun", "Fiat"],  # a table of R has no name for them
    }.items():
        rows = [f"{cell};{i}.5;{'ab'[i % 2]}" for i, cell in enumerate(cells)]
        table = read(tmp_path, "\n".join([header, *rows]), "t")
        assert table.names == ["x"] and list(table.columns[0]) == [0.5, 1.5, 2.5]
        assert (table.taken[0]["kind"], table.taken[0]["note"]) == ("index", "left out")
    assert column(tmp_path, ["0", "1", "2"])[1]["note"] == "counts the rows"
    assert column(tmp_path, ["017", "02", "5"])[1]["note"] == "leading zeros say nothing"
    assert read(tmp_path, "id,x,t\n7,1,a\n9,2,b\n").names == ["id", "x"]
    assert read(tmp_path, "id,x\n1,5\n2,6\n", "id").names == ["x"]
    table = read(tmp_path, "who,x,t\nann,1,a\nbob,2,b\n", kinds={"who": "skip"})
    assert table.names == ["x"] and table.taken[0]["kind"] == "skip"


def test_labels_are_read_by_the_same_rules(tmp_path):
    table = read(tmp_path, 'x,price\n1,"$1,250.50"\n2,$99\n3,-\n'[:-4])
    assert list(table.labels) == ["1250.5", "99.0"]
    assert list(read(tmp_path, "x,t\n1,TRUE\n2,FALSE\n").labels) == ["TRUE", "FALSE"]
    assert list(read(tmp_path, "x,t\n1,1.0\n2,2\n").labels) == ["1.0", "2"]
    for cells in ("a,b,None", "1,2,n/a", "1,2,"):
        rows = "".join(f"{i},{cell}\n" for i, cell in enumerate(cells.split(",")))
        with pytest.raises(ValueError, match="label 't' is missing in row 4"):
            read(tmp_path, "x,t\n" + rows)
    rows = "".join(f"{i},{cell}\n" for i, cell in enumerate(["a", "b", "None"]))
    assert list(read(tmp_path, "x,t\n" + rows, missing=[]).labels) == ["a", "b", "None"]


# files


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
def test_byte_order_marks(tmp_path, encoding):
    table = read(tmp_path, "größe;t\r\n1;a\r\n2;b\r\n".encode(encoding))
    assert table.names == ["größe"] and list(table.columns[0]) == [1, 2]


def test_other_encodings_are_named(tmp_path):
    content = "größe;t\n1;a\n2;b\n".encode("cp1252")
    with pytest.raises(ValueError, match=r"is not UTF-8 at byte 2.*encoding='cp1252'"):
        read(tmp_path, content)
    assert read(tmp_path, content, encoding="cp1252").names == ["größe"]
    with pytest.raises(ValueError, match="encoding is 'cp9', expected one that Python knows"):
        read(tmp_path, content, encoding="cp9")


def test_delimiters(tmp_path):
    for mark in (",", ";", "\t", "|"):
        assert read(tmp_path, f"a{mark}t\n1{mark}x\n2{mark}y\n").names == ["a"]
    assert read(tmp_path, '"sep=;"\na;t\n1;x\n2;y\n').names == ["a"]
    assert read(tmp_path, "a:t\n1:x\n2:y\n", delimiter=":").names == ["a"]
    assert read(tmp_path, "a, b;c\nx, 1;2\ny, 3;4\n".replace(", ", ","), delimiter=";").names == [
        "a,b"
    ]
    with pytest.raises(ValueError, match=r"can be cut at commas or semicolons.*delimiter=','"):
        read(tmp_path, "a,b;c\nx,1;2\ny,3;4\n")
    table = read(tmp_path, 'a, "b, c", t\n1, "u, v", x\n2, w, y\n')
    assert table.names == ["a", "b, c"] and list(table.columns[1]) == ["u, v", "w"]


def test_empty_cells_behind_the_rows_and_empty_rows_are_left_out(tmp_path):
    table = read(tmp_path, "a,t\n1,x,,\n,,,\n2,y\n,\n\n")
    assert list(table.columns[0]) == [1, 2]
    for content in ("a,t\n1,x,3\n2,y\n", "a,t,\n1,x\n", "a,b,t\n1,2\n"):
        if content.startswith("a,t,\n"):
            assert read(tmp_path, content).names == ["a"]
        else:
            with pytest.raises(ValueError, match="fields in row 2, expected"):
                read(tmp_path, content)


def test_decimal_commas_without_quotes_are_refused(tmp_path):
    for first in ("0", "ann"):
        with pytest.raises(
            ValueError, match=r"has 4 fields in row 2, expected 3.*hold a comma in quotes"
        ):
            read(tmp_path, f"x,y,t\n{first},0,5,a\n1,1,5,b\n")


def test_workbooks_and_archives_are_refused(tmp_path):
    for content in (b"PK\3\4" + bytes(30), b"\x1f\x8b\x08" + bytes(30)):
        with pytest.raises(ValueError, match="is an archive, as the workbooks of spreadsheets are"):
            read(tmp_path, content)


def test_a_file_without_a_header_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"has the number '5\.1' for a name, expected a header row"
    ):
        read(tmp_path, "5.1,3.5,setosa\n4.9,3.0,virginica\n")
    assert read(tmp_path, "2019,2020,t\n1,2,a\n3,4,b\n").names == ["2019", "2020"]
    for content in ("6,148,72,1\n1,85,66,0\n8,183,64,1\n", "5,0,0,1\n4,0,0,0\n3,0,0,1\n"):
        with pytest.raises(
            ValueError, match=r"whole numbers alone for names, .*expected a header row; put"
        ):
            read(tmp_path, content)
    for names in ("0,1,2", "2019,2020,2021"):  # as pandas writes them, and years
        assert len(read(tmp_path, f"{names}\n6,148,0\n8,85,1\n7,9,0\n").names) == 2


def test_spaces_between_cells_are_named(tmp_path):
    rows = [f"{i} {i / 2} {LABELS[i]}" for i in range(NUM)]
    with pytest.raises(
        ValueError, match=r"cut at spaces, into 3 cells a row, .*pass delimiter=' '"
    ):
        read(tmp_path, "\n".join(["x y t", *rows]))
    assert len(read(tmp_path, "\n".join(["x y t", *rows]), delimiter=" ").names) == 2
    wide = [f"{i:>6} {i / 2:>8} {LABELS[i]:>5}" for i in range(NUM)]
    with pytest.raises(ValueError, match=r"cut at spaces, into 3 cells a row, .*sep=r'.s.'"):
        read(tmp_path, "\n".join(["     x        y     t", *wide]))
    with pytest.raises(ValueError, match="has the label only"):  # one column of names with spaces
        read(tmp_path, "my label\na\nb c\na\nb c\n")


def test_a_comment_is_named(tmp_path):
    table = lines("{i},{y},{t}")
    with pytest.raises(
        ValueError, match="expected 1 as in the header; remove the comment in row 1"
    ):
        read(tmp_path, "# of 2024\n" + table)
    first, rest = table.split("\n", 1)
    with pytest.raises(ValueError, match=r"has 1 fields in row 2, .*remove the comment in row 2"):
        read(tmp_path, f"{first}\n# of 2024\n{rest}")
    assert read(tmp_path, "# " + table).names == ["# x", "y"]  # as numpy writes names


@pytest.mark.parametrize(
    ("dialect", "fragment"),
    [
        ({"delimiter": ";;"}, "delimiter is ';;', expected one character"),
        ({"decimal": ";"}, "decimal is ';', expected '.' or ','"),
        ({"dates": "year"}, "dates is 'year', expected 'day' or 'month'"),
        ({"encoding": 8}, "encoding is 8, expected a name"),
        ({"missing": "NA"}, "missing is 'NA', expected a list of words"),
        ({"kinds": {"x": "float"}}, "expected number, time, text or skip by column"),
        ({"kinds": {"y": "text"}}, "is 'y', expected one of x, t"),
        ({"kinds": {"t": "skip"}}, "kinds says 'skip' for the label 't'"),
    ],
)
def test_dialects_that_cannot_be(tmp_path, dialect, fragment):
    with pytest.raises(ValueError) as caught:
        read(tmp_path, "x,t\n1,a\n2,b\n", **dialect)
    assert fragment in str(caught.value)


def test_missing_pandas_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ValueError, match=r"needs pandas.*hypergrad-jax\[zoo\]"):
        read(tmp_path, "x,t\n1,a\n2,b\n")


pieces = st.sampled_from(["a", ' "b, c"', '"d""e"', '"x\r\ny"', "", " ", " f g", '"', "\t", "\r"])
rows = st.lists(pieces, min_size=2, max_size=3).map(",".join)
contents = st.lists(rows, max_size=5).flatmap(
    lambda rows: st.sampled_from(["\n", "\r\n", "\n\n"]).map(lambda end: end.join(rows))
)


@given(content=contents)
@settings(max_examples=300, deadline=None)
@example(content='a, "b"\n"", "x, y"\n\n1,2\r3,4')
def test_pandas_reads_what_csv_reads(tmp_path, content):
    path = tmp_path / "f.csv"
    path.write_bytes(content.encode())
    try:
        cells = csv_file.read_cells(path, ",", None)
    except ValueError as error:
        if "f.csv" not in str(error) or "by pandas" in str(error):
            raise
        return
    reader = csv.reader(io.StringIO(content, newline=""), strict=True, skipinitialspace=True)
    rows = [[cell.strip() for cell in row] for row in reader]
    rows = [row[: len(cells.header)] for row in rows if any(row)]
    found = [list(row) for row in zip(*cells.columns, strict=True)]
    assert [cells.header, *found] == rows
