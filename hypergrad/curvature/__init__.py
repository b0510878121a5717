"""Curvature: exact and estimated norms, spectra and flatness; pure functions of (loss, params, batch)."""

from hypergrad.curvature.base import Composed, Layered, Model
from hypergrad.curvature.chunked import chunked
from hypergrad.curvature.columns import frobenius_columns
from hypergrad.curvature.density import SpectralDensity, spectral_density
from hypergrad.curvature.differences import difference_hessian
from hypergrad.curvature.eigen import Eigenpairs, power_iteration, top_eigenvalues
from hypergrad.curvature.estimate import FrobeniusEstimate, Interval, frobenius_estimate
from hypergrad.curvature.expected import (
    Expected,
    Volume,
    expected_sharpness,
    flat_volume,
    pac_bayes,
)
from hypergrad.curvature.frobenius import (
    FallbackWarning,
    frobenius,
    frobenius_dense,
    frobenius_pairs,
    layer_names,
    sample_pairs,
)
from hypergrad.curvature.landscape import Landscape, filter_direction, landscape
from hypergrad.curvature.layers import cross_entropy, mlp, squared_error
from hypergrad.curvature.measures import gradient_variance, path_norm, relative_flatness
from hypergrad.curvature.products import (
    Product,
    fisher_vp,
    ggn_vp,
    hessian,
    hessian_blocks,
    hvp,
)
from hypergrad.curvature.result import Frobenius
from hypergrad.curvature.sharpness import adaptive, keskar, m_sharpness, sam
from hypergrad.curvature.surrogate import last_layer, published, rescaled, section_3, theorem_1
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
    "Expected",
    "FallbackWarning",
    "Frobenius",
    "FrobeniusEstimate",
    "Interval",
    "Landscape",
    "Layered",
    "Model",
    "Product",
    "SpectralDensity",
    "TraceEstimate",
    "Volume",
    "adaptive",
    "chunked",
    "cross_entropy",
    "diagonal",
    "diagonal_estimate",
    "difference_hessian",
    "expected_sharpness",
    "filter_direction",
    "fisher_vp",
    "flat_volume",
    "frobenius",
    "frobenius_columns",
    "frobenius_dense",
    "frobenius_estimate",
    "frobenius_pairs",
    "ggn_vp",
    "gradient_variance",
    "hessian",
    "hessian_blocks",
    "hvp",
    "keskar",
    "landscape",
    "last_layer",
    "layer_names",
    "m_sharpness",
    "mlp",
    "pac_bayes",
    "path_norm",
    "power_iteration",
    "published",
    "relative_flatness",
    "rescaled",
    "sam",
    "sample_pairs",
    "section_3",
    "spectral_density",
    "squared_error",
    "theorem_1",
    "top_eigenvalues",
    "trace",
    "trace_estimate",
]
