"""Curvature: exact and estimated norms, spectra and flatness; pure functions of (loss, params, batch)."""

from hypergrad.curvature.average import Expected, Volume, expected_sharpness, flat_volume, pac_bayes
from hypergrad.curvature.chunked import chunked_loss
from hypergrad.curvature.columns import Frobenius, frobenius_columns
from hypergrad.curvature.complexity import gradient_variance, path_norm, relative_flatness
from hypergrad.curvature.estimate import FrobeniusEstimate, NormInterval, frobenius_estimate
from hypergrad.curvature.fghpo import last_layer, published, rescaled, section_3, theorem_1
from hypergrad.curvature.frobenius import (
    FallbackWarning,
    frobenius,
    frobenius_dense,
    frobenius_pairs,
    layer_names,
    sample_pairs,
)
from hypergrad.curvature.landscape import Landscape, filter_direction, landscape
from hypergrad.curvature.layers import mlp, softmax_cross_entropy, squared_error
from hypergrad.curvature.models import Composed, Layered, Model
from hypergrad.curvature.problems import (
    LossCurvature,
    Measure,
    bounded,
    judged_by,
    penalized,
    supremum,
)
from hypergrad.curvature.products import (
    Product,
    difference_hessian,
    fisher_vp,
    ggn_vp,
    hessian,
    hessian_blocks,
    hvp,
)
from hypergrad.curvature.sharpness import adaptive, keskar, m_sharpness, sam
from hypergrad.curvature.spectrum import (
    Eigenpairs,
    SpectralDensity,
    power_iteration,
    spectral_density,
    top_eigenvalues,
)
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
    "Landscape",
    "Layered",
    "LossCurvature",
    "Measure",
    "Model",
    "NormInterval",
    "Product",
    "SpectralDensity",
    "TraceEstimate",
    "Volume",
    "adaptive",
    "bounded",
    "chunked_loss",
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
    "judged_by",
    "keskar",
    "landscape",
    "last_layer",
    "layer_names",
    "m_sharpness",
    "mlp",
    "pac_bayes",
    "path_norm",
    "penalized",
    "power_iteration",
    "published",
    "relative_flatness",
    "rescaled",
    "sam",
    "sample_pairs",
    "section_3",
    "softmax_cross_entropy",
    "spectral_density",
    "squared_error",
    "supremum",
    "theorem_1",
    "top_eigenvalues",
    "trace",
    "trace_estimate",
]
