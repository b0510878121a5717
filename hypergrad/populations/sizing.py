"""Layouts within a bound on memory: the widest one that fits, or the fastest by the clock."""

import time
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad.core import tree
from hypergrad.core.checks import check_bytes, check_whole
from hypergrad.core.hoist import Compiled
from hypergrad.core.memory import accelerator_memory
from hypergrad.core.types import HParams, Key, PyTree
from hypergrad.populations.base import Population, count, population
from hypergrad.populations.devices import mesh
from hypergrad.populations.layouts import Layout, chunked, looped, sharded, vectorized
from hypergrad.problem import Problem
from hypergrad.space import sample
from hypergrad.train import init_state

GROWTH = 4
"""Factor between successive widths that are tried."""

PATIENCE = 1.3
"""Ratio to the time of the fastest layout beyond which wider ones are not tried."""

SECONDS = 0.05
"""Shortest time of a measurement, which decides its number of steps."""

REPEATS = 3
"""Number of measurements of each layout, of which the shortest counts."""


class Tried(NamedTuple):
    """A layout that was tried.

    Attributes:
        label: Name of the layout.
        seconds: Time of one step of one member, compilation excluded; NaN where it was not run.
        num_bytes: Size of its compiled program: arguments, results and temporaries.
    """

    label: str
    seconds: float
    num_bytes: int


