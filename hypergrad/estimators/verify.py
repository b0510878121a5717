"""Compare every estimator with float64 finite differences, on the user's own task."""

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad import space as spaces
from hypergrad.core import tree
from hypergrad.core.autodiff import depends
from hypergrad.core.checks import check_whole
from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.estimators.base import Estimator, temporary_bytes
from hypergrad.estimators.evolution.es import es
from hypergrad.estimators.evolution.nres import nres
from hypergrad.estimators.evolution.pes import pes
from hypergrad.estimators.evolution.windows import quarter
from hypergrad.estimators.implicit.implicit import implicit
from hypergrad.estimators.policies import (
    Policy,
    enumerated,
    factorized,
    mixed,
    relaxed,
    sampled,
    score,
    score_shared,
)
from hypergrad.estimators.slopes import Slopes, as_real, differences, frozen, in_float64
from hypergrad.estimators.unrolled.adjoint import mixed_mode, plain
from hypergrad.estimators.unrolled.darts import darts
from hypergrad.estimators.unrolled.drift import drift
from hypergrad.estimators.unrolled.forward import forward
from hypergrad.estimators.unrolled.hd import hd
from hypergrad.estimators.unrolled.momentum import Recursion
from hypergrad.estimators.unrolled.reverse import reverse
from hypergrad.estimators.unrolled.reversible import reversible
from hypergrad.estimators.unrolled.rtho import rtho
from hypergrad.estimators.unrolled.truncated import one_step, truncated
from hypergrad.problem import Problem, Task
from hypergrad.train import (
    init_state,
    split_key,
    unroll_losses,
)
from hypergrad.validation import validate

MAX_TANGENTS = 64
"""Largest number of hyperparameters at which `rtho` is compared."""

MAX_PAIRS = 64
"""Largest number of combinations at which every pair of them is taken, for `score_shared`."""

SIGMA = 1e-3
"""Size of the moves of the evolution estimators: small, so that the smoothed gradient is the gradient."""

VIRTUAL = 0.1
"""Size of the step of `darts`."""

DRAWN_ESTIMATORS = {
    "mixed": True,
    "mixed, 8 draws": False,
    "score": False,
    "score_shared, one step": False,
    "relaxed": False,
}
"""Estimators of integers and choices, and whether each claims to be exact."""


class Row(NamedTuple):
    """One line of the table.

    Attributes:
        estimator: Name of the estimator.
        error: Largest relative error over the leaves of the derivative along a random direction.
        worst: Leaf with that error.
        cosine: Cosine between the vectors of those derivatives and of the finite differences.
        ratio: Time as a multiple of training.
        num_bytes: Temporary memory of the compiled estimate.
        exact: Whether the estimator claims to be exact.
        refused: Reason why the estimator does not take this task; empty if it does.
        deviation: Largest error of a stochastic estimator over the leaves, as a multiple of its standard error;
            None for the others.
    """

    estimator: str
    error: float
    worst: str
    cosine: float
    ratio: float
    num_bytes: int
    exact: bool
    refused: str = ""
    deviation: float | None = None


class Case(NamedTuple):
    """An estimator to compare.

    Attributes:
        estimator: Estimator of the hypergradient by `slopes.hparams`.
        slopes: Finite differences of the objective that it differentiates.
        exact: Whether it claims to be exact.
        draws: Whether its estimates are random; the mean of several is then compared.
        judged: Whether that mean is right in expectation; it is then judged by its standard error.
    """

    estimator: Estimator
    slopes: Slopes
    exact: bool = False
    draws: bool = False
    judged: bool = False


