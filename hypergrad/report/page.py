"""Write the report of a finished study: one HTML page that works offline, and its figures."""

import os
import re
import secrets
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hypergrad.core.checks import library
from hypergrad.core.files import FOLDER_MODE, failed, write_bytes
from hypergrad.report import contents, diagrams, figures
from hypergrad.report.leaves import tuned_leaves
from hypergrad.report.results import Results, load_results
from hypergrad.report.sentences import ends
from hypergrad.report.style import NARROW, WIDE, png, svg
from hypergrad.report.text import clean, clean_lines, visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = (
    "objective",
    "architecture",
    "schedules",
    "values",
    "hypergradient",
    "curves",
    "flatness",
)
"""Names of the figures that a study may have."""


class Drawing(NamedTuple):
    """A figure as SVG, for a page and for a phone."""

    wide: str
    narrow: str


def write_report(directory: str | os.PathLike[str]) -> Path:
    """Write `report.html` and `figures/*.svg`, `figures/*.png` into a study's directory.

    Each file appears whole or not at all. The page holds its figures, has no script and loads nothing.

    Args:
        directory: Folder that the study was written to.

    Returns:
        The path of the page.

    Raises:
        ValueError: If the study cannot be read, a file cannot be written, or matplotlib or jinja2 is missing.
    """
    results = load_results(directory)
    _template()  # a missing library is reported before anything is drawn
    folder, page = Path(directory) / "figures", Path(directory) / "report.html"
    try:
        folder.mkdir(FOLDER_MODE, exist_ok=True)
        wide, narrow = _draw(results, WIDE), _draw(results, NARROW)
        for name in set(FIGURES) - set(wide):  # an older report may have left one
            for ending in ("svg", "png"):
                (folder / f"{name}.{ending}").unlink(missing_ok=True)
    except OSError as error:
        raise failed("write", folder, error) from error
    drawings = {
        name: Drawing(svg(wide[name], f"{name}-"), svg(narrow[name], f"{name}-narrow-"))
        for name in wide
    }
    for name, figure in wide.items():
        _write(folder / f"{name}.svg", drawings[name].wide.encode())
        _write(folder / f"{name}.png", png(figure))
    _write(page, render(results, drawings).encode())
    return page


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, also where two processes report one study at once."""
    write_bytes(path, data, path.with_name(f".{path.name}.{secrets.token_hex(6)}"))


def _draw(results: Results, width: float) -> dict[str, "Figure"]:
    """Draw the figures that have anything to show, by name and in the order of the page."""
    schedules, values, _ = tuned_leaves(results)
    start, best = ends(results)
    names = {"train_curve": "training loss", "valid_curve": results.objective}
    diagram, flatness = results.diagram, results.flatness
    drawn = {
        "objective": figures.objective(
            results.trace,
            results.random_trace,
            start.valid.mean,
            results.objective,
            method=results.study["method"],
            width=width,
        ),
        "architecture": diagram and diagrams.architecture(diagram, width=width),
        "schedules": figures.schedules(schedules, width=width),
        "values": figures.values(values, width=width),
        "hypergradient": figures.hypergradient(results.trace, width=width),
        "curves": figures.curves(start.curves, best.curves, names, width=width),
        "flatness": flatness and diagrams.slices(flatness.steps, flatness.slices, width=width),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def render(results: Results, drawings: Mapping[str, Drawing]) -> str:
    """Return the page of a study with the given figures."""
    captions = contents.captions(results)
    shown = [
        {"wide": _inline(wide), "narrow": _inline(narrow), "caption": clean(captions[name], 400)}
        for name, (wide, narrow) in drawings.items()
    ]
    return _template().render(contents.page_contents(results), figures=shown)


def _inline(drawing: str) -> str:
    """Leave out the namespaces of an SVG element, which a page knows."""
    return re.sub(r' xmlns(:xlink)?="[^"]*"', "", drawing, count=2)


@cache
def _template() -> Any:
    jinja2, files = library("jinja2", "report", "extra"), resources.files("hypergrad.report")
    environment = jinja2.Environment(
        autoescape=True,
        finalize=lambda value: value if hasattr(value, "__html__") else visible(str(value)),
        loader=jinja2.FunctionLoader(lambda name: files.joinpath(name).read_text("utf-8")),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"line": clean, "lines": clean_lines}
    return environment.get_template("page.html.jinja")
