"""Small networks for the tests of curvature, and their Hessians by plain autodiff in float64."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

fast = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""Compile quickly: what is tested is the mathematics."""


def network(widths, bias=True, dtype=jnp.float64, seed=0):
    random = np.random.default_rng(seed)
    layers = []
    for a, b in pairwise(widths):
        layer = {"kernel": jnp.asarray(random.normal(size=(a, b)) * (1.5 / a) ** 0.5, dtype)}
        if bias:
            layer["bias"] = jnp.asarray(0.3 * random.normal(size=b), dtype)
        layers.append(layer)
    return layers


def data(samples, inputs, classes, dtype=jnp.float64, seed=1, labels=True):
    random = np.random.default_rng(seed)
    x = jnp.asarray(random.normal(size=(samples, inputs)), dtype)
    if labels:
        return x, jnp.asarray(random.integers(classes, size=samples), jnp.int32)
    return x, jnp.asarray(random.normal(size=(samples, classes)), dtype)


def forward(activation, layers, x):
    for layer in layers[:-1]:
        x = activation(x @ layer["kernel"] + layer.get("bias", 0.0))
    return x @ layers[-1]["kernel"] + layers[-1].get("bias", 0.0)


def entropy(logits, labels):
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1))


def squares(outputs, targets):
    return 0.5 * jnp.mean(jnp.sum((outputs - targets) ** 2, 1))


def in_float64(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, tree)


def dense_hessian(function, params):
    """The Hessian of `function` as a matrix of numpy, and where each leaf's rows end."""
    flat, unravel = ravel_pytree(params)
    return np.asarray(fast(jax.hessian(lambda w: function(unravel(w))))(flat))


def block_squares(matrix, sizes):
    ends = np.cumsum([0, *sizes])
    spans = list(pairwise(ends))
    return np.array([[np.sum(matrix[a:b, c:d] ** 2) for c, d in spans] for a, b in spans])


def sizes_of(layers):
    return [sum(w.size for w in jax.tree.leaves(layer)) for layer in layers]
