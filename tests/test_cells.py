"""Single cells: what spreadsheets and people write for a number or a time, and what is neither."""

import pytest
from hypothesis import given, strategies as st

from tasks.cells import read_number, read_time

# numbers

NUMBERS = {  # text: value where the decimals have a point, and where they have a comma
    "1e5": (1e5, 1e5),
    "1E-3": (1e-3, 1e-3),
    "1e\u22125": (1e-5, 1e-5),
    ".5": (0.5, None),
    ",5": (None, 0.5),
    "+5": (5, 5),
    "\u20135": (-5, -5),
    "- 5": (-5, -5),
    "(1,234.50)": (-1234.5, None),
    "(1.234,50)": (None, -1234.5),
    "($5)": (-5, -5),
    "$(5.50)": (-5.5, None),
    "(5) \u20ac": (-5, -5),
    "-$5": (-5, -5),
    "$-5": (-5, -5),
    "$ -": (0, 0),
    "5 \u20ac": (5, 5),
    "-5,00\u00a0\u20ac": (None, -5),
    "EUR 5": (5, 5),
    "US$5": (5, 5),
    "CHF 1'234.50": (1234.5, None),
    "5 %": (0.05, 0.05),
    "5\u00a0%": (0.05, 0.05),
    "%5": (0.05, 0.05),
    "(5%)": (-0.05, -0.05),
    "1,234": (1234, 1.234),
    "1.234": (1.234, 1234),
    "1,234,567": (1234567, None),
    "1.234.567": (None, 1234567),
    "1,234.5": (1234.5, None),
    "1.234,5": (None, 1234.5),
    "1 234": (1234, 1234),
    "1\u202f234,5": (None, 1234.5),
    "1\u2019234": (1234, 1234),
    "12,34,567.00": (1234567, None),
    "0,123": (None, 0.123),
    "12,34": (None, 12.34),
    "\uff11\uff12": (12, 12),
    "007": (7, 7),
}
NO_NUMBERS = [
    "1_0",
    "1.2.3",
    "5-",
    "++5",
    "((5))",
    "(5",
    "$(-5)",
    "($(5))",
    "-$-5",
    "-(5)",
    "(-5)",
    "5%%",
    "5\u2030",
    "$5%",
    "1,23,4",
    "1 2",
    "1,234 567",
]
NO_NUMBERS += [
    "",
    "-",
    "$",
    "%",
    "x",
    "TRUE",
    "#REF!",
    "'5",
    "0x1F",
    "12:30",
    "2024-01-01",
    "nan",
    "5 kg",
    "e5",
]


@pytest.mark.parametrize("text", NUMBERS)
def test_numbers(text):
    for decimal, right in zip(".,", NUMBERS[text], strict=True):
        found = read_number(text, decimal)
        assert (found and found.value) == (right if right is None else pytest.approx(right, 1e-15))


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_what_is_no_number(text):
    assert read_number(text, ".") is None and read_number(text, ",") is None


@given(
    value=st.integers(-(10**9), 10**9),
    places=st.integers(0, 4),
    decimal=st.sampled_from(".,"),
    group=st.sampled_from(["", "'", " ", "\u00a0", "\u202f", "other"]),
    minus=st.sampled_from(["-{}", "\u2212{}", "({})"]),
    unit=st.sampled_from(["{}", "${}", "{} \u20ac", "{} %", "EUR {}"]),
)
def test_every_spelling_of_a_number_is_that_number(value, places, decimal, group, minus, unit):
    mark = {".": ",", ",": "."}[decimal] if group == "other" else group
    text = f"{abs(value) / 10**places:,.{places}f}".translate({44: mark, 46: decimal})
    text = unit.format(text) if value >= 0 else minus.format(unit.format(text))
    found = read_number(text, decimal)
    assert found is not None
    right = value / 10**places / (100 if "%" in unit else 1)
    assert found.value == pytest.approx(right, rel=1e-14, abs=1e-300)


# times

TIMES = {  # text: day since 1970 or hour, where the day stands first, and where the month does
    "2024-01-31": (19753, 19753),
    "2024/1/31": (19753, 19753),
    "2024-01-31T10:30": (19753.4375, 19753.4375),
    "2024-01-31 12:00:00Z": (19753.5, 19753.5),
    "2024-01-31T12:00+06:00": (19753.25, 19753.25),
    "03/04/2020": (18355, 18325),
    "3/4/2020 6:00 PM": (18355.75, 18325.75),
    "31/12/2020": (18627, None),
    "12/31/2020": (None, 18627),
    "03.04.2020": (18355, 18355),
    "1/15/69": (None, 36174),
    "1/15/70": (None, 14),
    "5-Jan-20": (18266, 18266),
    "5 January 2020": (18266, 18266),
    "Jan 5, 2020": (18266, 18266),
    "Sept. 5, 2020": (18510, 18510),
    "2024-01": (19723, 19723),
    "Jan 2020": (18262, 18262),
    "12:30": (12.5, 12.5),
    "1:30 PM": (13.5, 13.5),
    "12:00 am": (0, 0),
    "36:15:00": (36.25, 36.25),
}
NO_TIMES = [
    "2024-02-30",
    "1.2.20",
    "1.2.3",
    "20240131",
    "2020",
    "Jan-20",
    "13:30 PM",
    "12:61",
    "1:2:3",
    "2020Q1",
]
NO_TIMES += ["2024-01-31 24:00", "0000-01-01", "5", "x", "", "12", "2024-01-31 10"]


@pytest.mark.parametrize("text", TIMES)
def test_times(text):
    for first, right in zip(("day", "month"), TIMES[text], strict=True):
        found = read_time(text, first)
        assert (found and found.value) == (right if right is None else pytest.approx(right, 1e-12))


@pytest.mark.parametrize("text", NO_TIMES)
def test_what_is_no_time(text):
    assert read_time(text, "day") is None and read_time(text, "month") is None
