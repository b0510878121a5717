"""Checkpoints: a state comes back to the bit, and a damaged one gives way to the one before."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad import study
from hypergrad.study import StudyWarning
from hypergrad.study.disk import checkpoint
from tests.disk import KEY, refused, same, toy

pytestmark = pytest.mark.usefixtures("no_waiting")


def test_a_checkpoint_keeps_every_kind_of_leaf(tmp_path):
    state = {
        "bfloat16": jnp.asarray([1.5, jnp.nan, -0.0], jnp.bfloat16),
        "float8": jnp.ones(3, jnp.float8_e4m3fn),
        "float16": jnp.ones((2, 1), jnp.float16),
        "bool": jnp.array([True, False]),
        "scalar": jnp.float32(0.1),
        "rbg": jax.random.key(5, impl="rbg"),
        "keys": jax.random.split(KEY, 3),
        "old": jax.random.PRNGKey(7),
        "transposed": np.arange(6.0).reshape(2, 3).T,
        "numpy": np.float64(0.1),
        "int": 3,
        "float": 0.1,
        "flag": True,
        "empty": jnp.zeros((0, 4)),
    }
    checkpoint.save(tmp_path, 5, state)
    found = checkpoint.load(tmp_path, 5, jax.tree.map(lambda x: x, state))
    for name, value in state.items():
        assert type(found[name]) is type(value) or isinstance(value, jax.Array), name
        assert str(jnp.asarray(found[name]).dtype) == str(jnp.asarray(value).dtype), name
        if name in ("rbg", "keys"):
            same(jax.random.key_data(found[name]), jax.random.key_data(value))
        else:
            same(found[name], value)


def test_weak_types_are_stripped_before_they_can_matter():
    state = checkpoint.without_weak_types({"x": jnp.asarray(1.0), "key": KEY, "n": 1})
    assert not state["x"].weak_type and state["n"] == 1


def test_a_checkpoint_of_another_tuner_is_refused(tmp_path):
    checkpoint.save(tmp_path, 1, {"a": jnp.zeros(3)})
    for like in ({"a": jnp.zeros(3, jnp.int32)}, {"b": jnp.zeros(3)}):
        assert "of another tuner" in refused(checkpoint.load, tmp_path, 1, like)
    with (tmp_path / "checkpoint-0000000001.npz").open("ab") as file:
        file.truncate(10**6)
    assert "expected at most" in refused(checkpoint.load, tmp_path, 1, {"a": jnp.zeros(3)})
    assert "expected an array" in refused(checkpoint.save, tmp_path, 2, {"a": object()})


def test_restored_arrays_find_the_compiled_program(tmp_path):
    state = {"x": jnp.ones(3), "key": KEY}
    step = jax.jit(lambda s: {**s, "x": s["x"] * 2})
    checkpoint.save(tmp_path, 1, step(state))
    step(checkpoint.load(tmp_path, 1, state))
    assert step._cache_size() < 2  # 0 where jax did not keep it for its fast path


@pytest.mark.parametrize("hurt", ["npz", "json"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(kept, whole, hurt):
    newest, older = checkpoint.steps(kept)
    path = kept / f"checkpoint-{newest:010d}.{hurt}"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.warns(StudyWarning, match="an earlier one"):
        assert study.resume_run(toy(), kept).digest == whole.digest
    assert older == newest - 1
