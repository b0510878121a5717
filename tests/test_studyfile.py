"""Study files: every option, refusals with the line and the nearest name, and no exception but ours."""

import json
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, strategies as st

from hypergrad.cli import main as cli, studyfile
from hypergrad.tuning.settings import OPTION, OPTIONS, Settings, check_settings

ROOT = Path(__file__).parent.parent
KNOWN = {
    "method": ["descent", "random"],
    "estimator": ["reverse", "forward"],
    "log": ["jsonl", "wandb"],
}
EVERY = {
    "task": "digits",
    "data": "my.csv",
    "label": "price",
    "horizon": 20,
    "arg": {"width": 8, "name": "a b", "deep": {"x": [1.5, True]}},
    "method": "random",
    "estimator": "forward",
    "bilevel": "saba",
    "response": "none",
    "budget": 32,
    "seed": 0,
    "num_seeds": 2,
    "num_restarts": 3,
    "eval_seeds": 4,
    "scout": 0.25,
    "learning_rate": 0.5,
    "memory": 2**26,
    "population": 8,
    "generations": 4,
    "scheduler": "halving",
    "devices": 2,
    "chunk": 3,
    "prior": {"lr": [0.001, 0.15], "kind": ["tanh", 0.3]},
    "warm_start": "runs/earlier",
    "out": "runs/é",
    "overwrite": True,
    "log": ["jsonl", "wandb"],
}


def write(path, content):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def flags(*words):
    """The options that click reads off a command line."""
    found = cli.COMMANDS[words[0]].make_context(words[0], list(words[1:])).params
    return {name: value for name, value in found.items() if name in OPTION and value is not None}


def refusal(tmp_path, content):
    path = write(tmp_path / "s.toml", content)
    with pytest.raises(ValueError) as caught:
        studyfile.read(path, KNOWN)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message and len(message) < 700
    return message.replace(repr(str(path)), "FILE")


def test_every_option_in_a_file(tmp_path):
    assert set(EVERY) == {option.name for option in OPTIONS}
    lines = [f"{k} = {json.dumps(v)}" for k, v in EVERY.items() if k not in ("arg", "prior")]
    table = ["[arg]", "width = 8", 'name = "a b"', "deep = {x = [1.5, true]}"]
    table += ["[prior]", "lr = 1e-3", 'kind = ["tanh", 0.3]']
    assert (
        studyfile.read(write(tmp_path / "s", "\n".join([*lines, *table])), KNOWN).options == EVERY
    )


def test_every_option_as_a_flag():
    words = []
    for option in OPTIONS[1:]:
        value = EVERY[option.name]
        if option.kind is bool:
            words.append(option.flag)
        elif option.name == "prior":
            words += ["--prior", "lr=1e-3", "--prior", "kind=tanh:0.3"]
        elif option.kind is dict:
            words += [w for k, v in value.items() for w in ("--arg", f"{k}={json.dumps(v)}")]
        elif option.kind is list:
            words += [w for item in value for w in (option.flag, item)]
        else:
            words += [option.flag, str(value)]
    assert flags("tune", "digits", *words) == EVERY


def test_every_setting_is_an_option():
    assert set(Settings._fields) <= set(OPTION)
    assert check_settings({}) == check_settings(Settings()._asdict()) == Settings()


def test_what_is_left_out_is_left_out(tmp_path):
    assert studyfile.read(write(tmp_path / "s", ""), KNOWN).options == {}
    assert flags("run", "s.toml") == {}


