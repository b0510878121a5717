"""Cross-entropy search (CEHPO): draw from a distribution, fit it to the best draws, smooth, repeat."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp

from hypergrad.core import tree
from hypergrad.core.checks import check_whole, is_number, is_whole
from hypergrad.core.methods import Method
from hypergrad.core.types import Array, PyTree
from hypergrad.searchers.base import Searcher, Trials, observe
from hypergrad.searchers.models.distribution import distribution
from hypergrad.searchers.models.families import Family
from hypergrad.searchers.models.priors import Priors
from hypergrad.searchers.models.sobol_points import directions, uniforms
from hypergrad.searchers.wrappers import constant
from hypergrad.space import coordinates, from_units

GOING_ON, UNCHANGED, SETTLED = 0, 1, 2
"""Values of `info["stopped"]`: neither rule, γ unchanged, distribution settled."""


LEAST_GENERATION = 3
"""Fewest trials of a generation whose best half has two elites, to which a distribution can be fitted."""


class Stop(NamedTuple):
    """When a study of cross-entropy search is done, beside its budget.

    Attributes:
        generations: γ_t has not changed for so many generations.
        tolerance: change of γ_t that counts as none, relative to γ_t.
        sigma, epsilon: every standard deviation is below `sigma`, of the range, and every table gives one
            value at least 1 − `epsilon`.
    """

    generations: int = 5
    tolerance: float = 0.0
    sigma: float = 1e-3
    epsilon: float = 1e-3


class CrossEntropyState(NamedTuple):
    """State of `cross_entropy`.

    Attributes:
        params: of the distribution.
        step: generations told, int32.
        kept: the best trials so far in unit coordinates, `[keep, D]`.
        kept_scores: their scores, `[keep]`; infinite where there is none yet.
        gamma: score of the last elite, γ_t.
        unchanged: generations in which γ_t has not changed, int32.
        num_elites: of the last generation, int32.
        before, after: mean log-likelihood of its elites under the distribution it was drawn from, and
            under that fitted to them.
        stopped: which rule has stopped the search, int32.
    """

    params: PyTree
    step: Array
    kept: Array
    kept_scores: Array
    gamma: Array
    unchanged: Array
    num_elites: Array
    before: Array
    after: Array
    stopped: Array


def steps_to(target: float) -> Callable[[Trials], Array]:
    """Score trials by the training steps they took to reach an objective of at most `target`.

    Trials that did not reach it follow those that did, by their objective. `schedulers.reach` notes when a
    trial was there (`info["reached"]`); of another scheduler it is where the trial ended, `steps`.
    """

    def score(outcome):
        values = jnp.where(jnp.isfinite(outcome.values), outcome.values, jnp.inf)
        taken = outcome.info.get("reached", jnp.where(values <= target, outcome.steps, -1))
        last = jnp.max(outcome.steps) + 1
        place = jnp.argsort(jnp.argsort(values))
        return jnp.where(jnp.isfinite(values), jnp.where(taken < 0, last + place, taken), jnp.inf)

    return score


def cross_entropy(
    space: PyTree,
    *,
    rho: float = 0.1,
    keep: int = 0,
    family: Callable[[PyTree], Family] = distribution,
    score: Callable[[Trials], Array] | None = None,
    stop: Stop | None = None,
) -> Searcher:
    """Fit a distribution to the best share ρ of every generation.

    Draw x_1, …, x_M ~ f(· ; v_t) with scores S_m, lower is better. With γ_t = S_(⌈ρM⌉) and the elites
    E = {m: S_m ≤ γ_t}, of which ties are part,

    v* = argmin_v KL(uniform on E ‖ f(· ; v)) = argmax_v Σ_{m ∈ E} log f(x_m ; v),   v_{t+1} = smooth(v*, v_t).

    The draws are scrambled Sobol points pushed through the quantiles of f, with a fresh scramble a
    generation. A trial that is not finite is never an elite; a generation without a finite one changes
    nothing.

    **Cost:** O(M D) a generation, beside the training of M trials; D³ more with `correlated`.

    **Limits:** it takes some ten generations of some 30 trials to learn anything. The mean log-likelihood
    of the elites rises from `before` to `after` by definition, that of later elites need not. With new
    initial weights for each trial, `keep` holds on to lucky ones.

    Args:
        space: a pytree of traceable dimensions.
        rho: share of a generation that is elite.
        keep: how many of the best trials so far compete again in every generation.
        family: (space) -> the family of f; `functools.partial(distribution, ...)` for tables, Markov
            tables, correlations, a prior, other smoothing and floor.
        score: (outcome) -> `[M]`, what is minimised; the objective where None; see `steps_to`.
        stop: when `info["done"]` becomes true.

    Returns:
        A searcher. Its info has γ_t (`gamma`), the elites' log-likelihood `before` and `after` the update,
        the entropy of every table, the largest standard deviation, and which rule `stopped` it.

    Raises:
        ValueError: for settings out of range, and when asked for a generation with fewer than two elites.

    Reference:
        Li, Li, "Cross-Entropy Optimization for Hyperparameter Optimization in Stochastic Gradient-based
        Approaches to Train Deep Neural Networks", arXiv 2409.09240, 2024; Kroese, Porotsky, Rubinstein,
        "The Cross-Entropy Method for Continuous Multi-Extremal Optimization", Methodol. Comput. Appl.
        Probab. 8, 2006 (dynamic smoothing).
    """
    num_dims = coordinates(space).num
    rule = Stop() if stop is None else stop
    _check_settings(rho, keep, rule)
    directions(num_dims)
    law = family(space)

    def init(key):
        dtype = jnp.result_type(float)
        zero, infinite = jnp.zeros((), jnp.int32), jnp.asarray(jnp.inf, dtype)
        nan = jnp.asarray(jnp.nan, dtype)
        kept = jnp.zeros((keep, num_dims), dtype), jnp.full(keep, jnp.inf, dtype)
        return CrossEntropyState(law.start, zero, *kept, infinite, zero, zero, nan, nan, zero)

    def ask(key, state, num):
        _check_generation(num, rho, keep)
        return from_units(space, law.transform(state.params, uniforms(key, num, num_dims)))

    def tell(state, outcome):
        units, scores = observe(space, outcome)
        if score is not None:
            scores = _finite(score(outcome), scores)
        num_elites = math.ceil(rho * len(scores))
        units = jnp.concatenate([state.kept, units])
        scores = jnp.concatenate([state.kept_scores, scores])
        order = jnp.argsort(scores)
        gamma = scores[order[num_elites - 1]]
        elite = (scores <= gamma) & jnp.isfinite(scores)
        weights = elite.astype(units.dtype)
        some = jnp.any(elite)

        fitted = law.fit(state.params, units, weights)
        blended = law.blend(state.params, fitted, state.step + 1)
        params = tree.choose(some, blended, state.params)

        def likelihood(params):
            logs = jnp.where(elite, law.log_density(params, units), 0)
            return jnp.sum(logs) / jnp.sum(weights)

        change = jnp.abs(gamma - state.gamma)
        same = (gamma == state.gamma) | (change <= rule.tolerance * jnp.abs(gamma))
        unchanged = jnp.where(same & some, state.unchanged + 1, 0)
        stopped = jnp.where(law.settled(params, rule.sigma, rule.epsilon), SETTLED, GOING_ON)
        stopped = jnp.where(unchanged >= rule.generations, UNCHANGED, stopped)
        best = order[:keep]
        return CrossEntropyState(
            params,
            state.step + 1,
            units[best],
            scores[best],
            gamma,
            unchanged,
            jnp.sum(elite, dtype=jnp.int32),
            likelihood(state.params),
            likelihood(params),
            stopped.astype(jnp.int32),
        )

    def info(state):
        return {
            "gamma": state.gamma,
            "num_elites": state.num_elites,
            "log_likelihood_before": state.before,
            "log_likelihood_after": state.after,
            **law.info(state.params),
            "stopped": state.stopped,
            "done": state.stopped != GOING_ON,
        }

    return Searcher(init, ask, tell, info)


def _finite(scores: Array, like: Array) -> Array:
    """Return a user's scores, infinite where they or the objectives are not finite."""
    if jnp.shape(scores) != like.shape:
        raise ValueError(
            f"score returned the shape {jnp.shape(scores)}, expected {like.shape}, one number a trial; "
            "return e.g. outcome.values"
        )
    scores = jnp.asarray(scores, like.dtype)
    return jnp.where(jnp.isfinite(scores) & jnp.isfinite(like), scores, jnp.inf)


