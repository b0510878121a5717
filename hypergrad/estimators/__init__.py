"""Hypergradient estimators: one method, one file, one contract (`base.Estimator`)."""

from hypergrad.adjoint import mixed, plain
from hypergrad.estimators.base import Estimate, Estimator, UnrollInfo, structural_zeros
from hypergrad.estimators.forward import forward
from hypergrad.estimators.reverse import Plan, plan, reverse
from hypergrad.estimators.truncated import truncated

__all__ = [
    "Estimate",
    "Estimator",
    "Plan",
    "UnrollInfo",
    "forward",
    "mixed",
    "plain",
    "plan",
    "reverse",
    "structural_zeros",
    "truncated",
]
