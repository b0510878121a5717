"""Populations whose members do not share one program: each shape has its own, compiled once."""

from collections.abc import Callable, Hashable, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad import space as spaces
from hypergrad.core import tree
from hypergrad.core.checks import check_whole
from hypergrad.core.hoist import Compiled
from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.populations.base import Population, count, make_population, population
from hypergrad.populations.layouts import vectorized
from hypergrad.problem import Problem, Task, check_problem, fixed, with_hparams
from hypergrad.space import static

Cost = Callable[[tuple[int, ...]], float]
"""(padded sizes) -> the predicted cost of one member, in any unit."""


class Buckets(NamedTuple):
    """Padded shapes, and their predicted cost.

    Attributes:
        shapes: Sizes of each bucket, cheapest first.
        prices: Predicted cost of one member in each.
        cost: Mean predicted cost of a member.
        one: Mean predicted cost in a single bucket; `cost / one` is the share that bucketing leaves of it.
    """

    shapes: tuple[tuple[int, ...], ...]
    prices: tuple[float, ...]
    cost: float
    one: float

    def assign(self, sizes: np.ndarray) -> np.ndarray:
        """Return for each row of sizes `[N, D]` the cheapest bucket that holds it, `[N]`.

        Raises:
            ValueError: naming the first row that fits into no bucket.
        """
        fits = np.all(sizes[:, None, :] <= np.asarray(self.shapes)[None], axis=2)
        if not np.all(fits.any(1)):
            row = int(np.argmin(fits.any(1)))
            raise ValueError(
                f"sizes[{row}] is {tuple(sizes[row].tolist())}, expected at most {self.shapes[-1]}; plan the "
                "buckets with the largest sizes of the space among theirs"
            )
        return np.argmax(fits, axis=1)  # shapes are sorted by price


def plan_buckets(sizes: Any, cost: Cost, *, most: int = 3, price: float = 0.0) -> Buckets:
    """Choose at most `most` padded shapes that hold all `sizes` at the least predicted cost.

    Sorted by cost, the sizes are cut into B runs; a run is padded to its largest size in each direction:
    min Σ_b |run_b| c(max run_b) / N + B price, over all cuts, by dynamic programming. The last run is padded to
    the largest size of all in each direction, so that every combination fits.

    **Cost:** O(U² B) for U distinct sizes, on the host.

    **Limits:** the plan is optimal for one direction; for several, it is the best among cuts of that order.

    Args:
        sizes: Sizes `[N, D]` of members, whole numbers such as width, depth and batch size. Draw them from
            the space, so that each occurs as often as expected, and add the largest.
        cost: Cost of one member in a program of these padded sizes.
        most: Largest number of buckets, each of which is compiled.
        price: Price of one more bucket, in units of a member's cost.

    Raises:
        ValueError: for invalid sizes, or a cost that is not positive.
    """
    sizes = np.asarray(sizes)
    if sizes.ndim != 2 or sizes.size == 0 or sizes.dtype.kind not in "iu" or sizes.min() < 1:
        raise ValueError(
            f"sizes has shape {sizes.shape} and dtype {sizes.dtype}, expected whole numbers of at least 1, a "
            "row for each member; pass e.g. [[32, 2], [64, 3]] for width and depth"
        )
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


def _price(cost: Cost, row: np.ndarray) -> float:
    found = cost(tuple(row.tolist()))
    if not np.isfinite(found) or found <= 0:
        raise ValueError(
            f"cost({tuple(row.tolist())}) is {found!r}, expected a positive number; pass e.g. lambda s: s[0]"
        )
    return float(found)


class ShapeGroup(NamedTuple):
    """Members that share a program.

    Attributes:
        label: Label that they share.
        index: Places of the members in the population, `[M]`, on the host.
        states: States of those members `[M]`.
    """

    label: Hashable
    index: np.ndarray
    states: PyTree


