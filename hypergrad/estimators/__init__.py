"""Hypergradient estimators: one method, one file, one contract (`base.Estimator`)."""

from hypergrad.estimators.advice import advice, structural_zeros
from hypergrad.estimators.average import AverageInfo, average
from hypergrad.estimators.base import Estimate, Estimator
from hypergrad.estimators.evolution.evolution import EvolutionInfo, es, nres, pes
from hypergrad.estimators.evolution.pairs import Target, final_objective, mean_objective
from hypergrad.estimators.implicit.implicit import ImplicitInfo, ImplicitState, implicit
from hypergrad.estimators.policies.mixed import MixedInfo, mixed, no_response
from hypergrad.estimators.policies.relaxed import RelaxedInfo, relaxed
from hypergrad.estimators.policies.score import ScoreInfo, score, score_shared
from hypergrad.estimators.policies.shared import SharedInfo, SharedState, shared
from hypergrad.estimators.unrolled.adjoint import mixed_mode, plain
from hypergrad.estimators.unrolled.base import UnrollInfo
from hypergrad.estimators.unrolled.darts import central_difference, darts, exact_product
from hypergrad.estimators.unrolled.drift import DriftInfo, drift
from hypergrad.estimators.unrolled.forward import forward
from hypergrad.estimators.unrolled.hd import hd
from hypergrad.estimators.unrolled.online import OnlineInfo, OnlineState
from hypergrad.estimators.unrolled.reverse import Plan, plan, reverse
from hypergrad.estimators.unrolled.reversible import ReversibleInfo, reversible
from hypergrad.estimators.unrolled.rtho import rtho
from hypergrad.estimators.unrolled.truncated import one_step, truncated

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
    "ReversibleInfo",
    "ScoreInfo",
    "SharedInfo",
    "SharedState",
    "Target",
    "UnrollInfo",
    "advice",
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
]