def verify(task: Task, *, horizon: int | None = None, seed: int = 0) -> list[Row]:
    """Compare the estimators with central finite differences in float64 at the space's defaults.

    With λ = constrain(z): ⟨∂λ/∂zᵀ hypergrad, d⟩ against (f(z + h d) − f(z − h d)) / 2h, h = 1e-6, for one
    random unit direction d a leaf; in z both sides stay within the bounds, however close these are. Params,
    batches and hparams are cast to float64; jax must run with x64. Where the space has
    integers or choices, the hparams are those of `mixed` with `enumerated()`: logits, and the expected
    objective of weights that all combinations share.

    A stochastic estimator (`es`, `pes`, `nres`, `score`, `score_shared`, `relaxed`) is run 16 times,
    independently, on the same training run; the error of the mean is judged by its standard error, except for
    `relaxed`, which is biased. `score` is compared with differences of its own objective, which trains separate
    weights for each combination. `score_shared` is compared with those of one step of training on one draw,
    where all draws can be enumerated.

    The stochastic bilevel methods of `tuners.bilevel` have no hypergradient of their own: where they come to
    rest, it is that of `implicit`.

    **Cost:** two trainings per leaf, one compilation per estimator, and 256 trainings per stochastic estimator.

    **Limits:** a network with kinks (ReLU) is not differentiable on a set that a step of h may cross;
    errors of 1e-4 are then not the estimator's fault. Smooth activations agree to about 1e-8.

    Args:
        task: User's task; its space must be real, or have few combinations of integers and choices.
        horizon: Training steps to compare over; the task's, at most 50, where None.
        seed: Seed of the run and the directions.

    Returns:
        One row an estimator.

    Raises:
        ValueError: without x64, for spaces with static leaves or too many combinations, for a drawn leaf that
            the optimizer reads, and where the objective is not finite.
    """
    if jnp.result_type(float) != jnp.float64:
        raise ValueError(
            "jax runs in float32, expected float64; set JAX_ENABLE_X64=1 before starting Python"
        )
    horizon = min(task.horizon, 50) if horizon is None else check_whole("horizon", horizon)
    spaces.check_space(task.space, traceable=True)
    validate(task.problem, spaces.default(task.space), horizon)
    key = jax.random.key(seed)
    base = in_float64(task.problem)
    drawn = any(map(spaces.is_discrete, jax.tree.leaves(task.space)))
    if drawn:
        base = frozen(base, key)  # each estimator of policies splits keys in its own way
    problem, space = as_real(base, task.space, key)
    slopes = differences(lambda h: _train(problem, horizon, key, h), space, key)
    if slopes.nonfinite is not None:
        raise ValueError(
            f"task {task.name!r} has an objective that is not finite around the default of "
            f"hparams[{slopes.nonfinite!r}], expected a finite one; pass a shorter --horizon, or move the "
            "default"
        )
    unfit = _unfit(problem, slopes.hparams, horizon)
    cases = _deterministic(problem, horizon, slopes)
    cases |= _evolution(frozen(problem, key), horizon, space, slopes)
    if drawn:
        policy = factorized(task.space)
        cases |= _drawn(base, horizon, task.space, policy, slopes)
        unfit |= {
            name: "too many combinations to pair them"
            for name in DRAWN_ESTIMATORS
            if name not in cases
        }
    else:
        unfit |= dict.fromkeys(
            DRAWN_ESTIMATORS, "every leaf of its space is real, expected an Integer or a Choice"
        )
    rows = [_row(name, case, unfit.get(name, ""), slopes) for name, case in cases.items()]
    return rows + [
        _refused(name, DRAWN_ESTIMATORS[name], unfit[name])
        for name in DRAWN_ESTIMATORS
        if name not in cases
    ]


def _row(name: str, case: Case, refused: str, slopes: Slopes) -> Row:
    """Compile one estimator, compare it, and time it beside the training of `slopes`."""
    if not refused and case.slopes.nonfinite is not None:
        refused = "its objective is not finite"
    if refused:
        return _refused(name, case.exact, refused)
    key, hparams = case.slopes.key, case.slopes.hparams
    state = case.estimator.init(key, hparams)
    try:
        compiled: Any = jax.jit(case.estimator.estimate).lower(key, state, hparams).compile()
    except ValueError as error:
        if case.exact:
            raise
        return _refused(name, case.exact, str(error))
    deviation = None
    if case.draws:
        ours, deviation = case.slopes.judge(case.estimator.init, compiled)
    else:
        ours = case.slopes.along(compiled(key, state, hparams)[1].hypergrad)
    ratio = _interleave(lambda: compiled(key, state, hparams), slopes.run)
    found = case.slopes.compare(ours)
    deviation = deviation if case.judged else None
    size = temporary_bytes(compiled)
    return Row(name, *found, ratio, size, case.exact, deviation=deviation)


def _refused(name: str, exact: bool, why: str) -> Row:
    return Row(name, np.nan, "", np.nan, np.nan, 0, exact, why)


def _train(problem: Problem, horizon: int, key: Key, hparams: HParams) -> Array:
    """Return the objective of the run of an estimate with `key`."""
    run_key, valid_key = split_key(key)
    state, _ = unroll_losses(problem, hparams, init_state(problem, run_key, hparams), horizon)
    return problem.objective(state.params, hparams, problem.valid_batch(valid_key))


