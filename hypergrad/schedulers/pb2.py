"""Population-based bandits: what to try next in population-based training, from a Gaussian process."""

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad.core.checks import check_whole
from hypergrad.core.methods import Method
from hypergrad.core.types import Array, HParams, PyTree
from hypergrad.populations import count
from hypergrad.problem import Problem
from hypergrad.schedulers.base import Explore, Periods, Scheduler, later
from hypergrad.schedulers.pbt import compared
from hypergrad.searchers.bayes import maximise
from hypergrad.searchers.models.gaussian_process import (
    Covariance,
    agreement,
    believe,
    condition,
    confidence_bound,
    fit_covariance,
    prior_kernel,
)
from hypergrad.searchers.models.targets import power
from hypergrad.space import Coordinates, Sequence, coordinates, from_units, to_units


def pb2(space: PyTree, *, kappa: float = 2.0, capacity: int = 128) -> Explore:
    """Explore where a Gaussian process expects the objective to fall most in the period to come.

    Δ_{p,i} = objective of member i at the end of period p, less that it went on from
    (λ, t) -> Δ  is modelled with the kernel  k_SE(λ, λ') · (1 − ω)^{|t − t'| / 2}  (`time_varying`), and each
    copy gets the λ with the lowest bound  mean − κ std  at the time to come, one after the other. What the
    members that go on have, and the copies before it got, is hallucinated to come out at its mean (GP-BUCB):
    the mean stays that of the data, and std falls where they are. Length scales, ω, amplitude and noise are
    those of the highest marginal likelihood, times a prior whose ω is about 0.3 for eight periods.

    **Cost:** 80 factorizations O(n³) a comparison, n = min(capacity, members x periods), and a search of the
    bound for each copy.

    **Limits:** κ is fixed, where the paper's grows with the logarithm of time; each coordinate has a length
    scale of its own, where the paper has one for all. Before the second comparison there is nothing to
    model, and the copies' hparams are drawn at random. A schedule is explored as the value that it has from
    the present on.

    Args:
        space: a pytree of traceable dimensions.
        kappa: κ, the weight of what is not known.
        capacity: periods of members that are remembered, the newest.

    Returns:
        What `pbt(explore=...)` takes.

    Raises:
        ValueError: for a static dimension, by its name, and for settings out of range.

    Reference:
        Parker-Holder, Nguyen, Roberts, "Provably Efficient Online Hyperparameter Optimization with
        Population-Based Bandits" (PB2), NeurIPS 2020, arXiv:2002.02518.
    """
    bound = confidence_bound(kappa)
    check_whole("capacity", capacity, 4, example=1024)
    dims = jax.tree.map(lambda dim: dim.element if isinstance(dim, Sequence) else dim, space)
    plain = coordinates(dims)
    whole = Coordinates(  # the last coordinate is the time
        np.append(plain.leaf, -1), np.append(plain.levels, 0), np.append(plain.ordered, True)
    )
    covariance = time_varying(plain.ordered)

    def now(hparams: HParams, step: Array) -> HParams:
        """Return hparams `[N]` with the value that schedules have at a share of the training."""

        def leaf(dim, x):
            if not isinstance(dim, Sequence):
                return x
            return x[:, jnp.minimum((step * dim.length).astype(jnp.int32), dim.length - 1)]

        return jax.tree.map(leaf, space, hparams)

    def table(history: Periods) -> tuple[Array, Array, Array]:
        """Return units with time `[n, D + 1]`, changes `[n]`, and which rows hold one, the newest first."""
        num_periods, num = history.values.shape
        middles = (jnp.arange(num_periods) + 0.5) / num_periods
        rows = jax.vmap(lambda h, t: to_units(dims, now(h, t)))(history.hparams, middles)
        times = jnp.broadcast_to(middles[:, None, None], (num_periods, num, 1))
        units = jnp.concatenate([rows, times], -1).reshape(num_periods * num, -1)
        starts = history.starts.reshape(-1)
        index = jnp.arange(num_periods * num)
        filled = (index < history.num * num) & jnp.isfinite(starts)
        newest = jax.lax.top_k(jnp.where(filled, index, -1), min(capacity, len(index)))[1]
        change = jnp.where(filled, history.values.reshape(-1) - starts, jnp.inf)
        change = jnp.where(jnp.isnan(change), jnp.inf, change)  # it diverged
        return units[newest], change[newest], filled[newest]

    def explore(key, hparams, history):
        num, past = count(hparams), history.num / history.values.shape[0]
        middle = past + 0.5 / history.values.shape[0]
        units, change, filled = table(history)
        targets = power(change, filled)
        kernel = fit_covariance(prior_kernel(whole.num), covariance, units, targets, filled)
        room = jnp.zeros((num, whole.num), units.dtype)
        posterior = condition(
            kernel,
            covariance,
            jnp.concatenate([units, room]),
            jnp.concatenate([targets, room[:, 0]]),
            jnp.concatenate([filled, jnp.zeros(num, bool)]),
        )
        time = jnp.full((num, 1), middle, units.dtype)
        leaders = jnp.concatenate([to_units(dims, now(hparams, middle)), time], -1)
        low = jnp.zeros(whole.num, units.dtype).at[-1].set(middle)
        high = jnp.ones(whole.num, units.dtype).at[-1].set(middle)

        def one(posterior, step):
            key, row, member = step

            def choose():
                return maximise(key, posterior, covariance, whole, bound, (leaders, low, high))

            unit = jax.lax.cond(moved[member], choose, lambda: leaders[member])
            return believe(posterior, covariance, unit, row), unit[:-1]

        draw_key, key = jax.random.split(key)
        moved = jnp.ones(num, bool) if history.moved is None else history.moved
        order = jnp.argsort(moved)  # those that go on first
        steps = jax.random.split(key, num), len(units) + jnp.arange(num), order
        asked = jax.lax.scan(one, posterior, steps)[1][jnp.argsort(order)]
        anywhere = jax.random.uniform(draw_key, asked.shape, asked.dtype)
        found = from_units(dims, jnp.where(jnp.any(filled), asked, anywhere))

        def leaf(dim, value, new):
            if not isinstance(dim, Sequence):
                return new.astype(value.dtype)
            new = jnp.broadcast_to(new[:, None], value.shape).astype(value.dtype)
            return jax.vmap(lambda a, b: later(dim, past, a, b))(value, new)

        return jax.tree.map(leaf, space, hparams, found)

    return explore


