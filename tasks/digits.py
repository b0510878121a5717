"""Handwritten digits (scikit-learn, 1797 images of 8x8): the schedules of SGD for an MLP."""

from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hypergrad.core.checks import check_whole
from hypergrad.core.flax import from_linen
from hypergrad.problem import Examples, Problem, Task
from hypergrad.space import LogReal, Real, Sequence, schedule
from models.mlp import MLP
from tasks.data import check_batch
from tasks.supervised import Splits, take

NUM_LAYERS = 2


def task(*, horizon: int = 200, batch_size: int = 128, width: int = 64, seed: int = 0) -> Task:
    """Tune a per-step learning rate, a weight-decay schedule with per-layer scales, and the momentum.

    w ← w − lr_t (m_t + decay_t · decay_scale_layer · w), decay on kernels only.

    Args:
        horizon: Number of training steps.
        batch_size: Number of examples a step, drawn with replacement.
        width: Number of hidden units.
        seed: Seed of the split into 1000 training, 400 validation and 397 test images.
    """
    check_whole("horizon", horizon)
    splits = load(seed)
    train, valid, test = (tuple(map(jnp.asarray, part)) for part in splits)
    num_train = len(splits.train[1])
    check_batch(batch_size, num_train)
    check_whole("width", width, example=64)

    model = from_linen(MLP((width, 10)))

    def cross_entropy(params, hparams, batch):
        inputs, targets = batch
        logits, _ = model.apply(params, inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    def draw(key, step):
        return jax.random.randint(key, (batch_size,), 0, num_train)

    def at(indices):
        return train[0][indices], train[1][indices]

    def score(params, hparams):
        logits, _ = model.apply(params, test[0])
        return (jnp.argmax(logits, -1) == test[1]).astype(jnp.float32)

    problem = Problem(
        init=lambda key, hparams: model.init(key, train[0][:1]),
        loss=cross_entropy,
        objective=cross_entropy,
        optimizer=optimizer,
        train_batch=lambda key, step: at(draw(key, step)),
        valid_batch=lambda key: valid,
        train_set=Examples(num_train, at, draw),
    )
    space = {
        "lr": Sequence(LogReal(1e-3, 2.0, default=0.1), horizon),
        "decay": Sequence(LogReal(1e-6, 1e-1, default=1e-4), horizon),
        "decay_scale": Real(0.0, 4.0, default=1.0, shape=(NUM_LAYERS,)),
        "momentum": Real(0.0, 0.99, default=0.9),
    }
    return Task(
        name="digits",
        problem=problem,
        space=space,
        horizon=horizon,
        test=score,
        metric="accuracy",
        higher_is_better=True,
        snippet=snippet,
        description=f"An MLP 64-{width}-10 on 8x8 digits, {horizon} steps of SGD, batches of {batch_size}.",
    )


def load(seed: int = 0) -> Splits:
    """Load the digits, scaled to [0, 1] and split into 1000, 400 and 397."""
    images, labels = read_digits()
    order = np.random.default_rng(seed).permutation(len(labels))
    parts = np.split(order, [1000, 1400])
    return take((images / 16).astype(np.float32), labels.astype(np.int32), parts)


def read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Read the images and labels from the file in scikit-learn, whose import takes longer than all the rest."""
    found = find_spec("sklearn")
    if found is None or found.origin is None:
        raise ValueError(
            "task 'digits' needs scikit-learn, which is not installed; "
            "install the extra: pip install 'hypergrad-jax[zoo]'"
        )
    path = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if path.is_file():
        table = np.loadtxt(path, delimiter=",")
        return table[:, :-1], table[:, -1]
    from sklearn.datasets import load_digits

    images, labels = map(np.asarray, load_digits(return_X_y=True))
    return images, labels


def optimizer(hparams):
    """Build SGD with momentum and scheduled, per-layer decoupled weight decay from optax's pieces."""
    decays = {f"dense_{i}": hparams["decay_scale"][i] * hparams["decay"] for i in range(NUM_LAYERS)}
    return optax.chain(
        optax.trace(hparams["momentum"]),
        *(
            optax.add_decayed_weights(schedule(decay), mask=kernel_of(layer))
            for layer, decay in decays.items()
        ),
        optax.scale_by_learning_rate(schedule(hparams["lr"])),
    )


def kernel_of(layer: str):
    """Return an optax mask that is true for the kernel of one layer."""

    def mask(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: (path[-2].key, path[-1].key) == (layer, "kernel"), params
        )

    return mask


def snippet(hparams) -> str:
    """Write the tuned optimizer as plain optax code."""

    def numbers(values):
        return "[" + ", ".join(f"{float(v):.6g}" for v in np.ravel(values)) + "]"

    return f"""import jax
import jax.numpy as jnp
import optax

lr = jnp.array({numbers(hparams["lr"])})
decay = jnp.array({numbers(hparams["decay"])})
decay_scale = {numbers(hparams["decay_scale"])}
momentum = {float(hparams["momentum"]):.6g}


def at(values):
    return lambda count: values[jnp.minimum(count, len(values) - 1)]


def kernel_of(layer):
    return lambda params: jax.tree_util.tree_map_with_path(
        lambda path, _: (path[-2].key, path[-1].key) == (layer, "kernel"), params
    )


optimizer = optax.chain(
    optax.trace(momentum),
    optax.add_decayed_weights(at(decay_scale[0] * decay), mask=kernel_of("dense_0")),
    optax.add_decayed_weights(at(decay_scale[1] * decay), mask=kernel_of("dense_1")),
    optax.scale_by_learning_rate(at(lr)),
)
"""
