"""The report is whole, escaped and offline, and a damaged study is a one-line error."""

import html
import json
import os
import re
import sys
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from hypergrad.cli.main import main
from hypergrad.core.files import MAX_BYTES, write_json
from hypergrad.report import figures, page as report, results, style
from hypergrad.report.text import number
from hypergrad.space import Choice, LogReal, Real, Sequence, describe_space, space_from_description
from hypergrad.study import StudyWarning
from hypergrad.study.disk.description import FORMAT

pytest.importorskip("matplotlib", reason="the report is an extra")
pytest.importorskip("jinja2", reason="the report is an extra")

HORIZON, STEPS = 20, 8
DRAWN = {*report.FIGURES} - {"architecture"}
"""Figures of the study below, which has no architecture; `tests/test_controller.py` draws one."""
HOSTILE = '<script>alert("1")</script>&$\\frac{a}{$\'"--><!-- \x00\u202e\ud800 https://example.org'


def curve(level):
    step = list(range(0, HORIZON, 2))
    mean = [level + 2 * 0.7**i for i in step]
    return {
        "step": step,
        "mean": mean,
        "low": [x * 0.9 for x in mean],
        "high": [x * 1.1 for x in mean],
    }


def configuration(valid, test, lr, name="lr"):
    return {
        "hparams": {name: [lr] * HORIZON, "decay_scale": [1.0, 2.0 * lr], "momentum": 0.9},
        "valid": {"mean": valid, "low": valid - 0.01, "high": valid + 0.01, "values": [valid] * 3},
        "test": {"mean": test, "low": test - 0.02, "high": test + 0.02, "num": 360},
        "train_curve": curve(valid),
        "valid_curve": curve(valid),
    }


def study_files():
    """Return the two files of a small, healthy study."""
    cost = [4.1 * (i + 1) for i in range(STEPS)]
    value = [0.3 - 0.02 * i for i in range(STEPS)]
    study = {
        "format": FORMAT,
        "task": "digits",
        "task_arguments": {"width": 64},
        "method": "descent",
        "settings": {"steps": STEPS},
        "seed": 0,
        "horizon": HORIZON,
        "space": describe_space(
            {"lr": Sequence(LogReal(0.001, 1.0), 20), "decay_scale": Real(0, 4, shape=(2,))}
        ),
        "versions": {"jax": "0.10.0"},
        "command": "hypergrad tune digits",
        "started": "2026-11-21T10:00:00Z",
        "description": "A small network.",
    }
    result = {
        "metric": {"name": "accuracy", "higher_is_better": True},
        "objective_name": "validation loss",
        "configurations": {
            "default": configuration(0.3, 0.90, 0.1),
            "tuned": configuration(0.16, 0.97, 0.3),
            "random": configuration(0.2, 0.96, 0.2),
        },
        "trace": {
            "trainings": cost,
            "value": value,
            "best": value,
            "direct_norm": [0.0] * STEPS,
            "response_norm": [0.5**i for i in range(STEPS)],
            "adjoint_growth": [1.5] * STEPS,
            "skipped": 1,
        },
        "random_trace": {"trainings": [1.0, 33.0], "best": [0.4, 0.2]},
        "snippet": "import optax\noptimizer = optax.sgd(0.1)",
        "notes": {"Columns of a.csv": [{"column": "size", "kind": "number", "missing": 3}] * 201},
        "warnings": ["'rounding' has no gradient"],
        "interrupted": False,
        "seconds": 41.2,
        "num_seeds": 3,
    }
    return study, result


def save(folder, study, result):
    folder.mkdir(exist_ok=True)
    write_json(folder / "study.json", study)
    write_json(folder / "result.json", result)
    return folder


def text_of(page):
    """Return what a reader sees: the page without its style, figures and tags."""
    page = re.sub(r"(?s)<style>.*?</style>|<svg .*?</svg>", "", page)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", page))