def time_varying(ordered: np.ndarray) -> Covariance:
    """Return the kernel of PB2 over units of hparams, with the time t behind them.

    k((x, t), (x', t')) = amplitude · exp(−½ Σ_d ((x_d − x'_d) / scale_d)²) · (1 − ω)^{|t − t'| / 2},

    times exp(−1{x_c ≠ x'_c} / scale_c) for each option c. Time has a length scale like the others:
    (1 − ω)^{|t − t'| / 2} = exp(−|t − t'| / scale_t), so that ω = 1 − exp(−2 / scale_t) for one unit of t, and
    1 − exp(−2 / (periods · scale_t)) for a period where t is the share of the training that is over.

    Args:
        ordered: `[D]`, without the time; false for options.

    Reference:
        Parker-Holder, Nguyen, Roberts, 2020, arXiv:2002.02518, section 4; Bogunovic, Scarlett, Cevher,
        "Time-Varying Gaussian Process Bandit Optimization", AISTATS 2016, arXiv:1601.06650.
    """
    numbers = np.flatnonzero(ordered)

    def covariance(kernel, left, right):
        apart = (left[:, None] - right) * jnp.exp(-kernel.scale)
        square = jnp.sum(apart[:, :, numbers] ** 2, -1)
        result = jnp.exp(kernel.amplitude - square / 2 - jnp.abs(apart[:, :, -1]))
        return result * agreement(np.append(ordered, True), kernel, left, right)

    return covariance


def _make(problem: Problem, space: PyTree, horizon: int, size: int) -> tuple[Scheduler, float]:
    return compared(horizon, pb2(space)), size


PB2 = Method(
    "pb2", "as pbt, these from a Gaussian process over what improved the others", (), _make
)
