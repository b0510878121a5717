"""Figures of some studies: an architecture, and slices through a landscape."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hypergrad.report.style import (
    DEFAULT_STYLE,
    DIRECT_STYLE,
    INK,
    NARROW,
    RANDOM_STYLE,
    RESPONSE_STYLE,
    TUNED_STYLE,
    WIDE,
    drawable,
    fit_scale,
    legend_above,
    panels,
    scale_ceiling,
    styled,
)
from hypergrad.report.text import clean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_NODES = 40
"""Largest number of nodes of a diagram."""

MAX_ACROSS = 7
"""Largest number of boxes of an architecture in a row; more are drawn in a column."""


class Diagram(NamedTuple):
    """An architecture: the lines of text of each node, and pairs of nodes, from and to."""

    nodes: list[list[str]]
    edges: list[list[int]]


def is_graph(nodes: list[Any], edges: list[Any]) -> bool:
    """Tell whether there are 1 to `MAX_NODES` nodes, and every edge is a pair of their numbers."""
    pairs = (isinstance(edge, list) and len(edge) == 2 for edge in edges)
    ends = (end for edge in edges if isinstance(edge, list) for end in edge)
    return (
        1 <= len(nodes) <= MAX_NODES
        and len(edges) <= MAX_NODES**2
        and all(pairs)
        and all(type(end) is int and 0 <= end < len(nodes) for end in ends)
    )


def architecture(diagram: Diagram, *, width: float = WIDE) -> "Figure | None":
    """Draw an architecture as boxes joined by arrows, in a row, or in a column where the figure is narrow.

    Args:
        diagram: Architecture to draw; an arrow past a box is bent around it.
        width: Width of the figure in inches.
    """
    num, across = len(diagram.nodes), width >= WIDE and len(diagram.nodes) <= MAX_ACROSS
    if not num:
        return None
    lines = max(len(node) for node in diagram.nodes)
    far = max((abs(b - a) for a, b in diagram.edges), default=1) - 1
    with styled():
        tall = 0.24 * lines + 0.3 + 0.3 * far if across else num * (0.22 * lines + 0.45)
        figure, (axes,) = panels(width, tall / width)
        axes.set_axis_off()
        if across:
            axes.set(xlim=(-0.5, num - 0.5), ylim=(-0.5, 0.5 + 0.5 * far))
        else:
            axes.set(xlim=(-1, 1), ylim=(0.5 - num, 0.5))
        boxes = []
        for index, node in enumerate(diagram.nodes):
            x, y = (index, 0) if across else (0, -index)
            box = {
                "boxstyle": "round,pad=0.5",
                "facecolor": "#f1f6fa",
                "edgecolor": TUNED_STYLE["color"],
            }
            text = "\n".join(clean(line, 24) for line in node)
            drawn = axes.text(x, y, text, ha="center", va="center", fontsize=8.5, bbox=box)
            boxes.append(drawn.get_bbox_patch())
        for start, end in diagram.edges:
            first, last = ((i, 0) if across else (0, -i) for i in (start, end))
            skip = abs(end - start) > 1
            bend = 0.0 if not skip else -0.28 if across else 0.5
            arrow = {
                "arrowstyle": "-|>",
                "connectionstyle": f"arc3,rad={bend}",
                "color": RESPONSE_STYLE["color"] if skip else INK,
                "zorder": 0,
                "patchA": boxes[start],
                "patchB": boxes[end],
                "shrinkA": 2.0,
                "shrinkB": 2.0,
            }
            axes.annotate("", last, first, arrowprops=arrow)
        return figure


def slices(
    steps: np.ndarray, values: Mapping[str, np.ndarray], *, width: float = WIDE
) -> "Figure | None":
    """Draw the training loss along a direction through the network of each configuration.

    Args:
        steps: Distances along the direction `[num]`.
        values: Configuration -> its loss `[num]`; values that are not finite are left out.
        width: Width of the figure in inches.
    """
    styles = {"default": DEFAULT_STYLE, "random": RANDOM_STYLE, "tuned": TUNED_STYLE}
    drawn = {
        name: drawable(np.asarray(line, float))
        for name, line in values.items()
        if np.isfinite(np.asarray(line, float)).any()
    }
    if not drawn:
        return None
    with styled():
        figure, (axes,) = panels(width, 0.72 if width < WIDE else 0.4)
        for name, line in drawn.items():
            axes.plot(steps, line, label=clean(name), **styles.get(name, DIRECT_STYLE))
        fit_scale(axes, np.concatenate(list(drawn.values())))
        axes.set_title("training loss")
        axes.set_xlabel("distance, in lengths of the filters")
        axes.margins(x=0.01)
        legend_above(figure, axes, width)
        return figure


def landscape_figure(
    steps: np.ndarray,
    values: np.ndarray,
    name: str = "loss",
    *,
    surface: bool = False,
    ceiling: float | None = None,
    width: float = NARROW,
) -> "Figure | None":
    """Draw a slice through the loss: a curve along a line; contour lines or a surface over a plane.

    Args:
        steps: Distances along the directions `[num]`, as in `curvature.Landscape`.
        values: Values of the loss, `[num]` or `[num, num]`; those that are not finite are left out.
        name: Name of the loss.
        surface: Whether a plane is drawn as a surface.
        ceiling: Upper end of the scale; give two networks the same one to compare them.
        width: Width of the figure in inches.
    """
    steps, values = np.asarray(steps, float), np.asarray(values, float)
    if not np.isfinite(values).any():
        return None
    top = scale_ceiling(values) if ceiling is None else ceiling
    shown = np.where(np.isfinite(values), np.minimum(drawable(values), top), np.nan)
    with styled():
        if values.ndim == 1:
            figure, (axes,) = panels(width, 0.7)
            axes.plot(steps, shown, **TUNED_STYLE)
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


def _plane(width: float, surface: bool) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 0.85 * width), layout="constrained")
    return figure, figure.add_subplot(projection="3d" if surface else None)