def grouped(
    assign: Callable[[HParams], Sequence[Hashable]],
    build: Callable[[Any], Population],
    strip: Callable[[HParams], HParams] = lambda hparams: hparams,
    restore: Callable[[Any, HParams], HParams] = lambda label, hparams: hparams,
) -> Population:
    """Build a population from others, one for each label.

    **Limits:** the population works on the host, because labels are read from concrete hparams. States are a
    list of `ShapeGroup`.

    Args:
        assign: (hparams `[N]`) -> the label of each member.
        build: (label) -> the population of its members; called once a label.
        strip: (hparams) -> hparams of the populations.
        restore: (label, hparams of a member) -> its hparams before `strip`.
    """
    of = cache(build)

    # the same function again for the same label, so that nothing compiles twice
    @lru_cache(maxsize=128)
    def view(label: Hashable, function: Callable) -> Callable:
        return lambda params, given: function(params, restore(label, given))

    def given(hparams: HParams, group: ShapeGroup) -> HParams:
        return tree.rows(strip(hparams), group.index)

    def init(keys: Key, hparams: HParams) -> list[ShapeGroup]:
        count(hparams)
        labels = assign(hparams)
        groups = []
        for label in dict.fromkeys(labels):
            index = np.flatnonzero([other == label for other in labels])
            empty = ShapeGroup(label, index, ())
            states = of(label).init(keys[index], given(hparams, empty))
            groups.append(empty._replace(states=states))
        return groups

    def advance(hparams: HParams, groups: list[ShapeGroup], num_steps: Any) -> list[ShapeGroup]:
        def one(group: ShapeGroup) -> ShapeGroup:
            num = num_steps[group.index] if np.ndim(num_steps) else num_steps
            states = of(group.label).advance(given(hparams, group), group.states, num)
            return group._replace(states=states)

        return [one(group) for group in groups]

    def follow(
        hparams: HParams, groups: list[ShapeGroup], num_steps: Any
    ) -> tuple[list[ShapeGroup], Array]:
        after, losses = [], []
        for group in groups:
            members = of(group.label)
            states, loss = members.follow(given(hparams, group), group.states, num_steps)
            after.append(group._replace(states=states))
            losses.append(loss)
        return after, _in_places(groups, losses)

    def judge(hparams: HParams, groups: list[ShapeGroup]) -> tuple[Array, dict[str, Array]]:
        parts = [of(g.label).judge(given(hparams, g), g.states) for g in groups]
        return _in_places(groups, parts)

    def measure(function: Callable, hparams: HParams, groups: list[ShapeGroup]) -> PyTree:
        parts = [
            of(g.label).measure(view(g.label, function), given(hparams, g), g.states)
            for g in groups
        ]
        return _in_places(groups, parts)

    def take(groups: list[ShapeGroup], index: Array) -> list[ShapeGroup]:
        found = []
        for group in groups:
            new, rows = _rows_of(group, np.asarray(index))
            if len(new):
                states = of(group.label).take(group.states, jnp.asarray(rows))
                found.append(ShapeGroup(group.label, new, states))
        return found

    def value(hparams: HParams, groups: list[ShapeGroup]) -> Array:
        return judge(hparams, groups)[0]

    return Population(init, advance, value, judge, take, True, measure=measure, follow=follow)


def _in_places(groups: list[ShapeGroup], parts: list[PyTree]) -> PyTree:
    """Join the results of the groups in the order of the members."""
    places = np.concatenate([group.index for group in groups])
    back = np.empty(len(places), int)
    back[places] = np.arange(len(places))
    return jax.tree.map(lambda *xs: jnp.concatenate(xs)[back], *parts)


