"""The report of a controller on a step: the summary of its updates, and warnings with the step."""

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad.core import tree
from hypergrad.core.types import Array, PyTree
from hypergrad.estimators import Estimate
from hypergrad.estimators.policies import SharedState

COLLAPSED = 0.01
"""Share of its first entropy below which a policy has collapsed: it draws one architecture nearly always."""

COUNTS = ("skipped", "refused", "dropped", "flat")
"""Entries of the info that are counts over the updates of a step."""


class ControllerWarning(UserWarning):
    """The controller has stopped learning, or cannot learn; the message has the step."""


class ControllerState(NamedTuple):
    """State of a controller.

    Attributes:
        phi: Parameters of the policy; unconstrained coordinates where it has a space.
        opt_state: State of the policy's optimizer.
        estimator: State of the estimator, with the shared weights.
        step: Steps of the tuner so far, int32 `[]`.
        first_entropy: First entropy of the policy, in nats, `[]`.
        collapsed_at: First step after which the policy had collapsed, int32 `[]`; −1 before.
    """

    phi: PyTree
    opt_state: PyTree
    estimator: SharedState
    step: Array
    first_entropy: Array
    collapsed_at: Array


def told_of(found: Estimate, parts: tuple[PyTree, PyTree], finite: Array) -> dict[str, Any]:
    """Diagnostics of one update."""
    info = found.info
    return {
        "direct": parts[0],
        "response": parts[1],
        "finite": finite,
        "value": found.value,
        "flat": jnp.all(info.values == info.values[0]) & (info.values.size > 1),
        "growth": info.growth,
        "residual": info.residual,
        "damping": info.damping,
        "refused": info.refused,
        "dropped": info.diverged,
        "horizon": info.horizon,
        "first_nonfinite": info.first_nonfinite,
        "credit": info.credit,
    }


def summarized(told: dict[str, Any]) -> dict[str, Array]:
    """Average over the updates of a step that were finite."""
    finite, kept = told["finite"], told["finite"] & ~told["dropped"]
    num = jnp.maximum(jnp.sum(finite), 1)

    def mean(tree: PyTree, over: Array = finite) -> PyTree:
        def one(x: Array) -> Array:
            weights = over.reshape((-1,) + (1,) * (x.ndim - 1))
            return jnp.sum(jnp.where(weights, x, 0), 0) / jnp.maximum(jnp.sum(over), 1)

        return jax.tree.map(one, tree)

    def variance(each: PyTree, middle: PyTree) -> Array:
        apart = jax.tree.map(lambda x, m: x - m[None], each, middle)
        squares = jax.vmap(tree.norm)(apart) ** 2
        spread = jnp.sum(jnp.where(finite, squares, 0)) / jnp.maximum(num - 1, 1)
        return jnp.where(num > 1, spread, jnp.nan)

    direct, response = mean(told["direct"]), mean(told["response"])
    bad = told["first_nonfinite"]
    return {
        "expected_value": jnp.where(jnp.any(kept), mean(told["value"], kept), jnp.nan),
        "hypergrad_norm": tree.norm(tree.add(direct, response)),
        "direct_norm": tree.norm(direct),
        "response_norm": tree.norm(response),
        "cosine": tree.cosine_between(direct, response),
        "direct_variance": variance(told["direct"], direct),
        "response_variance": variance(told["response"], response),
        "credit_norm": mean(told["credit"]),
        "adjoint_growth": mean(told["growth"]),
        "residual": mean(told["residual"], kept),
        "damping": mean(told["damping"], kept),
        "skipped": jnp.sum(~finite).astype(jnp.int32),
        "refused": jnp.sum(told["refused"]).astype(jnp.int32),
        "dropped": jnp.sum(told["dropped"]).astype(jnp.int32),
        "flat": jnp.sum(told["flat"]).astype(jnp.int32),
        "first_nonfinite": jnp.max(bad).astype(jnp.int32),
    }


def warn_of_step(
    before: ControllerState, after: ControllerState, info: dict, num_updates: int
) -> None:
    """Warn, with the step, of a policy that has collapsed and of steps that taught nothing."""
    at, entropy = int(before.step), float(np.asarray(info["entropy"])[0])
    if int(after.collapsed_at) >= 0 > int(before.collapsed_at):
        warnings.warn(
            f"the policy has collapsed at step {at}: its entropy is {entropy:.2g} nats, less than "
            f"{COLLAPSED:.0%} of the first, {float(after.first_entropy):.2g}, and it draws one architecture "
            "nearly always; pass a larger entropy_bonus or a lower learning rate, or stop there",
            ControllerWarning,
            stacklevel=4,
        )
    skipped, refused, dropped, flat = (int(np.asarray(info[name])[0]) for name in COUNTS)
    if skipped == num_updates:
        warnings.warn(
            f"no update of step {at} was finite, and the policy did not move: a draw or the shared weights "
            "have an objective that is NaN or infinite; bound the objective, or lower the learning rates",
            ControllerWarning,
            stacklevel=4,
        )
    elif dropped == num_updates:
        warnings.warn(
            f"the shared weights diverged in every window of step {at}, and were dropped for earlier or new "
            "ones: the policy's optimizer settings do not train them; lower the learning rates of the space, "
            "or pass shared(..., far=...) where such an objective is no divergence",
            ControllerWarning,
            stacklevel=4,
        )
    elif refused == num_updates:
        warnings.warn(
            f"the response was left out of every update of step {at}: it was not finite, or its solve worse "
            f"than none (a relative residual of {float(np.asarray(info['residual'])[0]):.2g}); train longer "
            "before each update, or give its solver more iterations or damping",
            ControllerWarning,
            stacklevel=4,
        )
    if flat == num_updates and skipped < num_updates:
        warnings.warn(
            f"all draws of every update of step {at} had the same objective, and the direct gradient of the "
            "choices was zero: the policy draws one architecture alone, or the objective does not read it",
            ControllerWarning,
            stacklevel=4,
        )
