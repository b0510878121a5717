"""CMA-ES: a normal distribution that moves, widens and turns towards the better half of every generation."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri

from hypergrad.core import tree
from hypergrad.core.checks import check_whole, is_number
from hypergrad.core.methods import Method
from hypergrad.core.types import Array, PyTree
from hypergrad.searchers.base import Searcher, observe
from hypergrad.searchers.models.families import Smoothing, tables
from hypergrad.searchers.models.priors import Priors
from hypergrad.searchers.models.sobol_points import directions, uniforms
from hypergrad.searchers.prior import prior_first
from hypergrad.searchers.wrappers import constant
from hypergrad.space import cell, coordinates, from_units, names_of

STILL = 0.25
"""Least standard deviation of a counted coordinate, in cells: one draw in twenty leaves the middle one."""

FOLLOW, FLOOR = 0.3, 0.1
"""How far tables follow one generation, and the share of their draws that stays even."""

LEAST_SCALE, MOST_SCALE = 1e-10, 1.0
"""Bounds of σ, in units of the range."""


class CmaState(NamedTuple):
    """State of `cma_es`; n is the number of ordered coordinates.

    Attributes:
        mean: `[n]`, in unit coordinates.
        covariance: C, `[n, n]`.
        sigma: σ.
        path: p_σ, `[n]`, of steps made white: what σ is adapted by.
        turn: p_c, `[n]`, of steps as they are: what C is turned by.
        tables: probability of every option of the other coordinates.
        units, scores: of the last trials told, `[P, D]` and `[P]`: generations smaller than P wait here.
        waiting: how many of them do, int32.
        step: updates so far, int32.
    """

    mean: Array
    covariance: Array
    sigma: Array
    path: Array
    turn: Array
    tables: PyTree
    units: Array
    scores: Array
    waiting: Array
    step: Array


def cma_es(space: PyTree, num_members: int = 16, *, sigma: float = 0.2) -> Searcher:
    """Adapt mean, step size and covariance of a normal distribution: (μ/μ_w, λ)-CMA-ES.

    Draw x_i = m + σ y_i with y_i ~ N(0, C), i = 1 … λ. With the μ = λ/2 best, in order, and weights
    w_i ∝ log((λ + 1)/2) − log i that sum to 1, μ_w = 1/Σ w_i²,

    y_w = Σ w_i y_i,   m ← m + σ y_w,
    p_σ ← (1 − c_σ) p_σ + √(c_σ (2 − c_σ) μ_w) C^(−1/2) y_w,   σ ← σ exp((c_σ/d_σ) (‖p_σ‖/E‖N(0, I)‖ − 1)),
    p_c ← (1 − c_c) p_c + h √(c_c (2 − c_c) μ_w) y_w,
    C ← (1 − c_1 − c_μ) C + c_1 p_c p_cᵀ + c_μ Σ w_i y_i y_iᵀ,

    with Hansen's rates for n and λ. The normals are scrambled Sobol points. Draws are cut at the bounds, and
    the update is told what was tried. Of a counted coordinate, a trial in the mean's own cell counts as the
    mean, and the standard deviation of a draw is kept above a quarter of a cell. Options, which have no
    direction, have a table each, fitted to the same weighted trials as by `cross_entropy`.

    **Cost:** O(λ n² + n³) a generation, beside the training of λ trials.

    **Limits:** a local search at last: it does not start again when σ is small (`info["sigma"]`). Trials
    that a generation smaller than `num_members` told wait until there are as many.

    Args:
        space: a pytree of traceable dimensions, one of them no `Choice`.
        num_members: λ where generations are smaller than that, at least 4; else λ is their size.
        sigma: first σ, in units of the range, where the mean is the middle.

    Returns:
        A searcher. Its info has σ, the `condition` of C (the ratio of its longest axis to its shortest) and
        the entropy of every table.

    Raises:
        ValueError: for settings out of range, and a space of options alone.

    Reference:
        Hansen, "The CMA Evolution Strategy: A Tutorial", arXiv 1604.00772, 2016; Hamano et al., "CMA-ES with
        Margin", GECCO 2022 (counted coordinates); Teytaud, Gelly, "DCMA", GECCO 2007 (Sobol points).
    """
    coords = coordinates(space)
    check_whole("num_members", num_members)
    if num_members < 4:
        raise ValueError(
            f"num_members is {num_members}, expected at least 4, two of which are the better half; pass 16"
        )
    if not is_number(sigma) or not 0 < sigma <= MOST_SCALE:
        raise ValueError(
            f"sigma is {sigma!r}, expected a share of the range in (0, 1]; pass e.g. 0.2"
        )
    moved, chosen = np.flatnonzero(coords.ordered), np.flatnonzero(~coords.ordered)
    if not len(moved):
        raise ValueError(
            "space holds options alone, expected a dimension with an order for cma_es to move along; "
            "use cross_entropy"
        )
    directions(coords.num)
    n, levels = len(moved), coords.levels[moved]
    counted, still = levels > 0, np.where(levels > 0, STILL / np.maximum(levels, 1), 0.0)
    law = None
    if len(chosen):
        even = [np.full(k, 1 / k) for k in coords.levels[chosen]]
        names = [names_of(space, coords)[i] for i in chosen]
        law = tables(even, names, np.zeros(len(chosen), bool), Smoothing(tables=FOLLOW), FLOOR)

    def init(key):
        dtype = jnp.result_type(float)
        zero, nothing = jnp.zeros((), jnp.int32), jnp.zeros(n, dtype)
        return CmaState(
            jnp.full(n, 0.5, dtype),
            jnp.eye(n, dtype=dtype),
            jnp.asarray(sigma, dtype),
            nothing,
            nothing,
            law.start if law else (),
            jnp.full((num_members, coords.num), 0.5, dtype),
            jnp.full(num_members, jnp.inf, dtype),
            zero,
            zero,
        )

    def ask(key, state, num):
        draws = uniforms(key, num, coords.num)
        values, axes = jnp.linalg.eigh(state.covariance)
        root = axes * jnp.sqrt(jnp.maximum(values, 0))
        normal = ndtri(draws[:, moved])
        y = state.sigma * normal @ root.T
        width = state.sigma * jnp.sqrt(jnp.diagonal(state.covariance))
        y = y * jnp.maximum(1, still / width)
        units = jnp.zeros_like(draws).at[:, moved].set(jnp.clip(state.mean + y, 0, 1))
        if law:
            units = units.at[:, chosen].set(law.transform(state.tables, draws[:, chosen]))
        return from_units(space, units)

    def tell(state, outcome):
        units, scores = observe(space, outcome)
        if len(scores) >= num_members:
            return update(state, units, scores)
        units = jnp.concatenate([state.units, units])[-num_members:]
        scores = jnp.concatenate([state.scores, scores])[-num_members:]
        waiting = state.waiting + len(outcome.values)
        ready = waiting >= num_members
        state = state._replace(units=units, scores=scores)
        updated = update(state, units, scores)
        state = tree.choose(ready, updated, state)
        return state._replace(waiting=jnp.where(ready, 0, waiting))

    def update(state, units, scores):
        rates = _rates(n, len(scores))
        order = jnp.argsort(scores)[: len(rates.weights)]
        weights = jnp.where(jnp.isfinite(scores[order]), jnp.asarray(rates.weights), 0)
        total = jnp.sum(weights)  # 0 where every trial failed: then nothing changes
        weights = (weights / jnp.where(total > 0, total, 1)).astype(units.dtype)
        best = units[order][:, moved]
        stays = counted & (cell(levels, best) == cell(levels, state.mean))
        y = jnp.where(stays, 0, best - state.mean) / state.sigma
        step = weights @ y

        values, axes = jnp.linalg.eigh(state.covariance)
        white = axes @ ((axes.T @ step) / jnp.sqrt(jnp.maximum(values, 1e-20)))
        path = (1 - rates.sigma) * state.path + rates.sigma_step * white
        length = jnp.linalg.norm(path) / rates.expected
        sigma = state.sigma * jnp.exp(jnp.minimum(rates.sigma / rates.damping * (length - 1), 1))
        # p_c waits while p_σ is long, lest C grow along with σ
        since = 1 - (1 - rates.sigma) ** (2.0 * (state.step + 1))
        slow = length / jnp.sqrt(since) < 1.4 + 2 / (n + 1)
        turn = (1 - rates.turn) * state.turn + slow * rates.turn_step * step
        kept = 1 - rates.one - rates.many + (1 - slow) * rates.one * rates.turn * (2 - rates.turn)
        covariance = kept * state.covariance + rates.one * jnp.outer(turn, turn)
        covariance = covariance + rates.many * (y.T * weights) @ y

        new = state._replace(
            mean=state.mean + state.sigma * step,
            covariance=covariance,
            sigma=jnp.clip(sigma, LEAST_SCALE, MOST_SCALE),
            path=path,
            turn=turn,
            step=state.step + 1,
        )
        if law:
            fitted = law.fit(state.tables, units[order][:, chosen], weights)
            new = new._replace(tables=law.blend(state.tables, fitted, new.step))
        return tree.choose(total > 0, new, state)

    def info(state):
        values = jnp.linalg.eigvalsh(state.covariance)
        ratio = jnp.sqrt(values[-1] / jnp.maximum(values[0], 1e-20))
        return {"sigma": state.sigma, "condition": ratio} | (law.info(state.tables) if law else {})

    return Searcher(init, ask, tell, info)


class Rates(NamedTuple):
    """Hansen's rates for n coordinates and λ trials (his table 1, without negative weights)."""

    weights: np.ndarray
    sigma: float
    sigma_step: float
    damping: float
    turn: float
    turn_step: float
    one: float
    many: float
    expected: float


def _rates(n: int, size: int) -> Rates:
    raw = np.log((size + 1) / 2) - np.log(1 + np.arange(size // 2))
    weights = raw / raw.sum()
    mass = 1 / np.sum(weights**2)
    sigma = (mass + 2) / (n + mass + 5)
    damping = 1 + 2 * max(0.0, math.sqrt((mass - 1) / (n + 1)) - 1) + sigma
    turn = (4 + mass / n) / (n + 4 + 2 * mass / n)
    one = 2 / ((n + 1.3) ** 2 + mass)
    many = min(1 - one, 2 * (mass - 2 + 1 / mass) / ((n + 2) ** 2 + mass))
    expected = math.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n**2))
    sigma_step, turn_step = (math.sqrt(c * (2 - c) * mass) for c in (sigma, turn))
    return Rates(weights, sigma, sigma_step, damping, turn, turn_step, one, many, expected)


def _make(space: PyTree, num_trials: int, size: int, prior: Priors | None) -> Searcher:
    def make(space):
        return prior_first(cma_es(space, max(4, size)), space, prior, size)

    return constant(space, make)


CMA_ES = Method(
    "cma_es",
    "CMA-ES: a normal distribution that moves and turns; options by tables",
    ("prior", "warm_start"),
    _make,
)
