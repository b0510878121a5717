"""The figures of a study, from plain arrays.

Every function takes a width in inches and returns a `Figure` of matplotlib, or None where there is
nothing to draw.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hypergrad.report.style import (
    DEFAULT_STYLE,
    DIRECT_STYLE,
    INK,
    RANDOM_STYLE,
    RESPONSE_STYLE,
    TUNED_STYLE,
    WIDE,
    Curve,
    draw_band,
    drawable,
    fit_scale,
    legend_above,
    log_ticks,
    panels,
    scale_ceiling,
    step_axis,
    styled,
    thinned,
)
from hypergrad.report.text import clean, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_PANELS = 12
"""Hyperparameters drawn in one figure."""

MAX_ROWS = 12
"""Elements of a hyperparameter drawn by themselves; more are drawn as sorted values."""


class Leaf(NamedTuple):
    """One hyperparameter before and after tuning.

    Attributes:
        name: Name of the leaf.
        before: Its default; None where there is none.
        after: Its tuned value.
        low: Lower end of the searched range; NaN where unknown.
        high: Upper end of the searched range; NaN where unknown.
        log: Whether the range was searched on a logarithmic scale.
    """

    name: str
    before: np.ndarray | None
    after: np.ndarray
    low: float = math.nan
    high: float = math.nan
    log: bool = False


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
        default: Objective of the default hyperparameters, or NaN.
        name: Label of the vertical axis.
        method: Method that made `trace`; "random" is drawn in the colour of random search.
        width: Width of the figure in inches.
    """
    rival = np.empty(0) if random_trace is None else random_trace["best"]
    if not np.isfinite(np.concatenate([trace["value"], trace["best"], rival])).any():
        return None
    with styled():
        figure, (axes,) = panels(width, 0.46 if width >= WIDE else 0.8)
        own = RANDOM_STYLE if method == "random" else TUNED_STYLE
        lines = np.concatenate([trace["best"], rival, [default]])
        ceiling = scale_ceiling(lines, log=np.nanmin(lines, initial=np.inf) > 0)
        cost, value = trace["trainings"], trace["value"]
        if value.size:
            dots = {"color": own["color"], "alpha": 0.4, "linestyle": "none", "markersize": 3.2}
            axes.plot(
                *thinned(cost, value), marker="o", label="each step", markeredgewidth=0, **dots
            )
            over = value > ceiling
            if over.any():
                top = np.full(over.sum(), 0.985)
                high = {**dots, "transform": axes.get_xaxis_transform(), "clip_on": False}
                axes.plot(*thinned(cost[over], top), marker="^", label="off the scale", **high)
        if random_trace is not None:
            line = thinned(random_trace["trainings"], random_trace["best"])
            axes.plot(
                *line, drawstyle="steps-post", label="random search, best so far", **RANDOM_STYLE
            )
        if math.isfinite(default):
            label = "default" if default <= ceiling else "default (off the scale)"
            axes.axhline(float(drawable(np.array(default))), label=label, **DEFAULT_STYLE)
        label = "best so far" if method == "random" else "tuned, best so far"
        axes.plot(*thinned(cost, trace["best"]), drawstyle="steps-post", label=label, **own)
        axes.set(xlabel="cost (trainings)", ylabel=clean(name))
        shown = np.concatenate([value, lines])
        fit_scale(axes, shown[shown <= ceiling])
        legend_above(figure, axes, width)
        return figure


