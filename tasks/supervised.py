"""What the tasks with a network and three splits share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hypergrad.core.network import PureModel
from hypergrad.problem import Examples, Problem
from tasks.data import check_batch


class Splits(NamedTuple):
    """Inputs and targets of each split, `(inputs, targets)`."""

    train: tuple[np.ndarray, np.ndarray]
    valid: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


def take(inputs: np.ndarray, targets: np.ndarray, parts: list[np.ndarray]) -> Splits:
    """Cut arrays into splits by index."""
    return Splits(*((inputs[part], targets[part]) for part in parts))


def cross_entropy(logits: jax.Array, targets: jax.Array, smoothing: Any = 0.0) -> jax.Array:
    """Mean cross-entropy of integer targets `[B]`, with label smoothing."""
    one_hot = jax.nn.one_hot(targets, logits.shape[-1])
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(one_hot, smoothing)).mean()


def squared_error(outputs: jax.Array, targets: jax.Array, smoothing: Any = 0.0) -> jax.Array:
    """Mean squared error of one output `[B, 1]`; smoothing has no meaning here."""
    return jnp.mean((outputs[:, 0] - targets) ** 2)


def supervised(
    model: PureModel,
    splits: Splits,
    loss: Callable[..., jax.Array],
    optimizer: Callable[[Any], optax.GradientTransformation],
    batch_size: int,
    augment: Callable[[jax.Array, jax.Array, Any], jax.Array] | None = None,
) -> tuple[Problem, Callable[[Any, Any], jax.Array]]:
    """Build the problem and the test scores.

    Hparams that are read if they are there: `label_smoothing`, and `noise`, the standard deviation of
    Gaussian noise added to training inputs, drawn from the key in each batch. `augment` (key, inputs, hparams)
    -> inputs changes them before. Models with state of their own (BatchNorm) carry it as `Variables`.
    """
    check_batch(batch_size, len(splits.train[1]))
    train, valid, test = (tuple(map(jnp.asarray, part)) for part in splits)
    classify = jnp.issubdtype(train[1].dtype, jnp.integer)

    def train_loss(params, hparams, batch):
        inputs, targets, key = batch
        if augment is not None:
            inputs = augment(jax.random.fold_in(key, 1), inputs, hparams)
        if "noise" in hparams:
            inputs = inputs + hparams["noise"] * jax.random.normal(key, inputs.shape)
        outputs, state = model.apply(params, inputs, train=True, key=key)
        value = loss(outputs, targets, hparams.get("label_smoothing", 0.0))
        return value if state is None else (value, state)

    def objective(params, hparams, batch):
        return loss(model.apply(params, batch[0])[0], batch[1])

    def draw(key, step):
        return jax.random.randint(jax.random.split(key)[0], (batch_size,), 0, len(train[1]))

    def train_batch(key, step):
        indices, noise = draw(key, step), jax.random.split(key)[1]
        return train[0][indices], train[1][indices], noise

    def score(params, hparams):
        outputs, _ = model.apply(params, test[0])
        if classify:
            return (jnp.argmax(outputs, -1) == test[1]).astype(jnp.float32)
        return (outputs[:, 0] - test[1]) ** 2

    problem = Problem(
        init=lambda key, hparams: model.init(key, train[0][:1]),
        loss=train_loss,
        objective=objective,
        optimizer=optimizer,
        train_batch=train_batch,
        valid_batch=lambda key: valid,
        train_set=Examples(
            len(train[1]), lambda i: (train[0][i], train[1][i], jax.random.key(0)), draw
        ),
    )
    return problem, score
