"""Hypergradient estimators: one method, one file, one contract (`base.Estimator`).

- `advice`: Say in words why an estimate should not be trusted, and which hyperparameters have none.
- `attribution/`: Which training examples made a prediction: scores of every example, and the check by training
  without some.
- `average`: Averages of any estimator over seeds: less noise, and a standard error with the number.
- `base`: The contract of every hypergradient estimator, and helpers that the family shares.
- `costs`: What hypergradients cost, counted in training runs: the same on every machine, whatever its clock
  says.
- `evolution/`: Estimators that perturb the hyperparameters.
- `implicit/`: Estimators that differentiate the condition of rest.
- `policies/`: Policies over hyperparameters, and the estimators that learn them.
- `recommend`: Recommend an estimator, by measuring a training run and asking the compiler, with reasons in
  words.
- `recommendation`: What a recommendation is, and the words for it.
- `rounding`: A rounding certificate for any estimator: how far wider numbers, or a last bit, move its
  hypergradient.
- `slopes`: Finite differences in float64, and the problems made for them: the reference for `verify`.
- `unrolled/`: Estimators that differentiate through the steps of training.
- `verify`: Compare every estimator with float64 finite differences, on the user's own task.
- `ways`: Ways by which each hyperparameter acts on training, read off its program; nothing is compiled or
  run.
"""

from hypergrad.core import solve
from hypergrad.core.cautions import DrawnLeafWarning
from hypergrad.core.methods import Method, by_name
from hypergrad.estimators.advice import advice, structural_zeros
from hypergrad.estimators.attribution.attribution import attribution
from hypergrad.estimators.attribution.base import Attribution, AttributionInfo
from hypergrad.estimators.attribution.datamodeling import (
    DatamodelingScore,
    linear_datamodeling_score,
)
from hypergrad.estimators.attribution.influence import InfluenceInfo, influence
from hypergrad.estimators.attribution.retraining import (
    exact_leave_one_out,
    random_subsets,
    retrained,
)
from hypergrad.estimators.attribution.tracing import gradient_tracing
from hypergrad.estimators.average import AverageInfo, average
from hypergrad.estimators.base import Estimate, Estimator
from hypergrad.estimators.evolution.es import ES, es
from hypergrad.estimators.evolution.evolved import EvolvedInfo, evolved
from hypergrad.estimators.evolution.info import EvolutionInfo
from hypergrad.estimators.evolution.nres import NRES, nres
from hypergrad.estimators.evolution.pairs import Target, final_objective, mean_objective
from hypergrad.estimators.evolution.pes import PES, pes
from hypergrad.estimators.implicit.implicit import IMPLICIT, ImplicitInfo, ImplicitState, implicit
from hypergrad.estimators.policies.mixed import MixedInfo, mixed, no_response
from hypergrad.estimators.policies.relaxed import RelaxedInfo, relaxed
from hypergrad.estimators.policies.score import ScoreInfo, score, score_shared
from hypergrad.estimators.policies.shared import SharedInfo, SharedState, shared
from hypergrad.estimators.rounding import RoundingInfo, rounding
from hypergrad.estimators.unrolled.adjoint import mixed_mode, nested_checkpoint, plain
from hypergrad.estimators.unrolled.base import UnrollInfo
from hypergrad.estimators.unrolled.darts import central_difference, darts, exact_product
from hypergrad.estimators.unrolled.drift import DRIFT, DriftInfo, drift
from hypergrad.estimators.unrolled.forward import FORWARD, forward
from hypergrad.estimators.unrolled.hd import HD, hd
from hypergrad.estimators.unrolled.on_disk import DiskProgress, reverse_on_disk
from hypergrad.estimators.unrolled.online import OnlineInfo, OnlineState
from hypergrad.estimators.unrolled.reverse import REVERSE, Plan, plan, reverse
from hypergrad.estimators.unrolled.reversible import REVERSIBLE, ReversibleInfo, reversible
from hypergrad.estimators.unrolled.rtho import RTHO, rtho
from hypergrad.estimators.unrolled.run_folder import DamagedWarning
from hypergrad.estimators.unrolled.truncated import ONE_STEP, TRUNCATED, one_step, truncated

ESTIMATORS: dict[str, Method] = by_name(
    REVERSE,
    FORWARD,
    TRUNCATED,
    IMPLICIT,
    DRIFT,
    REVERSIBLE,
    ONE_STEP,
    RTHO,
    HD,
    ES,
    PES,
    NRES,
)
"""The estimators that the command line offers; `make(problem, horizon, space)` builds one."""

ONLINE = (ONE_STEP.name, RTHO.name, HD.name)
"""Estimators whose training continues from one hypergradient to the next."""

__all__ = [
    "ESTIMATORS",
    "ONLINE",
    "Attribution",
    "AttributionInfo",
    "AverageInfo",
    "DamagedWarning",
    "DatamodelingScore",
    "DiskProgress",
    "DrawnLeafWarning",
    "DriftInfo",
    "Estimate",
    "Estimator",
    "EvolutionInfo",
    "EvolvedInfo",
    "ImplicitInfo",
    "ImplicitState",
    "InfluenceInfo",
    "MixedInfo",
    "OnlineInfo",
    "OnlineState",
    "Plan",
    "RelaxedInfo",
    "ReversibleInfo",
    "RoundingInfo",
    "ScoreInfo",
    "SharedInfo",
    "SharedState",
    "Target",
    "UnrollInfo",
    "advice",
    "attribution",
    "average",
    "central_difference",
    "darts",
    "drift",
    "es",
    "evolved",
    "exact_leave_one_out",
    "exact_product",
    "final_objective",
    "forward",
    "gradient_tracing",
    "hd",
    "implicit",
    "influence",
    "linear_datamodeling_score",
    "mean_objective",
    "mixed",
    "mixed_mode",
    "nested_checkpoint",
    "no_response",
    "nres",
    "one_step",
    "pes",
    "plain",
    "plan",
    "random_subsets",
    "relaxed",
    "retrained",
    "reverse",
    "reverse_on_disk",
    "reversible",
    "rounding",
    "rtho",
    "score",
    "score_shared",
    "shared",
    "solve",
    "structural_zeros",
    "truncated",
]
