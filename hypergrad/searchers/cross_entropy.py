"""Cross-entropy search (CEHPO): draw from a distribution, fit it to the best draws, smooth, repeat."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp

from hypergrad.core import tree
from hypergrad.core.checks import check_kind, check_least, check_share, check_whole
from hypergrad.core.methods import Method
from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.searchers.base import Searcher, Trials, guarded, observe
from hypergrad.searchers.models.distribution import distribution
from hypergrad.searchers.models.families import Family
from hypergrad.searchers.models.priors import Priors
from hypergrad.searchers.models.sobol_points import directions, uniforms
from hypergrad.searchers.wrappers import held_constant
from hypergrad.space import from_units, num_coordinates

GOING_ON, UNCHANGED, SETTLED = 0, 1, 2
"""Values of `info["stopped"]`: neither rule, γ unchanged, distribution settled."""


LEAST_GENERATION = 3
"""Smallest generation whose best half has two elites, to which a distribution can be fitted."""


class Stop(NamedTuple):
    """Rules that end a study of cross-entropy search before its budget.

    Attributes:
        generations: Number of generations in a row in which γ_t does not change.
        tolerance: Relative change of γ_t up to which it counts as unchanged.
        sigma, epsilon: Bounds of a settled distribution, in which every standard deviation is below `sigma`, a
            share of the range, and every table gives one value at least 1 − `epsilon`.
    """

    generations: int = 5
    tolerance: float = 0.0
    sigma: float = 1e-3
    epsilon: float = 1e-3


class CrossEntropyState(NamedTuple):
    """State of `cross_entropy`.

    Attributes:
        params: Parameters v_t of the distribution.
        step: Generations told so far, int32.
        kept: Best trials so far in unit coordinates, `[keep, D]`.
        kept_scores: Scores of the kept trials, `[keep]`; infinite where there is no trial yet.
        gamma: Score γ_t of the last elite.
        unchanged: Generations in which γ_t has not changed, int32.
        num_elites: Number of elites of the last generation, int32.
        before, after: Mean log-likelihood of those elites under the distribution that they were drawn from,
            and under the one that was fitted to them; 0 before the first generation.
        stopped: Rule that has stopped the search, int32.
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
    """Score trials by the training steps that they took to reach an objective of at most `target`.

    Trials that did not reach it follow those that did, by their objective. `schedulers.reach` notes when a
    trial reached it (`info["reached"]`); with other schedulers, the end of the trial, `steps`, counts.
    """

    def score(trials: Trials) -> Array:
        values = jnp.where(jnp.isfinite(trials.values), trials.values, jnp.inf)
        taken = trials.info.get("reached", jnp.where(values <= target, trials.steps, -1))
        last = jnp.max(trials.steps) + 1
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
    generation. A trial that is not finite is never an elite; a generation without a finite trial changes
    nothing.

    **Cost:** O(M D) a generation, beside the training of M trials; D³ more with `correlated`.

    **Limits:** the search needs some ten generations of some 30 trials to learn anything. The mean
    log-likelihood of the elites rises from `before` to `after` by definition; that of later elites need not.
    With new initial weights for each trial, `keep` holds on to lucky trials.

    Args:
        space: Pytree of traceable dimensions.
        rho: Share ρ of a generation that is elite.
        keep: Number of the best trials so far that compete again in every generation.
        family: (space) -> the family of f; `functools.partial(distribution, ...)` for tables, Markov
            tables, correlations, a prior, other smoothing and floor.
        score: (trials) -> scores to be minimised, `[M]`; the objectives where None; see `steps_to`.
        stop: Rule by which `info["done"]` becomes true.

    Returns:
        A searcher. Its info has γ_t (`gamma`), the elites' log-likelihood `before` and `after` the update,
        the entropy of every table and whether all have settled, the largest standard deviation, and which
        rule `stopped` it.

    Raises:
        ValueError: for settings out of range, and when asked for a generation with fewer than two elites.

    Reference:
        Li, Li, "Cross-Entropy Optimization for Hyperparameter Optimization in Stochastic Gradient-based
        Approaches to Train Deep Neural Networks", arXiv 2409.09240, 2024; Kroese, Porotsky, Rubinstein,
        "The Cross-Entropy Method for Continuous Multi-Extremal Optimization", Methodol. Comput. Appl.
        Probab. 8, 2006 (dynamic smoothing).
    """
    rho = check_share("rho", rho, "(0, 1]", example=0.1)
    keep = check_whole("keep", keep, 0, example=1)
    if stop is not None:
        _check_stop(stop)
    rule = Stop() if stop is None else stop
    law = family(space)
    num_dims = num_coordinates(space)
    directions(num_dims)

    def init(key: Key) -> CrossEntropyState:
        return _start(law, keep, num_dims)

    def ask(key: Key, state: CrossEntropyState, num: int) -> HParams:
        _num_elites(num, rho, keep)
        return from_units(space, law.transform(state.params, uniforms(key, num, num_dims)))

    def tell(state: CrossEntropyState, trials: Trials) -> CrossEntropyState:
        units, scores = observe(space, trials)
        if score is not None:
            scores = _finite(score(trials), scores)
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

        def likelihood(params: PyTree) -> Array:
            logs = jnp.where(elite, law.log_density(params, units), 0)
            return jnp.sum(logs) / jnp.sum(weights)

        unchanged = jnp.where(_is_same(gamma, state.gamma, rule) & some, state.unchanged + 1, 0)
        stopped = jnp.where(law.settled(params, rule.sigma, rule.epsilon), SETTLED, GOING_ON)
        stopped = jnp.where(unchanged >= rule.generations, UNCHANGED, stopped)
        return CrossEntropyState(
            params=params,
            step=state.step + 1,
            kept=units[order[:keep]],
            kept_scores=scores[order[:keep]],
            gamma=gamma,
            unchanged=unchanged,
            num_elites=jnp.sum(elite, dtype=jnp.int32),
            before=likelihood(state.params),
            after=likelihood(params),
            stopped=stopped.astype(jnp.int32),
        )

    return guarded(space, Searcher(init, ask, tell, partial(_info, law, rule)))


def _start(law: Family, keep: int, num_dims: int) -> CrossEntropyState:
    dtype = jnp.result_type(float)
    zero = jnp.zeros((), jnp.int32)
    return CrossEntropyState(
        params=law.start,
        step=zero,
        kept=jnp.zeros((keep, num_dims), dtype),
        kept_scores=jnp.full(keep, jnp.inf, dtype),
        gamma=jnp.asarray(jnp.inf, dtype),
        unchanged=zero,
        num_elites=zero,
        before=jnp.zeros((), dtype),
        after=jnp.zeros((), dtype),
        stopped=zero,
    )


def _info(law: Family, rule: Stop, state: CrossEntropyState) -> dict[str, Array]:
    found = law.info(state.params)
    settled = {}
    if any(name.startswith("entropy.") for name in found):
        settled["tables_settled"] = law.settled(state.params, math.inf, rule.epsilon)
    return {
        "gamma": state.gamma,
        "num_elites": state.num_elites,
        "log_likelihood_before": state.before,
        "log_likelihood_after": state.after,
        **found,
        **settled,
        "stopped": state.stopped,
        "done": state.stopped != GOING_ON,
    }


def _is_same(gamma: Array, before: Array, rule: Stop) -> Array:
    """Tell whether γ has not changed beyond the tolerance; two infinite values are the same."""
    change = jnp.abs(gamma - before)
    return (gamma == before) | (change <= rule.tolerance * jnp.abs(gamma))


def _finite(scores: Array, like: Array) -> Array:
    """Return a user's scores, infinite where they or the objectives are not finite."""
    if jnp.shape(scores) != like.shape:
        raise ValueError(
            f"score returned the shape {jnp.shape(scores)}, expected {like.shape}, one number per trial; "
            "return e.g. trials.values"
        )
    scores = jnp.asarray(scores, like.dtype)
    return jnp.where(jnp.isfinite(scores) & jnp.isfinite(like), scores, jnp.inf)


