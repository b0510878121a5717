"""What every function of (loss, params, batch) must do: the same for a population under vmap, traced once."""

import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad import curvature as cv
from tests.networks import data, network

KEY = jax.random.key(0)
MODEL = cv.mlp(jnp.tanh, l2=0.05)
BATCH = data(7, 3, 2, jnp.float32)
MEASURES = {
    "adaptive": lambda p: cv.adaptive(MODEL, p, BATCH),
    "diagonal": lambda p: cv.diagonal(MODEL, p, BATCH),
    "diagonal_estimate": lambda p: cv.diagonal_estimate(MODEL, p, BATCH, KEY).value,
    "difference_hessian": lambda p: cv.difference_hessian(MODEL, p, BATCH),
    "expected_sharpness": lambda p: cv.expected_sharpness(MODEL, p, BATCH, KEY).value,
    "fisher_vp": lambda p: cv.fisher_vp(MODEL, p, BATCH, p),
    "flat_volume": lambda p: cv.flat_volume(MODEL, p, BATCH, KEY),
    "frobenius": lambda p: cv.frobenius(MODEL, p, BATCH),
    "frobenius_columns": lambda p: cv.frobenius_columns(MODEL, p, BATCH),
    "frobenius_dense": lambda p: cv.frobenius_dense(MODEL, p, BATCH),
    "frobenius_estimate": lambda p: cv.frobenius_estimate(MODEL, p, BATCH, KEY, num_products=30),
    "frobenius_pairs": lambda p: cv.frobenius_pairs(MODEL, p, BATCH),
    "ggn_vp": lambda p: cv.ggn_vp(MODEL, p, BATCH, p),
    "gradient_variance": lambda p: cv.gradient_variance(MODEL, p, BATCH, chunk=3),
    "hessian": lambda p: cv.hessian(MODEL, p, BATCH),
    "hessian_blocks": lambda p: list(cv.hessian_blocks(MODEL, p, BATCH).values()),
    "hvp": lambda p: cv.hvp(cv.chunked_loss(MODEL, 3), p, BATCH, p),
    "keskar": lambda p: cv.keskar(MODEL, p, BATCH, max_iterations=3),
    "landscape": lambda p: cv.landscape(MODEL, p, BATCH, [cv.filter_direction(p, KEY)], num=5),
    "last_layer": lambda p: cv.last_layer(MODEL, p, BATCH),
    "m_sharpness": lambda p: cv.m_sharpness(MODEL, p, BATCH, size=3, chunk=1),
    "pac_bayes": lambda p: cv.pac_bayes(MODEL, p, BATCH, KEY),
    "path_norm": lambda p: cv.path_norm(MODEL, p, BATCH),
    "power_iteration": lambda p: cv.power_iteration(MODEL, p, BATCH, KEY).values,
    "published": lambda p: cv.published(MODEL, p, BATCH),
    "relative_flatness": lambda p: cv.relative_flatness(MODEL, p, BATCH, "0.kernel"),
    "rescaled": lambda p: cv.rescaled(MODEL, p, BATCH),
    "sam": lambda p: cv.sam(MODEL, p, BATCH),
    "sample_pairs": lambda p: cv.sample_pairs(MODEL, p, BATCH),
    "section_3": lambda p: cv.section_3(MODEL, p, BATCH),
    "spectral_density": lambda p: cv.spectral_density(MODEL, p, BATCH, KEY, num_probes=2).nodes,
    "theorem_1": lambda p: cv.theorem_1(MODEL, p, BATCH),
    "top_eigenvalues": lambda p: cv.top_eigenvalues(MODEL, p, BATCH, KEY, num=2).values,
    "trace": lambda p: cv.trace(MODEL, p, BATCH),
    "trace_estimate": lambda p: cv.trace_estimate(MODEL, p, BATCH, KEY).value,
}


def test_all_are_here():
    taken = {
        name
        for name in cv.__all__
        if inspect.isfunction(f := getattr(cv, name))
        and list(inspect.signature(f).parameters)[1:3] == ["params", "batch"]
    }
    assert taken - {"layer_names"} == set(MEASURES)  # which returns no numbers


SLOW = {
    "adaptive": "sam",
    "difference_hessian": "hessian",
    "frobenius_columns": "frobenius",
    "frobenius_dense": "frobenius",
    "hessian_blocks": "hessian",
    "hvp": "hessian",
    "keskar": "sam",
    "m_sharpness": "sam",
    "pac_bayes": "expected_sharpness",
    "spectral_density": "top_eigenvalues",
    "trace": "diagonal",
    "trace_estimate": "frobenius_estimate",
}
"""Measures that compile long -> quick ones that are built in the same way."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in MEASURES]
)
def test_a_population_is_its_members(name):
    networks = [network((3, 4, 2), seed=seed, dtype=jnp.float32) for seed in (0, 1)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *networks)
    alone = jax.jit(chex.assert_max_traces(MEASURES[name], n=1))
    members, population = map(alone, networks), jax.jit(jax.vmap(MEASURES[name]))(stacked)
    # differences of differences keep two digits of float32
    tolerance = 2e-2 if name == "difference_hessian" else 1e-4
    for index, member in enumerate(members):
        among = jax.tree.map(lambda x, index=index: x[index], population)
        chex.assert_trees_all_equal_structs(among, member)
        scales = jax.tree.map(lambda x: max(1e-6, np.abs(x).max()), member)
        among, single = (
            jax.tree.map(lambda x, scale: x / scale, found, scales) for found in (among, member)
        )
        chex.assert_trees_all_close(among, single, rtol=0, atol=tolerance)
