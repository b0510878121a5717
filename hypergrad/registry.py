"""Names for the command line -> factories of this package, and nothing else."""

import warnings
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from hypergrad.beliefs import Beliefs
from hypergrad.curvature import frobenius_estimate
from hypergrad.directions import Method, amigo, finite_sum, nearest_divisor, saba, soba
from hypergrad.estimators import (
    Estimator,
    Response,
    at_rest,
    drift,
    es,
    forward,
    hd,
    implicit,
    left_out,
    nres,
    one_step,
    pes,
    reverse,
    reversible,
    rtho,
    truncated,
    unrolled,
)
from hypergrad.integrations.optuna import named_sampler, optuna_searcher
from hypergrad.measures import supremum
from hypergrad.problem import Problem
from hypergrad.schedulers import (
    Scheduler,
    flatness,
    full,
    halving,
    hyperband,
    matched,
    pb2,
    pbt,
    perturb,
)
from hypergrad.schedulers.base import Rung, geometric_rungs, spent
from hypergrad.schedulers.hyperband import brackets
from hypergrad.searchers import (
    Searcher,
    bayes,
    begin_with,
    cma_es,
    constant,
    cross_entropy,
    distribution,
    evolution,
    grid,
    prior,
    random,
    sobol,
    tpe,
)
from hypergrad.searchers.grid import levels_within
from hypergrad.segments import largest_divisor
from hypergrad.settings import BY_GRADIENT, check_name
from hypergrad.solve import cg, positive
from hypergrad.space import sample_constant
from hypergrad.storage import StudyWarning
from hypergrad.types import PyTree

ESTIMATORS: dict[str, Callable[..., Estimator]] = {
    "reverse": reverse,
    "forward": forward,
    "truncated": truncated,
    "implicit": implicit,
    "drift": drift,
    "reversible": reversible,
    "one_step": one_step,
    "rtho": rtho,
    "hd": hd,
    "es": es,
    "pes": pes,
    "nres": nres,
}
ONLINE = ("one_step", "rtho", "hd")
"""Estimators whose training goes on from one hypergradient to the next."""
NUM_READ = 20
"""Hypergradients that such an estimator reads in one run of training."""
OPTUNA: dict[str, str] = {
    "optuna_tpe": "Optuna's TPE, told of running trials; the extra `optuna`",
    "optuna_cma": "Optuna's CMA-ES; options at random; the extra `optuna`",
    "optuna_gp": "Optuna's Gaussian process; the extra `optuna`, and torch",
}
METHODS: dict[str, str] = {
    "descent": "hypergradient descent on the unconstrained space, with any estimator",
    "bilevel": "weights and hyperparameters in one loop (see --bilevel), for hyperparameters of the loss",
    "controller": "one policy over choices and real leaves, on shared weights (see --response)",
    "random": "random search over schedules held constant, every trial trained to the end",
    "grid": "every combination of as many values as the budget allows, in random order",
    "sobol": "a scrambled Sobol sequence, which fills the space more evenly than random trials",
    "prior": "trials near what --prior says, and a quarter of them anywhere",
    "cross_entropy": "a distribution fitted to the best of every generation (CEHPO)",
    "evolution": "differential evolution",
    "cma_es": "CMA-ES: a normal distribution that moves and turns; options by tables",
    "bayes": "a Gaussian process and its log expected improvement",
    "tpe": "tree-structured Parzen estimators, multivariate",
    **OPTUNA,
}
BILEVEL: dict[str, Callable[..., Method]] = {"soba": soba, "saba": saba, "amigo": amigo}
RESPONSES: dict[str, str] = {
    "none": "left out, as in ENAS; real leaves learn by the score function",
    "unrolled": "through the last steps of training",
    "implicit": "at rest, by a few steps of conjugate gradients, damped where the loss bends down",
}
SCHEDULERS: dict[str, str] = {
    "full": "every trial is trained to the end",
    "halving": "all trials a little, the best third three times as long, and so on",
    "hyperband": "several halvings, from the boldest to the most patient; with tpe as in BOHB",
    "flatness": "all trials for an epoch, and the flattest fifth to the end (FGHPO at matched loss)",
    "pbt": "the worst go on from copies of the best, with other hyperparameters",
    "pb2": "as pbt, these from a Gaussian process over what improved the others",
}
BY_COPIES = ("pbt", "pb2")
"""Schedulers whose members go on from one another."""
NAMES = {
    "method": METHODS,
    "scheduler": SCHEDULERS,
    "estimator": ESTIMATORS,
    "bilevel": BILEVEL,
    "response": RESPONSES,
}
"""Option -> the names it may have."""
ETA = 3
"""Of `halving` and `hyperband`: one of so many goes on, and so many times as far."""
MOST_HALVINGS = 3
"""The shortest runs have at least a 27th of the steps: what they say of the longest is little enough."""
NUM_PERIODS = 8
"""Comparisons of `pbt` and `pb2` in a run, or a few more: the steps are divided evenly."""
LEAST_BELIEVED = 8
"""First trials that come from the beliefs, where a search has no distribution of its own to put them in."""
LEAST_GENERATION = 3
"""Trials of a generation of `cross_entropy`, of whose best half, two at least, it fits a distribution."""
NUM_PRODUCTS = 12
"""Products with the Hessian of each of four minibatches, from which `flatness` estimates its norm."""
SUM_BATCH = 64
"""Examples in a minibatch of `saba`, as nearly as they divide the training set."""


