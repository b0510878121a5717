"""Hypergradient estimators: one method, one file, one contract (`base.Estimator`)."""

from hypergrad.adjoint import mixed_mode, plain
from hypergrad.estimators.average import AverageInfo, average
from hypergrad.estimators.base import (
    Estimate,
    Estimator,
    OnlineInfo,
    OnlineState,
    UnrollInfo,
    structural_zeros,
)
from hypergrad.estimators.darts import central_difference, darts, exact_product
from hypergrad.estimators.drift import DriftInfo, drift
from hypergrad.estimators.forward import forward
from hypergrad.estimators.hd import hd
from hypergrad.estimators.implicit import ImplicitInfo, ImplicitState, advice, implicit
from hypergrad.estimators.mixed import MixedInfo, mixed, no_response
from hypergrad.estimators.relaxed import RelaxedInfo, relaxed
from hypergrad.estimators.reverse import Plan, plan, reverse
from hypergrad.estimators.reversible import ReversibleInfo, reversible
from hypergrad.estimators.rtho import rtho
from hypergrad.estimators.score import ScoreInfo, score, score_shared
from hypergrad.estimators.truncated import one_step, truncated

__all__ = [
    "AverageInfo",
    "DriftInfo",
    "Estimate",
    "Estimator",
    "ImplicitInfo",
    "ImplicitState",
    "MixedInfo",
    "OnlineInfo",
    "OnlineState",
    "Plan",
    "RelaxedInfo",
    "ReversibleInfo",
    "ScoreInfo",
    "UnrollInfo",
    "advice",
    "average",
    "central_difference",
    "darts",
    "drift",
    "exact_product",
    "forward",
    "hd",
    "implicit",
    "mixed",
    "mixed_mode",
    "no_response",
    "one_step",
    "plain",
    "plan",
    "relaxed",
    "reverse",
    "reversible",
    "rtho",
    "score",
    "score_shared",
    "structural_zeros",
    "truncated",
]
