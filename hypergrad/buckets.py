"""A few padded shapes for many masked ones, chosen by predicted cost."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from hypergrad.checks import check_whole

Cost = Callable[[tuple[int, ...]], float]
"""Padded sizes -> the predicted cost of one member, in any unit."""


class Buckets(NamedTuple):
    """Padded shapes, and what they are predicted to cost.

    Attributes:
        shapes: the sizes of each bucket, cheapest first.
        prices: the predicted cost of one member in each.
        cost: mean predicted cost of a member.
        one: the same in a single bucket; `cost / one` is what bucketing leaves of it.
    """

    shapes: tuple[tuple[int, ...], ...]
    prices: tuple[float, ...]
    cost: float
    one: float

    def assign(self, sizes: np.ndarray) -> np.ndarray:
        """Return for each row of sizes `[N, D]` the cheapest bucket that holds it, `[N]`.

        Raises:
            ValueError: naming the first row that fits none.
        """
        sizes = check_sizes(sizes)
        fits = np.all(sizes[:, None, :] <= np.asarray(self.shapes)[None], axis=2)
        if not np.all(fits.any(1)):
            row = int(np.argmin(fits.any(1)))
            raise ValueError(
                f"sizes[{row}] is {tuple(sizes[row].tolist())}, expected at most {self.shapes[-1]}; plan the "
                "buckets with the largest sizes of the space among theirs"
            )
        return np.argmax(fits, axis=1)  # shapes are sorted by price


def plan(sizes: Any, cost: Cost, *, most: int = 3, price: float = 0.0) -> Buckets:
    """Choose at most `most` padded shapes that hold all `sizes` at the least predicted cost.

    Sorted by cost, the sizes are cut into B runs; a run is padded to its largest size in each direction:
    min Σ_b |run_b| c(max run_b) / N + B price, over all cuts, by dynamic programming. The last run is padded to
    the largest size of all in each direction, so that every combination fits.

    **Cost:** O(U² B) for U distinct sizes, on the host.

    **Limits:** the optimum in one direction; in several, the best among cuts of that order.

    Args:
        sizes: whole numbers `[N, D]`, e.g. width, depth and batch size, as often as they are expected: draw
            them from the space, and add its largest.
        cost: of one member in a program of these padded sizes.
        most: number of buckets, each a compilation.
        price: of one bucket more, in units of a member's cost.

    Raises:
        ValueError: for sizes that are none.
    """
    sizes = check_sizes(sizes)
    most = check_whole("most", most, example=3)
    distinct, counts = np.unique(sizes, axis=0, return_counts=True)
    alone = np.array([_price(cost, row) for row in distinct])
    order = np.argsort(alone, kind="stable")
    distinct, counts = distinct[order], counts[order]
    num, share = len(distinct), counts / counts.sum()

    # run[i, j]: cost of the distinct sizes i to j, both included, in one bucket
    run = np.full((num, num), np.inf)
    for i in range(num):
        largest = np.maximum.accumulate(distinct[i:], axis=0)
        largest[-1] = distinct.max(0)
        run[i, i:] = [_price(cost, row) for row in largest] * np.cumsum(share[i:])
    best = np.full((most + 1, num + 1), np.inf)
    best[0, 0] = 0.0
    cut = np.zeros((most + 1, num + 1), int)
    for b in range(1, most + 1):
        for j in range(1, num + 1):
            total = best[b - 1, :j] + run[:j, j - 1] + price
            cut[b, j] = int(np.argmin(total))
            best[b, j] = total[cut[b, j]]
    b, j, shapes = int(np.argmin(best[:, num])), num, []
    while j:
        i = cut[b, j]
        shapes.append(tuple(distinct[i if j < num else 0 : j].max(0).tolist()))
        b, j = b - 1, i
    shapes = sorted(set(shapes), key=lambda shape: (cost(shape), shape))
    prices = tuple(float(cost(shape)) for shape in shapes)
    found = Buckets(tuple(shapes), prices, 0.0, _price(cost, distinct.max(0)))
    mean = float(np.sum(np.asarray(prices)[found.assign(distinct)] * share))
    return found._replace(cost=mean)


def check_sizes(sizes: Any) -> np.ndarray:
    """Return sizes as whole numbers `[N, D]` of at least 1, or raise a `ValueError`."""
    array = np.asarray(sizes)
    if array.ndim != 2 or array.size == 0 or array.dtype.kind not in "iu" or array.min() < 1:
        raise ValueError(
            f"sizes has shape {array.shape} and dtype {array.dtype}, expected whole numbers of at least 1, a "
            "row for each member; pass e.g. [[32, 2], [64, 3]] for width and depth"
        )
    return array


def _price(cost: Cost, row: np.ndarray) -> float:
    found = cost(tuple(row.tolist()))
    if not np.isfinite(found) or found <= 0:
        raise ValueError(
            f"cost({tuple(row.tolist())}) is {found!r}, expected a positive number; pass e.g. lambda s: s[0]"
        )
    return float(found)
