"""Bayesian optimization: a Gaussian process over the space, and an acquisition that is maximised on it."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.special import ndtri

from hypergrad.core.checks import check_kind, check_whole
from hypergrad.core.methods import Method
from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.searchers.base import Searcher, Trials, guarded, observe
from hypergrad.searchers.models.acquisitions import Acquisition, log_expected_improvement
from hypergrad.searchers.models.gaussian_process import (
    Covariance,
    Kernel,
    Posterior,
    believe,
    condition,
    fit_covariance,
    matern,
    predict,
    prior_kernel,
)
from hypergrad.searchers.models.memory import Memory, empty, remember
from hypergrad.searchers.models.priors import Priors
from hypergrad.searchers.models.sobol_points import directions, points, scramble
from hypergrad.searchers.models.targets import power
from hypergrad.searchers.prior import prior_first
from hypergrad.searchers.wrappers import held_constant
from hypergrad.space import Coordinates, coordinates, from_units, snap, widths

SMALLEST = 64
"""Rows of the smallest table that a process is fitted to; larger ones are powers of two."""

NUM_CANDIDATES = 768
"""Candidates for each suggestion: half of them all over the box, half near the best trials."""

NUM_REFINED = 8
"""Candidates of either half that are refined."""

NUM_STEPS = 40
"""Steps of Adam that refine each of them."""


class TrustRegion(NamedTuple):
    """A box around the best trial that grows with success and shrinks with failure (TuRBO).

    Attributes:
        length: First length of its sides, as a share of the range; each is stretched by its length scale.
        shortest: Length at which the search forgets its trials and begins again.
        longest: Greatest length.
        successes: Generations in a row that improve, until the length doubles.
        failures: Trials in a row that do not improve, until it halves; as many as coordinates where None.
    """

    length: float = 0.8
    shortest: float = 2.0**-7
    longest: float = 1.6
    successes: int = 3
    failures: int | None = None


class Region(NamedTuple):
    """A trust region now: side length, successes in a row, failed trials in a row."""

    length: Array
    successes: Array
    failures: Array


class BayesState(NamedTuple):
    """State of `bayes`.

    Attributes:
        memory: Trials that the process is conditioned on.
        kernel: Kernel fitted to them.
        vectors, shift: Scrambled Sobol sequence that the first trials come from.
        num_told: Trials told so far, int32.
        region: Trust region; its length does not change where there is none.
    """

    memory: Memory
    kernel: Kernel
    vectors: Array
    shift: Array
    num_told: Array
    region: Region


class Surrogate(NamedTuple):
    """What a suggestion needs beside the state; the fields are arguments of `bayes`."""

    coords: Coordinates
    covariance: Covariance
    acquisition: Acquisition
    transform: Callable[[Array, Array], Array]
    trust_region: TrustRegion | None


def bayes(
    space: PyTree,
    capacity: int = 256,
    *,
    num_initial: int | None = None,
    acquisition: Acquisition = log_expected_improvement,
    transform: Callable[[Array, Array], Array] = power,
    warp: bool = False,
    trust_region: TrustRegion | None = None,
) -> Searcher:
    """Maximise an acquisition on a Gaussian process with a Matérn-5/2 kernel (`gaussian_process.matern`).

    `tell` fits length scales, amplitude and noise to the transformed scores; `ask` makes q suggestions one
    after the other, each maximising the acquisition over candidates, of which the best are refined by
    gradient, and each then believed at its predicted mean (kriging believer). Options and whole numbers
    stay what they were while the rest is refined.

    **Cost:** with n trials, padded to a power of two, 120 factorizations O(n³) a `tell` and one an `ask`, and
    O(768 n²) a suggestion. One program is compiled for each power of two up to `capacity`.

    **Limits:** at most `capacity` trials are remembered: the better half, and the newest others. A failed
    trial counts as the worst of the others, and so does one whose score is huge (`models.targets.FENCES`).
    With x64 off, noise has a variance of at least 1e-6 of that of the scores.

    Args:
        space: A pytree of traceable dimensions.
        capacity: Number of trials that are remembered, at least 4.
        num_initial: Number of scrambled Sobol trials before the process is used; 2 D, from 4 to 20, where
            None.
        acquisition: (mean, std, best) -> score, such as those of `models.acquisitions`.
        transform: (scores, filled) -> targets that the process is fitted to, such as those of
            `models.targets`.
        warp: Whether a warping of each coordinate is fitted too.
        trust_region: Box around the best trial to search in; everywhere where None.

    Returns:
        A searcher. Its info has the noise, the shortest and longest length scale, and the side of the region.

    Raises:
        ValueError: for settings out of range.

    Reference:
        Snoek, Larochelle, Adams, "Practical Bayesian Optimization of Machine Learning Algorithms", NeurIPS
        2012; Eriksson et al., "Scalable Global Optimization via Local Bayesian Optimization" (TuRBO),
        NeurIPS 2019; Cowen-Rivers et al., "HEBO", JAIR 74, 2022 (warping and output transforms).
    """
    coords = coordinates(space)
    begin = min(20, max(4, 2 * coords.num)) if num_initial is None else num_initial
    capacity = check_whole("capacity", capacity, 4, example=256)
    begin = check_whole("num_initial", begin)
    box = TrustRegion() if trust_region is None else trust_region
    if trust_region is not None:
        _check_region(trust_region)
    first = directions(coords.num)
    surrogate = Surrogate(coords, matern(coords.ordered), acquisition, transform, trust_region)
    sizes = _sizes(capacity)

    def init(key: Key) -> BayesState:
        zero = jnp.zeros((), jnp.int32)
        region = Region(jnp.asarray(box.length, jnp.result_type(float)), zero, zero)
        vectors, shift = scramble(key, first)
        memory, start = empty(capacity, coords.num), prior_kernel(coords.num)
        return BayesState(memory, start, vectors, shift, zero, region)

    def branch(memory: Memory) -> Array:
        """Return 0 for the first trials, then 1 more than the index of the size that has room for them."""
        index = jnp.sum(memory.count > jnp.array(sizes), dtype=jnp.int32)
        return jnp.where(memory.count >= min(begin, capacity), 1 + index, 0)

    def tell(state: BayesState, trials: Trials) -> BayesState:
        units, scores = observe(space, trials)
        memory, region = remember(state.memory, units, scores), state.region
        if trust_region is not None:
            memory, region = _moved(box, state, memory, scores)
        told = jnp.minimum(state.num_told + len(scores), 2**30)
        state = state._replace(memory=memory, num_told=told, region=region)
        fits = [lambda s, n=n: fitted(surrogate, s, n, warp) for n in sizes]
        kernel = jax.lax.switch(branch(memory), [lambda s: s.kernel, *fits], state)
        return state._replace(kernel=kernel)

    def ask(key: Key, state: BayesState, num: int) -> HParams:
        def beginning(key: Key, state: BayesState) -> Array:
            return points(state.vectors, state.shift, state.num_told, num)

        searches = [lambda k, s, n=n: suggest(k, surrogate, s, num, n) for n in sizes]
        branches = [beginning, *searches]
        return from_units(space, jax.lax.switch(branch(state.memory), branches, key, state))

    def info(state: BayesState) -> dict[str, Array]:
        return {
            "noise": jnp.exp(state.kernel.noise),
            "shortest_scale": jnp.exp(jnp.min(state.kernel.scale)),
            "longest_scale": jnp.exp(jnp.max(state.kernel.scale)),
            "region": state.region.length,
        }

    return guarded(space, Searcher(init, ask, tell, info))


def _sizes(capacity: int) -> list[int]:
    """Return the numbers of rows that programs are compiled for: powers of two, and the capacity."""
    powers = [2**k for k in range(int(math.log2(SMALLEST)), 31) if 2**k < capacity]
    return [*powers, capacity]


def _first_rows(memory: Memory, size: int) -> Memory:
    return jax.tree.map(lambda x: x[:size] if x.ndim else x, memory)


def fitted(surrogate: Surrogate, state: BayesState, size: int, warp: bool) -> Kernel:
    """Return the kernel that is likeliest for the first `size` rows."""
    rows = _first_rows(state.memory, size)
    targets = surrogate.transform(rows.scores, rows.filled)
    return fit_covariance(
        state.kernel, surrogate.covariance, rows.units, targets, rows.filled, warp=warp
    )


def suggest(key: Key, surrogate: Surrogate, state: BayesState, num: int, size: int) -> Array:
    """Return `num` suggestions from the first `size` rows, and from those that they believe, `[num, D]`."""
    rows = _first_rows(state.memory, size)
    room = empty(num, surrogate.coords.num)
    units = jnp.concatenate([rows.units, room.units])
    filled = jnp.concatenate([rows.filled, room.filled])
    targets = surrogate.transform(jnp.concatenate([rows.scores, room.scores]), filled)
    posterior = condition(state.kernel, surrogate.covariance, units, targets, filled)
    order = jnp.argsort(jnp.where(filled, targets, jnp.inf))
    leaders = units[order[:NUM_REFINED]]
    low, high = _box(leaders[0], state, surrogate)

    def one(posterior: Posterior, step: tuple[Key, Array]) -> tuple[Posterior, Array]:
        key, row = step
        where = (leaders, low, high)
        unit = maximise(
            key, posterior, surrogate.covariance, surrogate.coords, surrogate.acquisition, where
        )
        return believe(posterior, surrogate.covariance, unit, row), unit

    steps = jax.random.split(key, num), size + jnp.arange(num)
    return jax.lax.scan(one, posterior, steps)[1]


def maximise(
    key: Key,
    posterior: Posterior,
    covariance: Covariance,
    coords: Coordinates,
    acquisition: Acquisition,
    where: tuple[Array, Array, Array],
) -> Array:
    """Return the unit coordinates with the highest acquisition found within a box, `[D]`.

    Args:
        key: Seed of the candidates.
        posterior: Process conditioned on the trials.
        covariance: Covariance of that process.
        coords: Coordinates that the units are of.
        acquisition: Function that is maximised.
        where: Units to look near, `[L, D]`, and the lower and upper bounds of the box, `[D]`.
    """
    leaders, low, high = where
    means = predict(posterior, covariance, posterior.units)[0]
    best = jnp.min(jnp.where(posterior.mask, means, jnp.inf))

    def score(units: Array) -> Array:
        return acquisition(*predict(posterior, covariance, units), best)

    candidates = snap(coords, _candidates(key, coords, leaders, low, high))
    scores = score(candidates)
    scores = jnp.where(jnp.isnan(scores), -jnp.inf, scores)
    # the best of all would lie in one well: those far from it are refined too
    halves = (NUM_CANDIDATES // 2) * np.arange(2)[:, None]
    starts = candidates[(halves + jax.lax.top_k(scores.reshape(2, -1), NUM_REFINED)[1]).ravel()]
    optimizer = optax.adam(optax.linear_schedule(0.05, 0.0, NUM_STEPS))
    moving = coords.levels == 0

    def step(carry: tuple[Array, PyTree], _: None) -> tuple[tuple[Array, PyTree], None]:
        units, moments = carry
        slope = jax.grad(lambda u: jnp.sum(score(u)))(units)
        slope = jnp.where(moving & jnp.isfinite(slope), -slope, 0)
        move, moments = optimizer.update(slope, moments)
        moved = jnp.clip(jax.tree.map(jnp.add, units, move), low, high)
        return (jnp.where(moving, moved, units), moments), None

    refined = jax.lax.scan(step, (starts, optimizer.init(starts)), None, NUM_STEPS)[0][0]
    both = jnp.concatenate([starts, refined])
    scores = score(both)
    return both[jnp.argmax(jnp.where(jnp.isnan(scores), -jnp.inf, scores))]


def _candidates(key: Key, coords: Coordinates, leaders: Array, low: Array, high: Array) -> Array:
    """Draw candidates: half uniform in the box, half near the best trials, at several distances."""
    num, dim = NUM_CANDIDATES // 2, coords.num
    draws = jax.random.uniform(key, (num, 3 * dim + 2), low.dtype, minval=1e-6)
    uniform, normal, flips, few = jnp.split(draws, (dim, 2 * dim, 3 * dim), axis=1)
    free = low + uniform * (high - low)
    centre = leaders[jnp.floor(few[:, 0] * len(leaders)).astype(jnp.int32)]
    distance = 10 ** (-3 + 2.5 * few[:, 1:])
    near = centre + distance * ndtri(normal)
    # a step may not carry a whole number or an option out of its cell: some jump
    jump = flips < 1 / (1 + dim)
    near = jnp.where(jump & (coords.levels > 0), uniform, near)
    near = jnp.where(coords.ordered | jump, near, centre)
    return jnp.concatenate([free, jnp.clip(near, low, high)])


def _box(centre: Array, state: BayesState, surrogate: Surrogate) -> tuple[Array, Array]:
    """Return the bounds of the trust region, `[D]` each; the whole cube where there is none."""
    low, high, coords = jnp.zeros_like(centre), jnp.ones_like(centre), surrogate.coords
    if surrogate.trust_region is None:
        return low, high
    scale = state.kernel.scale
    numbers = np.flatnonzero(coords.ordered)
    middle = jnp.mean(scale[numbers]) if len(numbers) else 0.0
    half = state.region.length * jnp.exp(scale - middle) / 2
    # half a cell more lets a whole number change; options have no distance, and are free
    half = half + 0.5 * widths(coords, centre)
    inside = jnp.maximum(centre - half, 0), jnp.minimum(centre + half, 1)
    return jnp.where(coords.ordered, inside[0], low), jnp.where(coords.ordered, inside[1], high)


def _moved(
    box: TrustRegion, state: BayesState, memory: Memory, scores: Array
) -> tuple[Memory, Region]:
    """Resize the region after a generation; where it is too short, forget the trials and begin again."""
    before = jnp.min(state.memory.scores)
    known = jnp.isfinite(before)
    last = jnp.where(known, before, 0)
    improved = known & (jnp.min(scores) < last - 1e-3 * jnp.abs(last))
    region = _resized(box, state.region, improved, len(scores), memory.units.shape[1])
    again = region.length < box.shortest
    memory = memory._replace(
        scores=jnp.where(again, jnp.inf, memory.scores), count=jnp.where(again, 0, memory.count)
    )
    return memory, region._replace(length=jnp.where(again, box.length, region.length))


def _resized(box: TrustRegion, region: Region, improved: Array, num: int, dim: int) -> Region:
    """Double the region after successes in a row, halve it after failures in a row."""
    patience = dim if box.failures is None else box.failures
    successes = jnp.where(improved, region.successes + 1, 0)
    failures = jnp.where(improved, 0, region.failures + num)
    wider, narrower = successes >= box.successes, failures >= max(patience, num)
    length = jnp.where(wider, jnp.minimum(2 * region.length, box.longest), region.length)
    length = jnp.where(narrower, length / 2, length)
    changed = wider | narrower
    return Region(length, jnp.where(changed, 0, successes), jnp.where(changed, 0, failures))


def _check_region(box: Any) -> None:
    check_kind("trust_region", box, TrustRegion, "TrustRegion()")
    if not 0 < box.shortest < box.length <= box.longest:
        raise ValueError(
            f"trust_region is {box}, expected 0 < shortest < length <= longest; pass e.g. TrustRegion()"
        )
    check_whole("trust_region.successes", box.successes)
    check_whole("trust_region.failures", 1 if box.failures is None else box.failures)


def _make(space: PyTree, num_trials: int, size: int, prior: Priors | None) -> Searcher:
    capacity = min(256, max(16, 2 ** (num_trials - 1).bit_length()))

    def make(space: PyTree) -> Searcher:
        return prior_first(bayes(space, capacity), space, prior, size)

    return held_constant(space, make)


BAYES = Method(
    "bayes",
    "a Gaussian process and its log expected improvement",
    ("prior", "warm_start"),
    _make,
    generation=4,
)
