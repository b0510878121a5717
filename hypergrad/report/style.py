"""The style of all figures: colours, axes, and the same bytes each time.

Everything here works on objects of matplotlib, never on its global state. Names are drawn as they are
written: matplotlib's mathematics is off, so that a `$` in a name is a `$`.
"""

import contextlib
import io
import math
import re
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from hypergrad.core.checks import library
from hypergrad.report.text import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDE = 7.4
"""Width of a page in inches."""

NARROW = 3.7
"""Width of a phone, or of one column of a paper, in inches."""

MAX_POINTS = 600
"""Points drawn of one line; the lowest and the highest of each stretch are kept."""

# Okabe and Ito's palette, safe for the common colour blindnesses; styles differ for grey print.
TUNED_STYLE: dict[str, Any] = {"color": "#0072B2", "linewidth": 1.8, "zorder": 3}

RANDOM_STYLE: dict[str, Any] = {"color": "#D55E00", "linewidth": 1.5, "linestyle": (0, (5, 1.5))}

DEFAULT_STYLE: dict[str, Any] = {"color": "#6e6e6e", "linewidth": 1.4, "linestyle": (0, (1.5, 1.5))}

DIRECT_STYLE: dict[str, Any] = {"color": "#CC79A7", "linewidth": 1.3}

RESPONSE_STYLE: dict[str, Any] = {"color": "#007D5C", "linewidth": 1.6}

INK = "#333333"

_STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0,
    "figure.dpi": 72.0,
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#9a9a9a",
    "axes.linewidth": 0.8,
    "axes.titlesize": 9.0,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.formatter.limits": (-6, 7),
    "axes.formatter.useoffset": False,
    "axes.formatter.use_mathtext": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "xtick.color": "#9a9a9a",
    "ytick.color": "#9a9a9a",
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.columnspacing": 1.4,
    "legend.handlelength": 2.0,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "none",  # text stays text: searchable, and in the font of its page
    "svg.hashsalt": "hypergrad",
}


class Curve(NamedTuple):
    """A mean over seeds with its band: four arrays of one length."""

    step: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Draw in the style of the report within the block; matplotlib's own settings stay as they were."""
    matplotlib = library("matplotlib", "report", "extra")
    with matplotlib.rc_context(), warnings.catch_warnings():
        # A name may hold letters that DejaVu lacks; the browser has them, the PNG shows boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(cast(Any, _STYLE))
        yield


def panels(
    width: float, aspect: float, rows: int = 1, columns: int = 1, **ratios: Any
) -> tuple["Figure", list["Axes"]]:
    """Make a figure with `rows` x `columns` axes, listed row by row.

    Args:
        width: Width of the figure in inches.
        aspect: Height as a share of the width, without the legend above it.
        rows: Number of rows of axes.
        columns: Number of columns of axes.
        **ratios: `height_ratios` and `width_ratios` of the grid.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, width * aspect + 0.25), layout="constrained")
    layout: Any = figure.get_layout_engine()
    layout.set(w_pad=0.06, h_pad=0.06, hspace=0.06, wspace=0.05)
    grid = figure.subplots(rows, columns, squeeze=False, gridspec_kw=ratios)
    return figure, list(grid.flat)


def legend_above(figure: "Figure", axes: "Axes", width: float) -> None:
    """Put the legend of `axes` above the figure, where there is anything to say."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        columns = len(handles) if width >= WIDE else 2
        figure.legend(handles, labels, loc="outside upper left", ncols=columns)


def svg(figure: "Figure", prefix: str = "") -> str:
    """Return the figure as the SVG element that matplotlib writes, without date and metadata.

    Args:
        figure: Figure to write.
        prefix: Start of every id, so that several figures fit into one page.
    """
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with styled():
        _settle(figure)
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]  # the prolog may stand only once in a page
    ids = re.compile(r' id="| xlink:href="#|url\(#')
    return re.sub(r"<[^>]+>", lambda tag: ids.sub(rf"\g<0>{prefix}", tag[0]), text)