class Balance(HTMLParser):
    """Fail at the first tag that does not match, and collect all attributes."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes, self.ids = [], set(), [], []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        self.ids += [value for key, value in attrs if key == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parse(page):
    parser = Balance()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def flatness_file(name="tuned"):
    """Return what `hypergrad flatness` leaves beside the two files."""
    steps = np.linspace(-1, 1, 5)
    return {
        "of": "a digest",
        "measures": {
            "default": {"Hessian norm": [8.0, 9.0, 10.0], "trace": [1.0, np.nan, 2.0]},
            name: {"Hessian norm": [4.0, 5.0, 6.5], "trace": [1.0, 2.0, 3.0]},
        },
        "steps": steps,
        "slices": {"default": 1 + steps**2, name: 0.5 + steps**2},
    }


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    study, result = study_files()
    folder = save(tmp_path_factory.mktemp("study"), study, result | {"final_digest": "a digest"})
    write_json(folder / results.FLATNESS_FILE, flatness_file())
    return report.write_report(folder)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    study, result = study_files()
    for key in ("task", "method", "command", "started", "description"):
        study[key] = HOSTILE
    study["settings"] = study["versions"] = study["task_arguments"] = {HOSTILE: HOSTILE}
    study["seed"] = study["horizon"] = HOSTILE
    study["space"] = describe_space(
        {HOSTILE: Sequence(LogReal(0.001, 1), HORIZON), HOSTILE + "4": Choice((HOSTILE, "b"))}
    )
    result["metric"]["name"] = result["objective_name"] = HOSTILE
    result["snippet"], result["warnings"] = HOSTILE, [HOSTILE]
    result["notes"] = {HOSTILE: [{HOSTILE: HOSTILE, "b": HOSTILE}]}
    for name in ("default", "tuned"):
        result["configurations"][name] = configuration(0.3, 0.9, 0.1, HOSTILE)
        result["configurations"][name]["hparams"] |= {
            HOSTILE + "2": 1.0,
            HOSTILE + "3": HOSTILE,
            HOSTILE + "4": 0,
        }
    result["configurations"][HOSTILE] = configuration(0.3, 0.9, 0.1)
    result["final_digest"] = "a digest"
    folder = save(tmp_path_factory.mktemp("hostile"), study, result)
    write_json(folder / results.FLATNESS_FILE, flatness_file(HOSTILE))
    return report.write_report(folder)


def test_flatness_is_shown_as_long_as_it_is_of_this_result(healthy):
    text = text_of(healthy.read_text())
    assert "Hessian norm9 [8, 10]5.167 [4, 6.5]" in text
    assert "tracenot finite2 [1, 3]" in text
    folder = healthy.parent
    kept = (folder / results.FLATNESS_FILE).read_bytes()
    try:
        write_json(folder / results.FLATNESS_FILE, flatness_file() | {"of": "another"})
        assert results.load_results(folder).flatness is None
        for odd in ({"measures": [1]}, {"slices": {"tuned": [1.0]}}, {"steps": "x"}):
            write_json(folder / results.FLATNESS_FILE, flatness_file() | odd)
            with pytest.raises(ValueError, match=r"flatness.json.*the file is damaged"):
                results.load_results(folder)
    finally:
        (folder / results.FLATNESS_FILE).write_bytes(kept)


def test_page_is_whole_and_has_every_part(healthy):
    page = healthy.read_text()
    parser = parse(page)
    assert len(parser.ids) == len(set(parser.ids))
    assert page.count("<figure>") == len(DRAWN)
    text = text_of(page)
    for part in (
        "Validation loss fell from 0.3 to 0.16",
        "test accuracy rose from 90.0 % [88.0, 92.0] to 97.0 % [95.0, 99.0]",
        "bootstrap 95 % intervals, n = 360",
        "Random search at equal cost (33 trainings) reached validation loss 0.2",
        "The test intervals do not overlap",
        "optimizer = optax.sgd(0.1)",
        "no gradient",
        "Columns of a.csv",
        "columnkindmissing sizenumber3 sizenumber3",
        "Rows left out, in result.json under notes: 1.",
        "1 outer step skipped",
        "hypergrad tune digits",
    ):
        assert part in text


def test_pasted_json_is_the_tuned_hyperparameters(healthy):
    shown = re.search(r"(?s)<details>.*?<pre>(.*?)</pre>", healthy.read_text())
    assert shown
    pasted = json.loads(html.unescape(shown[1]))
    assert pasted == study_files()[1]["configurations"]["tuned"]["hparams"]


@pytest.mark.parametrize("which", ["healthy", "hostile"])
def test_page_is_offline(which, request):
    path = request.getfixturevalue(which)
    page = path.read_text()
    parser = parse(page)
    attributes = parser.attributes
    policy = [value for key, value in attributes if key == "content" and "default-src" in value]
    assert len(policy) == 1
    assert {"default-src 'none'", "style-src 'unsafe-inline'", "img-src data:"} <= set(
        policy[0].split("; ")
    )
    # The policy holds only for what comes after it.
    assert page.index("Content-Security-Policy") < page.index("<style")
    assert not parser.tags & {"script", "link", "iframe", "object", "embed", "image", "base", "a"}
    assert not [key for key, _ in attributes if key.startswith("on") or key in ("src", "action")]
    for key, value in attributes:
        if key in ("href", "xlink:href"):
            assert value.startswith("#")
        assert key == "aria-label" or not re.search(r"https?:|//", value or "")
        assert re.findall(r"url\((?!#)", value or "") == []
    style = re.search(r"(?s)<style>(.*?)</style>", page)
    assert style and "url(" not in style[1] and "@import" not in style[1]


def test_hostile_names_are_text_in_the_page(hostile):
    page = hostile.read_text(encoding="utf-8")
    parse(page)
    assert "<script" not in page
    assert "&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt;&amp;$\\frac{a}{$&#39;" in page
    assert not re.search("[\x00-\x08\u202e]", page)


def test_figures_are_well_formed_and_safe(healthy, hostile):
    for path in (healthy, hostile):
        folder = path.parent / "figures"
        assert {p.name for p in folder.iterdir()} == {
            f"{name}.{ending}" for name in DRAWN for ending in ("svg", "png")
        }
        for file in folder.glob("*.svg"):
            tree = ElementTree.parse(file)
            assert not {e.tag.split("}")[-1] for e in tree.iter()} & {"script", "metadata", "image"}
            assert "<!DOCTYPE" not in file.read_text()
        for file in folder.glob("*.png"):
            assert file.read_bytes().startswith(b"\x89PNG")
    drawn = (hostile.parent / "figures" / "schedules.svg").read_text()
    text = "".join(ElementTree.fromstring(drawn).itertext())
    assert '<script>alert("1")</script>&$\\frac{a}{' in text


def test_figures_are_the_same_each_time(healthy, tmp_path):
    study, result = study_files()
    folder = save(tmp_path / "again", study, result | {"final_digest": "a digest"})
    write_json(folder / results.FLATNESS_FILE, flatness_file())
    again = report.write_report(folder)
    assert again.read_bytes() == healthy.read_bytes()
    for file in (healthy.parent / "figures").iterdir():
        assert (again.parent / "figures" / file.name).read_bytes() == file.read_bytes()


def test_drawing_leaves_the_global_state_of_matplotlib_alone(healthy):
    import matplotlib

    before = dict(matplotlib.rcParams)
    trace = results.load_results(healthy.parent).trace
    figure = figures.objective(trace, None, 0.3, "validation loss")
    assert figure is not None and style.svg(figure) and style.png(figure)
    assert dict(matplotlib.rcParams) == before


def headline(change):
    study, result = study_files()
    change(study, result)
    study |= {"settings": {}, "versions": {}, "task_arguments": {}}
    read = results.read_result(study, {}, results._Entries(result, "f: "))
    return text_of(report.render(read, {}).partition("<table>")[0])


def test_headline_is_honest():
    def test_score(name, mean, width=0.02):
        interval = {"mean": mean, "low": mean - width, "high": mean + width, "num": 360}
        return lambda study, result: result["configurations"][name].update(test=interval)

    worse = headline(test_score("tuned", 0.8))
    assert "accuracy fell from" in worse and "gain on validation did not carry over" in worse
    assert "behind on test" in worse
    near = headline(test_score("tuned", 0.92))
    assert "360 examples cannot settle whether that is more than chance" in near
    assert "the two are level" in headline(test_score("tuned", 0.9))
    bare = headline(lambda s, r: r["configurations"]["tuned"].update(test={"mean": 0.95}))
    assert "without intervals this may be chance" in bare and "do not overlap" not in bare
    stuck = headline(lambda s, r: r["configurations"]["tuned"].update(valid={"mean": 0.31}))
    assert "Tuning did not improve the validation loss" in stuck
    assert "behind on validation" in stuck
    diverged = headline(lambda s, r: r["configurations"]["default"].update(valid={"mean": None}))
    assert "went from not finite to 0.16" in diverged and "did not improve" not in diverged
    alone = headline(lambda s, r: r["configurations"].pop("random"))
    assert "Random search at equal cost was not run" in alone
    dear = headline(lambda s, r: r["random_trace"].update(trainings=[1, 66]))
    assert "Random search with 66 trainings" in dear and "equal" not in dear
    error = headline(lambda s, r: r.update(metric={"name": "squared error"}))
    assert "squared error rose from 0.9" in error and "worse than the default" in error


def nulls(value) -> Any:
    if isinstance(value, dict):
        return {key: nulls(item) for key, item in value.items()}
    if isinstance(value, list):
        return [nulls(item) for item in value]
    return None if isinstance(value, float) else value


def only_random(study, result):
    study["method"] = "random"
    result["configurations"].pop("tuned")
    result["trace"] = {key: result["trace"][key] for key in ("trainings", "value", "best")}
    result.pop("random_trace")


def no_steps(study, result):
    result["trace"] = {"trainings": [], "value": [], "best": []}
    result["configurations"] = {}
    result.pop("random_trace")
    result["interrupted"] = True


def all_null(study, result):
    result["configurations"] = nulls(result["configurations"])
    result["trace"] = {**nulls(result["trace"]), "value": [None] * STEPS}
    result["random_trace"], result["seconds"], result["snippet"] = None, None, None


def huge(study, result):
    many = np.random.default_rng(0).gamma(2.0, size=25_000).tolist()
    for configuration in result["configurations"].values():
        configuration["hparams"] = {"weights": many, "lr": many}
        configuration["hparams"] |= {f"lr{i}": [0.1] * HORIZON for i in range(6)}
    study["space"] = describe_space({"lr": Sequence(LogReal(1e-05, 1), 25_000)})
    result["snippet"] = "x" * 1_000_000


def extreme(study, result):
    result["trace"]["value"] = [1e308, -1e308, 1e-320, 0.3, 0.2, 0.2, 10**400, None]
    result["trace"]["response_norm"] = [1e308, 1e-320, 0, 1, 1, 1, 1, None]
    tuned, default = (result["configurations"][name] for name in ("tuned", "default"))
    tuned["hparams"] = {
        "lr": [[1e308, -1e308, 0.0]] * HORIZON,
        "wide": [[0.1 * i] * 9 for i in range(HORIZON)],
        "layers": [{"lr": 0.1}, {"lr": [0.1, None]}],
        "ragged": [[1.0], [1.0, 2.0]],
        "activation": "gelu",
        "nesterov": True,
        "choice": 1,
        "same": [2.5] * HORIZON,
    }
    study["space"] = describe_space(
        {"wide": Sequence(Real(0, 2), 20), "choice": Choice(("a", "b"))}
    )
    default["hparams"] = {"lr": [0.1] * HORIZON, "activation": "relu", "same": "text"}


@pytest.mark.parametrize(
    ("change", "expected", "drawn"),
    [
        (only_random, "random search", {"objective", "schedules", "values", "curves"}),
        (no_steps, "No tuned configuration was recorded", set()),
        (all_null, "not finite", set()),
        pytest.param(
            *(huge, "The first 4 of 7 are shown.", DRAWN - {"flatness"}), marks=pytest.mark.slow
        ),
        (extreme, "activation: relu → gelu", DRAWN - {"flatness"}),
    ],
)
def test_unusual_studies_are_reported(change, expected, drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "MAX_PANELS", 4)
    study, result = study_files()
    change(study, result)
    folder = save(tmp_path, study, result)
    (folder / "figures").mkdir()
    for name in report.FIGURES:  # of an older report
        (folder / "figures" / f"{name}.svg").write_text("old")
    path = report.write_report(folder)
    page = path.read_text()
    parse(page)
    assert expected in text_of(page)
    assert {p.stem for p in (folder / "figures").iterdir()} == drawn
    assert len(page) < 1_000_000


def test_options_have_their_names_and_searches_their_generations(tmp_path):
    study, result = study_files()
    study["method"] = "random"
    study["settings"] = {
        "method": "random",
        "scheduler": "full",
        "estimator": "reverse",
        "memory": None,
    }
    study["space"] |= describe_space(
        {
            "kind": Choice(("none", "it's")),
            "width": Choice((4, 12, 32)),
            "call": Choice((np.tanh, 2)),
        }
    )
    for configuration in result["configurations"].values():
        configuration["hparams"] |= {"kind": 0, "width": 1, "call": 1}
    result["configurations"]["tuned"]["hparams"] |= {"kind": 1, "width": 2}
    read = results.load_results(save(tmp_path, study, result))
    text = html.unescape(text_of(report.render(read, {})))
    assert "kind: none → it's" in text and "width: 12 → 32" in text and "call: 2 → 2" in text
    assert f"{STEPS} generations" in text and "scheduler = full" in text
    assert "estimator" not in text and "null" not in text


def break_file(name, content):
    def apply(folder):
        path = folder / name
        path.unlink()
        if content is not None:
            path.write_bytes(content)

    return apply


def change_file(name, *keys_and_value):
    *keys, last, value = keys_and_value

    def apply(folder):
        data = json.loads((folder / name).read_text())
        inner = data
        for key in keys:
            inner = inner[key]
        inner[last] = value
        del data["sha256"]
        write_json(folder / name, data)

    return apply


BAD = {
    "no study.json": (break_file("study.json", None), "study.json does not exist"),
    "no result.json": (break_file("result.json", None), "finish this one"),
    "empty": (break_file("result.json", b""), "not valid JSON"),
    "cut short": (break_file("result.json", b'{"trace": {"trai'), "not valid JSON"),
    "binary": (break_file("study.json", b"\x93NUMPY\xff\xfe"), "not UTF-8"),
    "long number": (break_file("result.json", b'{"seconds": ' + b"9" * 5000 + b"}"), "not valid"),
    "a list": (break_file("study.json", b"[1]"), "is a list, expected an object"),
    "deep": (break_file("result.json", b"[" * 100_000), "nested too deep"),
    "rather deep": (
        break_file("result.json", b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}"),
        "nested too deep",
    ),
    "format": (change_file("study.json", "format", 1), "format is 1, an older one, expected 3"),
    "format true": (change_file("study.json", "format", True), "format is True, expected 3"),
    "no format": (change_file("study.json", "format", None), "format is None, expected 3"),
    "task": (change_file("study.json", "task", 3), "task is a whole number, expected a string"),
    "space": (change_file("study.json", "space", []), "space is a list, expected an object"),
    "trace": (change_file("result.json", "trace", "best", [1]), "trace.best has 1 values"),
    "text": (change_file("result.json", "trace", "value", ["1"] * STEPS), "trace.value holds"),
    "nested": (change_file("result.json", "trace", "trainings", [[1.0]]), "trainings holds"),
    "score": (
        change_file("result.json", "configurations", "tuned", "test", "mean", "0.9"),
        "configurations.tuned.test.mean is a string, expected a number",
    ),
    "configuration": (change_file("result.json", "configurations", "tuned", 1), "tuned is a whole"),
    "curve": (
        change_file("result.json", "configurations", "tuned", "train_curve", "low", [0.1]),
        "train_curve.low has 1 values, expected 10",
    ),
    "warning": (change_file("result.json", "warnings", [1]), "warnings[0] is a whole number"),
    "skipped": (change_file("result.json", "trace", "skipped", True), "skipped is true or false"),
    "notes": (change_file("result.json", "notes", {"a": [{}]}), "notes holds something other"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_one_line_errors(case, tmp_path):
    apply, expected = BAD[case]
    apply(save(tmp_path, *study_files()))
    with pytest.raises(ValueError) as caught:
        report.write_report(tmp_path)
    message = str(caught.value)
    assert expected in message and "\n" not in message and ".json" in message
    assert not (tmp_path / "report.html").exists()


def test_missing_directory(tmp_path):
    with pytest.raises(ValueError, match="does not exist or is not a directory"):
        report.write_report(tmp_path / "nowhere")


def test_file_too_large_is_refused_unread(tmp_path):
    folder = save(tmp_path, *study_files())
    os.truncate(folder / "result.json", MAX_BYTES + 1)
    with pytest.raises(ValueError, match="expected at most 64 MB"):
        results.load_results(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipe_is_refused(tmp_path):
    folder = save(tmp_path, *study_files())
    (folder / "result.json").unlink()
    os.mkfifo(folder / "result.json")
    with pytest.raises(ValueError, match="not a regular file"):
        results.load_results(folder)


def places(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:1])
    for key, item in items:
        yield from places(item, (*path, key)) if isinstance(item, dict | list) else [(*path, key)]


@pytest.mark.parametrize(
    "wrong", [None, "x", -1, 1.5, True, [], {}, [[1], [2, 3]], [{"a": [None]}]]
)
def test_any_damage_is_read_or_refused(wrong):
    text, refused = json.dumps(study_files()[1]), []
    for path in places(json.loads(text)):
        data = json.loads(text)
        inner = data
        for key in path[:-1]:
            inner = inner[key]
        if path:
            inner[path[-1]] = wrong
        study = study_files()[0]
        space = space_from_description(study["space"])
        try:
            read = results.read_result(study, space, results._Entries(data, "result.json: "))
        except ValueError as error:
            refused.append(str(error))
        else:
            parse(report.render(read, {}))
    assert all(line.startswith("result.json: ") and "\n" not in line for line in refused)


def test_failed_write_leaves_the_old_page(tmp_path, monkeypatch):
    folder = save(tmp_path, *study_files())
    (folder / "report.html").write_text("old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(report, "_draw", lambda *_: {})
    with pytest.raises(ValueError, match=r"cannot write .*No space left"):
        report.write_report(folder)
    assert (folder / "report.html").read_text() == "old"
    assert {p.name for p in folder.iterdir()} == {
        "study.json",
        "result.json",
        "report.html",
        "figures",
    }


def test_blocked_figures_folder_is_an_error(tmp_path):
    folder = save(tmp_path, *study_files())
    (folder / "figures").write_text("a file")
    with pytest.raises(ValueError, match=r"cannot write .*figures"):
        report.write_report(folder)


def test_page_appears_by_renaming_and_is_its_owners_alone(tmp_path, monkeypatch):
    replaced = []
    real = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (replaced.append((str(a), str(b))), real(a, b)))
    report._write(tmp_path / "report.html", b"whole")
    assert len(replaced) == 1 and replaced[0][1].endswith("report.html")
    assert (tmp_path / "report.html").stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("name", ["matplotlib", "jinja2"])
def test_a_missing_library_says_what_to_install(name, tmp_path, monkeypatch):
    folder = save(tmp_path, *study_files())
    monkeypatch.setitem(sys.modules, name, None)
    report._template.cache_clear()
    with pytest.raises(ValueError, match=rf"needs {name}.*pip install 'hypergrad-jax\[report\]'$"):
        report.write_report(folder)
    assert not (folder / "report.html").exists()


def test_numbers_are_short_and_exact_enough():
    cases = {0.0: "0", 0.9: "0.9", 0.12345: "0.123", 1234.5: "1234", 1e-5: "1e\u22125", 2e7: "2e7"}
    cases |= {float("nan"): "not finite", -0.05: "\u22120.05", 99.96: "100", 1e-4: "0.0001"}
    assert {value: number(value) for value in cases} == cases


def test_thinning_keeps_every_spike():
    x = np.arange(100_000.0)
    y = np.sin(x)
    y[77_777], y[5] = 50.0, np.nan
    kept_x, kept_y = style.thinned(x, y)
    assert kept_x.size <= style.MAX_POINTS + 2
    assert 50.0 in kept_y and kept_x[0] == 0 and kept_x[-1] == x[-1]


def test_a_damaged_description_is_read_from_its_copy(tmp_path, capsys):
    """By the report and by `export`, as by `resume`; the one file without a copy can be made again."""
    folder = save(tmp_path / "s", *study_files())
    whole = results.load_results(folder)
    data = bytearray((folder / "study.json").read_bytes())
    write_json(folder / "study-copy.json", study_files()[0])
    data[len(data) // 2] ^= 1
    (folder / "study.json").write_bytes(data)
    with pytest.warns(StudyWarning, match="its copy is read instead"):
        found = results.load_results(folder)
    assert found.study == whole.study and found.space == whole.space
    for words in (["export"], ["report"]):
        assert main([*words, str(folder)]) == 0
        assert "warning: study.json of" in capsys.readouterr().err
    (folder / "study.json").unlink()
    with pytest.warns(StudyWarning, match="damaged or missing"):
        results.load_results(folder)
    (folder / "study-copy.json").write_bytes(data)
    with pytest.raises(ValueError, match=r"study\.json' does not exist|does not exist: give"):
        results.load_results(folder)
    save(folder, *study_files())
    for name, command in (("result.json", "resume"), (results.FLATNESS_FILE, "flatness")):
        (folder / name).write_bytes(data)
        with pytest.raises(ValueError, match=f"`hypergrad {command}` makes it again"):
            results.load_results(folder)
        save(folder, *study_files())


def test_a_page_does_not_tell_where_its_writer_works(tmp_path):
    """Of an absolute path only the last part is shown; in the files of the study it stays whole."""
    study, result = study_files()
    study["command"] = (
        "hypergrad tune x.py:task --data /home/ann/secret/d.csv --out '/home/ann/a b/s'"
    )
    study["task_arguments"] = {"data": "/home/ann/secret/d.csv", "rate": 0.1}
    study["settings"] = {"warm_start": "/home/ann/runs/old"}
    study["description"] = "From '/home/ann/x y/z.txt'; see https://a.org/b/c."
    result["warnings"] = ["study.json of '/home/ann/s' is damaged", "loss/step at 1/2"]
    folder = save(tmp_path / "s", study, result)
    page = report.render(results.load_results(folder), {})
    shown = html.unescape(text_of(page))
    assert "ann" not in shown
    for text in ("--data d.csv --out 's'", "data = d.csv", "warm_start = old", "From 'z.txt'"):
        assert text in shown
    for text in ("https://a.org/b/c", "study.json of 's' is damaged", "loss/step at 1/2"):
        assert text in shown
    assert "/home/ann/secret" in (folder / "study.json").read_text()
