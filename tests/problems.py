"""Six and more small problems over which the contract of the estimators is tested."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from hypergrad.core.flax import from_linen, from_nnx
from hypergrad.problem import Problem
from hypergrad.space import Choice, Integer, Real, schedule, select
from hypergrad.train import averaged
from models.cnn import CNN, NnxCNN
from models.recurrent import RNN

HORIZON = 7
_random = np.random.default_rng(0)
X = jnp.asarray(_random.normal(size=(48, 6)))
Y = jnp.tanh(X @ jnp.asarray(_random.normal(size=(6, 3))))
LABELS = jnp.argmax(Y, -1)


def value(number):
    return jnp.asarray(number, jnp.result_type(float))


def mlp_init(key, scale=0.5):
    a, b = jax.random.split(key)
    return {
        "one": scale * jax.random.normal(a, (6, 5)),
        "two": scale * jax.random.normal(b, (5, 3)),
    }


def mlp(params, x):
    return jnp.tanh(x @ params["one"]) @ params["two"]


def ridge():
    def squared(params, batch):
        return jnp.mean((batch[0] @ params - batch[1]) ** 2)

    problem = Problem(
        init=lambda key, h: jnp.zeros((6, 3)),
        loss=lambda p, h, b: squared(p, b) + jnp.exp(h["l2"]) * jnp.sum(p**2),
        objective=lambda p, h, b: squared(p, b) + 0.1 * h["l2"] ** 2,
        optimizer=lambda h: optax.sgd(0.1),
        train_batch=lambda key, step: (X[:24], Y[:24]),
        valid_batch=lambda key: (X[24:], Y[24:]),
    )
    return problem, {"l2": value(-1.0)}


def tiny():
    """Two weights trained by SGD with momentum on minibatches: the least that every estimator takes."""

    def train_batch(key, step):
        index = jax.random.randint(key, (4,), 0, 24)
        return X[index, :2], Y[index, 0]

    problem = Problem(
        init=lambda key, h: h["scale"] * jax.random.normal(key, (2,)),
        loss=lambda w, h, b: jnp.mean((jnp.tanh(b[0] @ w) - b[1]) ** 2) + jnp.exp(h["l2"]) * w @ w,
        objective=lambda w, h, b: jnp.mean((jnp.tanh(b[0] @ w) - b[1]) ** 2),
        optimizer=lambda h: optax.sgd(h["lr"], momentum=h["momentum"]),
        train_batch=train_batch,
        valid_batch=lambda key: (X[24:, :2], Y[24:, 0]),
    )
    hparams = {"lr": value(0.1), "momentum": value(0.8), "l2": value(-2.0), "scale": value(0.5)}
    return problem, hparams


def schedules():
    """Per-step rates, decay schedule with per-layer scales, momentum, initial scale, data weights."""

    def loss(params, h, batch):
        x, y, index = batch
        weights = jax.nn.softplus(h["data_weight"][index])
        smooth = (1 - h["smoothing"]) * y
        return jnp.mean(weights[:, None] * (mlp(params, x) - smooth) ** 2)

    def train_batch(key, step):
        index = jax.random.randint(key, (8,), 0, 24)
        return X[index], Y[index], index

    def optimizer(h):
        decay = {
            name: optax.add_decayed_weights(schedule(h["decay"] * h["decay_scale"][i]))
            for i, name in enumerate(("one", "two"))
        }
        return optax.chain(
            optax.trace(h["momentum"]),
            optax.partition(decay, {"one": "one", "two": "two"}),
            optax.scale_by_learning_rate(schedule(h["lr"])),
        )

    problem = Problem(
        init=lambda key, h: mlp_init(key, h["scale"]),
        loss=loss,
        objective=lambda p, h, b: jnp.mean((mlp(p, b[0]) - b[1]) ** 2),
        optimizer=optimizer,
        train_batch=train_batch,
        valid_batch=lambda key: (X[24:], Y[24:]),
    )
    hparams = {
        "lr": jnp.linspace(0.1, 0.3, HORIZON),
        "decay": jnp.linspace(0.01, 0.03, HORIZON),
        "decay_scale": jnp.asarray([1.0, 2.0]),
        "momentum": value(0.8),
        "scale": value(0.5),
        "smoothing": value(0.1),
        "data_weight": jnp.linspace(-1.0, 1.0, 24),
    }
    return problem, hparams


def classifier(model, inputs, optimizer, hparams, num=16):
    """Train a flax model; the batch carries the key of its dropout."""

    def loss(params, h, batch):
        x, y, key = batch
        logits, state = model.apply(params, x, train=True, key=key)
        labels = optax.smooth_labels(jax.nn.one_hot(y, 3), h["smoothing"])
        entropy = optax.softmax_cross_entropy(logits, labels).mean()
        return entropy if state is None else (entropy, state)

    def objective(params, h, batch):
        logits, _ = model.apply(params, batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    def train_batch(key, step):
        draw, dropout = jax.random.split(key)
        index = jax.random.randint(draw, (num,), 0, 24)
        return inputs[index], LABELS[index], dropout

    problem = Problem(
        init=lambda key, h: model.init(key, inputs[:2]),
        loss=loss,
        objective=objective,
        optimizer=optimizer,
        train_batch=train_batch,
        valid_batch=lambda key: (inputs[24:], LABELS[24:]),
    )
    return problem, {**hparams, "smoothing": value(0.05)}


def momentum(h):
    return optax.sgd(jnp.exp(h["log_lr"]), momentum=jax.nn.sigmoid(h["logit_momentum"]))


MOMENTUM = {"log_lr": value(-2.0), "logit_momentum": value(1.0)}
IMAGES = X.reshape(48, 2, 3, 1)


def batch_norm_dropout():
    model = from_linen(CNN(3, width=4, activation=nn.tanh, dropout=0.3), train_argument="train")
    return classifier(model, IMAGES, momentum, MOMENTUM)


def batch_norm_dropout_nnx():
    model = from_nnx(
        lambda rngs: NnxCNN(1, 3, width=4, activation=jnp.tanh, dropout=0.3, rngs=rngs)
    )
    return classifier(model, IMAGES, momentum, MOMENTUM)


def adam_dead_input():
    """A dead input column: its gradient entries are exactly zero for ever."""
    dead = X.at[:, 0].set(0.0)
    model_init, apply = mlp_init, mlp
    problem = Problem(
        init=lambda key, h: model_init(key),
        loss=lambda p, h, b: jnp.mean((apply(p, b[0]) - b[1]) ** 2),
        objective=lambda p, h, b: jnp.mean((apply(p, b[0]) - b[1]) ** 2),
        optimizer=lambda h: optax.adam(jnp.exp(h["log_lr"]), b1=jax.nn.sigmoid(h["logit_b1"])),
        train_batch=lambda key, step: (dead[:24], Y[:24]),
        valid_batch=lambda key: (dead[24:], Y[24:]),
    )
    return problem, {"log_lr": value(-3.0), "logit_b1": value(2.0)}


def recurrent():
    model = from_linen(RNN(3, width=4))
    inputs = X[:, :, None].astype(jnp.float32)  # flax keeps the cell in the params' dtype
    return classifier(model, inputs, momentum, MOMENTUM, num=8)


def ema():
    problem, hparams = batch_norm_dropout()
    return averaged(problem, lambda h: h["ema"]), {**hparams, "ema": value(0.7)}


def sam():
    problem, _ = schedules()

    def optimizer(h):
        adversary = optax.chain(optax.contrib.normalize(), optax.sgd(h["radius"]))
        return optax.contrib.sam(optax.sgd(h["rate"]), adversary, opaque_mode=True)

    problem = problem._replace(
        init=lambda key, h: mlp_init(key),
        loss=lambda p, h, b: jnp.mean((mlp(p, b[0]) - b[1]) ** 2),
        optimizer=optimizer,
    )
    return problem, {"rate": value(0.2), "radius": value(0.05)}


def polyak():
    problem, _ = sam()
    optimizer = lambda h: optax.polyak_sgd(max_learning_rate=1.0, scaling=h["scaling"])  # noqa: E731
    return problem._replace(optimizer=optimizer), {"scaling": value(0.1)}


CHOICES = {"form": Choice(("tanh", "sin")), "gain": Integer(1, 2), "l2": Real(-3.0, 0.0)}


def choices():
    """Regression with drawn or relaxed choices; its hparams are a policy's."""

    def error(params, h, batch):
        z = h["gain"] * (batch[0] @ params)
        return jnp.mean((select(h["form"], jnp.stack([jnp.tanh(z), jnp.sin(z)])) - batch[1]) ** 2)

    problem = Problem(
        init=lambda key, h: 0.3 * jax.random.normal(key, (6, 3)),
        loss=lambda p, h, b: error(p, h, b) + jnp.exp(h["l2"]) * jnp.sum(p**2),
        objective=error,
        optimizer=lambda h: optax.sgd(0.1),
        train_batch=lambda key, step: (X[:24], Y[:24]),
        valid_batch=lambda key: (X[24:], Y[24:]),
    )
    phi = {"form": jnp.asarray([0.2, -0.3]), "gain": jnp.asarray([0.4, 0.1]), "l2": value(-2.0)}
    return problem, phi


def only(problem, hparams, names):
    """The same problem with these hparams alone; the others are fixed."""
    fixed = {name: x for name, x in hparams.items() if name not in names}
    kept = {name: x for name, x in hparams.items() if name in names}
    smaller = problem._replace(
        init=lambda key, h: problem.init(key, fixed | h),
        loss=lambda p, h, b: problem.loss(p, fixed | h, b),
        objective=lambda p, h, b: problem.objective(p, fixed | h, b),
        optimizer=lambda h: problem.optimizer(fixed | h),
    )
    return smaller, kept


ALL = {
    f.__name__: f
    for f in (
        ridge,
        schedules,
        batch_norm_dropout,
        batch_norm_dropout_nnx,
        adam_dead_input,
        recurrent,
        ema,
        sam,
        polyak,
    )
}
