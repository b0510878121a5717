"""Curvature: exact and estimated norms, spectra and flatness; pure functions of (loss, params, batch).

- `average`: Average sharpness: the expected rise of the loss, its PAC-Bayes width, and the volume below a
  level.
- `blocks`: Exact norms of the Hessian blocks of a layered network, two ways: sample pairs, and dense tiles.
- `chunked`: A mean loss that is computed a few samples at a time.
- `columns`: Exact Hessian norms of any model by its columns; half of them are enough, because H is
  symmetric.
- `complexity`: Measures of flatness and capacity at the weights alone: gradients, paths, relative flatness.
- `estimate`: Estimates of ‖H‖_F from products with random vectors, with an interval that keeps its
  confidence.
- `fghpo`: Values that replace the norm of the Hessian in flatness-guided search, as in its paper.
- `frobenius`: The exact Frobenius norm of a Hessian, by the cheapest path for the model.
- `landscape`: Slices through the landscape of a loss, along directions that can be compared between
  networks.
- `layers`: Layered networks: the params of their layers, and the signals between the layers, sample by
  sample.
- `memory`: The memory that a measure may use, and work by chunks to stay within it.
- `models`: The losses that every measure of curvature takes, and their checks.
- `problems`: Measures of a trained network, such as its flatness, as objectives, penalties and constraints.
- `products`: Products of curvature matrices with vectors, and the matrices themselves for small networks.
- `sharpness`: Worst-case sharpness: how much the loss rises at most within a ball or a box around the
  weights.
- `spectrum`: Eigenvalues of a curvature matrix at the ends of its spectrum, and the density of all of them.
- `trace`: Trace and diagonal of a curvature matrix, exact and estimated.
"""

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
