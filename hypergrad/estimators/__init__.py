"""Hypergradient estimators: one method, one file, one contract (`base.Estimator`)."""

from hypergrad.adjoint import mixed, plain
from hypergrad.estimators.average import AverageInfo, average
from hypergrad.estimators.base import Estimate, Estimator, UnrollInfo, advice, structural_zeros
from hypergrad.estimators.drift import DriftInfo, drift
from hypergrad.estimators.evolution import EvolutionInfo, es, nres, pes
from hypergrad.estimators.forward import forward
from hypergrad.estimators.implicit import ImplicitInfo, ImplicitState, implicit
from hypergrad.estimators.reverse import Plan, plan, reverse
from hypergrad.estimators.reversible import ReversibleInfo, reversible
from hypergrad.estimators.truncated import truncated
from hypergrad.pairs import Target, final_objective, mean_objective

__all__ = [
    "AverageInfo",
    "DriftInfo",
    "Estimate",
    "Estimator",
    "EvolutionInfo",
    "ImplicitInfo",
    "ImplicitState",
    "Plan",
    "ReversibleInfo",
    "Target",
    "UnrollInfo",
    "advice",
    "average",
    "drift",
    "es",
    "final_objective",
    "forward",
    "implicit",
    "mean_objective",
    "mixed",
    "nres",
    "pes",
    "plain",
    "plan",
    "reverse",
    "reversible",
    "structural_zeros",
    "truncated",
]
