"""MNIST-like images from a folder of IDX files or an npz file: an MLP trained by SGD."""

from pathlib import Path

import numpy as np
import optax

from hypergrad.adapters import from_linen
from hypergrad.problem import Task, check_horizon
from hypergrad.space import LogReal, Real, Sequence, schedule
from models.mlp import MLP
from tasks import data as files
from tasks.supervised import Splits, cross_entropy, supervised


def task(
    *,
    data: str,
    num_train: int = 5000,
    num_valid: int = 2500,
    num_test: int = 2500,
    horizon: int = 300,
    batch_size: int = 100,
    width: int = 50,
    seed: int = 0,
) -> Task:
    """Tune the learning-rate schedule, decay, momentum and input noise of an MLP on images.

    Args:
        data: a folder with `train-images-idx3-ubyte[.gz]` and its labels, or the `t10k` pair, or both; or
            an npz file with arrays `x` and `y`. All images are pooled and split anew.
        num_train: training images.
        num_valid: validation images.
        num_test: test images.
        horizon: training steps.
        batch_size: images a step.
        width: hidden units.
        seed: of the split.
    """
    check_horizon(horizon)
    images, labels = _read(Path(data))
    sizes = (num_train, num_valid, num_test)
    for name, size in zip(("num_train", "num_valid", "num_test"), sizes, strict=True):
        check_horizon(size, name)
    if sum(sizes) > len(labels):
        raise ValueError(
            f"num_train + num_valid + num_test is {sum(sizes)}, expected at most the {len(labels)} images "
            "there are; pass smaller ones"
        )
    order = np.random.default_rng(seed).permutation(len(labels))
    parts = np.split(order[: sum(sizes)], np.cumsum(sizes)[:-1])
    splits = Splits(*((images[p], labels[p]) for p in parts))
    num_classes = int(labels.max()) + 1
    if len(np.unique(splits.train[1])) < 2:
        raise ValueError(
            f"data {data!r} has one class among the training images, expected at least two"
        )

    def optimizer(hparams):
        return optax.chain(
            optax.trace(hparams["momentum"]),
            optax.add_decayed_weights(hparams["decay"]),
            optax.scale_by_learning_rate(schedule(hparams["lr"])),
        )

    model = from_linen(MLP((width, num_classes)))
    problem, score = supervised(model, splits, cross_entropy, optimizer, batch_size)
    return Task(
        name="images",
        problem=problem,
        space={
            "lr": Sequence(LogReal(1e-3, 2.0, default=0.1), horizon),
            "decay": LogReal(1e-6, 1e-1, default=1e-4),
            "momentum": Real(0.0, 0.99, default=0.9),
            "noise": Real(0.0, 0.5, default=0.05),
        },
        horizon=horizon,
        test=score,
        metric="accuracy",
        higher_is_better=True,
        description=f"An MLP of {width} units on {num_train} images of {images.shape[1]} pixels.",
    )


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read all images as float32 `[N, D]` in [0, 1] and labels as int32 `[N]`."""
    if path.is_file():
        images, labels = files.read_npz(path, ("x", "y"))
    elif path.is_dir():
        pairs = [p for p in (_pair(path, prefix) for prefix in ("train", "t10k")) if p]
        if not pairs:
            raise ValueError(
                f"data is {str(path)!r}, which holds no train-images-idx3-ubyte or t10k-images-idx3-ubyte "
                "with its labels (.gz or not); name the folder that does"
            )
        images, labels = (np.concatenate([p[i] for p in pairs]) for i in (0, 1))
    else:
        raise ValueError(f"data is {str(path)!r}, which is not there; name a folder or an npz file")
    if images.ndim < 2 or labels.ndim != 1 or len(images) != len(labels) or not len(labels):
        raise ValueError(
            f"data {str(path)!r} has images of shape {images.shape} and labels of shape {labels.shape}, "
            "expected one label for each of at least one image"
        )
    if images.dtype.kind not in "uif" or labels.dtype.kind not in "ui":
        raise ValueError(
            f"data {str(path)!r} has images of {images.dtype} and labels of {labels.dtype}, expected "
            "numbers and whole numbers"
        )
    scale = 255.0 if images.dtype.kind in "ui" else 1.0
    flat = images.reshape(len(images), -1).astype(np.float32) / scale
    if not np.isfinite(flat).all():
        raise ValueError(f"data {str(path)!r} holds NaN or infinity, expected finite pixels")
    if labels.min() < 0:
        raise ValueError(f"data {str(path)!r} has a label {labels.min()}, expected 0 and above")
    return flat, labels.astype(np.int32)


def _pair(folder: Path, prefix: str) -> list[np.ndarray] | None:
    found = []
    for part in ("images-idx3-ubyte", "labels-idx1-ubyte"):
        paths = [folder / f"{prefix}-{part}{suffix}" for suffix in ("", ".gz")]
        there = [p for p in paths if p.is_file()]
        if not there:
            return None
        found.append(files.read_idx(there[0]))
    return found
