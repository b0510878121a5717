"""Reverse-mode hypergradients: exact, for many hyperparameters and a horizon that fits in memory."""

from typing import NamedTuple

import jax

from hypergrad.core import tree
from hypergrad.core.checks import check_bytes, check_function, check_whole
from hypergrad.core.hoist import Compiled
from hypergrad.core.methods import Method
from hypergrad.core.types import HParams
from hypergrad.estimators.base import Estimator, temporary_bytes
from hypergrad.estimators.costs import BACKWARD, pass_back
from hypergrad.estimators.recommendation import ELSEWHERE, spoken_size
from hypergrad.estimators.unrolled import adjoint
from hypergrad.estimators.unrolled.adjoint import (
    Backward,
    num_stored,
    segment_ladder,
)
from hypergrad.estimators.unrolled.base import by_unrolling, unrolling
from hypergrad.problem import Problem, check_problem
from hypergrad.train import init_state
from hypergrad.validation import check_step


def reverse(problem: Problem, horizon: int, *, backward: Backward | None = None) -> Estimator:
    """Differentiate the objective through the whole training run.

    d f(w_T, λ)/dλ = ∂f/∂λ + Σ_t ᾱ_{t+1} ∂Φ_t/∂λ + ᾱ_0 ∂w_0/∂λ,   ᾱ_t = ᾱ_{t+1} ∂Φ_t/∂w_t,   ᾱ_T = ∂f/∂w_T

    **Cost:** 2 to 5 x training, whatever the number of hparams. By default (`mixed_mode()`) every state is kept
    while all fit in an eighth of the memory of the device or machine, else O(√horizon) of them, for one
    training more. `backward` makes other trade-offs; `plan` finds the one for a budget in bytes.

    **Limits:** exact except for rounding. Where training is chaotic the exact gradient is useless: watch
    `info.growth`. Signs and roundings in the optimizer give zeros; a warning names the leaves. Loops of
    unknown length (the line searches of `optax.lbfgs`) have no reverse mode; use `forward` for them.

    Args:
        problem: Training loop.
        horizon: Number of inner steps.
        backward: Backward pass, `mixed_mode(checkpoint)`, or `plain(checkpoint)` for losses whose
            gradient has no forward derivative.

    Returns:
        A stateless estimator; `info` is an `UnrollInfo`.

    Raises:
        ValueError: for a horizon below 1 and, when traced, for a leaf that is not real, by name.

    Reference:
        Maclaurin, Duvenaud, Adams, 2015, arXiv:1502.03492; Franceschi, Donini, Frasconi, Pontil, 2017,
        arXiv:1703.01785, Algorithm 1 (Reverse-HG).
    """
    check_problem(problem)
    check_whole("horizon", horizon)
    if backward is not None:
        check_function("backward", backward, "mixed_mode(...) or plain(...)")
    return by_unrolling(problem, horizon, backward)


REVERSE = Method(
    "reverse",
    "backwards through the whole run: exact, at one cost for any number of hyperparameters",
    ("memory",),
    lambda problem, horizon, space: unrolling(problem, horizon),
    cost=lambda problem, horizon, space: 1 + pass_back(problem, horizon, space) / horizon,
    trusting=True,
)


class Plan(NamedTuple):
    """A backward pass chosen for a memory budget.

    Attributes:
        backward: Argument `backward` of `reverse` or `truncated`.
        checkpoint: Segment lengths of that pass.
        num_bytes: Temporary memory of the compiled estimate.
        tried: Pairs (checkpoint, bytes) of each pass considered, fastest first; where the states alone exceed
            the budget, their bytes.
        horizon: Number of inner steps.
    """

    backward: Backward
    checkpoint: tuple[int, ...]
    num_bytes: int
    tried: tuple[tuple[tuple[int, ...], int], ...]
    horizon: int

    def __str__(self) -> str:
        chosen = f"{spoken_size(self.num_bytes)} for {spoken_pass(self.horizon, self.checkpoint)}"
        refused = [
            f"- at least {spoken_size(size)} for {spoken_pass(self.horizon, checkpoint)}: too much"
            for checkpoint, size in self.tried[:-1]
        ]
        return "\n".join([f"use backward=mixed_mode({self.checkpoint}): {chosen}", *refused])


def spoken_pass(horizon: int, checkpoint: tuple[int, ...]) -> str:
    """Say what a backward pass keeps, and what it costs."""
    kept = num_stored(horizon, checkpoint)
    states = "every state" if kept == horizon else f"{kept} of {horizon} states"
    return f"{states}, at about {1 + BACKWARD + len(checkpoint):.0f} trainings"


def plan(
    problem: Problem, hparams: HParams, horizon: int, memory: int, *, num_seeds: int = 1
) -> Plan:
    """Choose the fastest backward pass whose compiled program stays within `memory`.

    Passes are tried from the fastest to the leanest: every state stored, then one, two and three
    levels of segments, each of which trains once more. The compiler states their memory; nothing is run.
    Print the plan: it says the trade in words, memory against trainings.

    **Cost:** one compilation for each pass tried, up to four.

    Args:
        problem: Training loop.
        hparams: Hyperparameters of the shapes that estimates will have.
        horizon: Number of inner steps.
        memory: Budget in bytes for the temporaries of the estimates.
        num_seeds: Number of estimates made side by side, under `vmap`.

    Raises:
        ValueError: where even the leanest pass needs more, with the number of bytes it needs.
    """
    check_problem(problem)
    check_whole("horizon", horizon)
    check_whole("num_seeds", num_seeds)
    check_bytes(memory)
    check_step(problem, hparams, real=True)
    one = jax.eval_shape(lambda h: init_state(problem, jax.random.key(0), h), hparams)
    state_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in tree.floats(one))
    # the states alone bound the memory from below: a pass that cannot fit is not compiled
    state_bytes *= num_seeds
    lowest = {c: state_bytes * num_stored(horizon, c) for c in segment_ladder(horizon)}
    tried = []
    for checkpoint in lowest:
        if lowest[checkpoint] > memory:
            tried.append((checkpoint, lowest[checkpoint]))
            continue
        backward = adjoint.mixed_mode(checkpoint)
        estimate = reverse(problem, horizon, backward=backward).estimate
        key = jax.random.key(0)
        if num_seeds > 1:
            key = jax.random.split(key, num_seeds)
            estimate = jax.vmap(estimate, in_axes=(0, None, None), out_axes=(None, 0))
        lowered = Compiled(estimate).lower(key, (), hparams)
        num_bytes = temporary_bytes(lowered.compile())
        tried.append((checkpoint, num_bytes))
        if num_bytes <= memory:
            return Plan(backward, checkpoint, num_bytes, tuple(tried), horizon)
    least = min(size for _, size in tried)
    raise ValueError(
        f"memory is {memory} bytes, expected at least {least} for horizon = {horizon}; raise it, shorten "
        f"the horizon, {ELSEWHERE}, or use truncated(...) or forward(...)"
    )
