"""A mean loss that is computed a few samples at a time."""

import jax
import jax.numpy as jnp

from hypergrad.core.checks import check_whole
from hypergrad.core.types import Array, Batch, Params
from hypergrad.curvature.models import BatchLoss, Model, loss_of, num_samples
from hypergrad.curvature.sharpness import check_mean


def chunked_loss(loss: Model, size: int) -> BatchLoss:
    """Return the same mean loss, computed `size` samples at a time, in memory of so many.

    L = Σ_c (m_c / m) L_c over parts of `size` samples and the rest, one after another. Every measure that
    takes a plain loss then takes a batch of any length: `hvp`, spectra, estimates, columns, sharpness.

    **Cost:** each part is computed once more for every derivative taken of it, instead of being kept.

    **Limits:** for means over samples that do not see each other; outside of `jit` this is tested on the
    first part. The loss has no outputs, which `ggn_vp` and `fisher_vp` need: these products are means over
    samples themselves, and can be taken part by part.

    Args:
        loss: Any model whose batch has the samples along its first axes.
        size: Number of samples at a time.

    Raises:
        ValueError: when the returned loss is called outside of `jit`, and is not a mean over samples.
    """
    check_whole("size", size)
    function = loss_of(loss)

    def whole(params: Params, batch: Batch) -> Array:
        samples = num_samples(batch)
        num, rest = divmod(samples, size)
        batch = jax.tree.map(jnp.asarray, batch)
        check_mean(function, params, jax.tree.map(lambda x: x[: max(2, size)], batch), finite=False)
        parts = jax.tree.map(lambda x: x[: num * size].reshape(num, size, *x.shape[1:]), batch)
        tail = jax.tree.map(lambda x: x[num * size :], batch)
        # what is kept for a derivative is the part, not what was computed from it
        again = jax.checkpoint(function, prevent_cse=False)

        def add(total: Array, part: Batch) -> tuple[Array, None]:
            return total + size * again(params, part), None

        one = jax.tree.map(lambda x: x[:1], batch)
        value = jax.eval_shape(function, params, one)
        total = jax.lax.scan(add, jnp.zeros(value.shape, value.dtype), parts)[0]
        if rest:
            total = total + rest * again(params, tail)
        return total / samples

    return whole