def _check_settings(rho: float, keep: int, stop: Stop) -> None:
    if not is_number(rho) or not 0 < rho <= 1:
        raise ValueError(f"rho is {rho!r}, expected a share in (0, 1]; pass e.g. 0.1")
    if not is_whole(keep) or keep < 0:
        raise ValueError(f"keep is {keep!r}, expected a whole number of trials; pass e.g. 1")
    check_whole("generations", stop.generations)
    for name in ("tolerance", "sigma", "epsilon"):
        value = getattr(stop, name)
        if not is_number(value) or not 0 <= value < math.inf:
            raise ValueError(f"{name} is {value!r} in Stop, expected a number >= 0; pass e.g. 1e-3")


def _check_generation(num: int, rho: float, keep: int) -> None:
    """Raise a `ValueError` where a generation has fewer elites than a distribution can be fitted to."""
    check_whole("num", num)
    elites = math.ceil(rho * num)
    if elites < 2:
        raise ValueError(
            f"num is {num}, expected at least {math.floor(1 / rho) + 1}, so that rho = {rho} leaves two "
            "elites; ask for more trials, or raise rho"
        )
    if keep >= elites:
        raise ValueError(
            f"keep is {keep}, expected fewer than the {elites} elites of {num} trials; lower it, raise rho, "
            "or ask for more trials"
        )


def _make(space: PyTree, num_trials: int, size: int, prior: Priors | None) -> Searcher:
    if size < LEAST_GENERATION:
        raise ValueError(
            f"population is {size} with method 'cross_entropy', expected at least {LEAST_GENERATION}, so that "
            f"two trials are elite; pass population={LEAST_GENERATION} or more, or a larger budget"
        )
    # a few elites are needed to fit a distribution to, also where generations are small
    rho = min(0.5, max(0.1, 4 / size))
    family = partial(distribution, prior=prior)
    return constant(space, partial(cross_entropy, rho=rho, family=family))


CROSS_ENTROPY = Method(
    "cross_entropy",
    "a distribution fitted to the best of every generation (CEHPO)",
    ("prior", "warm_start"),
    _make,
)
