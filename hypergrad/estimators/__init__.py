"""Hypergradient estimators: one method, one file, one contract (`base.Estimator`)."""

from hypergrad.adjoint import mixed, plain
from hypergrad.estimators.average import AverageInfo, average
from hypergrad.estimators.base import Estimate, Estimator, UnrollInfo, structural_zeros
from hypergrad.estimators.drift import DriftInfo, drift
from hypergrad.estimators.forward import forward
from hypergrad.estimators.implicit import ImplicitInfo, ImplicitState, advice, implicit
from hypergrad.estimators.reverse import Plan, plan, reverse
from hypergrad.estimators.reversible import ReversibleInfo, reversible
from hypergrad.estimators.truncated import truncated

__all__ = [
    "AverageInfo",
    "DriftInfo",
    "Estimate",
    "Estimator",
    "ImplicitInfo",
    "ImplicitState",
    "Plan",
    "ReversibleInfo",
    "UnrollInfo",
    "advice",
    "average",
    "drift",
    "forward",
    "implicit",
    "mixed",
    "plain",
    "plan",
    "reverse",
    "reversible",
    "structural_zeros",
    "truncated",
]
