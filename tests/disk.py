"""A study that costs nothing, with every kind of leaf, and what is done to its folder."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import faults
from hypergrad import study
from hypergrad.searchers import Trials
from hypergrad.study.disk.journal import Journal
from hypergrad.tuners import Tuner

ROOT = Path(__file__).parent.parent
KEY = jax.random.key(3)


def refused(call, *args):
    """Call, expect a refusal in one line, and return it."""
    with pytest.raises(ValueError) as caught:
        call(*args)
    return one_line(caught.value)


def one_line(error):
    message = str(error)
    assert "\n" not in message and len(message) < 700
    return message


def toy(shift=0.0):
    """Draw two members a step from a state with every kind of leaf; a host function, no jit."""

    def init(key):
        return {
            "wide": jnp.zeros(3),
            "half": jnp.zeros(2, jnp.bfloat16),
            "key": key,
            "old_key": jax.random.PRNGKey(1),
            "weak": jnp.asarray(1.0),
            "host": np.zeros(2),
            "count": 0,
            "none": None,
            "empty": jnp.zeros((0, 3)),
        }

    def step(key, state):
        draw = jax.random.normal(key, (2,)) + shift
        state = {
            **state,
            "wide": state["wide"] + draw[0] / 3,
            "half": state["half"] + draw.astype(jnp.bfloat16),
            "key": jax.random.fold_in(state["key"], 1),
            "weak": state["weak"] * 0.7,
            "host": state["host"] + np.asarray(draw, np.float64) / 7,
            "count": state["count"] + 1,
        }
        values = draw + state["wide"][0] + float(state["host"].sum()) + state["weak"]
        values = jnp.where(state["count"] == 3, jnp.array([jnp.nan, -jnp.inf]), values)
        hparams = {"a": draw, "half": jnp.stack([state["half"]] * 2), "n": jnp.arange(2)}
        info = {"bits": jax.random.key_data(state["key"]), "odd": draw > 0, "z": -0.0 * draw}
        index = jnp.arange(2, dtype=jnp.int32)
        return state, Trials(hparams, values, index, index, info)

    return Tuner(init, step)


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.asarray(x).dtype == np.asarray(y).dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def end_after(num_steps, folder, every=0.0):
    def stop(index, outcome, best):
        if index + 1 == num_steps:
            raise faults.Stop

    with pytest.raises(faults.Stop):
        study.run(toy(), KEY, 6, stop, storage=folder, checkpoint_seconds=every)


def write_records(path, num):
    journal = Journal(path)
    for step in range(num):
        journal.append({"step": step, "values": [step / 3]})
    journal.close()


def damage(path, line, change):
    lines = path.read_bytes().splitlines(keepends=True)
    lines[line] = change(lines[line])
    path.write_bytes(b"".join(lines))
