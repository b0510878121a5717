"""Hypergradient estimators: one method, one file, one contract (`base.Estimator`)."""

from hypergrad.adjoint import mixed_mode, plain
from hypergrad.estimators.average import AverageInfo, average
from hypergrad.estimators.base import (
    Estimate,
    Estimator,
    OnlineInfo,
    OnlineState,
    UnrollInfo,
    advice,
    structural_zeros,
)
from hypergrad.estimators.darts import central_difference, darts, exact_product
from hypergrad.estimators.drift import DriftInfo, drift
from hypergrad.estimators.evolution import EvolutionInfo, es, nres, pes
from hypergrad.estimators.forward import forward
from hypergrad.estimators.hd import hd
from hypergrad.estimators.implicit import ImplicitInfo, ImplicitState, implicit
from hypergrad.estimators.mixed import MixedInfo, mixed, no_response
from hypergrad.estimators.relaxed import RelaxedInfo, relaxed
from hypergrad.estimators.reverse import Plan, plan, reverse
from hypergrad.estimators.reversible import ReversibleInfo, reversible
from hypergrad.estimators.rtho import rtho
from hypergrad.estimators.score import ScoreInfo, score, score_shared
from hypergrad.estimators.shared import (
    Response,
    SharedInfo,
    SharedState,
    at_rest,
    left_out,
    shared,
    unrolled,
)
from hypergrad.estimators.truncated import one_step, truncated
from hypergrad.pairs import Target, final_objective, mean_objective

__all__ = [
    "AverageInfo",
    "DriftInfo",
    "Estimate",
    "Estimator",
    "EvolutionInfo",
    "ImplicitInfo",
    "ImplicitState",
    "MixedInfo",
    "OnlineInfo",
    "OnlineState",
    "Plan",
    "RelaxedInfo",
    "Response",
    "ReversibleInfo",
    "ScoreInfo",
    "SharedInfo",
    "SharedState",
    "Target",
    "UnrollInfo",
    "advice",
    "at_rest",
    "average",
    "central_difference",
    "darts",
    "drift",
    "es",
    "exact_product",
    "final_objective",
    "forward",
    "hd",
    "implicit",
    "left_out",
    "mean_objective",
    "mixed",
    "mixed_mode",
    "no_response",
    "nres",
    "one_step",
    "pes",
    "plain",
    "plan",
    "relaxed",
    "reverse",
    "reversible",
    "rtho",
    "score",
    "score_shared",
    "shared",
    "structural_zeros",
    "truncated",
    "unrolled",
]