def most_trials(name: str, scheduler: str = "full") -> int:
    """Return the most trials of a generation of a search, where the population is not given.

    What is learned from one generation guides the next; the searches that model the objective make more
    of each trial, and are better with more generations. Schedulers compare the trials of a generation.
    """
    few = ("bayes", "tpe", "optuna_tpe", "optuna_gp")
    return 4 if name in few and scheduler == "full" else 16


def estimator(name: str, problem: Problem, horizon: int, space: PyTree) -> Estimator:
    """Build an estimator by name, with the settings the command line uses."""
    check_name("estimator", name, ESTIMATORS)
    if name == "truncated":
        return truncated(problem, horizon, max(1, horizon // 4))
    if name == "es":
        return es(problem, horizon, space=space)
    if name in ("pes", "nres"):
        return ESTIMATORS[name](problem, horizon, quarter(horizon), space=space)
    if name in ONLINE:
        interval = max(1, horizon // NUM_READ)
        return ESTIMATORS[name](problem, interval, restart_every=horizon)
    return ESTIMATORS[name](problem, horizon)


def bilevel_method(name: str, problem: Problem) -> Method:
    """Build a stochastic bilevel method by name, with the settings the command line uses."""
    check_name("bilevel", name, BILEVEL)
    if name != "saba":
        return BILEVEL[name]()
    size = SUM_BATCH
    if problem.train_set is not None:
        size = nearest_divisor(problem.train_set.num_examples, size)
    return saba(finite_sum(problem, size))


def response(name: str) -> Response:
    """Build a response by name, with the settings the command line uses."""
    check_name("response", name, RESPONSES)
    if name == "implicit":  # on a minibatch: the loss of a network has directions that bend down
        return at_rest(positive(cg(5)), full=False)
    return left_out() if name == "none" else unrolled()


def quarter(horizon: int) -> int:
    """Return the largest divisor of the horizon that is at most a quarter of it, or 1."""
    return largest_divisor(horizon, horizon // 4)


def searcher(
    name: str, space: PyTree, num_trials: int, size: int, beliefs: Beliefs | None = None
) -> Searcher:
    """Build a searcher by name, with the settings the command line uses.

    Args:
        name: one of `METHODS` but those by gradient.
        space: of the task; schedules of more than a few free steps are held constant.
        num_trials: that it will be asked for or told in all.
        size: of a generation.
        beliefs: {leaf name: `near(value, spread)`}, for the methods that read them.
    """
    check_name("method", name, [method for method in METHODS if method not in BY_GRADIENT])
    if name == "random":
        return random(space, sample_constant)
    # a few elites are needed to fit a distribution to, also where generations are small
    share = min(0.5, max(0.1, 4 / size))
    if name == "cross_entropy" and size < LEAST_GENERATION:
        raise ValueError(
            f"population is {size} with method 'cross_entropy', expected at least {LEAST_GENERATION}, so that "
            f"two trials are elite; pass population={LEAST_GENERATION} or more, or a larger budget"
        )
    makers: dict[str, Callable[[PyTree], Searcher]] = {
        "grid": lambda space: grid(space, levels_within(space, num_trials)),
        "sobol": sobol,
        "prior": partial(prior, beliefs=beliefs or {}),
        "cross_entropy": partial(
            cross_entropy, rho=share, family=partial(distribution, beliefs=beliefs)
        ),
        "evolution": partial(evolution, num_members=max(4, size)),
        "cma_es": partial(cma_es, num_members=max(4, size)),
        "bayes": partial(bayes, capacity=min(256, max(16, 2 ** (num_trials - 1).bit_length()))),
        "tpe": partial(tpe, capacity=min(512, max(16, num_trials))),
    }
    if name in OPTUNA:
        sampler = named_sampler(name.removeprefix("optuna_"))
        makers[name] = partial(optuna_searcher, sampler=sampler, capacity=num_trials)

    def make(space):
        if not beliefs or name not in ("evolution", "cma_es", "bayes", "tpe"):
            return makers[name](space)
        num = max(size, LEAST_BELIEVED)
        return begin_with(makers[name](space), prior(space, beliefs), num)

    return constant(space, make)


def scheduler(
    name: str, problem: Problem, space: PyTree, horizon: int, size: int
) -> tuple[Scheduler, float]:
    """Build a scheduler by name, with the settings the command line uses.

    Args:
        name: one of `SCHEDULERS`.
        problem: of the task.
        space: of the task.
        horizon: training steps of the trials that are trained longest.
        size: trials of a generation.

    Returns:
        The scheduler, and what a generation costs in trainings of `horizon` steps.
    """
    check_name("scheduler", name, SCHEDULERS)
    if name == "full":
        return full(horizon), size
    if name in BY_COPIES:
        explore = pb2(space) if name == "pb2" else perturb(space, draw=sample_constant)
        return pbt(horizon, explore, period=largest_divisor(horizon, horizon // NUM_PERIODS)), size
    if name == "flatness":
        first, kept = min(horizon, _epoch(problem, horizon)), max(1, size // 5)
        if first == horizon:
            warnings.warn(
                f"scheduler 'flatness' trains every trial to the end, because an epoch has no fewer steps than "
                f"the horizon of {horizon}; tune with a longer one, or with 'halving'",
                StudyWarning,
                stacklevel=2,
            )
        rungs = [Rung(size, first), Rung(kept, horizon)]
        built = flatness(
            supremum(problem, _norm), horizon, first_steps=first, num_kept=kept, ranking=matched()
        )
        return built, spent(rungs if first < horizon else rungs[:1]) / horizon
    last = next(s for s in range(MOST_HALVINGS, -1, -1) if ETA**s <= min(size, horizon))
    least = horizon // ETA**last
    if name == "halving":
        cost = spent(geometric_rungs(size, horizon, last, ETA))
        return halving(horizon, min_steps=least, eta=ETA), cost / horizon
    ladder = brackets(horizon, min_steps=least, eta=ETA, num=size)
    return hyperband(horizon, min_steps=least, eta=ETA), sum(map(spent, ladder)) / horizon


def _norm(loss, params, batch):
    """Estimate the Hessian's norm of any network, the same way for all."""
    key = jax.random.key(0)
    return frobenius_estimate(loss, params, batch, key, num_products=NUM_PRODUCTS).value


def _epoch(problem: Problem, horizon: int) -> int:
    """Return the steps of an epoch, or a 27th of the training where that is not known."""
    step = jax.ShapeDtypeStruct((), jnp.int32)
    batch = jax.eval_shape(problem.train_batch, jax.eval_shape(jax.random.key, 0), step)
    sizes = [leaf.shape[0] for leaf in jax.tree.leaves(batch) if leaf.shape]
    if problem.train_set is None or not sizes or not sizes[0]:
        return max(1, horizon // ETA**MOST_HALVINGS)
    return max(1, problem.train_set.num_examples // sizes[0])
