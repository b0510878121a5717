"""Find the layout that trains a population fastest within a memory bound, by measuring."""

import time
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hypergrad import tree
from hypergrad.layout import Layout, chunked, looped, sharded, vectorized
from hypergrad.population import Population, check_order, count, population
from hypergrad.problem import Problem, check_horizon, check_problem
from hypergrad.types import HParams, Key

GROWTH = 4
"""Factor between the widths that are tried."""
PATIENCE = 1.3
"""Wider layouts are not tried once one is slower than the fastest by this factor."""
SECONDS = 0.05
"""Least time of one measurement, in which as many steps are made as it takes."""
REPEATS = 3
"""Measurements of each layout; the least counts."""


class Tried(NamedTuple):
    """One layout that was looked at.

    Attributes:
        label: what it is.
        seconds: of one step of one member, compilation excluded; NaN where it was not run.
        num_bytes: of its compiled program: arguments, results and temporaries.
    """

    label: str
    seconds: float
    num_bytes: int


class Sized(NamedTuple):
    """The layout that was chosen.

    Attributes:
        layout: what to pass to `population`.
        seconds: of one step of one member.
        num_bytes: of its compiled program.
        tried: every layout looked at, in order.
    """

    layout: Layout
    seconds: float
    num_bytes: int
    tried: tuple[Tried, ...]


def fastest_layout(
    problem: Problem,
    hparams: HParams,
    *,
    memory: int | None = None,
    num_devices: int = 1,
    num_seeds: int = 1,
    order: Key | None = None,
) -> Sized:
    """Choose among a loop, chunks and all members side by side.

    Widths 1, 4, 16, ... up to N are compiled, the compiler is asked for their memory, and those that fit
    are run for a few steps; the answer is kept for the same problem, shapes and bounds.

    **Cost:** one compilation and less than a second for each layout tried, up to log₄ N + 2.

    **Limits:** members are timed at their first steps, on one device: the others are as fast only where
    they are alike and idle.

    Args:
        problem: the training loop.
        hparams: of N members; their values are used for the timing alone.
        memory: bound in bytes on each device; what the device says it has where None, if it says so.
        num_devices: over how many devices the N members will be spread (`sharded`).
        num_seeds: of the population.
        order: of the population.

    Returns:
        The fastest layout of one device (on several, `sharded` over them), and what was tried.

    Raises:
        ValueError: for bounds that are none, or that not even the leanest layout keeps.
    """
    check_problem(problem)
    check_horizon(num_devices, "num_devices")
    check_horizon(num_seeds, "num_seeds")
    check_order(order)
    memory = _device_memory() if memory is None else memory
    if memory is not None and (
        isinstance(memory, bool) or not isinstance(memory, int) or memory < 1
    ):
        raise ValueError(
            f"memory is {memory!r}, expected a positive number of bytes; pass e.g. 64 * 2**20"
        )
    num = count(hparams)
    share = -(-num // num_devices)
    hparams = jax.tree.map(lambda x: jnp.asarray(x)[:share], hparams)
    shapes = tuple((name, x.shape, str(x.dtype)) for name, x in tree.named(hparams).items())
    seen = None if order is None else tuple(jax.random.key_data(order).ravel().tolist())
    context = (jax.default_backend(), jax.config.jax_enable_x64, num_devices, num_seeds)  # type: ignore
    sized = _measured(_Request(problem, hparams, memory, num_seeds, order, (shapes, seen, context)))
    if num_devices == 1:
        return sized
    from hypergrad.devices import mesh

    inner = chunked(1) if sized.layout.host else sized.layout
    return sized._replace(layout=sharded(mesh(num_devices), inner, pad=True))


class _Request:
    """What is asked for; two are the same if their problem, shapes and bounds are."""

    def __init__(self, problem, hparams, memory, num_seeds, order, shapes):
        self.problem = problem
        self.hparams = hparams
        self.memory = memory
        self.options: dict[str, Any] = {"num_seeds": num_seeds, "order": order}
        self.identity = (problem, memory, shapes)

    def __hash__(self):
        return hash(self.identity)

    def __eq__(self, other):
        return isinstance(other, _Request) and self.identity == other.identity


@lru_cache(maxsize=32)
def _measured(asked: _Request) -> Sized:
    num = count(asked.hparams)
    best: Sized | None = None
    tried: list[Tried] = []
    for layout in _ladder(num):
        members = population(asked.problem, layout=layout, **asked.options)
        num_bytes = _bytes(asked, layout)
        if asked.memory is not None and num_bytes > asked.memory:
            tried.append(Tried(layout.label, float("nan"), num_bytes))
            break  # wider ones need more
        seconds = _seconds(members, asked.hparams, 1 if layout.host else num)
        tried.append(Tried(layout.label, seconds, num_bytes))
        if best is None or seconds < best.seconds:
            best = Sized(layout, seconds, num_bytes, ())
        elif seconds > PATIENCE * best.seconds:
            break
    if best is None:
        raise ValueError(
            f"memory is {asked.memory} bytes, expected at least {tried[0].num_bytes} for a loop; "
            "raise it, or train a smaller model"
        )
    return best._replace(tried=tuple(tried))


def _ladder(num: int) -> list[Layout]:
    """List the layouts from the leanest to the widest."""
    widths, width = [], GROWTH
    while width < num:
        widths.append(width)
        width *= GROWTH
    return [looped(), *map(chunked, widths), vectorized()] if num > 1 else [looped()]


def _bytes(asked: _Request, layout: Layout) -> int:
    """Ask the compiler for the memory of one call of `advance`; of a loop, of one member and N states."""
    num = count(asked.hparams)
    one = population(asked.problem, layout=vectorized() if layout.host else layout, **asked.options)

    def states(num):
        hparams = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((num, *x.shape[1:]), x.dtype), asked.hparams
        )
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), num))
        return hparams, jax.eval_shape(one.init, keys, hparams)

    hparams, members = states(1 if layout.host else num)
    steps = jax.ShapeDtypeStruct((), jnp.int32)
    analysis = jax.jit(one.advance).lower(hparams, members, steps).compile().memory_analysis()
    if analysis is None:
        return 0  # a backend that does not say: backing off is left
    held = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
    # on the host a loop holds the arguments and the results of all members at once
    return int(analysis.temp_size_in_bytes + held * (num if layout.host else 1))


def _seconds(members: Population, hparams: HParams, num: int) -> float:
    """Time a step of one member, over the first `num` members."""
    hparams = jax.tree.map(lambda x: x[:num], hparams)
    states = members.init(jax.random.split(jax.random.key(0), num), hparams)

    def call(num_steps):
        began = time.perf_counter()
        jax.block_until_ready(members.advance(hparams, states, num_steps))
        return time.perf_counter() - began

    call(1)  # compiles
    num_steps = 1
    while (took := call(num_steps)) < SECONDS:
        num_steps *= 2 if took > SECONDS / 8 else 8
    return min([took, *(call(num_steps) for _ in range(REPEATS - 1))]) / num_steps / num


def _device_memory() -> int | None:
    """Return how many bytes the device has left, None where it does not say (a CPU does not)."""
    stats = jax.devices()[0].memory_stats()
    if not stats or "bytes_limit" not in stats:
        return None
    return int(0.9 * (stats["bytes_limit"] - stats.get("bytes_in_use", 0)))
