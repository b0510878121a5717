"""Curvature: exact and estimated norms, spectra and flatness; pure functions of (loss, params, batch)."""

from hypergrad.curvature.base import Composed, Layered, Model
from hypergrad.curvature.columns import frobenius_columns
from hypergrad.curvature.frobenius import (
    FallbackWarning,
    frobenius,
    frobenius_dense,
    frobenius_pairs,
    layer_names,
    sample_pairs,
)
from hypergrad.curvature.layers import cross_entropy, mlp, squared_error
from hypergrad.curvature.result import Frobenius

__all__ = [
    "Composed",
    "FallbackWarning",
    "Frobenius",
    "Layered",
    "Model",
    "cross_entropy",
    "frobenius",
    "frobenius_columns",
    "frobenius_dense",
    "frobenius_pairs",
    "layer_names",
    "mlp",
    "sample_pairs",
    "squared_error",
]
