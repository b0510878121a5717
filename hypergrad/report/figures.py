"""Draw the figures of a study: objects of matplotlib, never its global state.

from typing import TYPE_CHECKING
Every function takes plain arrays and a width in inches, and returns a `Figure`, or `None` when
there is nothing to draw. `svg` and `png` turn a figure into the same bytes each time. Names are
drawn as they are written: matplotlib's mathematics is off, so that a `$` in a name is a `$`.
"""

import contextlib
import io
import math
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from xml.etree import ElementTree

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


WIDE = 7.4
"""Inches: a page."""

NARROW = 3.7
"""Inches: a phone, or one column of a paper."""

MAX_ACROSS = 7
"""Boxes of an architecture in a row; more are drawn in a column."""

MAX_PANELS = 12

MAX_POINTS = 600

MAX_ROWS = 12

# Okabe and Ito's palette, safe for the common colour blindnesses; styles differ for grey print.
TUNED: dict[str, Any] = {"color": "#0072B2", "linewidth": 1.8, "zorder": 3}

RANDOM: dict[str, Any] = {"color": "#D55E00", "linewidth": 1.5, "linestyle": (0, (5, 1.5))}

DEFAULT: dict[str, Any] = {"color": "#6e6e6e", "linewidth": 1.4, "linestyle": (0, (1.5, 1.5))}

DIRECT: dict[str, Any] = {"color": "#CC79A7", "linewidth": 1.3}

RESPONSE: dict[str, Any] = {"color": "#007D5C", "linewidth": 1.6}

_INK, _RULE = "#333333", "#e6e6e6"

_STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0,
    "figure.dpi": 72.0,
    "text.parse_math": False,
    "text.color": _INK,
    "axes.labelcolor": _INK,
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
    "grid.color": _RULE,
    "grid.linewidth": 0.8,
    "xtick.color": "#9a9a9a",
    "ytick.color": "#9a9a9a",
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
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
    """Hold a mean over seeds with its band: four arrays of one length."""

    step: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Leaf(NamedTuple):
    """Hold one hyperparameter before and after tuning; `before` is None where the start lacks it.

    `low`, `high` and `log` describe the searched range, NaN where it is unknown.
    """

    name: str
    before: np.ndarray | None
    after: np.ndarray
    low: float = math.nan
    high: float = math.nan
    log: bool = False


class Diagram(NamedTuple):
    """Hold an architecture: the lines of text of each node, and pairs of nodes, from and to."""

    nodes: list[list[str]]
    edges: list[list[int]]


def objective(
    trace: Mapping[str, np.ndarray],
    random_trace: Mapping[str, np.ndarray] | None,
    default: float,
    name: str,
    *,
    method: str = "descent",
    width: float = WIDE,
) -> "Figure | None":
    """Draw the objective against cost: each step, the best so far and both baselines.

    Args:
        trace: Arrays "trainings", "value" and "best" of one length; NaN where not finite.
        random_trace: Arrays "trainings" and "best" of random search, or None.
        default: The objective of the default hyperparameters, or NaN.
        name: What the vertical axis shows.
        method: Which method made `trace`; "random" takes random search's colour.
        width: Inches.
    """
    rival = np.empty(0) if random_trace is None else random_trace["best"]
    if not np.isfinite(np.concatenate([trace["value"], trace["best"], rival])).any():
        return None
    with _style():
        figure, ((axes,),) = _grid(width, 0.46 if width >= WIDE else 0.8)
        own = RANDOM if method == "random" else TUNED
        ceiling = _ceiling(np.concatenate([trace["best"], rival, [default]]))
        cost, value = trace["trainings"], trace["value"]
        if value.size:
            dots = {"color": own["color"], "alpha": 0.4, "linestyle": "none", "markersize": 3.2}
            axes.plot(*_thin(cost, value), marker="o", label="each step", markeredgewidth=0, **dots)
            over = value > ceiling
            if over.any():
                top = np.full(over.sum(), 0.985)
                high = {**dots, "transform": axes.get_xaxis_transform(), "clip_on": False}
                axes.plot(*_thin(cost[over], top), marker="^", label="off the scale", **high)
        if random_trace is not None:
            line = _thin(random_trace["trainings"], random_trace["best"])
            axes.plot(*line, drawstyle="steps-post", label="random search, best so far", **RANDOM)
        if math.isfinite(default):
            axes.axhline(float(_tame(np.array(default))), label="default", **DEFAULT)
        label = "best so far" if method == "random" else "tuned, best so far"
        axes.plot(*_thin(cost, trace["best"]), drawstyle="steps-post", label=label, **own)
        axes.set(xlabel="cost (trainings)", ylabel=clean(name))
        shown = np.concatenate([value[value <= ceiling], trace["best"], rival, [default]])
        _scale(axes, shown)
        _legend(figure, axes, width)
        return figure


