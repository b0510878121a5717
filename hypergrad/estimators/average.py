"""Averages of any estimator over seeds: less noise, and a standard error with the number."""

from collections import Counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hypergrad.core.checks import check_whole
from hypergrad.core.memory import for_each
from hypergrad.core.types import Array, HParams, Key, PyTree
from hypergrad.estimators.advice import advice, kind_of
from hypergrad.estimators.base import Estimate, Estimator, mean_and_error, noise_advice
from hypergrad.train import earliest


class AverageInfo(NamedTuple):
    """Diagnostics of an average over `num_seeds` estimates.

    Attributes:
        direct: Mean direct gradient, a pytree like `hparams`.
        response: Mean response gradient, a pytree like `hparams`.
        horizon: Steps differentiated through by one estimate, int32 `[]`.
        growth: Largest growth over the seeds, `[]`.
        first_nonfinite: Earliest non-finite step over the seeds, -1 if none; int32 `[]`.
        std_error: Standard error of the mean hypergradient, a pytree like `hparams`.
        value_std_error: Standard error of the mean value, `[]`.
        each: Infos of the single estimates, leading axis `[num_seeds]`.
    """

    direct: HParams
    response: HParams
    horizon: Array
    growth: Array
    first_nonfinite: Array
    std_error: HParams
    value_std_error: Array
    each: Any

    def advice(self, estimate: Estimate) -> list[str]:
        """Say what is wrong with the averaged estimates: each trouble once, with the number of estimates."""
        num = len(jax.tree.leaves(self.each)[0])
        said = []
        for seed in range(num):
            info = jax.tree.map(lambda x, seed=seed: x[seed], self.each)
            said += advice(estimate._replace(info=info))
        kinds = list(map(kind_of, said))
        first = dict(zip(reversed(kinds), reversed(said), strict=True))
        counts = Counter(kinds)
        lines = [f"in {counts[kind]} of {num} estimates {first[kind]}" for kind in counts]
        return lines + noise_advice(estimate.hypergrad, self.std_error, "num_seeds")


def average(estimator: Estimator, num_seeds: int) -> Estimator:
    """Average `num_seeds` independent estimates, each with its own initial weights and minibatches.

    hypergrad = (1/S) Σ_s g_s,   standard error = std(g) / √S with S − 1 degrees of freedom

    **Cost:** `num_seeds` estimates, side by side on an accelerator. On a CPU they run one after another, which
    takes as long, compiles sooner, and needs the memory of one.

    **Limits:** the standard error of few seeds is itself uncertain; below about 10 read it as an order
    of magnitude.

    Args:
        estimator: Any estimator whose info has `direct`, `response`, `horizon`, `growth` and
            `first_nonfinite`.
        num_seeds: Number of estimates, at least 2; for a single estimate, use the estimator itself.

    Raises:
        ValueError: for fewer than two seeds.
    """
    check_whole("num_seeds", num_seeds, 2)

    def init(key: Key, hparams: HParams) -> PyTree:
        return jax.vmap(lambda k: estimator.init(k, hparams))(jax.random.split(key, num_seeds))

    def estimate(key: Key, state: PyTree, hparams: HParams) -> tuple[PyTree, Estimate]:
        keys = jax.random.split(key, num_seeds)
        many = for_each(lambda key, state: estimator.estimate(key, state, hparams), num_seeds)
        state, each = many(keys, state)

        value, value_error = mean_and_error(each.value)
        hypergrad, error = mean_and_error(each.hypergrad)
        direct, response = mean_and_error((each.info.direct, each.info.response))[0]
        info = AverageInfo(
            direct=direct,
            response=response,
            horizon=each.info.horizon[0],
            growth=jnp.max(each.info.growth),
            first_nonfinite=earliest(each.info.first_nonfinite),
            std_error=error,
            value_std_error=value_error,
            each=each.info,
        )
        return state, Estimate(value, hypergrad, info)

    return Estimator(init, estimate)
