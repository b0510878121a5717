"""The training examples that raise and lower a value most, as pictures or as rows."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hypergrad.core.checks import check_whole, describe
from hypergrad.report.style import TUNED_STYLE, WIDE, panels, styled
from hypergrad.report.text import clean, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_EXTREMES = 12
"""Largest number of examples drawn on each side."""


def extreme_examples(
    scores: Any,
    *,
    pictures: Any = None,
    names: Sequence[str] | None = None,
    num: int = 8,
    width: float = WIDE,
) -> "Figure":
    """Draw the examples whose weight raises and lowers a value most.

    Where the value is a loss, those that raise it harm and those that lower it help. Needs matplotlib (the
    extra `report`).

    Args:
        scores: Scores of one value, `Attribution.scores` `[N]`, or one row of it.
        pictures: Examples as pictures `[N, H, W]` or `[N, H, W, C]`, which are then drawn in two rows; bars
            with names where None.
        names: Name of each example, such as its label; its index where None.
        num: Number of examples of each kind, at most 12.
        width: Width of the figure in inches.

    Raises:
        ValueError: for scores that are not `[N]`, and for other numbers of pictures or names.
    """
    scores = np.asarray(scores, np.float64)
    check_whole("num", num)
    if scores.ndim != 1 or not scores.size or not np.isfinite(scores).all():
        raise ValueError(
            f"scores is {describe(scores)}, expected finite numbers of shape (N,), a score for each example; "
            "pass one row of attribution.scores"
        )
    for name, given in (("pictures", pictures), ("names", names)):
        if given is not None and len(given) != len(scores):
            raise ValueError(
                f"{name} are {len(given)}, expected {len(scores)}, one for each score; pass all examples"
            )
    order = np.argsort(scores, kind="stable")
    num = min(num, MAX_EXTREMES, len(scores))
    sides = {"raise the value most": order[::-1][:num], "lower the value most": order[:num]}
    titles = [str(i) if names is None else clean(str(names[i])) for i in range(len(scores))]
    with styled():
        if pictures is None:
            return _rows(scores, titles, sides, width)
        return _pictures(np.asarray(pictures), scores, titles, sides, width)


def _pictures(
    pictures: np.ndarray,
    scores: np.ndarray,
    titles: list[str],
    sides: dict[str, np.ndarray],
    width: float,
) -> "Figure":
    """Draw two rows of pictures, each under its name and above its score."""
    num = len(next(iter(sides.values())))
    figure, grid = panels(width, 2 * 1.6 / num, 2, num)
    for row, (side, examples) in enumerate(sides.items()):
        for column, index in enumerate(examples):
            axes = grid[row * num + column]
            axes.imshow(pictures[index].squeeze(), cmap="gray_r", interpolation="nearest")
            axes.set(xticks=[], yticks=[], xlabel=number(float(scores[index])))
            axes.set_title(titles[index])
        grid[row * num].set_ylabel(side.replace(" the", "\nthe"))
    return figure


def _rows(
    scores: np.ndarray, titles: list[str], sides: dict[str, np.ndarray], width: float
) -> "Figure":
    """Draw a bar for each example, those that raise the value on the left."""
    num = len(next(iter(sides.values())))
    figure, grid = panels(width, (0.24 * num + 0.6) / width, 1, 2)
    for axes, (side, examples) in zip(grid, sides.items(), strict=True):
        places = np.arange(num)[::-1]
        axes.barh(places, scores[examples], color=TUNED_STYLE["color"])
        axes.set_yticks(places, [titles[i] for i in examples])
        axes.set_xlabel("score")
        axes.set_title(side)
    return figure
