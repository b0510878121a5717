"""Images from a folder of IDX files or an npz file, or the 8x8 digits: a network trained by SGD."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from hypergrad.core.checks import check_name, check_whole
from hypergrad.core.flax import from_linen, from_nnx
from hypergrad.core.network import PureModel
from hypergrad.problem import Task
from hypergrad.space import Dimension, LogReal, Real
from models.cnn import StridedCNN
from models.mlp import MLP
from models.resnet import ResNet
from tasks import digits
from tasks.arrays import npz_names, read_idx, read_npz
from tasks.augment import flip as mirror, shift
from tasks.rates import kernels, rate, rate_space, snippet
from tasks.supervised import Splits, cross_entropy, supervised

WIDTHS = {"cnn": 8, "resnet": 8, "mlp": 50}
"""Number of channels, or of hidden units, by the name of the network."""
OF_FILES = {"num_train": 5000, "num_valid": 2500, "num_test": 2500}
OF_DIGITS = {"num_train": 1000, "num_valid": 400, "num_test": 397}
MAX_CLASSES = 1000
"""Bound of the labels, one more than the largest."""

Labelled = tuple[np.ndarray, np.ndarray]
"""Images `[N, ...]` and labels `[N]`, unchanged from the files."""


def task(
    *,
    data: str | None = None,
    num_train: int | None = None,
    num_valid: int | None = None,
    num_test: int | None = None,
    horizon: int = 100,
    batch_size: int = 64,
    model: str = "cnn",
    width: int | None = None,
    flip: bool = False,
    seed: int = 0,
) -> Task:
    """Tune peak, warm-up and decay of the rate, weight decay, label smoothing and shifts of a CNN on images.

    Args:
        data: Folder with `train-images-idx3-ubyte[.gz]` and its labels, or the `t10k` pair, or both; or
            an npz file with arrays `x_train`, `y_train`, `x_test`, `y_test`, or `x` and `y`. Test images come
            from the test files where both kinds of files exist; a single set is split. The 1797 digits of
            scikit-learn where None.
        num_train: Number of training images; 5000 where None, 1000 of the digits.
        num_valid: Number of validation images; 2500 where None, 400 of the digits.
        num_test: Number of test images; 2500 where None, 397 of the digits.
        horizon: Number of training steps.
        batch_size: Number of images a step.
        model: Name of the network: "cnn" or "resnet", both with BatchNorm, or "mlp".
        width: Number of channels of the first layer; of hidden units of an "mlp".
        flip: Whether half of the training images are mirrored, which is wrong for digits and letters.
        seed: Seed of the split.
    """
    check_whole("horizon", horizon)
    check_name("model", model, WIDTHS)
    width = WIDTHS[model] if width is None else check_whole("width", width)
    usual = OF_DIGITS if data is None else OF_FILES
    given = {"num_train": num_train, "num_valid": num_valid, "num_test": num_test}
    sizes = {name: usual[name] if size is None else size for name, size in given.items()}
    splits = load(data, **sizes, seed=seed)
    shape, square = splits.train[0].shape[1:], splits.train[0].ndim == 4
    _check_images(data, splits, model, flip)
    num_classes = int(max(labels.max() for _, labels in splits)) + 1

    network = _network(model, shape, width, num_classes)
    problem, score = supervised(
        network,
        splits,
        cross_entropy,
        partial(_optimizer, horizon),
        batch_size,
        partial(_augment, flip) if square else None,
    )
    pixels, name = " x ".join(map(str, shape[:2])), "digits" if data is None else Path(data).name
    return Task(
        name="images",
        problem=problem,
        space=_space(shape),
        horizon=horizon,
        test=score,
        metric="accuracy",
        higher_is_better=True,
        snippet=partial(_written, horizon),
        description=f"Model {model} of width {width} on {sizes['num_train']} images of {name}, {pixels} "
        f"pixels, {horizon} steps of SGD.",
    )


def _space(shape: tuple[int, ...]) -> dict[str, Dimension]:
    furthest = max(shape[0] / 4, 1.0)
    return {
        **rate_space(0.1),
        "momentum": Real(0.0, 0.99, default=0.9),
        "weight_decay": LogReal(1e-6, 1e-1, default=1e-4),
        "label_smoothing": Real(0.0, 0.3, default=0.05),
        "noise": Real(0.0, 0.5, default=0.05),
        **({"shift": Real(0.0, furthest, default=0.5)} if len(shape) == 3 else {}),
    }


def _augment(flip: bool, key: jax.Array, inputs: jax.Array, hparams: Any) -> jax.Array:
    moved, mirrored = jax.random.split(key)
    inputs = mirror(mirrored, inputs) if flip else inputs
    return shift(moved, inputs, hparams["shift"])


def _optimizer(horizon: int, hparams: Any) -> optax.GradientTransformation:
    return optax.chain(
        optax.trace(hparams["momentum"]),
        optax.add_decayed_weights(hparams["weight_decay"], mask=kernels),
        optax.scale_by_learning_rate(rate(hparams, horizon)),
    )


def _written(horizon: int, hparams: Any) -> str:
    momentum, decay = float(hparams["momentum"]), float(hparams["weight_decay"])
    line = f"""optimizer = optax.chain(
    optax.trace({momentum:.6g}),
    optax.add_decayed_weights(
        {decay:.6g}, mask=lambda w: jax.tree.map(lambda x: x.ndim > 1, w)
    ),
    optax.scale_by_learning_rate(rate),
)"""
    return snippet(hparams, horizon, line)


def _network(name: str, shape: tuple[int, ...], width: int, num_classes: int) -> PureModel:
    if name == "mlp":
        return from_linen(MLP((width, num_classes)))
    if name == "cnn":
        sizes = (shape[0], shape[1], shape[2])
        return from_nnx(lambda rngs: StridedCNN(sizes, num_classes, width, rngs=rngs))
    return from_nnx(lambda rngs: ResNet(shape[2], num_classes, width, rngs=rngs))


def _check_images(data: str | None, splits: Splits, model: str, flip: Any) -> None:
    if len(np.unique(splits.train[1])) < 2:
        raise ValueError(
            f"data {data!r} has one class among the training images, expected at least two; "
            "raise num_train, or check the labels"
        )
    shape = splits.train[0].shape[1:]
    if model != "mlp" and len(shape) != 3:
        raise ValueError(
            f"data {data!r} has images of shape {shape}, expected height and width for model={model!r}; "
            "pass model='mlp'"
        )
    if not isinstance(flip, bool) or (flip and len(shape) != 3):
        raise ValueError(
            f"flip is {flip!r:.80}, expected true or false, and images with height and width to be mirrored; "
            "pass e.g. flip=false"
        )


def load(data: str | None, num_train: int, num_valid: int, num_test: int, seed: int = 0) -> Splits:
    """Read and split images, scaled to [0, 1]; the arguments are those of `task`."""
    sizes = {"num_train": num_train, "num_valid": num_valid, "num_test": num_test}
    for name, size in sizes.items():
        check_whole(name, size)
    if data is None:
        images, labels = (np.concatenate(part) for part in zip(*digits.load(), strict=True))
        return _split("the digits", [(images.reshape(-1, 8, 8), labels)], sizes, seed)
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
