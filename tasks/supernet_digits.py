"""An architecture search on digits or MNIST: the layers of a small network, and its optimizer."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hypergrad.core.checks import check_whole
from hypergrad.estimators.policies import Network, Policy, multitask, sizes
from hypergrad.problem import Examples, Problem, Task
from hypergrad.space import Choice, LogReal, Real, Sequence, schedule
from models.policies import Recurrent, functions
from models.supernet import ACTIVATIONS, OPERATIONS, SKIPS, Supernet, diagram
from tasks.data import check_batch
from tasks.digits import load as load_digits
from tasks.images import load as load_images
from tasks.supervised import Splits, cross_entropy

WIDTHS = (4, 12, 32)
KINDS = {"operation": OPERATIONS, "width": WIDTHS, "activation": tuple(ACTIVATIONS), "skip": SKIPS}


def task(
    *,
    data: str | None = None,
    num_train: int = 200,
    num_valid: int = 400,
    num_test: int = 397,
    horizon: int = 200,
    batch_size: int = 32,
    num_layers: int = 3,
    knots: int = 0,
    tune_optimizer: bool = True,
    policy_width: int = 24,
    seed: int = 0,
) -> Task:
    """Choose operation, width, activation and skip of each layer, with learning rate, momentum and penalty.

    L = cross-entropy + ½ penalty ‖w‖², trained by SGD with momentum; the objective has no penalty.

    The weights are those of a supernet: an architecture trained by itself moves the part that it uses. All
    architectures share them in the method "controller", whose policy is recurrent, with a head a leaf.

    Args:
        data: Folder or file of images, as the task `images` reads them (MNIST); the 8x8 digits where None.
        num_train: Number of training images, few by default, so that training and validation disagree.
        num_valid: Number of validation images.
        num_test: Number of test images.
        horizon: Number of training steps of a single architecture.
        batch_size: Number of images a step, drawn with replacement.
        num_layers: Number of layers between the first and the last.
        knots: Number of knots of a learning-rate schedule over the horizon; 0 for a constant rate.
        tune_optimizer: Whether the three settings of the optimizer are part of the space.
        policy_width: Size of the policy's state.
        seed: Seed of the split.
    """
    check_whole("horizon", horizon)
    check_whole("num_layers", num_layers)
    check_whole("policy_width", policy_width)
    splits = _load(data, num_train, num_valid, num_test, seed)
    check_batch(batch_size, len(splits.train[1]))
    space = search_space(num_layers, horizon if tune_optimizer else None, knots)
    num_classes = int(max(labels.max() for _, labels in splits)) + 1
    problem, score = supernet(splits, num_layers, batch_size, num_classes)
    count = len(ACTIVATIONS) * len(OPERATIONS) * len(SKIPS) * len(WIDTHS)
    return Task(
        name="supernet_digits",
        problem=problem,
        space=space,
        horizon=horizon,
        test=score,
        metric="accuracy",
        higher_is_better=True,
        description=f"One of {count**num_layers} networks of {num_layers} layers and its optimizer, on "
        f"{len(splits.train[1])} training images, {horizon} steps of SGD.",
        policy=recurrent(space, policy_width),
        diagram=lambda hparams: diagram(hparams, num_layers, WIDTHS),
    )


FIXED = {"lr": 0.1, "momentum": 0.9, "penalty": 1e-4}
"""The optimizer where it is not tuned."""


def search_space(num_layers: int, horizon: int | None, knots: int = 0) -> dict:
    """Build the space; without a horizon, build that of architectures alone."""
    space = {
        f"{kind}_{layer}": Choice(options)
        for layer in range(num_layers)
        for kind, options in KINDS.items()
    }
    if horizon is None:
        return space
    rate = LogReal(3e-3, 0.5, default=FIXED["lr"])
    return space | {
        "lr": rate if not knots else Sequence(rate, horizon, knots),
        "momentum": Real(0.0, 0.98, default=FIXED["momentum"]),
        "penalty": LogReal(1e-6, 1e-1, default=FIXED["penalty"]),
    }


def recurrent(space: dict, width: int = 24) -> Policy:
    """Build the recurrent policy over a space, with a head for each leaf."""
    heads = sizes(space)
    return multitask(space, Network(*functions(Recurrent(heads.num_heads, heads.size, width))))


def supernet(
    splits: Splits,
    num_layers: int,
    batch_size: int,
    num_classes: int,
    num_train: Any = None,
):
    """Build the problem and its test scores; missing settings of the optimizer are `FIXED`.

    The arrays may be traced, and so may `num_train`: the first `num_train` training images are used.
    """
    train, valid, test = (tuple(map(jnp.asarray, part)) for part in splits)
    network = Supernet(num_layers, WIDTHS, num_classes)
    num_train = len(train[1]) if num_train is None else num_train

    def setting(hparams, name):
        return hparams[name] if name in hparams else jnp.asarray(FIXED[name])

    def apply(params, hparams, inputs) -> Any:
        return network.apply({"params": params}, inputs, hparams)

    def objective(params, hparams, batch):
        return cross_entropy(apply(params, hparams, batch[0]), batch[1])

    def loss(params, hparams, batch):
        squares = sum(jnp.sum(w**2) for w in jax.tree.leaves(params))
        return objective(params, hparams, batch) + setting(hparams, "penalty") / 2 * squares

    def optimizer(hparams):
        rate = setting(hparams, "lr")
        return optax.chain(
            optax.trace(setting(hparams, "momentum")),
            optax.scale_by_learning_rate(schedule(rate) if jnp.ndim(rate) else rate),
        )

    def init(key, hparams):
        return network.init(key, train[0][:1], first(num_layers))["params"]

    def train_batch(key, step):
        index = jax.random.randint(key, (batch_size,), 0, num_train)
        return train[0][index], train[1][index]

    def score(params, hparams):
        logits = apply(params, hparams, test[0])
        return (jnp.argmax(logits, -1) == test[1]).astype(jnp.float32)

    problem = Problem(
        init=init,
        loss=loss,
        objective=objective,
        optimizer=optimizer,
        train_batch=train_batch,
        valid_batch=lambda key: valid,
        train_set=Examples(len(train[1]), lambda index: (train[0][index], train[1][index])),
    )
    return problem, score


def first(num_layers: int) -> dict:
    """Return the architecture of first options, for shapes."""
    return {f"{kind}_{layer}": 0 for layer in range(num_layers) for kind in KINDS}


def _load(data: str | None, num_train: int, num_valid: int, num_test: int, seed: int) -> Splits:
    """Load images of any size; from each part of the digits, take the requested number."""
    if data is not None:
        splits = load_images(data, num_train, num_valid, num_test, seed)
    else:
        splits = _digits(num_train, num_valid, num_test, seed)
    if len(np.unique(splits.train[1])) < 2:
        raise ValueError(
            f"num_train is {num_train}, which holds one class, expected at least two; raise it"
        )
    return splits


def _digits(num_train: int, num_valid: int, num_test: int, seed: int) -> Splits:
    parts = load_digits(seed)
    wanted = {"num_train": num_train, "num_valid": num_valid, "num_test": num_test}
    for (name, size), (_, labels) in zip(wanted.items(), parts, strict=True):
        check_whole(name, size)
        if size > len(labels):
            raise ValueError(
                f"{name} is {size}, expected at most the {len(labels)} digits there are; pass a smaller one"
            )
    cut = [(x[:n], y[:n]) for (x, y), n in zip(parts, wanted.values(), strict=True)]
    return Splits(*cut)
