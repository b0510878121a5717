"""CMA-ES: a normal distribution that moves, widens and turns towards the better half of every generation."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri

from hypergrad.core import tree
from hypergrad.core.checks import check_share, check_whole
from hypergrad.core.methods import Method
from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.searchers.base import Searcher, Trials, guarded, observe
from hypergrad.searchers.models.families import Family, Smoothing, tables
from hypergrad.searchers.models.priors import Priors
from hypergrad.searchers.models.sobol_points import directions, uniforms
from hypergrad.searchers.prior import prior_first
from hypergrad.searchers.wrappers import held_constant
from hypergrad.space import Coordinates, cell, coordinates, from_units, names_of, widths

STILL = 0.25
"""Smallest standard deviation of a counted coordinate, in cells: one draw in twenty leaves the middle cell."""

FOLLOW, FLOOR = 0.3, 0.1
"""Share of one generation in an update of the tables, and uniform share of their draws."""

LEAST_SIGMA, MAX_SIGMA = 1e-10, 1.0
"""Bounds of σ, in units of the range."""


class CmaState(NamedTuple):
    """State of `cma_es`; n is the number of ordered coordinates.

    Attributes:
        mean: Mean m, in unit coordinates, `[n]`.
        covariance: Covariance C, `[n, n]`.
        sigma: Step size σ, in units of the range.
        p_sigma: Evolution path p_σ of steps made white, by which σ is adapted, `[n]`.
        p_c: Evolution path p_c of the unscaled steps, by which C is adapted, `[n]`.
        tables: Probability of every option of the other coordinates.
        units, scores: Last trials told, `[P, D]` and `[P]`: generations smaller than P wait here.
        waiting: Number of them that wait, int32.
        step: Updates so far g, int32.
    """

    mean: Array
    covariance: Array
    sigma: Array
    p_sigma: Array
    p_c: Array
    tables: PyTree
    units: Array
    scores: Array
    waiting: Array
    step: Array


def cma_es(space: PyTree, num_members: int = 16, *, sigma: float = 0.2) -> Searcher:
    """Adapt mean, step size and covariance of a normal distribution: (μ/μ_w, λ)-CMA-ES.

    Draw x_i = m + σ y_i with y_i ~ N(0, C), i = 1 … λ. With the μ = λ/2 best, in order, and weights
    w_i ∝ log((λ + 1)/2) − log i that sum to 1, μ_eff = 1/Σ w_i²,

    y_w = Σ w_i y_i,   m ← m + σ y_w,
    p_σ ← (1 − c_σ) p_σ + √(c_σ (2 − c_σ) μ_eff) C^(−1/2) y_w,   σ ← σ exp((c_σ/d_σ) (‖p_σ‖/χ_n − 1)),
    p_c ← (1 − c_c) p_c + h_σ √(c_c (2 − c_c) μ_eff) y_w,
    C ← (1 + c_1 (1 − h_σ) c_c (2 − c_c) − c_1 − c_μ) C + c_1 p_c p_cᵀ + c_μ Σ w_i y_i y_iᵀ,

    with χ_n = E‖N(0, I)‖ and Hansen's rates for n and λ. The normals are scrambled Sobol points. Draws are cut
    at the bounds, and the update uses the cut draws. For a counted coordinate, a trial in the mean's own cell
    counts as the mean, and the standard deviation of a draw stays above a quarter of a cell. Options have no
    direction: each has a table, fitted to the same weighted trials as in `cross_entropy`.

    **Cost:** O(λ n² + n³) a generation, beside the training of λ trials.

    **Limits:** the search becomes local: it does not restart when σ is small (`info["sigma"]`). Where
    generations are smaller than `num_members`, trials wait until there are as many.

    Args:
        space: Pytree of traceable dimensions, at least one of which is not a `Choice`.
        num_members: Number λ of trials of an update where generations are smaller, at least 4; else λ is their
            size.
        sigma: First σ, in units of the range; the first mean is the middle.

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
    num_members = check_whole("num_members", num_members, 4, example=16)
    sigma = check_share("sigma", sigma, "(0, 1]", what="a share of the range", example=0.2)
    moved, chosen = np.flatnonzero(coords.ordered), np.flatnonzero(~coords.ordered)
    if not len(moved):
        raise ValueError(
            "space has options alone, expected a dimension with an order for cma_es to move along; "
            "use cross_entropy"
        )
    directions(coords.num)
    along = coords.of(moved)
    law = _options(space, coords, chosen) if len(chosen) else None

    def init(key: Key) -> CmaState:
        first = law.start if law else ()
        return _start(len(moved), sigma, first, num_members, coords.num)

    def ask(key: Key, state: CmaState, num: int) -> HParams:
        draws = uniforms(key, num, coords.num)
        still = STILL * widths(along, state.mean)
        x = draw_members(state, ndtri(draws[:, moved]), still)
        units = jnp.zeros_like(draws).at[:, moved].set(jnp.clip(x, 0, 1))
        if law:
            units = units.at[:, chosen].set(law.transform(state.tables, draws[:, chosen]))
        return from_units(space, units)

    def tell(state: CmaState, trials: Trials) -> CmaState:
        units, scores = observe(space, trials)
        if len(scores) >= num_members:
            return update(state, units, scores)
        units = jnp.concatenate([state.units, units])[-num_members:]
        scores = jnp.concatenate([state.scores, scores])[-num_members:]
        waiting = state.waiting + len(trials.values)
        ready = waiting >= num_members
        state = state._replace(units=units, scores=scores)
        state = tree.choose(ready, update(state, units, scores), state)
        return state._replace(waiting=jnp.where(ready, 0, waiting))

    def update(state: CmaState, units: Array, scores: Array) -> CmaState:
        rates = rates_of(len(moved), len(scores))
        order = jnp.argsort(scores)[: len(rates.weights)]
        weights = jnp.where(jnp.isfinite(scores[order]), jnp.asarray(rates.weights), 0)
        total = jnp.sum(weights)  # 0 where every trial failed: then nothing changes
        weights = (weights / jnp.where(total > 0, total, 1)).astype(units.dtype)
        x = units[order][:, moved]
        stays = (along.levels > 0) & (cell(along, x) == cell(along, state.mean))
        new = adapt(state, rates, jnp.where(stays, 0, x - state.mean) / state.sigma, weights)
        if law:
            fitted = law.fit(state.tables, units[order][:, chosen], weights)
            new = new._replace(tables=law.blend(state.tables, fitted, new.step))
        return tree.choose(total > 0, new, state)

    def info(state: CmaState) -> dict[str, Array]:
        values = jnp.linalg.eigvalsh(state.covariance)
        ratio = jnp.sqrt(values[-1] / jnp.maximum(values[0], 1e-20))
        return {"sigma": state.sigma, "condition": ratio} | (law.info(state.tables) if law else {})

    return guarded(space, Searcher(init, ask, tell, info))


