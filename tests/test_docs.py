"""Every snippet of the README and of the pages in docs/ runs; their commands and study files are understood."""

import re
import shlex
from pathlib import Path

import pytest

from hypergrad.cli import main as cli, studyfile
from hypergrad.cli.options import known_names

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


def blocks(page, language):
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)


def test_the_readme_is_an_invitation():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 700


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_what_it_is(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    fences = re.findall(r"^```(\w*)$", text, re.M)
    assert set(fences[::2]) <= {"python", "sh", "toml"} and not any(fences[1::2])


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert ((ROOT / page).parent / target).exists(), target


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """The README's example, run: where it ran, and the names that the pages go on from."""
    place, names = tmp_path_factory.mktemp("readme"), {"__name__": "readme"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for code in blocks("README.md", "python"):
            exec_block("README.md", code, names)
    return place, names


def exec_block(page, code, names):
    exec(compile(code, page, "exec"), names)


def test_the_readme_example_tunes(begun):
    place, names = begun
    study = names["study"]
    losses = {n: c["valid"]["mean"] for n, c in study.result["configurations"].items()}
    assert losses["tuned"] < 0.5 * losses["default"] and losses["tuned"] < losses["random"]
    assert (place / "runs/mine/report.html").is_file()


LONG = ("docs/attribution.md", "docs/choosing.md", "docs/curvature.md", "docs/populations.md")


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow if page in LONG else ())
        for page in PAGES[1:]
        if blocks(page, "python")
    ],
)
def test_snippets_run(page, begun, monkeypatch):
    place, names = begun
    monkeypatch.chdir(place)
    own = dict(names)
    for code in blocks(page, "python"):
        exec_block(page, code, own)
    if page == "docs/curvature.md":
        assert own["about"].interval.low < own["norm"].value < own["about"].interval.high
    if page == "docs/studies.md":
        assert [own["lr"](i) for i in range(20)] == list(own["study"].best["lr"])


def test_commands_are_understood():
    text = "".join(code for page in PAGES for code in blocks(page, "sh"))
    commands = re.findall(r"^hypergrad (.*?)(?:\s+#.*)?$", text, re.M)
    assert len(commands) >= 15
    for command in commands:
        name, *words = shlex.split(command.partition(" > ")[0])
        cli.COMMANDS[name].make_context(name, words)


def test_study_files_are_understood(tmp_path):
    (text,) = [code for page in PAGES for code in blocks(page, "toml")]
    (tmp_path / "study.toml").write_text(text)
    known = known_names()
    assert studyfile.read(tmp_path / "study.toml", known).options["task"] == "digits"