def architecture(diagram: Diagram, *, width: float = WIDE) -> "Figure | None":
    """Draw an architecture as boxes in their order, in a row or on a phone in a column, with arrows.

    Args:
        diagram: What to draw; an arrow past a box is bent around it.
        width: Inches.
    """
    num, across = len(diagram.nodes), width >= WIDE and len(diagram.nodes) <= MAX_ACROSS
    if not num:
        return None
    lines = max(len(node) for node in diagram.nodes)
    far = max((abs(b - a) for a, b in diagram.edges), default=1) - 1
    with _style():
        tall = 0.24 * lines + 0.3 + 0.3 * far if across else num * (0.22 * lines + 0.45)
        figure, ((axes,),) = _grid(width, tall / width)
        axes.set_axis_off()
        if across:
            axes.set(xlim=(-0.5, num - 0.5), ylim=(-0.5, 0.5 + 0.5 * far))
        else:
            axes.set(xlim=(-1, 1), ylim=(0.5 - num, 0.5))
        boxes = []
        for index, node in enumerate(diagram.nodes):
            x, y = (index, 0) if across else (0, -index)
            box = {"boxstyle": "round,pad=0.5", "facecolor": "#f1f6fa", "edgecolor": TUNED["color"]}
            text = "\n".join(clean(line, 24) for line in node)
            drawn = axes.text(x, y, text, ha="center", va="center", fontsize=8.5, bbox=box)
            boxes.append(drawn.get_bbox_patch())
        for start, end in diagram.edges:
            first, last = ((i, 0) if across else (0, -i) for i in (start, end))
            skip = abs(end - start) > 1
            bend = 0.0 if not skip else -0.28 if across else 0.5
            style = f"arc3,rad={bend}"
            arrow = {"arrowstyle": "-|>", "color": RESPONSE["color"] if skip else _INK, "zorder": 0}
            arrow |= {"patchA": boxes[start], "patchB": boxes[end], "shrinkA": 2.0, "shrinkB": 2.0}
            arrow["connectionstyle"] = style
            axes.annotate("", last, first, arrowprops=arrow)
        return figure


def schedules(leaves: Sequence[Leaf], *, width: float = WIDE) -> "Figure | None":
    """Draw the learned schedules against their start, a panel for each leaf, at most `MAX_PANELS`.

    Args:
        leaves: Schedules `[horizon]` or `[horizon, k]`; over six columns become a median and range.
        width: Inches.
    """
    leaves = [leaf for leaf in leaves if np.isfinite(leaf.after).any()][:MAX_PANELS]
    if not leaves:
        return None
    with _style():
        columns = min(len(leaves), 2 if width >= WIDE else 1)
        rows = math.ceil(len(leaves) / columns)
        aspect = (0.46 if columns == 1 and width >= WIDE else 0.62) / columns
        figure, grid = _grid(width, aspect * rows, rows, columns)
        panels = [axes for row in grid for axes in row]
        for axes, leaf in zip(panels, leaves, strict=False):
            if leaf.before is not None:
                _columns(axes, leaf.before, "start", DEFAULT)
            _columns(axes, leaf.after, "tuned", TUNED)
            axes.set_title(clean(leaf.name))
            _step_axis(axes)
            _scale(axes, leaf.after if leaf.before is None else np.append(leaf.before, leaf.after))
        for axes in panels[len(leaves) :]:
            axes.remove()
        _legend(figure, panels[0], width)
        return figure