def _options(space: PyTree, coords: Coordinates, chosen: np.ndarray) -> Family:
    """Return the tables of the coordinates that are options."""
    even = [np.full(k, 1 / k) for k in coords.levels[chosen]]
    names = [names_of(space, coords)[i] for i in chosen]
    return tables(even, names, np.zeros(len(chosen), bool), Smoothing(tables=FOLLOW), FLOOR)


def _start(n: int, sigma: float, first: PyTree, num_members: int, num_coordinates: int) -> CmaState:
    """Return the first state: the mean in the middle, C = I, no trials waiting."""
    dtype = jnp.result_type(float)
    zero, nowhere = jnp.zeros((), jnp.int32), jnp.zeros(n, dtype)
    return CmaState(
        mean=jnp.full(n, 0.5, dtype),
        covariance=jnp.eye(n, dtype=dtype),
        sigma=jnp.asarray(sigma, dtype),
        p_sigma=nowhere,
        p_c=nowhere,
        tables=first,
        units=jnp.full((num_members, num_coordinates), 0.5, dtype),
        scores=jnp.full(num_members, jnp.inf, dtype),
        waiting=zero,
        step=zero,
    )


def draw_members(state: CmaState, z: Array, still: Array) -> Array:
    """Return x = m + σ y with y = B D z, equations 38 to 40, from standard normals z, `[N, n]`.

    `still` is the smallest standard deviation of each coordinate, `[n]`.
    """
    values, axes = jnp.linalg.eigh(state.covariance)
    root = axes * jnp.sqrt(jnp.maximum(values, 0))
    y = state.sigma * z @ root.T
    width = state.sigma * jnp.sqrt(jnp.diagonal(state.covariance))
    return state.mean + y * jnp.maximum(1, still / width)