def _rows_of(group: ShapeGroup, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which of the asked members are in a group, and the row of each in it."""
    place = {int(member): row for row, member in enumerate(group.index)}
    new = np.flatnonzero([int(member) in place for member in index])
    return new, np.array([place[int(member)] for member in index[new]])


def partitioned(
    problem: Problem, space: PyTree, build: Callable[[Problem], Population] = population
) -> Population:
    """Build a population over a space with static dimensions: one program for each of their values.

    Searchers are given `space.dynamic(space)`, whose values are arrays throughout; here those of the
    static dimensions become the Python values that the problem sees: numbers, or the options of a `Choice`.

    **Cost:** one compilation for each distinct combination of static values.

    Args:
        problem: Training loop, whose functions take hparams with static values.
        space: Space with or without static dimensions.
        build: (problem) -> population of members with the same static values.
    """
    check_problem(problem)
    spaces.check_space(space)
    leaves, structure = jax.tree.flatten(space)
    places = [i for i, dim in enumerate(leaves) if dim.static]

    def flat(hparams: HParams) -> list[Any]:
        if jax.tree.structure(hparams) != structure:
            raise ValueError(
                f"hparams has the leaves {tree.leaf_names(hparams)}, expected {tree.leaf_names(space)}; ask a "
                "searcher of space.dynamic(space)"
            )
        return jax.tree.leaves(hparams)

    def assign(hparams: HParams) -> list[tuple]:
        given = flat(hparams)
        columns = [np.asarray(given[i]).tolist() for i in places]
        num = count(hparams)
        return list(zip(*columns, strict=True)) if columns else [()] * num

    def strip(hparams: HParams) -> list[Any]:
        # where all are static, one number per member still gives their count
        return static.free_leaves(space, flat(hparams)) or [jnp.zeros(count(hparams))]

    def restore(label: tuple, hparams: HParams) -> HParams:
        if not label:
            return jax.tree.unflatten(structure, hparams)
        return static.join(space, label, hparams)

    def make(label: tuple) -> Population:
        return build(with_hparams(problem, lambda hparams: restore(label, hparams)))

    return grouped(assign, make, strip, restore)


def alike(problem: Problem, space: PyTree) -> Population:
    """Build a population that trains nothing, whose static dimensions have their defaults.

    It can be traced in no time: a scheduler that cannot work is found before anything compiles.
    """
    label, _ = static.split(space, spaces.starting_values(space))

    def change(hparams: HParams) -> HParams:
        free = static.free_leaves(space, jax.tree.leaves(hparams))
        return static.join(space, label, free) if label else hparams

    members = make_population(with_hparams(problem, change), vectorized())

    def measure(function: Callable, hparams: HParams, states: PyTree) -> PyTree:
        return members.measure(lambda params, h: function(params, change(h)), hparams, states)

    def advance(hparams: HParams, states: PyTree, num_steps: int | Array) -> PyTree:
        return states

    return members._replace(measure=measure, advance=advance)


def per_shape(task: Task, build: Callable[[Task], Callable[..., Any]]) -> Callable[..., Any]:
    """Return (hparams, *args) -> `build(task)(hparams, *args)`, compiled once for each shape.

    Args:
        task: Task; hparams are one value of its space, as a study records it.
        build: (task) -> a traceable function of hparams that are not static, and more.
    """
    programs: dict[tuple[int, ...], Callable[..., Any]] = {}

    def call(hparams: HParams, *args: Any) -> Any:
        label, free = static.split(task.space, hparams)
        if label not in programs:
            programs[label] = Compiled(build(fixed(task, label)))
        return programs[label](jax.tree.map(jnp.asarray, free), *args)

    return call


def bucketed(
    build: Callable[[tuple[int, ...]], Population],
    sizes: Callable[[HParams], Array],
    buckets: Buckets,
) -> Population:
    """Build a population whose members have masked shapes, each in the cheapest padded program it fits.

    Args:
        build: (padded sizes `(S_1, ..., S_D)`) -> population whose program has them.
        sizes: (hparams `[N]`) -> the sizes of each member, whole `[N, D]`.
        buckets: Padded sizes, from `buckets.plan`.
    """

    def assign(hparams: HParams) -> list[tuple[int, ...]]:
        return [buckets.shapes[b] for b in buckets.assign(np.asarray(sizes(hparams)))]

    return grouped(assign, build)
