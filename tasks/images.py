"""MNIST-like images from a folder of IDX files or an npz file: a network trained by SGD."""

from pathlib import Path

import numpy as np
import optax

from hypergrad.core.checks import check_whole
from hypergrad.core.flax import from_linen
from hypergrad.problem import Task
from hypergrad.space import LogReal, Real, Sequence, schedule
from models.cnn import CNN
from models.mlp import MLP
from tasks.arrays import npz_names, read_idx, read_npz
from tasks.supervised import Splits, cross_entropy, supervised

MODELS = {
    "mlp": lambda width, num_classes: from_linen(MLP((width, num_classes))),
    "cnn": lambda width, num_classes: from_linen(CNN(num_classes, width), train_argument="train"),
}
MAX_CLASSES = 1000
"""Bound of the labels, one more than the largest."""

Labelled = tuple[np.ndarray, np.ndarray]
"""Images `[N, ...]` and labels `[N]`, unchanged from the files."""


def task(
    *,
    data: str,
    num_train: int = 5000,
    num_valid: int = 2500,
    num_test: int = 2500,
    horizon: int = 300,
    batch_size: int = 100,
    model: str = "mlp",
    width: int = 50,
    seed: int = 0,
) -> Task:
    """Tune the learning-rate schedule, decay, momentum and input noise of a network on images.

    Args:
        data: Folder with `train-images-idx3-ubyte[.gz]` and its labels, or the `t10k` pair, or both; or
            an npz file with arrays `x_train`, `y_train`, `x_test`, `y_test`, or `x` and `y`. Test images come
            from the test files where both kinds of files exist; a single set is split.
        num_train: Number of training images.
        num_valid: Number of validation images.
        num_test: Number of test images.
        horizon: Number of training steps.
        batch_size: Number of images a step.
        model: Name of the network, "mlp", or "cnn" (with BatchNorm).
        width: Number of hidden units, or of channels.
        seed: Seed of the split.
    """
    check_whole("horizon", horizon)
    check_whole("width", width)
    if model not in MODELS:
        raise ValueError(
            f"model is {model!r}, expected one of {', '.join(MODELS)}; pass one of them"
        )
    splits = load(data, num_train, num_valid, num_test, seed)
    num_classes = int(max(labels.max() for _, labels in splits)) + 1
    if len(np.unique(splits.train[1])) < 2:
        raise ValueError(
            f"data {data!r} has one class among the training images, expected at least two; "
            "raise num_train, or check the labels"
        )
    if model == "cnn" and splits.train[0].ndim != 4:
        raise ValueError(
            f"data {data!r} has images of shape {splits.train[0].shape[1:]}, expected height and width for "
            "model='cnn'; pass model='mlp'"
        )

    def optimizer(hparams):
        return optax.chain(
            optax.trace(hparams["momentum"]),
            optax.add_decayed_weights(hparams["decay"]),
            optax.scale_by_learning_rate(schedule(hparams["lr"])),
        )

    network = MODELS[model](width, num_classes)
    problem, score = supervised(network, splits, cross_entropy, optimizer, batch_size)
    pixels = " x ".join(map(str, splits.train[0].shape[1:3]))
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
        description=f"Model {model} of width {width} on {num_train} images of {pixels} pixels.",
    )


def load(data: str, num_train: int, num_valid: int, num_test: int, seed: int = 0) -> Splits:
    """Read and split images, scaled to [0, 1]; the arguments are those of `task`."""
    sizes = {"num_train": num_train, "num_valid": num_valid, "num_test": num_test}
    for name, size in sizes.items():
        check_whole(name, size)
    return _split(data, _read(Path(data)), sizes, seed)


def _split(data: str, pools: list[Labelled], sizes: dict[str, int], seed: int) -> Splits:
    """Draw the three sets: all from one pool, or the test images from a pool of their own."""
    names = list(sizes)
    random = np.random.default_rng(seed)
    parts = []
    for (images, labels), wanted in zip(
        pools, [names] if len(pools) == 1 else [names[:2], names[2:]], strict=True
    ):
        total = sum(sizes[name] for name in wanted)
        if total > len(labels):
            raise ValueError(
                f"{' + '.join(wanted)} is {total}, expected at most the {len(labels)} images there are for "
                f"them in {data!r}; pass smaller ones"
            )
        order = random.permutation(len(labels))[:total]
        for part in np.split(order, np.cumsum([sizes[name] for name in wanted])[:-1]):
            parts.append((_pixels(data, images[part]), labels[part].astype(np.int32)))
    return Splits(*parts)


def _pixels(data: str, images: np.ndarray) -> np.ndarray:
    """Scale images to float32 `[N, H, W, C]` in [0, 1], or `[N, D]` where they came flat."""
    scale = 255.0 if images.dtype.kind in "ui" else 1.0
    pixels = images.astype(np.float32) / np.float32(scale)
    if not np.isfinite(pixels).all():
        raise ValueError(f"data {data!r} holds NaN or infinity, expected finite pixels; mend them")
    return pixels[..., None] if pixels.ndim == 3 else pixels


def _read(path: Path) -> list[Labelled]:
    """Read one set to be split, or two: for training and validation, and for test."""
    if path.is_file():
        there = npz_names(path)
        names = [("x_train", "y_train"), ("x_test", "y_test")]
        if "x_test" not in there:
            names = names[:1] if "x_train" in there else [("x", "y")]
        pools = [(images, labels) for images, labels in (read_npz(path, pair) for pair in names)]
    elif path.is_dir():
        pools = [p for p in (_pair(path, prefix) for prefix in ("train", "t10k")) if p]
        if not pools:
            raise ValueError(
                f"data is {str(path)!r}, expected train-images-idx3-ubyte or t10k-images-idx3-ubyte with "
                "its labels in it (.gz or not); name the folder that holds them"
            )
    else:
        raise ValueError(
            f"data is {str(path)!r}, which is not there, expected a folder or an npz file; check the path"
        )
    for images, labels in pools:
        _check(path, images, labels)
    shapes = [images.shape[1:] for images, _ in pools]
    if shapes[0] != shapes[-1]:
        raise ValueError(
            f"data {str(path)!r} has training images of shape {shapes[0]} and test images of shape "
            f"{shapes[-1]}, expected the same; mend the files"
        )
    return pools


def _check(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    fits = 2 <= images.ndim <= 4 and labels.ndim == 1 and len(images) == len(labels)
    if not fits or not images.size:
        raise ValueError(
            f"data {str(path)!r} has images of shape {images.shape} and labels of shape {labels.shape}, "
            "expected one label for each of at least one image"
        )
    if images.dtype.kind not in "uif" or labels.dtype.kind not in "ui":
        raise ValueError(
            f"data {str(path)!r} has images of {images.dtype} and labels of {labels.dtype}, expected "
            "numbers and whole numbers"
        )
    if labels.min() < 0 or labels.max() >= MAX_CLASSES:
        raise ValueError(
            f"data {str(path)!r} has labels from {labels.min()} to {labels.max()}, expected 0 to "
            f"{MAX_CLASSES - 1}; number the classes from 0"
        )


def _pair(folder: Path, prefix: str) -> Labelled | None:
    found = []
    for part in ("images-idx3-ubyte", "labels-idx1-ubyte"):
        paths = [folder / f"{prefix}-{part}{suffix}" for suffix in ("", ".gz")]
        there = [p for p in paths if p.is_file()]
        if not there:
            return None
        found.append(read_idx(there[0]))
    images, labels = found
    return images, labels
