"""Help for tests: tolerances that come from the dtype."""

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad.types import PyTree


def assert_close(actual: PyTree, expected: PyTree, factor: float = 10.0) -> None:
    """Assert that two trees agree to `factor` x √eps of the actual dtype, relative to each leaf's norm.

    Raises:
        AssertionError: naming the leaf and the relative error.
    """
    flat, structure = jax.tree_util.tree_flatten_with_path(actual)
    assert structure == jax.tree.structure(expected), (structure, jax.tree.structure(expected))
    for (path, a), e in zip(flat, jax.tree.leaves(expected), strict=True):
        tolerance = factor * float(jnp.finfo(jnp.result_type(a)).eps) ** 0.5
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        scale = max(float(np.linalg.norm(e)), 1e-30)
        error = float(np.linalg.norm(a - e)) / scale
        name = jax.tree_util.keystr(path)
        assert error <= tolerance, f"{name}: relative error {error:.2e}, expected {tolerance:.2e}"
