"""Hypergradient estimators: one method, one file, one contract (`base.Estimator`)."""

from hypergrad.adjoint import mixed, plain
from hypergrad.estimators.average import AverageInfo, average
from hypergrad.estimators.base import Estimate, Estimator, UnrollInfo, structural_zeros
from hypergrad.estimators.forward import forward
from hypergrad.estimators.implicit import ImplicitInfo, ImplicitState, advice, implicit
from hypergrad.estimators.reverse import Plan, plan, reverse
from hypergrad.estimators.truncated import truncated

__all__ = [
    "AverageInfo",
    "Estimate",
    "Estimator",
    "ImplicitInfo",
    "ImplicitState",
    "Plan",
    "UnrollInfo",
    "advice",
    "average",
    "forward",
    "implicit",
    "mixed",
    "plain",
    "plan",
    "reverse",
    "structural_zeros",
    "truncated",
]