def schedules(leaves: Sequence[Leaf], *, width: float = WIDE) -> "Figure | None":
    """Draw the learned schedules against the defaults, a panel for each leaf, at most `MAX_PANELS`.

    Args:
        leaves: Schedules `[horizon]` or `[horizon, k]`; of more than six columns the median and the range
            are drawn.
        width: Width of the figure in inches.
    """
    leaves = [leaf for leaf in leaves if np.isfinite(leaf.after).any()][:MAX_PANELS]
    if not leaves:
        return None
    with styled():
        columns = min(len(leaves), 2 if width >= WIDE else 1)
        rows = math.ceil(len(leaves) / columns)
        aspect = (0.46 if columns == 1 and width >= WIDE else 0.62) / columns
        figure, grid = panels(width, aspect * rows, rows, columns)
        for axes, leaf in zip(grid, leaves, strict=False):
            if leaf.before is not None:
                _columns(axes, leaf.before, "default", DEFAULT_STYLE)
            _columns(axes, leaf.after, "tuned", TUNED_STYLE)
            axes.set_title(clean(leaf.name))
            step_axis(axes)
            fit_scale(
                axes, leaf.after if leaf.before is None else np.append(leaf.before, leaf.after)
            )
        for axes in grid[len(leaves) :]:
            axes.remove()
        legend_above(figure, grid[0], width)
        return figure