def _deterministic(problem: Problem, horizon: int, slopes: Slopes) -> dict[str, Case]:
    """Make the estimators that do not draw, and say which claim to be exact."""

    def start(hparams: HParams) -> list[Array]:
        return tree.floats(init_state(problem, slopes.key, hparams))

    # a window does not reach the initial weights
    whole = not any(depends(start, slopes.hparams))
    made = {
        "reverse": (reverse(problem, horizon), True),
        "reverse, all states": (reverse(problem, horizon, backward=mixed_mode(())), True),
        "reverse, plain": (reverse(problem, horizon, backward=plain()), True),
        "forward": (forward(problem, horizon, chunk=16), True),
        "truncated, a quarter": (
            truncated(problem, horizon, max(1, horizon // 4)),
            False,
        ),
        "truncated, warm start": (truncated(problem, horizon, horizon, warm_start=True), whole),
        "one_step": (one_step(problem, horizon), False),
        "darts": (darts(problem, VIRTUAL, horizon), False),
        "rtho, from its start": (rtho(problem, horizon), True),
        "hd": (hd(problem, horizon), False),
        "implicit": (implicit(problem, horizon), False),
        "drift": (drift(problem, horizon), True),
        "reversible": (reversible(problem, horizon, min_momentum=0.25), True),
    }
    return {name: Case(estimator, slopes, exact) for name, (estimator, exact) in made.items()}


def _evolution(problem: Problem, horizon: int, space: PyTree, slopes: Slopes) -> dict[str, Case]:
    """Make the evolution estimators, with moves small enough to compare them with the gradient itself."""
    moves: dict[str, Any] = {"sigma": SIGMA, "space": space}
    window = quarter(horizon)
    made = {
        "es": es(problem, horizon, **moves, num_pairs=8),
        "pes": pes(problem, horizon, window, **moves, num_pairs=32),
        "nres": nres(problem, horizon, window, **moves, num_pairs=32),
    }
    return {name: Case(each, slopes, draws=True, judged=True) for name, each in made.items()}


def _drawn(
    problem: Problem, horizon: int, space: PyTree, policy: Policy, slopes: Slopes
) -> dict[str, Case]:
    """Make the estimators of integers and choices, each beside the differences of its own objective.

    Args:
        problem: Problem from `frozen`, of the hparams that the policy draws.
        horizon: Number of inner steps.
        space: Space of those hparams.
        policy: Policy that draws them.
        slopes: Differences of the objective of weights that all combinations share.
    """
    key = slopes.key
    apart = differences(lambda phi: trained_apart(problem, policy, horizon, phi), policy.space, key)
    draws = {"draws": True, "judged": True}
    made = {
        "mixed": Case(mixed(problem, horizon, policy, draws=enumerated()), slopes, exact=True),
        "mixed, 8 draws": Case(
            mixed(problem, horizon, policy, draws=sampled(8)), slopes, draws=True
        ),
        "score": Case(score(problem, horizon, policy), apart, **draws),
        "relaxed": Case(relaxed(reverse(problem, horizon), space), apart, draws=True),
    }
    if len(jax.tree.leaves(policy.outcomes(slopes.hparams))[0]) <= MAX_PAIRS:
        once = differences(lambda phi: drawn_once(problem, policy, phi), policy.space, key)
        made["score_shared, one step"] = Case(score_shared(problem, 1, policy), once, **draws)
    return made


def trained_apart(problem: Problem, policy: Policy, horizon: int, phi: PyTree) -> Array:
    """Return J(φ) = Σ_a π_φ(a) F(a), with weights of their own for each combination; `problem` is frozen."""
    hparams, probs = _outcomes(policy, phi)
    key = jax.random.key(0)
    return probs @ jax.vmap(lambda h: _train(problem, horizon, key, h))(hparams)


def drawn_once(problem: Problem, policy: Policy, phi: PyTree) -> Array:
    """Return J(φ) = Σ_{a,b} π_φ(a) π_φ(b) f(w_1(a), b): one step on one draw, judged by another one."""
    hparams, probs = _outcomes(policy, phi)
    key = jax.random.key(0)
    batch = problem.valid_batch(key)

    def judged(h: HParams) -> Array:
        params = unroll_losses(problem, h, init_state(problem, key, h), 1)[0].params
        return probs @ jax.vmap(lambda g: problem.objective(params, g, batch))(hparams)

    return probs @ jax.lax.map(judged, hparams)


def _outcomes(policy: Policy, phi: PyTree) -> tuple[HParams, Array]:
    """Return all hparams that can be drawn `[N]`, and their probabilities `[N]`."""
    hparams = policy.outcomes(phi)
    return hparams, jnp.exp(jax.vmap(policy.log_prob, (None, 0))(phi, hparams))


def _unfit(problem: Problem, hparams: HParams, horizon: int) -> dict[str, str]:
    """Say why each estimator that does not take this task refuses it."""
    refused = _irreversible(problem, hparams, horizon)
    num, many = sum(leaf.size for leaf in jax.tree.leaves(hparams)), ""
    if num > MAX_TANGENTS:
        many = f"it would carry a state for each of the {num} hyperparameters"
    return {"drift": refused, "reversible": refused, "rtho, from its start": many}


def _irreversible(problem: Problem, hparams: HParams, horizon: int) -> str:
    """Say why the training cannot be undone step by step; return "" where it can."""
    try:
        start = init_state(problem, jax.random.key(0), hparams)
        Recursion(problem, hparams, start, horizon)
    except ValueError as error:
        return str(error)
    return ""


def _interleave(first, second, num_repeats: int = 5) -> float:
    """Return the ratio of median times of two programs, run in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(num_repeats):
        for program, seconds in zip((first, second), times, strict=True):
            began = time.perf_counter()
            jax.block_until_ready(program())
            seconds.append(time.perf_counter() - began)
    return float(np.median(times[0]) / np.median(times[1]))