def test_as_editors_save_it(tmp_path):
    content = b'\xef\xbb\xbftask = "digits"\r\nbudget = 3\r\n'
    assert studyfile.read(write(tmp_path / "s", content), KNOWN).options["budget"] == 3
    assert "FILE, line 2: budget" in refusal(tmp_path, content.replace(b"3", b"0"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("bugdet = 3", "FILE, line 1: key is 'bugdet', expected one of task, data,"),
        ("\n\nbugdet = 3", "line 3: key is 'bugdet'"),
        ("bugdet = 3", "did you mean 'budget'?"),
        ("numseeds = 3", "did you mean 'num_seeds'?"),
        ("zzz = 1", "key is 'zzz', expected one of task, data,"),
        ('method = "descnet"', "line 1: method is 'descnet'"),
        ('method = "descnet"', "did you mean 'descent'?"),
        ('log = [\n "jsonl",\n "wndb",\n]', "line 1: log is 'wndb'"),
        ("budget = 0", "line 1: budget is 0, expected a whole number of at least 1"),
        ("budget = 2.0", "budget is 2.0, expected a whole number"),
        ("budget = true", "budget is True, expected a whole number"),
        ("budget = 10_000_000_000", "at most 1000000000"),
        ("budget = 0x" + "f" * 6000, "a number of thousands of digits"),
        ("budget = " + "1" * 5000, "cannot be read"),
        ("seed = -1", "seed is -1, expected a whole number of at least 0"),
        ("seed = 4294967296", "at most 4294967295"),
        ("learning_rate = nan", "learning_rate is nan, expected a positive number"),
        ("learning_rate = inf", "expected a positive number"),
        ('memory = "lots"', "memory is 'lots', expected a size"),
        ('memory = "inf"', "expected a size"),
        ("overwrite = 1", "overwrite is 1, expected true or false"),
        ('log = "jsonl"', "log is 'jsonl', expected a list"),
        ("arg = 3", "arg is 3, expected a table"),
        ("prior = 3", "line 1: prior is 3, expected values by the names of hyperparameters"),
        (
            "[prior]\nlr = [1, 2]",
            "line 1: prior for 'lr' is [1, 2], expected a value, or a value and",
        ),
        ("priro = 3", "did you mean 'prior'?"),
        ("task = 3", "task is 3, expected a text"),
        ('task = ""', "task is '', expected a text"),
        ('out = "a\\u0000b"', "expected a text of one line"),
        ('out = """a\nb"""', "expected a text of one line"),
        ("task = 1979-05-27", "task is datetime.date(1979, 5, 27)"),
        ("[task]\nx = 1", "line 1: task is {'x': 1}"),
        ("[[method]]\nx = 1", "line 1: method is [{'x': 1}]"),
        ('"a\\nb" = 1', r"line 1: key is 'a\nb', expected one of"),
        ("budget 3", "is not valid TOML: Expected '=' after a key in a key/value pair (at line 1"),
        ("budget = 3\nbudget = 4", "is not valid TOML: Cannot overwrite a value (at line 2"),
        ('a = 1\ntask = "digits', "(at line 2, "),
        ("a = 1\nb = [\n\n", "(at line 2, the last)"),
        ("x = " + "[" * 5000, "cannot be read"),
        (b"a = 1\nb = '\xff'", "FILE, line 2: not UTF-8"),
        ("#" * 2**19, "has over 262144 bytes"),
    ],
)
def test_refused_in_one_line(tmp_path, content, expected):
    assert expected in refusal(tmp_path, content)


def test_files_that_are_none(tmp_path):
    with pytest.raises(ValueError, match="a file that is not there"):
        studyfile.read(tmp_path / "nowhere.toml", KNOWN)
    with pytest.raises(ValueError, match="is not a regular file"):
        studyfile.read(tmp_path, KNOWN)


# where a key stands

LINES = [
    ('budget = 1', ("budget",), 1),
    ('# budget = 2\nbudget = 1', ("budget",), 2),
    ('task = "x" # budget = 2\n budget=1', ("budget",), 2),
    ('task = """\nbudget = 2\n"""\n"budget" = 1', ("budget",), 4),
    ("task = '''\nbudget = 2\n'''\n'budget' = 1", ("budget",), 4),
    ('task = """a\\"""\nbudget = 2 \\\n"""\nbudget = 1', ("budget",), 4),
    ('task = """a"""""\nbudget = 1', ("budget",), 2),
    ('log = [\n"budget = 3",\n]\nbudget = 1', ("budget",), 4),
    ('[arg]\nbudget = 1', ("arg", "budget"), 2),
    ('[arg]\nbudget = 1', ("arg",), 1),
    ('[arg]\nbudget = 1', ("budget",), None),
    ('arg.budget = 1', ("arg", "budget"), 1),
    ('x = 1\narg = {budget = 1}', ("arg", "budget"), 2),
    ('[ "arg" . "a.b" ]\nc = 1', ("arg", "a.b", "c"), 2),
    ('[arg]\n[arg.deep]\nx = 1', ("arg", "deep", "x"), 3),
    ('["a]b"]\nx = 1', ("a]b", "x"), 2),
    ('"a = b" = 1', ("a = b",), 1),
    ('"\\u0061" = 1', ("a",), 1),
]  # fmt: skip


@pytest.mark.parametrize(("text", "keys", "line"), LINES)
def test_find_line(text, keys, line):
    assert studyfile.find_line(text, keys) == line


filler = st.sampled_from(
    [
        "",
        "# bugdet = 1",
        'out = "bugdet = 2"',
        'label = """\nbugdet = 3\n"""',
        "data = '''\n[arg]\nbugdet = 4'''",
        'log = [\n  "bugdet",\n  "x", # ]\n]',
        "method = 'a' # \"",
        'task = "\\"bugdet\\" = 5"',
    ]
)


@given(before=st.lists(filler, unique=True), after=st.lists(filler, unique=True))
def test_the_line_of_a_key_among_others(before, after):
    text = "\n".join([*before, "bugdet = 0", *(f"# {line}" for line in after if "\n" not in line)])
    assert studyfile.find_line(text, ("bugdet",)) == "\n".join([*before, ""]).count("\n") + 1