def values(leaves: Sequence[Leaf], *, width: float = WIDE) -> "Figure | None":
    """Draw scalars and vectors before and after as dots on their searched range, a strip a leaf.

    Args:
        leaves: Arrays of any shape; over `MAX_ROWS` elements are drawn as sorted values.
        width: Inches.
    """
    leaves = [leaf for leaf in leaves if np.isfinite(leaf.after).any()][:MAX_PANELS]
    leaves.sort(key=lambda leaf: leaf.after.size)  # neighbours of one height
    if not leaves:
        return None
    with _style():
        columns = min(len(leaves), 2 if width >= WIDE else 1)
        heights = [0.62 + 0.24 * min(leaf.after.size, MAX_ROWS // 2) for leaf in leaves]
        ratios = [max(heights[i : i + columns]) for i in range(0, len(leaves), columns)]
        total = (sum(ratios) + 0.3) / width
        figure, grid = _grid(width, total, len(ratios), columns, height_ratios=ratios)
        panels = [axes for row in grid for axes in row]
        for axes, leaf in zip(panels, leaves, strict=False):
            draw = _strip if leaf.after.size <= MAX_ROWS else _sorted
            draw(axes, leaf)
            axes.set_title(clean(leaf.name))
        for axes in panels[len(leaves) :]:
            axes.remove()
        _legend(figure, panels[0], width)
        return figure


def hypergradient(trace: Mapping[str, np.ndarray], *, width: float = WIDE) -> "Figure | None":
    """Draw the norms of the hypergradient's two terms and the growth of the adjoint, in logarithms.

    Args:
        trace: Arrays "trainings", "direct_norm", "response_norm" and "adjoint_growth" of one
            length; NaN throughout where the method has no such figure.
        width: Inches.
    """
    parts = {"direct_norm": ("direct", DIRECT), "response_norm": ("response", RESPONSE)}
    parts = {key: part for key, part in parts.items() if np.isfinite(trace[key]).any()}
    grown = bool((trace["adjoint_growth"] > 0).any())
    if not parts and not grown:
        return None
    with _style():
        columns = 2 if parts and grown and width >= WIDE else 1
        rows = 2 if parts and grown and columns == 1 else 1
        aspect = 0.34 if columns == 2 else 0.72 * rows if width < WIDE else 0.4
        ratios = {"width_ratios": [3, 2]} if columns == 2 else {}
        figure, grid = _grid(width, aspect, rows, columns, **ratios)
        panels = [axes for row in grid for axes in row]
        for key, (label, style) in parts.items():
            norm = trace[key]
            if not (norm > 0).any():
                label = f"{label} (zero at every step)"
            panels[0].plot(
                *_thin(trace["trainings"], np.where(norm > 0, norm, np.nan)), label=label, **style
            )
        if parts:
            norms = np.concatenate([trace[key] for key in parts])
            _scale(panels[0], norms[norms > 0], log=True)
            panels[0].set(title="hypergradient norm", xlabel="cost (trainings)")
        if grown:
            panels[-1].axhline(1, color="#9a9a9a", linewidth=0.8)
            growth = np.where(trace["adjoint_growth"] > 0, trace["adjoint_growth"], np.nan)
            panels[-1].plot(*_thin(trace["trainings"], growth), color=_INK, linewidth=1.4)
            _scale(panels[-1], growth, log=True)
            panels[-1].set(title="adjoint growth (ratio)", xlabel="cost (trainings)")
        _legend(figure, panels[0], width)
        return figure


def curves(
    before: Mapping[str, Curve],
    after: Mapping[str, Curve],
    names: Mapping[str, str],
    *,
    width: float = WIDE,
) -> "Figure | None":
    """Draw the curves of a training run with the default and the tuned hyperparameters.

    Args:
        before: Curves by key for the default; a missing or empty one is left out.
        after: The same for the tuned hyperparameters.
        names: Key to the title of its panel, in the order of the panels.
        width: Inches.
    """
    drawn = {"default": (before, DEFAULT), "tuned": (after, TUNED)}
    keys = [
        key
        for key in names
        if any(key in group and np.isfinite(group[key].mean).any() for group, _ in drawn.values())
    ]
    if not keys:
        return None
    with _style():
        columns = len(keys) if width >= WIDE else 1
        rows = math.ceil(len(keys) / columns)
        aspect = 0.72 * rows if width < WIDE else 0.34 if columns > 1 else 0.46
        figure, grid = _grid(width, aspect, rows, columns)
        panels = [axes for row in grid for axes in row]
        for axes, key in zip(panels, keys, strict=True):
            shown = []
            for label, (group, style) in drawn.items():
                curve = group.get(key)
                if curve is None or not curve.mean.size:
                    continue
                _band(axes, curve, style["color"])
                axes.plot(*_thin(curve.step, curve.mean), label=label, **style)
                shown += [curve.mean, curve.low, curve.high]
            _scale(axes, np.concatenate(shown))
            axes.set_title(clean(names[key]))
            _step_axis(axes)
        _legend(figure, panels[0], width)
        return figure


def slices(
    steps: np.ndarray, values: Mapping[str, np.ndarray], *, width: float = WIDE
) -> "Figure | None":
    """Draw the training loss along a direction through the network of each configuration.

    Args:
        steps: Distances along the direction `[num]`.
        values: Configuration to its loss `[num]`; what is not finite is left out.
        width: Inches.
    """
    styles = {"default": DEFAULT, "random": RANDOM, "tuned": TUNED}
    drawn = {
        name: _tame(np.asarray(line, float))
        for name, line in values.items()
        if np.isfinite(np.asarray(line, float)).any()
    }
    if not drawn:
        return None
    with _style():
        figure, ((axes,),) = _grid(width, 0.72 if width < WIDE else 0.4)
        for name, line in drawn.items():
            axes.plot(steps, line, label=clean(name), **styles.get(name, DIRECT))
        _scale(axes, np.concatenate(list(drawn.values())))
        axes.set_title("training loss")
        axes.set_xlabel("distance, in lengths of the filters")
        axes.margins(x=0.01)
        _legend(figure, axes, width)
        return figure


def svg(figure: "Figure", prefix: str = "") -> str:
    """Return the figure as an SVG element without date, metadata, document type or comments.

    Args:
        figure: What to write.
        prefix: Starts every id, so that several figures fit into one page.
    """
    buffer = io.BytesIO()
    with _style():
        _settle(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    space, link = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{space}}}metadata", f"{{{space}}}style"):
                parent.remove(child)
        for key, value in parent.attrib.items():
            if key == "id":
                parent.set(key, prefix + value)
            elif key == f"{{{link}}}href":
                parent.set(key, value.replace("#", f"#{prefix}", 1))
            elif "url(#" in value:
                parent.set(key, value.replace("url(#", f"url(#{prefix}"))
    root.set("style", "stroke-linejoin: round; stroke-linecap: butt")  # what the style element said
    ElementTree.register_namespace("", space)
    ElementTree.register_namespace("xlink", link)
    return ElementTree.tostring(root, encoding="unicode")


def png(figure: "Figure") -> bytes:
    """Return the figure as a PNG of 200 dots per inch."""
    buffer = io.BytesIO()
    with _style():
        _settle(figure)
        figure.savefig(buffer, format="png", dpi=200, metadata={"Software": None})
    return buffer.getvalue()


def landscape_figure(
    steps: np.ndarray,
    values: np.ndarray,
    name: str = "loss",
    *,
    surface: bool = False,
    ceiling: float | None = None,
    width: float = NARROW,
) -> "Figure | None":
    """Draw a slice through the loss: a curve, or of a plane contour lines or the surface itself.

    Args:
        steps: Distances along the directions `[num]`, as in `curvature.Landscape`.
        values: Of the loss, `[num]` or `[num, num]`; what is not finite is left out.
        name: What is drawn.
        surface: Draw a plane as a surface.
        ceiling: Where the scale ends; so that two networks can be compared, give both the same.
        width: Inches.
    """
    steps, values = np.asarray(steps, float), np.asarray(values, float)
    if not np.isfinite(values).any():
        return None
    top = _ceiling(values) if ceiling is None else ceiling
    shown = np.where(np.isfinite(values), np.minimum(_tame(values), top), np.nan)
    with _style():
        if values.ndim == 1:
            figure, ((axes,),) = _grid(width, 0.7)
            axes.plot(steps, shown, **TUNED)
            axes.set_xlabel("distance along the direction")
            axes.set_ylabel(name)
            axes.margins(x=0.01)
            return figure
        figure, axes = _plane(width, surface)
        if surface:
            grid = np.meshgrid(steps, steps, indexing="ij")
            axes.plot_surface(*grid, shown, cmap="viridis", linewidth=0, antialiased=True)
            axes.set_zlabel(name)
        else:
            levels = 16 if np.nanmax(shown) > np.nanmin(shown) else None
            lines = axes.contourf(steps, steps, shown.T, levels, cmap="viridis")
            figure.colorbar(lines, ax=axes, label=name, shrink=0.9)
            axes.plot(0, 0, "+", color="white", markersize=8)
            axes.set_aspect("equal")
            axes.grid(visible=False)
        axes.set_xlabel("first direction")
        axes.set_ylabel("second direction")
    return figure


def clean(text: str, limit: int = 48) -> str:
    """Return `text` on one line of at most `limit` characters, none of them a control."""
    text = " ".join(text[: 4 * limit].split())
    bad = ("Cc", "Cf", "Cs")
    text = "".join("\ufffd" if unicodedata.category(c) in bad else c for c in text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def number(value: float, digits: int = 3) -> str:
    """Return `value` in at most `digits` significant digits, as `0.0123`, `12.5` or `1.2e-5`."""
    if not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    if 1e-4 <= abs(value) < 1e6:
        decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
        text = f"{value:.{decimals}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    else:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".")
        text = f"{mantissa}e{int(exponent)}"
    return text.replace("-", "\u2212")


@contextlib.contextmanager
def _style() -> Iterator[None]:
    try:
        import matplotlib
    except ImportError:
        raise ValueError(
            "the figures need matplotlib, which is not installed: "
            'pip install "hypergrad-jax[report]"'
        ) from None
    with matplotlib.rc_context(), warnings.catch_warnings():
        # A name may hold letters that DejaVu lacks; the browser has them, the PNG shows boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(cast(Any, _STYLE))
        yield


def _grid(width: float, aspect: float, rows: int = 1, columns: int = 1, **ratios: Any) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, width * aspect + 0.25), layout="constrained")
    layout: Any = figure.get_layout_engine()
    layout.set(w_pad=0.06, h_pad=0.06, hspace=0.06, wspace=0.05)
    return figure, figure.subplots(rows, columns, squeeze=False, gridspec_kw=ratios)