def png(figure: "Figure") -> bytes:
    """Return the figure as a PNG of 200 dots per inch."""
    buffer = io.BytesIO()
    with styled():
        _settle(figure)
        figure.savefig(buffer, format="png", dpi=200, metadata={"Software": None})
    return buffer.getvalue()


def _settle(figure: "Figure") -> None:
    """Lay the figure out once for all formats, since that takes the most time of drawing."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")


def scale_ceiling(values: np.ndarray, *, log: bool = False) -> float:
    """Return where a scale ends, so that a diverged step does not flatten the rest.

    A linear scale leaves out values that are a thousand times as far above the lowest as three quarters are.
    """
    finite = drawable(values[np.isfinite(values)].astype(float))
    if not finite.size:
        return math.inf
    if not log:
        above = finite - finite.min()
        usual = max(np.quantile(above, 0.75, method="lower"), above[above > 0].min(initial=np.inf))
        finite = finite[above <= 1e3 * usual]
    spread = finite.max() - finite.min()
    return float(finite.max() + max(2 * spread, abs(finite.max()), 1e-12))


def fit_scale(axes: "Axes", shown: np.ndarray, *, log: bool = False) -> None:
    """Fit the vertical axis to `shown`: logarithmic if `log` or if positive and a decade wide."""
    shown = drawable(shown[np.isfinite(shown)])
    if not shown.size:
        return
    low, high = float(shown.min()), float(shown.max())
    if low <= 0 or not (log or high > 10 * low):
        margin = 0.05 * (high - low) or 0.1 * abs(high) or 0.1
        axes.set_ylim(low - margin, high + margin)
        return
    low, high = math.log10(low), math.log10(high)
    margin = 0.05 * max(high - low, 0.5)
    axes.set_yscale("log")
    axes.set_ylim(10 ** max(low - margin, -100), 10 ** (high + margin))
    log_ticks(axes.yaxis, high - low)


def log_ticks(axis: Any, decades: float) -> None:
    """Label a logarithmic axis with a few numbers, also where it spans less than a decade."""
    from matplotlib import ticker

    subs = (1.0, 2.0, 5.0) if decades < 1.6 else (1.0, 3.0) if decades < 3.2 else (1.0,)
    axis.set_major_locator(ticker.LogLocator(subs=subs, numticks=7))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: number(value)))
    axis.set_minor_locator(ticker.NullLocator())


def step_axis(axes: "Axes") -> None:
    """Label the horizontal axis with training steps, in whole numbers."""
    axes.set_xlabel("training step")
    axes.margins(x=0.01)
    axes.locator_params(axis="x", integer=True)


def drawable(array: np.ndarray) -> np.ndarray:
    """Keep numbers within what matplotlib's own arithmetic can bear."""
    return np.clip(array, -1e100, 1e100)


def thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keep the lowest and highest point of each of `MAX_POINTS` / 2 stretches: no spike is lost."""
    x, y = drawable(x), drawable(y)
    if x.size <= MAX_POINTS:
        return x, y
    kept = {0, x.size - 1}
    for stretch in np.array_split(np.arange(x.size), MAX_POINTS // 2):
        part = y[stretch]
        kept.add(int(stretch[np.where(np.isfinite(part), part, np.inf).argmin()]))
        kept.add(int(stretch[np.where(np.isfinite(part), part, -np.inf).argmax()]))
    index = np.array(sorted(kept))
    return x[index], y[index]


def draw_band(axes: "Axes", curve: Curve, color: str) -> None:
    """Fill the band of a curve in a light shade of `color`."""
    index = np.unique(np.linspace(0, curve.step.size - 1, MAX_POINTS).round().astype(int))
    step, low, high = (drawable(part[index]) for part in (curve.step, curve.low, curve.high))
    axes.fill_between(step, low, high, color=color, alpha=0.16, linewidth=0)