# anything else: no exception but ours

keys = st.sampled_from([*OPTION, "bugdet", '"a b"', "'task'", "arg.width", "é", "1", ""])
values = st.sampled_from(
    [
        *("1", "0", "-1", "2.5", "nan", "-inf", "1e999", "0x" + "f" * 4000, "9" * 4301, "true"),
        *('"digits"', '"64M"', '""', '"\\u2028"', "'''\n'''", '"""\\\n"""', "[]", "[[[]]]"),
        *("1979-05-27T07:32:00Z", "25:00:00", "1979-13-01", '["jsonl"]', "[1, 'a']", "{a = 1}"),
        *("{}", "{a.b = [{}]}", "[" * 200 + "]" * 200, "[" * 1200, "'", '"', "#", ""),
    ]
)
lines = st.builds("{} = {}".format, keys, values | st.text(max_size=8)) | st.sampled_from(
    ["[arg]", "[[arg]]", "[task]", "[a.b]", "[arg", "# x", "", "\r", "\0"]
)
texts = st.lists(lines, max_size=6).map("\n".join).map(lambda text: text.encode("utf-8", "replace"))
VALID = b'task = "digits"\nbudget = 60\nlog = ["jsonl"]\nmemory = "64M"\n\n[arg]\nwidth = 32\n'
mutations = st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), max_size=4)


def mutate(changes):
    changed = bytearray(VALID)
    for position, byte in changes:
        changed[position] = byte
    return bytes(changed)


@given(content=texts | st.binary(max_size=60) | mutations.map(mutate))
@example(content=b'"\\U00110000" = 1')
@example(content=b"a = 1\n[a]\n[a.b]\n")
def test_read_fuzz(tmp_path, content):
    path = write(tmp_path / "f.toml", content)
    options, refused = {}, repr(str(path))
    try:
        options = studyfile.read(path, KNOWN).options
    except ValueError as error:
        refused = str(error)
    assert refused.startswith(repr(str(path))) and refused.isprintable()
    assert set(options) <= set(OPTION)
    check_settings({k: v for k, v in options.items() if k in Settings._fields})
    json.dumps({k: v for k, v in options.items() if k != "arg"})


# as a user meets it


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        ('task = "digits"\nestimator = "revers"', "line 2: estimator is 'revers'"),
        ('task = "digits"\n[arg]\nwidht = 3', "line 3: argument of task 'digits' is 'widht'"),
        ('task = "digits"\n[arg]\nwidht = 3', "did you mean 'width'?"),
        ('task = "digits"\n[arg]\nwidth = "8"', "width is '8'"),
        ('task = "digits"\n[arg]\nseed = "8"', "could not be made (TypeError"),
        ("budget = 3", "names no task"),
        (
            'task = "quadratic"\nmethod = "tpe"\nestimator = "forward"',
            "line 3: estimator is given with method 'tpe', which does not read it",
        ),
        ('population = 8\ntask = "digits"', "line 1: population is given with method 'descent'"),
    ],
)
def test_run_refuses_in_one_line(tmp_path, content, fragment, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert cli.main(["run", str(write(tmp_path / "s.toml", content))]) == 2
    error = capsys.readouterr().err
    assert fragment in error and error.count("\n") == 1


def test_flags_and_file_are_named_as_given(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = str(write(tmp_path / "s.toml", 'task = "quadratic"\n\nlearning_rate = 0.1\n'))
    assert cli.main(["run", path, "--method", "random"]) == 2
    assert (
        f"{path!r}, line 3: learning_rate is given with method 'random'" in capsys.readouterr().err
    )
    assert cli.main(["run", path, "--method", "bilevel", "--memory", "1M"]) == 2
    assert "hypergrad: --memory is given with method 'bilevel'" in capsys.readouterr().err


def test_run_is_tune_with_the_same_options(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "s.toml").write_text(
        'task = "quadratic"\nmethod = "random"\nbudget = 99\neval_seeds = 2\nseed = 3\n'
        f"out = {json.dumps(str(tmp_path / 'a'))}\n[arg]\nhorizon = 4\nnum_params = 2\n"
    )
    assert cli.main(["run", str(tmp_path / "s.toml"), "--budget", "16", "--json"]) == 0
    words = "quadratic --method random --budget 16 --eval-seeds 2 --seed 3 --json --horizon 4"
    there = str(tmp_path / "b")
    assert cli.main(["tune", *words.split(), "--arg", "num_params=2", "--out", there]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    for found in (first, second):
        del found["seconds"], found["clock"], found["directory"], found["report"]
    assert first == second
    assert first["status"] == 0 and first["configurations"]["tuned"]["valid"]["mean"] > 0