class Sized(NamedTuple):
    """The layout that was chosen.

    Attributes:
        layout: Layout to pass to `population`.
        seconds: Time of one step of one member.
        num_bytes: Size of its compiled program.
        tried: Every layout that was tried, in order.
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

    **Cost:** one compilation and less than a second for each layout tried, up to log₄ N + 2; memory of
    the N states.

    **Limits:** the clock decides, so another run may choose another layout, whose results are the same to 1e-5,
    not to the bit; `tune` does not use it. Members are timed at their first steps, on one device. Other
    devices are as fast only where they are of the same kind and idle.

    Args:
        problem: Training loop.
        hparams: Hyperparameters of N members; only the timing uses their values.
        memory: Bound in bytes on each device; where None, nine tenths of the memory that the device has, if it
            says.
        num_devices: Number of devices over which the N members will be spread (`sharded`).
        num_seeds: Runs per member, as in `population`.
        order: Shared order of minibatches, as in `population`.

    Returns:
        The fastest layout of one device (on several, `sharded` over them), and all layouts that were tried.

    Raises:
        ValueError: for an invalid bound, or one that not even the leanest layout keeps.
    """
    population(problem, layout=vectorized(), num_seeds=num_seeds, order=order)  # checks them
    check_whole("num_devices", num_devices)
    if memory is None:
        memory = accelerator_memory()
    else:
        check_bytes(memory)
    share = -(-count(hparams) // num_devices)
    first = jax.tree.map(lambda x: jnp.asarray(x)[:share], hparams)
    asked = _Asked(problem, first, {"num_seeds": num_seeds, "order": order})
    best: Sized | None = None
    tried: list[Tried] = []
    for layout in _ladder(share):
        num_bytes = _program(asked, layout.label)[1]
        if memory is not None and num_bytes > memory:
            tried.append(Tried(layout.label, float("nan"), num_bytes))
            break  # wider ones need more
        seconds = _seconds(asked, layout.label)
        tried.append(Tried(layout.label, seconds, num_bytes))
        if best is None or seconds < best.seconds:
            best = Sized(layout, seconds, num_bytes, ())
        elif seconds > PATIENCE * best.seconds:
            break
    if best is None:
        raise ValueError(
            f"memory is {memory} bytes, expected at least {tried[0].num_bytes} for a loop; "
            "raise it, or train a smaller model"
        )
    layout = best.layout
    if num_devices > 1:
        layout = sharded(mesh(num_devices), chunked(1) if layout.host else layout, pad=True)
    return best._replace(layout=layout, tried=tuple(tried))


def widest_chunk(problem: Problem, hparams: HParams, memory: int, most: int) -> int:
    """Return the largest width of `chunked` within a bound, among `most` and its halves.

    The compiler states what each takes, and nothing is run, so that the answer is the same on every run.

    **Cost:** one compilation for each width tried.

    Args:
        problem: Training loop.
        hparams: Hyperparameters of the N members of one device; only their shapes count.
        memory: Bound in bytes.
        most: Largest width.

    Raises:
        ValueError: where not even one member at a time keeps the bound.
    """
    asked = _Asked(problem, hparams, {"num_seeds": 1, "order": None})
    width = min(most, count(hparams))
    while (num_bytes := _program(asked, chunked(width).label)[1]) > memory:
        if width == 1:
            raise ValueError(
                f"memory is {memory} bytes, expected at least {num_bytes} for one member at a time; "
                "raise it, or train a smaller model"
            )
        width //= 2
    return width


class _Asked:
    """A population to be measured; two are the same if their problem, shapes and options are."""

    def __init__(self, problem: Problem, hparams: HParams, options: dict[str, Any]):
        self.problem = problem
        self.hparams = hparams
        self.options = options
        order = options["order"]
        drawn = None if order is None else tuple(np.ravel(jax.random.key_data(order)).tolist())
        shapes = tuple((name, x.shape, str(x.dtype)) for name, x in tree.named(hparams).items())
        where = (jax.default_backend(), jnp.result_type(float))
        self.identity = (problem, shapes, options["num_seeds"], drawn, where)

    def __hash__(self):
        return hash(self.identity)

    def __eq__(self, other):
        return isinstance(other, _Asked) and self.identity == other.identity

    def members(self, layout: Layout) -> Population:
        """Build the population; a loop is one member at a time."""
        return population(
            self.problem, layout=vectorized() if layout.host else layout, **self.options
        )

    def start(self) -> PyTree:
        """Make the first states of all members."""
        keys = jax.random.split(jax.random.key(0), count(self.hparams))
        return self.members(vectorized()).init(keys, self.hparams)


def _ladder(num: int) -> list[Layout]:
    """List the layouts from the leanest to the widest."""
    widths, width = [], GROWTH
    while width < num:
        widths.append(width)
        width *= GROWTH
    return [looped(), *map(chunked, widths), vectorized()] if num > 1 else [looped()]


@lru_cache(maxsize=64)
def _program(asked: _Asked, label: str) -> tuple[Any, int, int]:
    """Compile `advance`, of one member for a loop.

    Returns:
        The program, the bytes that all members take according to the compiler, and the number of members that
        it trains.
    """
    num = count(asked.hparams)
    layouts = [*_ladder(num), *map(chunked, range(1, num + 1))]
    layout = next(layout for layout in layouts if layout.label == label)
    size = 1 if layout.host else num
    hparams, states = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype),
        (asked.hparams, jax.eval_shape(asked.start)),
    )
    steps = jax.ShapeDtypeStruct((), jnp.int32)
    advance = Compiled(asked.members(layout).advance)
    program = advance.lower(hparams, states, steps).compile()
    data = advance.data(hparams, states, steps)
    call, analysis = partial(program, *data), program.memory_analysis()
    if analysis is None:
        return call, 0, size  # unknown: halving the width remains
    shared = sum(x.nbytes for x in jax.tree.leaves(data))
    held = analysis.argument_size_in_bytes - shared + analysis.output_size_in_bytes
    # a loop holds the arguments and the results of all members, too
    return call, int(analysis.temp_size_in_bytes + shared + held * num // size), size


@lru_cache(maxsize=8)
def _start(asked: _Asked) -> PyTree:
    return asked.start()


@lru_cache(maxsize=64)
def _seconds(asked: _Asked, label: str) -> float:
    """Time a step of one member."""
    program, _, size = _program(asked, label)
    hparams, states = jax.tree.map(lambda x: x[:size], (asked.hparams, _start(asked)))

    def call(num_steps: int) -> float:
        began = time.perf_counter()
        jax.block_until_ready(program(hparams, states, jnp.asarray(num_steps, jnp.int32)))
        return time.perf_counter() - began

    call(1)
    num_steps = 1
    while (took := call(num_steps)) < SECONDS:
        num_steps *= 2 if took > SECONDS / 8 else 8
    return min([took, *(call(num_steps) for _ in range(REPEATS - 1))]) / num_steps / size


def state_bytes(problem: Problem, space: PyTree) -> int:
    """Return the bytes of the training state of one member with hparams of a space."""

    def first(key: Key) -> PyTree:
        return init_state(problem, key, sample(space, key))

    state = jax.eval_shape(first, jax.random.key(0))
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
