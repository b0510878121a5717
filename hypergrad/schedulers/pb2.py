"""Population-based bandits: exploration in population-based training by a Gaussian process."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad.core.checks import check_whole
from hypergrad.core.methods import Method
from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.populations import count
from hypergrad.problem import Problem
from hypergrad.schedulers.base import Explore, Periods, Scheduler, keep_past
from hypergrad.schedulers.pbt import default_period, pbt
from hypergrad.searchers.bayes import maximise
from hypergrad.searchers.models.acquisitions import Acquisition, confidence_bound
from hypergrad.searchers.models.gaussian_process import (
    Covariance,
    Kernel,
    Posterior,
    agreement,
    believe,
    condition,
    fit_covariance,
    prior_kernel,
)
from hypergrad.searchers.models.targets import power, without_huge
from hypergrad.space import (
    Coordinates,
    Dimension,
    Sequence,
    coordinates,
    from_units,
    to_units,
)


def pb2(space: PyTree, *, kappa: float = 2.0, capacity: int = 128) -> Explore:
    """Explore where a Gaussian process expects the objective to fall most in the next period.

    Δ_{p,i} = objective of member i at the end of period p minus that at its start
    (λ, t) -> Δ  is modelled with the kernel  k_SE(λ, λ') · (1 − ω)^{|t − t'| / 2}  (`time_varying`), and each
    copy gets the λ with the lowest bound mean − κ std at the next time, one copy after the other. Members that
    continue, and earlier copies, count as observed at their predicted means (GP-BUCB): the mean stays that of
    the data, and std falls where they are. Length scales, ω, amplitude and noise are
    those of the highest marginal likelihood, times a prior whose ω is about 0.3 for eight periods.

    **Cost:** 80 factorizations O(n³) a comparison, n = min(capacity, members x periods), and a search of the
    bound for each copy.

    **Limits:** κ is fixed, where the paper's grows with the logarithm of time; each coordinate has a length
    scale of its own, where the paper has one for all. Before the second comparison there is nothing to
    model, and the copies' hparams are drawn at random. A schedule is explored as the value that it has from
    the present on. An objective that is huge but finite counts as one that diverged, and the period after it
    for nothing (`searchers.models.targets`).

    Args:
        space: Pytree of traceable dimensions.
        kappa: Weight κ of the deviation in the bound.
        capacity: Number of remembered periods of members, the newest.

    Returns:
        A function that `pbt(explore=...)` takes.

    Raises:
        ValueError: for a static dimension, by its name, and for settings out of range.

    Reference:
        Parker-Holder, Nguyen, Roberts, "Provably Efficient Online Hyperparameter Optimization with
        Population-Based Bandits" (PB2), NeurIPS 2020, arXiv:2002.02518.
    """
    capacity = check_whole("capacity", capacity, 4, example=1024)
    dims = jax.tree.map(lambda dim: dim.element if isinstance(dim, Sequence) else dim, space)
    plain = coordinates(dims)
    coords = Coordinates(*map(np.append, plain, (-1, 0, True, 0)))
    covariance = time_varying(plain.ordered)
    model = _Model(space, dims, coords, covariance, confidence_bound(kappa), capacity)

    def explore(key: Key, hparams: HParams, periods: Periods) -> HParams:
        num, num_periods = count(hparams), periods.values.shape[0]
        past = periods.num / num_periods
        time = past + 0.5 / num_periods
        units, change, filled = _changes(model, periods)
        draw_key, key = jax.random.split(key)
        moved = jnp.ones(num, bool) if periods.moved is None else periods.moved
        with jax.numpy_rank_promotion("allow"):
            posterior = _posterior(model, units, change, filled, num)
            asked = _one_after_another(model, key, posterior, hparams, moved, time)
        anywhere = jax.random.uniform(draw_key, asked.shape, asked.dtype)
        found = from_units(dims, jnp.where(jnp.any(filled), asked, anywhere))

        def from_now_on(dim: Dimension, value: Array, new: Array) -> Array:
            if not isinstance(dim, Sequence):
                return new.astype(value.dtype)
            new = jnp.broadcast_to(new[:, None], value.shape).astype(value.dtype)
            return jax.vmap(lambda a, b: keep_past(dim, past, a, b))(value, new)

        return jax.tree.map(from_now_on, space, hparams, found)

    return explore


class _Model(NamedTuple):
    space: PyTree
    dims: PyTree  # dimensions of hparams at one time
    coords: Coordinates  # coordinates of those, then the time
    covariance: Covariance
    bound: Acquisition
    capacity: int


def _at(space: PyTree, hparams: HParams, time: Array) -> HParams:
    """Return hparams `[N]` with the value that schedules have at a share of the training."""

    def leaf(dim: Dimension, x: Array) -> Array:
        if not isinstance(dim, Sequence):
            return x
        return x[:, jnp.minimum((time * dim.length).astype(jnp.int32), dim.length - 1)]

    return jax.tree.map(leaf, space, hparams)


def _changes(model: _Model, periods: Periods) -> tuple[Array, Array, Array]:
    """Return units with time `[n, D + 1]`, changes Δ `[n]`, and which rows hold one, the newest first."""
    num_periods, num = periods.values.shape
    middles = (jnp.arange(num_periods) + 0.5) / num_periods
    rows = jax.vmap(lambda h, t: to_units(model.dims, _at(model.space, h, t)))(
        periods.hparams, middles
    )
    times = jnp.broadcast_to(middles[:, None, None], (num_periods, num, 1))
    units = jnp.concatenate([rows, times], -1).reshape(num_periods * num, -1)
    # a period that began with a huge objective fell by more than any other, and says nothing of hparams
    starts = jax.vmap(without_huge)(periods.starts, jnp.isfinite(periods.starts)).reshape(-1)
    index = jnp.arange(num_periods * num)
    filled = (index < periods.num * num) & jnp.isfinite(starts)
    newest = jax.lax.top_k(jnp.where(filled, index, -1), min(model.capacity, len(index)))[1]
    change = jnp.where(filled, periods.values.reshape(-1) - starts, jnp.inf)
    change = jnp.where(jnp.isnan(change), jnp.inf, change)  # it diverged
    return units[newest], change[newest], filled[newest]


def _posterior(
    model: _Model, units: Array, change: Array, filled: Array, num_more: int
) -> Posterior:
    """Fit the process to the changes, with empty rows behind them for the predicted ones."""
    targets = power(change, filled)
    prior = prior_kernel(model.coords.num)
    kernel = fit_covariance(prior, model.covariance, units, targets, filled)
    room = jnp.zeros((num_more, model.coords.num), units.dtype)
    return condition(
        kernel,
        model.covariance,
        jnp.concatenate([units, room]),
        jnp.concatenate([targets, room[:, 0]]),
        jnp.concatenate([filled, jnp.zeros(num_more, bool)]),
    )


def _one_after_another(
    model: _Model, key: Key, posterior: Posterior, hparams: HParams, moved: Array, time: Array
) -> Array:
    """Return the units of each member, `[N, D]`: its own, or for a copy those of the lowest bound.

    Each counts as observed at its mean before the next one is chosen.
    """
    num, dtype = len(moved), posterior.units.dtype
    now = jnp.full((num, 1), time, dtype)
    leaders = jnp.concatenate([to_units(model.dims, _at(model.space, hparams, time)), now], -1)
    low = jnp.zeros(model.coords.num, dtype).at[-1].set(time)
    high = jnp.ones(model.coords.num, dtype).at[-1].set(time)

    def one(posterior: Posterior, step: tuple[Key, Array, Array]) -> tuple[Posterior, Array]:
        key, row, member = step

        def choose() -> Array:
            box = leaders, low, high
            return maximise(key, posterior, model.covariance, model.coords, model.bound, box)

        unit = jax.lax.cond(moved[member], choose, lambda: leaders[member])
        return believe(posterior, model.covariance, unit, row), unit[:-1]

    order = jnp.argsort(moved)  # those that continue first
    rows = len(posterior.units) - num + jnp.arange(num)
    steps = jax.random.split(key, num), rows, order
    return jax.lax.scan(one, posterior, steps)[1][jnp.argsort(order)]


def time_varying(ordered: np.ndarray) -> Covariance:
    """Return the kernel of PB2 over units of hparams, with the time t behind them.

    k((x, t), (x', t')) = amplitude · exp(−½ Σ_d ((x_d − x'_d) / scale_d)²) · (1 − ω)^{|t − t'| / 2},

    times exp(−1{x_c ≠ x'_c} / scale_c) for each option c. Time has a length scale like the others:
    (1 − ω)^{|t − t'| / 2} = exp(−|t − t'| / scale_t), so that ω = 1 − exp(−2 / scale_t) for one unit of t, and
    1 − exp(−2 / (periods · scale_t)) for a period where t is the completed share of the training.

    Args:
        ordered: Whether each coordinate except the time is ordered, `[D]`; false for options.

    Reference:
        Parker-Holder, Nguyen, Roberts, 2020, arXiv:2002.02518, section 4; Bogunovic, Scarlett, Cevher,
        "Time-Varying Gaussian Process Bandit Optimization", AISTATS 2016, arXiv:1601.06650.
    """
    numbers = np.flatnonzero(ordered)

    def covariance(kernel: Kernel, left: Array, right: Array) -> Array:
        apart = (left[:, None] - right[None]) * jnp.exp(-kernel.scale)[None, None]
        square = jnp.sum(apart[:, :, numbers] ** 2, -1)
        result = jnp.exp(kernel.amplitude - square / 2 - jnp.abs(apart[:, :, -1]))
        return result * agreement(np.append(ordered, True), kernel, left, right)

    return covariance


def _make(problem: Problem, space: PyTree, horizon: int, size: int) -> tuple[Scheduler, float]:
    return pbt(horizon, pb2(space), period=default_period(horizon)), size


PB2 = Method(
    "pb2", "as pbt, these from a Gaussian process over what improved the others", (), _make
)
