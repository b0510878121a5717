"""Names for the command line -> factories of this package, and nothing else."""

from collections.abc import Callable

from hypergrad.core.checks import check_name
from hypergrad.core.solve import cg, positive
from hypergrad.estimators import ESTIMATORS
from hypergrad.estimators.policies import Response, at_rest, left_out, unrolled
from hypergrad.problem import Problem
from hypergrad.schedulers.named import SCHEDULERS
from hypergrad.searchers.named import SEARCHERS
from hypergrad.tuners.bilevel_methods import Method, amigo, finite_sum, nearest_divisor, saba, soba

METHODS: dict[str, str] = {
    "descent": "hypergradient descent on the unconstrained space, with any estimator",
    "bilevel": "weights and hyperparameters in one loop (see --bilevel), for hyperparameters of the loss",
    "controller": "one policy over choices and real leaves, on shared weights (see --response)",
    **SEARCHERS,
}

BILEVEL: dict[str, Callable[..., Method]] = {"soba": soba, "saba": saba, "amigo": amigo}

RESPONSES: dict[str, str] = {
    "none": "left out, as in ENAS; real leaves learn by the score function",
    "unrolled": "through the last steps of training",
    "implicit": "at rest, by a few steps of conjugate gradients, damped where the loss bends down",
}

NAMES = {
    "method": METHODS,
    "scheduler": SCHEDULERS,
    "estimator": ESTIMATORS,
    "bilevel": BILEVEL,
    "response": RESPONSES,
}
"""Option -> the names it may have."""

SUM_BATCH = 64
"""Examples in a minibatch of `saba`, as nearly as they divide the training set."""


def most_trials(name: str, scheduler: str = "full") -> int:
    """Return the most trials of a generation of a search, where the population is not given.

    What is learned from one generation guides the next; the searches that model the objective make more
    of each trial, and are better with more generations. Schedulers compare the trials of a generation.
    """
    few = ("bayes", "tpe", "optuna_tpe", "optuna_gp")
    return 4 if name in few and scheduler == "full" else 16


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