def _plane(width: float, surface: bool) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 0.85 * width), layout="constrained")
    return figure, figure.add_subplot(projection="3d" if surface else None)


def _settle(figure: "Figure") -> None:
    """Lay the figure out once for all formats: it is the dearest part of drawing."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")


def _legend(figure: "Figure", axes: "Axes", width: float) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        columns = len(handles) if width >= WIDE else 2
        figure.legend(handles, labels, loc="outside upper left", ncols=columns)


def _ceiling(finite: np.ndarray) -> float:
    """Return where the scale ends, so that a diverged step does not flatten the rest."""
    finite = finite[np.isfinite(finite)]
    if not finite.size:
        return math.inf
    spread = finite.max() - finite.min()
    return float(finite.max() + max(2 * spread, abs(finite.max()), 1e-12))


def _step_axis(axes: "Axes") -> None:
    axes.set_xlabel("training step")
    axes.margins(x=0.01)
    axes.locator_params(axis="x", integer=True)


def _scale(axes: "Axes", shown: np.ndarray, *, log: bool = False) -> None:
    """Fit the vertical axis to `shown`: logarithmic if `log` or if positive and a decade wide."""
    shown = _tame(shown[np.isfinite(shown)])
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
    _log_ticks(axes.yaxis, high - low)


def _log_ticks(axis: Any, decades: float) -> None:
    from matplotlib import ticker

    subs = (1.0, 2.0, 5.0) if decades < 1.6 else (1.0, 3.0) if decades < 3.2 else (1.0,)
    axis.set_major_locator(ticker.LogLocator(subs=subs, numticks=7))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: number(value)))
    axis.set_minor_locator(ticker.NullLocator())


def _tame(array: np.ndarray) -> np.ndarray:
    """Keep numbers within what matplotlib's own arithmetic stands."""
    return np.clip(array, -1e100, 1e100)


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keep the lowest and highest point of each of `MAX_POINTS` / 2 stretches: no spike is lost."""
    x, y = _tame(x), _tame(y)
    if x.size <= MAX_POINTS:
        return x, y
    kept = {0, x.size - 1}
    for stretch in np.array_split(np.arange(x.size), MAX_POINTS // 2):
        part = y[stretch]
        kept.add(int(stretch[np.where(np.isfinite(part), part, np.inf).argmin()]))
        kept.add(int(stretch[np.where(np.isfinite(part), part, -np.inf).argmax()]))
    index = np.array(sorted(kept))
    return x[index], y[index]


def _band(axes: "Axes", curve: Curve, color: str) -> None:
    index = np.unique(np.linspace(0, curve.step.size - 1, MAX_POINTS).round().astype(int))
    step, low, high = (_tame(part[index]) for part in (curve.step, curve.low, curve.high))
    axes.fill_between(step, low, high, color=color, alpha=0.16, linewidth=0)


def _columns(axes: "Axes", array: np.ndarray, label: str, style: Mapping[str, Any]) -> None:
    """Draw a schedule `[horizon]` or `[horizon, k]`; many columns become their median and range."""
    array = array.reshape(array.shape[0], -1)
    step = np.arange(array.shape[0], dtype=float)
    if array.shape[1] <= 6:
        for index, column in enumerate(array.T):
            shade = {**style, "alpha": 1 - 0.7 * index / array.shape[1]}
            axes.plot(*_thin(step, column), label=label if index == 0 else None, **shade)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a step of nothing but NaN is a gap
        low, middle, high = np.nanquantile(array, [0, 0.5, 1], axis=1)
    _band(axes, Curve(step, middle, low, high), style["color"])
    axes.plot(*_thin(step, middle), label=label, **style)


def _strip(axes: "Axes", leaf: Leaf) -> None:
    """Draw a row for each element: an open dot before, a full dot after, and both numbers."""
    after = _tame(leaf.after.ravel())
    before = np.full(after.shape, np.nan) if leaf.before is None else _tame(leaf.before.ravel())
    rows = list(range(after.size))
    axes.hlines(rows, before, after, color=TUNED["color"], linewidth=1.4, alpha=0.6)
    dots = {"linestyle": "none", "clip_on": False, "markersize": 6, "zorder": 4}
    axes.plot(before, rows, "o", label="start", mfc="white", mec=DEFAULT["color"], **dots)
    axes.plot(after, rows, "o", label="tuned", color=TUNED["color"], **dots)
    for row, old, new in zip(rows, before, after, strict=True):
        text = number(new) if math.isnan(old) else f"{number(old)} → {number(new)}"
        where = axes.get_yaxis_transform()
        axes.text(1.04, row, text, transform=where, va="center", fontsize=8.5)
    axes.set_ylim(after.size - 0.5, -0.5)
    axes.set_yticks(rows if after.size > 1 else [])
    axes.set_yticklabels(
        [str(list(i))[1:-1] for i in np.ndindex(leaf.after.shape)][: len(axes.get_yticks())]
    )
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    shown = np.concatenate([before, after])
    shown = shown[np.isfinite(shown)]
    if -1e100 < leaf.low < leaf.high < 1e100:
        axes.set_xlim(min(leaf.low, shown.min()), max(leaf.high, shown.max()))
    low, high = axes.get_xlim()
    if leaf.log and shown.min() > 0 and leaf.low > 0:
        axes.set_xscale("log")
        _log_ticks(axes.xaxis, math.log10(high / low))
    else:
        axes.locator_params(axis="x", nbins=4)


def _sorted(axes: "Axes", leaf: Leaf) -> None:
    """Draw many elements as their sorted values, before and after."""
    for array, label, style in ((leaf.before, "start", DEFAULT), (leaf.after, "tuned", TUNED)):
        if array is not None:
            ordered = np.sort(array[np.isfinite(array)].ravel())
            share = np.linspace(0, 100, ordered.size)
            axes.plot(*_thin(share, ordered), label=label, **style)
    axes.set_xlabel(f"{leaf.after.size} elements, sorted (%)")
    axes.margins(x=0.01)
    _scale(axes, leaf.after[np.isfinite(leaf.after)])
