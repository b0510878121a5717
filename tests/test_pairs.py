"""Labels `[N]` and predictions `[N, 1]` that make `[N, N]` are warned of; pairs that are meant are not."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.core.cautions import BatchWarning

N, D = 8, 3
X = jnp.asarray(np.random.default_rng(0).normal(size=(N, D)), jnp.float32)
BATCH = {"x": X, "y": jnp.sin(X[:, 0]), "column": jnp.sin(X[:, :1]), "rate": jnp.ones(N)}
BATCH |= {"class": jnp.arange(N) % 2, "square": jnp.ones((N, N))}
H = {"l2": jnp.float32(0.1)}


def net(p, b):
    return jnp.tanh(b["x"] @ p["w"] + p["b"])  # [N, 1]


def flat(p, b):
    return net(p, b)[:, 0]


def cross(a):
    return a[:, None] - a[None, :]


def each(p, b):
    """The loss of one example after the other."""
    return jax.vmap(lambda x, y: (x @ p["w"] - y) ** 2)(b["x"], b["y"])


def attention(p, b):
    q, k = b["x"] @ p["q"], b["x"] @ p["q"].T
    return jnp.mean((jax.nn.softmax(q @ k.T) @ b["x"] @ p["w"])[:, 0] - b["y"])


def info_nce(p, b):
    z = b["x"] @ p["q"]
    same = b["class"][:, None] == b["class"][None, :]
    return jnp.mean(jnp.where(same, jax.nn.log_softmax(z @ z.T), 0))


def ranking(p, b):
    return jnp.mean(jax.nn.relu(1 - cross(flat(p, b)) * jnp.sign(cross(b["y"]))))


def ranking_of_columns(p, b):
    s = net(p, b)
    return jnp.mean(jax.nn.relu(1 - (s - s.T) * jnp.sign(b["column"] - b["column"].T)))


def kernel(p, b):
    """Maximum mean discrepancy of predictions and labels."""
    return jnp.mean(jnp.exp(-((flat(p, b)[:, None] - b["y"][None, :]) ** 2)))


def by_axis(p, b):
    return jnp.mean(jax.nn.logsumexp(net(p, b) - b["y"], axis=1))


def normalized(p, b):
    x = b["square"]
    x = (x - x.mean(1, keepdims=True)) / (x.std(1, keepdims=True) + 1) * p["scale"]
    return jnp.mean(jnp.abs(x))


def gated(p, b):
    return jnp.mean(jnp.abs(b["column"] * p["scale"]))


PAIRED = {
    "squares": lambda p, b: jnp.mean((net(p, b) - b["y"]) ** 2),
    "a row": lambda p, b: jnp.mean(jnp.abs(net(p, b) - b["y"][None, :])),
    "squares, the other way": lambda p, b: jnp.mean((b["y"] - net(p, b)) ** 2),
    "a column of labels": lambda p, b: jnp.mean((flat(p, b) - b["column"]) ** 2),
    "optax": lambda p, b: optax.sigmoid_binary_cross_entropy(net(p, b), b["class"]).mean(),
    "a sum": lambda p, b: jnp.sum(jnp.abs(net(p, b) - b["y"])) / N,
    "weights of examples": lambda p, b: jnp.mean((net(p, b) - b["column"]) ** 2 * b["rate"]),
    "an accuracy": lambda p, b: jnp.mean((net(p, b) > 0) == (b["class"] > 0)),
    "within jit": lambda p, b: jax.jit(lambda a, y: jnp.mean((a - y) ** 2))(net(p, b), b["y"]),
    "a checkpoint": lambda p, b: jax.checkpoint(lambda a: jnp.mean((a - b["y"]) ** 2))(net(p, b)),
    "a penalty beside": lambda p, b: jnp.mean((net(p, b) - b["y"]) ** 2) + jnp.sum(p["w"] ** 2),
}
MEANT = {
    "one shape": lambda p, b: jnp.mean((flat(p, b) - b["y"]) ** 2),
    "columns": lambda p, b: jnp.mean((net(p, b) - b["column"]) ** 2),
    "one after the other": lambda p, b: jnp.mean(each(p, b)),
    "attention": attention,
    "InfoNCE": info_nce,
    "a ranking": ranking,
    "a ranking of columns": ranking_of_columns,
    "a kernel": kernel,
    "a kernel of a column": lambda p, b: jnp.mean(
        jnp.abs(net(p, b)[:, 0][:, None] - b["y"][None, :])
    ),
    "by axis": by_axis,
    "normalized": normalized,
    "a layer as wide as the batch": gated,
    "a bias as wide as the batch": lambda p, b: jnp.mean((net(p, b) + p["scale"]) ** 2),
}


def problem_of(value):
    params = {"w": jnp.ones((D, 1)), "b": jnp.zeros(1), "q": jnp.eye(D), "scale": jnp.ones(N)}
    loss = lambda p, h, b: value(p, b) + h["l2"] * jnp.sum(p["w"] ** 2)  # noqa: E731
    return hg.Problem(
        init=lambda key, h: params,
        loss=loss,
        objective=loss,
        optimizer=lambda h: optax.sgd(0.1),
        train_batch=lambda key, step: BATCH,
        valid_batch=lambda key: BATCH,
    )


@pytest.mark.parametrize("name", PAIRED)
def test_pairs_by_accident_are_warned_of(name):
    with pytest.warns(BatchWarning, match=r"array of shape \(8, 8\), because labels and") as said:
        hg.validate(problem_of(PAIRED[name]), H)
    texts = [str(w.message) for w in said]
    assert [text.split()[0] for text in texts] == ["problem.loss", "problem.objective"]
    way_out = "if every pair is meant, write predictions[:, 0][:, None]"
    assert all(text.endswith(way_out) and "\n" not in text for text in texts)


@pytest.mark.parametrize("name", MEANT)
def test_pairs_that_are_meant_are_not(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hg.validate(problem_of(MEANT[name]), H)


def test_a_study_warns_too():
    task = hg.Task(
        "pairs", problem_of(PAIRED["squares"]), {"l2": hg.Real(0.0, 1.0)}, 3, None, "", True
    )
    with pytest.warns(BatchWarning, match="problem.(loss|objective)"):
        hg.validate(task)