def adapt(state: CmaState, rates: "Rates", y: Array, w: Array) -> CmaState:
    """Move the distribution towards the steps y of the best trials, `[μ, n]`, with the weights w, `[μ]`.

    The numbers are those of the equations in Hansen's tutorial, without negative weights (46).
    """
    n = len(state.mean)
    c_sigma, c_c, c_1, c_mu = rates.c_sigma, rates.c_c, rates.c_1, rates.c_mu
    y_w = w @ y  # 41
    mean = state.mean + state.sigma * y_w  # 42

    values, axes = jnp.linalg.eigh(state.covariance)
    white = axes @ ((axes.T @ y_w) / jnp.sqrt(jnp.maximum(values, 1e-20)))  # C^(−1/2) y_w
    pull_sigma = math.sqrt(c_sigma * (2 - c_sigma) * rates.mu_eff)
    p_sigma = (1 - c_sigma) * state.p_sigma + pull_sigma * white  # 43
    length = jnp.linalg.norm(p_sigma) / rates.chi_n
    sigma = state.sigma * jnp.exp(jnp.minimum(c_sigma / rates.d_sigma * (length - 1), 1))  # 44

    # p_c waits while p_σ is long, lest C grow along with σ
    since = 1 - (1 - c_sigma) ** (2.0 * (state.step + 1))
    h_sigma = length / jnp.sqrt(since) < 1.4 + 2 / (n + 1)
    pull_c = math.sqrt(c_c * (2 - c_c) * rates.mu_eff)
    p_c = (1 - c_c) * state.p_c + h_sigma * pull_c * y_w  # 45
    kept = 1 - c_1 - c_mu + (1 - h_sigma) * c_1 * c_c * (2 - c_c)
    covariance = kept * state.covariance + c_1 * jnp.outer(p_c, p_c)
    covariance = covariance + c_mu * (y.T * w) @ y  # 47
    return state._replace(
        mean=mean,
        covariance=covariance,
        sigma=jnp.clip(sigma, LEAST_SIGMA, MAX_SIGMA),
        p_sigma=p_sigma,
        p_c=p_c,
        step=state.step + 1,
    )


class Rates(NamedTuple):
    """Hansen's rates for n coordinates and λ trials (his table 1), without negative weights.

    Attributes:
        weights: Weights w of the μ best, `[μ]`.
        mu_eff: Number of equal weights with the same variance.
        c_sigma, d_sigma: Rate of p_σ, and damping of σ.
        c_c: Rate of p_c.
        c_1, c_mu: Rates of the updates of C by p_c, and by the μ best.
        chi_n: Expected length of a standard normal vector.
    """

    weights: np.ndarray
    mu_eff: float
    c_sigma: float
    d_sigma: float
    c_c: float
    c_1: float
    c_mu: float
    chi_n: float


def rates_of(n: int, num_members: int) -> Rates:
    """Return the rates for n coordinates and λ = `num_members` trials; the numbers are Hansen's equations."""
    raw = np.log((num_members + 1) / 2) - np.log(1 + np.arange(num_members // 2))  # 49
    weights = raw / raw.sum()  # 53
    mu_eff = 1 / np.sum(weights**2)  # 8
    c_sigma = (mu_eff + 2) / (n + mu_eff + 5)  # 55
    d_sigma = 1 + 2 * max(0.0, math.sqrt((mu_eff - 1) / (n + 1)) - 1) + c_sigma  # 55
    c_c = (4 + mu_eff / n) / (n + 4 + 2 * mu_eff / n)  # 56
    c_1 = 2 / ((n + 1.3) ** 2 + mu_eff)  # 57
    c_mu = min(1 - c_1, 2 * (mu_eff - 2 + 1 / mu_eff) / ((n + 2) ** 2 + mu_eff))  # 58
    chi_n = math.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n**2))
    return Rates(weights, mu_eff, c_sigma, d_sigma, c_c, c_1, c_mu, chi_n)


def _make(space: PyTree, num_trials: int, size: int, prior: Priors | None) -> Searcher:
    def make(space: PyTree) -> Searcher:
        return prior_first(cma_es(space, max(4, size)), space, prior, size)

    return held_constant(space, make)


CMA_ES = Method(
    "cma_es",
    "CMA-ES: a normal distribution that moves and turns; options by tables",
    ("prior", "warm_start"),
    _make,
)