def values(leaves: Sequence[Leaf], *, width: float = WIDE) -> "Figure | None":
    """Draw scalars and vectors before and after tuning as dots on their searched range.

    Args:
        leaves: Arrays of any shape; more than `MAX_ROWS` elements are drawn as sorted values.
        width: Width of the figure in inches.
    """
    leaves = [leaf for leaf in leaves if np.isfinite(leaf.after).any()][:MAX_PANELS]
    leaves.sort(key=lambda leaf: leaf.after.size)  # neighbours of one height
    if not leaves:
        return None
    with styled():
        columns = min(len(leaves), 2 if width >= WIDE else 1)
        heights = [0.62 + 0.24 * min(leaf.after.size, MAX_ROWS // 2) for leaf in leaves]
        ratios = [max(heights[i : i + columns]) for i in range(0, len(leaves), columns)]
        total = (sum(ratios) + 0.3) / width
        figure, grid = panels(width, total, len(ratios), columns, height_ratios=ratios)
        for axes, leaf in zip(grid, leaves, strict=False):
            draw = _strip if leaf.after.size <= MAX_ROWS else _sorted
            draw(axes, leaf)
            axes.set_title(clean(leaf.name))
        for axes in grid[len(leaves) :]:
            axes.remove()
        legend_above(figure, grid[0], width)
        return figure


def hypergradient(trace: Mapping[str, np.ndarray], *, width: float = WIDE) -> "Figure | None":
    """Draw the norms of the hypergradient's two terms and the growth of the adjoint, in logarithms.

    Args:
        trace: Arrays "trainings", "direct_norm", "response_norm" and "adjoint_growth" of one
            length; all NaN where the method does not record them.
        width: Width of the figure in inches.
    """
    parts = {"direct_norm": ("direct", DIRECT_STYLE), "response_norm": ("response", RESPONSE_STYLE)}
    parts = {key: part for key, part in parts.items() if np.isfinite(trace[key]).any()}
    grown = bool((trace["adjoint_growth"] > 0).any())
    if not parts and not grown:
        return None
    with styled():
        columns = 2 if parts and grown and width >= WIDE else 1
        rows = 2 if parts and grown and columns == 1 else 1
        aspect = 0.34 if columns == 2 else 0.72 * rows if width < WIDE else 0.4
        ratios = {"width_ratios": [3, 2]} if columns == 2 else {}
        figure, grid = panels(width, aspect, rows, columns, **ratios)
        for key, (label, style) in parts.items():
            norm = trace[key]
            if not (norm > 0).any():
                label = f"{label} (zero at every step)"
            grid[0].plot(
                *thinned(trace["trainings"], np.where(norm > 0, norm, np.nan)), label=label, **style
            )
        if parts:
            norms = np.concatenate([trace[key] for key in parts])
            fit_scale(grid[0], norms[norms > 0], log=True)
            grid[0].set(title="hypergradient norm", xlabel="cost (trainings)")
        if grown:
            grid[-1].axhline(1, color="#9a9a9a", linewidth=0.8)
            growth = np.where(trace["adjoint_growth"] > 0, trace["adjoint_growth"], np.nan)
            grid[-1].plot(*thinned(trace["trainings"], growth), color=INK, linewidth=1.4)
            fit_scale(grid[-1], growth, log=True)
            grid[-1].set(title="adjoint growth (ratio)", xlabel="cost (trainings)")
        legend_above(figure, grid[0], width)
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
        names: Key -> title of its panel, in the order of the panels.
        width: Width of the figure in inches.
    """
    drawn = {"default": (before, DEFAULT_STYLE), "tuned": (after, TUNED_STYLE)}
    keys = [
        key
        for key in names
        if any(key in group and np.isfinite(group[key].mean).any() for group, _ in drawn.values())
    ]
    if not keys:
        return None
    with styled():
        columns = len(keys) if width >= WIDE else 1
        rows = math.ceil(len(keys) / columns)
        aspect = 0.72 * rows if width < WIDE else 0.34 if columns > 1 else 0.46
        figure, grid = panels(width, aspect, rows, columns)
        for axes, key in zip(grid, keys, strict=True):
            shown = []
            for label, (group, style) in drawn.items():
                curve = group.get(key)
                if curve is None or not curve.mean.size:
                    continue
                draw_band(axes, curve, style["color"])
                axes.plot(*thinned(curve.step, curve.mean), label=label, **style)
                shown += [curve.mean, curve.low, curve.high]
            fit_scale(axes, np.concatenate(shown))
            axes.set_title(clean(names[key]))
            step_axis(axes)
        legend_above(figure, grid[0], width)
        return figure


def _columns(axes: "Axes", array: np.ndarray, label: str, style: Mapping[str, Any]) -> None:
    """Draw a schedule `[horizon]` or `[horizon, k]`; many columns become their median and range."""
    array = array.reshape(array.shape[0], -1)
    step = np.arange(array.shape[0], dtype=float)
    if array.shape[1] <= 6:
        for index, column in enumerate(array.T):
            shade = {**style, "alpha": 1 - 0.7 * index / array.shape[1]}
            axes.plot(*thinned(step, column), label=label if index == 0 else None, **shade)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a step of nothing but NaN is a gap
        low, middle, high = np.nanquantile(array, [0, 0.5, 1], axis=1)
    draw_band(axes, Curve(step, middle, low, high), style["color"])
    axes.plot(*thinned(step, middle), label=label, **style)


def _strip(axes: "Axes", leaf: Leaf) -> None:
    """Draw a row for each element: an open dot before, a full dot after, and both numbers."""
    after = drawable(leaf.after.ravel())
    before = np.full(after.shape, np.nan) if leaf.before is None else drawable(leaf.before.ravel())
    rows = list(range(after.size))
    axes.hlines(rows, before, after, color=TUNED_STYLE["color"], linewidth=1.4, alpha=0.6)
    dots = {"linestyle": "none", "clip_on": False, "markersize": 6, "zorder": 4}
    axes.plot(before, rows, "o", label="default", mfc="white", mec=DEFAULT_STYLE["color"], **dots)
    axes.plot(after, rows, "o", label="tuned", color=TUNED_STYLE["color"], **dots)
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
        log_ticks(axes.xaxis, math.log10(high / low))
    else:
        axes.locator_params(axis="x", nbins=4)


def _sorted(axes: "Axes", leaf: Leaf) -> None:
    """Draw many elements as their sorted values, before and after."""
    for array, label, style in (
        (leaf.before, "default", DEFAULT_STYLE),
        (leaf.after, "tuned", TUNED_STYLE),
    ):
        if array is not None:
            ordered = np.sort(array[np.isfinite(array)].ravel())
            share = np.linspace(0, 100, ordered.size)
            axes.plot(*thinned(share, ordered), label=label, **style)
    axes.set_xlabel(f"{leaf.after.size} elements, sorted (%)")
    axes.margins(x=0.01)
    fit_scale(axes, leaf.after[np.isfinite(leaf.after)])
