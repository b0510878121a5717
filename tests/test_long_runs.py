"""Runs longer than memory: states in the memory of the host."""

import chex
import jax
import jax.export
import pytest

from hypergrad.estimators import mixed_mode, reverse
from hypergrad.estimators.unrolled import adjoint
from tests.disk import KEY, refused
from tests.problems import HORIZON, tiny


def estimate_of(backward):
    problem, hparams = tiny()
    return reverse(problem, HORIZON, backward=backward).estimate, hparams


# ---- on the host


@pytest.fixture
def apart(monkeypatch):
    """Take the device for one with memory of its own; on a CPU, copies are where the host's are."""
    monkeypatch.setattr(adjoint, "check_host_memory", lambda: None)


def test_an_offload_needs_memory_besides_the_hosts():
    estimate, hparams = estimate_of(mixed_mode((3,), offload=True))
    message = refused(estimate, KEY, (), hparams)
    assert message.startswith("offload is True on a device of platform 'cpu'")


@pytest.mark.parametrize(
    "checkpoint", [(3,), *(pytest.param(c, marks=pytest.mark.slow) for c in (None, (), (4, 2)))]
)
def test_an_offload_changes_no_number(apart, checkpoint):
    found = [
        jax.jit(jax.vmap(estimate, (0, None, None)))(jax.random.split(KEY, 2), (), hparams)[1]
        for estimate, hparams in map(
            estimate_of, [mixed_mode(checkpoint), mixed_mode(checkpoint, offload=True)]
        )
    ]
    chex.assert_trees_all_close(*found, rtol=1e-6)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_stored_states_go_to_the_host_and_come_back(apart, platform):
    counts = []
    for offload in (False, True):
        estimate, hparams = estimate_of(mixed_mode((3,), offload=offload))
        lowered = jax.export.export(jax.jit(estimate), platforms=[platform])(KEY, (), hparams)
        text = lowered.mlir_module()
        counts.append([text.count(f'placement = "{kind}"') for kind in ("pinned_host", "device")])
    # the weights and their momentum
    assert counts == [[0, 0], [2, 2]]
