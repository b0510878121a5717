"""Curvature: exact and estimated norms, spectra and flatness; pure functions of (loss, params, batch)."""

from hypergrad.curvature.base import Composed, Layered, Model
from hypergrad.curvature.columns import frobenius_columns
from hypergrad.curvature.density import SpectralDensity, spectral_density
from hypergrad.curvature.eigen import Eigenpairs, power_iteration, top_eigenvalues
from hypergrad.curvature.estimate import FrobeniusEstimate, Interval, frobenius_estimate
from hypergrad.curvature.frobenius import (
    FallbackWarning,
    frobenius,
    frobenius_dense,
    frobenius_pairs,
    layer_names,
    sample_pairs,
)
from hypergrad.curvature.layers import cross_entropy, mlp, squared_error
from hypergrad.curvature.products import (
    Product,
    fisher_vp,
    ggn_vp,
    hessian,
    hessian_blocks,
    hvp,
)
from hypergrad.curvature.result import Frobenius
from hypergrad.curvature.trace import (
    DiagonalEstimate,
    TraceEstimate,
    diagonal,
    diagonal_estimate,
    trace,
    trace_estimate,
)

__all__ = [
    "Composed",
    "DiagonalEstimate",
    "Eigenpairs",
    "FallbackWarning",
    "Frobenius",
    "FrobeniusEstimate",
    "Interval",
    "Layered",
    "Model",
    "Product",
    "SpectralDensity",
    "TraceEstimate",
    "cross_entropy",
    "diagonal",
    "diagonal_estimate",
    "fisher_vp",
    "frobenius",
    "frobenius_columns",
    "frobenius_dense",
    "frobenius_estimate",
    "frobenius_pairs",
    "ggn_vp",
    "hessian",
    "hessian_blocks",
    "hvp",
    "layer_names",
    "mlp",
    "power_iteration",
    "sample_pairs",
    "spectral_density",
    "squared_error",
    "top_eigenvalues",
    "trace",
    "trace_estimate",
]