def _check_stop(stop: Stop) -> None:
    check_kind("stop", stop, Stop, "Stop(generations=5)")
    check_whole("stop.generations", stop.generations)
    for name in ("tolerance", "sigma", "epsilon"):
        check_least(f"stop.{name}", getattr(stop, name), example=1e-3)


def _num_elites(num: int, rho: float, keep: int) -> int:
    """Return ⌈ρM⌉, or raise a `ValueError` where a distribution could not be fitted to so few."""
    elites = math.ceil(rho * num)
    if elites < 2:
        raise ValueError(
            f"num is {num}, expected at least {math.floor(1 / rho) + 1}, so that rho = {rho} leaves two "
            "elites; ask for more trials, or raise rho"
        )
    if keep >= elites:
        raise ValueError(
            f"keep is {keep}, expected fewer than the {elites} elites of {num} trials; lower it, or raise rho"
        )
    return elites


def _make(space: PyTree, num_trials: int, size: int, prior: Priors | None) -> Searcher:
    if size < LEAST_GENERATION:
        raise ValueError(
            f"population is {size} with method 'cross_entropy', expected at least {LEAST_GENERATION}, so that "
            f"two trials are elite; pass population={LEAST_GENERATION} or more, or a larger budget"
        )
    # a distribution needs a few elites, in small generations too
    rho = min(0.5, max(0.1, 4 / size))
    family = partial(distribution, prior=prior)
    return held_constant(space, partial(cross_entropy, rho=rho, family=family))


CROSS_ENTROPY = Method(
    "cross_entropy",
    "a distribution fitted to the best of every generation (CEHPO)",
    ("prior", "warm_start"),
    _make,
)
