"""A transformer that predicts the next character of the user's text, trained by AdamW."""

import builtins
from collections import Counter
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hypergrad.core.checks import check_share, check_whole, is_number
from hypergrad.core.flax import from_linen
from hypergrad.core.network import PureModel
from hypergrad.estimators.policies import concrete
from hypergrad.problem import Problem, Task
from hypergrad.space import Dimension, LogReal, Real
from models.transformer import Transformer
from tasks.arrays import MAX_BYTES, find_file
from tasks.rates import kernels, rate, rate_space, snippet
from tasks.supervised import cross_entropy

MAX_CHARACTERS = 1000
"""Most different characters that are told apart: the most frequent of the training part."""
MAX_WINDOWS = 128
"""Most windows that validation reads, and most that the test reads."""


SHIPPED = "the text that comes with Python"


class Text(NamedTuple):
    """A text as whole numbers, cut into three.

    Attributes:
        train: First eight tenths, int32 `[N]`.
        valid: Next tenth.
        test: Last tenth.
        characters: The characters in their order; number 0 stands for all others.
    """

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    characters: str


def task(
    *,
    data: str | None = None,
    horizon: int = 100,
    batch_size: int = 8,
    length: int = 32,
    width: int = 32,
    num_layers: int = 2,
    num_heads: int = 4,
    dropout: float | None = None,
    temperature: float | None = None,
) -> Task:
    """Tune peak, warm-up and decay of the rate, weight decay and label smoothing of a transformer on a text.

    Args:
        data: Path of a text file in UTF-8; a text that comes with Python where None.
        horizon: Number of training steps.
        batch_size: Number of windows a step, drawn anywhere in the training part.
        length: Number of characters that a window predicts.
        width: Size of the state of each character.
        num_layers: Number of blocks.
        num_heads: Number of heads of attention.
        dropout: Rate of dropout to start from, which is then tuned, too; none where None. Searches and the
            estimator `es` see all that it does; those that differentiate training say that they do not.
        temperature: Temperature of masks between 0 and 1 in place of those of dropout, which every estimator
            can differentiate, with a bias; true masks where None.
    """
    sizes = {
        "horizon": horizon,
        "batch_size": batch_size,
        "length": length,
        "width": width,
        "num_layers": num_layers,
        "num_heads": num_heads,
    }
    for name, value in sizes.items():
        check_whole(name, value)
    if width % num_heads:
        raise ValueError(
            f"width is {width}, expected a multiple of num_heads = {num_heads}; pass e.g. width={8 * num_heads}"
        )
    _check_dropout(dropout, temperature)
    text = load(data, length)

    def model(hparams: Any) -> PureModel:
        drop = partial(_drop, hparams["dropout"], temperature) if "dropout" in hparams else None
        num_tokens = len(text.characters) + 1
        module = Transformer(num_tokens, length, width, num_layers, num_heads, drop)
        return from_linen(module, train_argument="train")

    name = SHIPPED if data is None else Path(data).name
    num = len(text.train) + len(text.valid) + len(text.test)
    problem, score = _problem(text, model, horizon, batch_size, length)
    return Task(
        name="text",
        problem=problem,
        space=_space(dropout),
        horizon=horizon,
        test=score,
        metric="bits per character",
        higher_is_better=False,
        snippet=partial(_written, horizon),
        description=f"A transformer of {num_layers} layers of width {width} on {num} characters of {name}, "
        f"{len(text.characters)} different ones, {horizon} steps of AdamW.",
    )


def _space(dropout: float | None) -> dict[str, Dimension]:
    return {
        **rate_space(3e-3),
        "weight_decay": LogReal(1e-5, 10.0, default=1e-2),
        "label_smoothing": Real(0.0, 0.3, default=0.02),
        **({} if dropout is None else {"dropout": Real(0.0, 0.8, default=dropout)}),
    }


def _written(horizon: int, hparams: Any) -> str:
    decay = float(hparams["weight_decay"])
    line = f"""optimizer = optax.adamw(
    rate, weight_decay={decay:.6g}, mask=lambda w: jax.tree.map(lambda x: x.ndim > 1, w)
)"""
    return snippet(hparams, horizon, line)


def _check_dropout(dropout: Any, temperature: Any) -> None:
    if dropout is not None:
        check_share("dropout", dropout, "(0, 0.8)", what="a rate", example=0.1)
    if temperature is not None and (
        dropout is None or not is_number(temperature) or temperature <= 0
    ):
        raise ValueError(
            f"temperature is {temperature!r:.80}, expected a positive number beside a rate of dropout; "
            "pass e.g. dropout=0.1 and temperature=0.3"
        )


def _drop(rate: Any, temperature: float | None, key: jax.Array, x: jax.Array) -> jax.Array:
    """Drop a share of values, and scale the others up."""
    keep = 1 - rate
    if temperature is None:
        mask = jax.random.bernoulli(key, keep, x.shape)
    else:
        mask = concrete(key, keep, x.shape, temperature)
    return x * mask / keep


def _problem(
    text: Text, model: Any, horizon: int, batch_size: int, length: int
) -> tuple[Problem, Any]:
    """Build the problem, and the scores in bits per character."""
    train = jnp.asarray(text.train)
    valid, test = (_windows(part, length) for part in (text.valid, text.test))
    places = jnp.arange(length)

    def train_batch(key: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        draw, drop = jax.random.split(key)
        starts = jax.random.randint(draw, (batch_size, 1), 0, len(text.train) - length)
        return train[starts + places], train[starts + places + 1], drop

    def loss(params: Any, hparams: Any, batch: Any) -> jax.Array:
        inputs, targets, key = batch
        logits, _ = model(hparams).apply(params, inputs, train=True, key=key)
        return cross_entropy(logits, targets, hparams["label_smoothing"])

    def losses(params: Any, hparams: Any, batch: Any) -> jax.Array:
        logits, _ = model({}).apply(params, batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean(1)

    problem = Problem(
        init=lambda key, hparams: model({}).init(key, jnp.zeros((1, length), jnp.int32)),
        loss=loss,
        objective=lambda params, hparams, batch: losses(params, hparams, batch).mean(),
        optimizer=lambda h: optax.adamw(
            rate(h, horizon), weight_decay=h["weight_decay"], mask=kernels
        ),
        train_batch=train_batch,
        valid_batch=lambda key: valid,
    )
    return problem, lambda params, hparams: losses(params, hparams, test) / jnp.log(2.0)


def _windows(part: np.ndarray, length: int) -> tuple[jax.Array, jax.Array]:
    """Cut windows that do not overlap, evenly spread, and their next characters `[W, length]`."""
    num = min(MAX_WINDOWS, (len(part) - 1) // length)
    starts = np.linspace(0, len(part) - 1 - length, num).astype(int)
    rows = starts[:, None] + np.arange(length)
    return jnp.asarray(part[rows]), jnp.asarray(part[rows + 1])


def load(data: str | None, length: int) -> Text:
    """Read a text, cut it into three, and number the characters of the first part.

    Raises:
        ValueError: for a file that is missing, empty, binary, not in UTF-8 or too short, in one line.
    """
    whole, what = (shipped(), SHIPPED) if data is None else (read_text(data), f"data {data!r}")
    needed = 10 * (length + 1)
    if len(whole) < needed:
        raise ValueError(
            f"{what} has {len(whole)} characters, expected at least {needed} for windows of length = "
            f"{length}; name a longer text, or pass a smaller length"
        )
    cuts = [len(whole) * 8 // 10, len(whole) * 9 // 10]
    count = Counter(whole[: cuts[0]])
    # by frequency, then by code: the same in every process
    known = sorted(sorted(count, key=lambda c: (-count[c], c))[:MAX_CHARACTERS])
    if len(known) < 2:
        raise ValueError(
            f"{what} repeats the one character {known[0]!r}, expected at least two different ones; "
            "name a text"
        )
    number = {character: i for i, character in enumerate(known, 1)}
    ids = np.array([number.get(c, 0) for c in whole], np.int32)
    train, valid, test = np.split(ids, cuts)
    return Text(train, valid, test, "".join(known))


def read_text(data: str) -> str:
    """Read a file in UTF-8, with line ends as Python has them."""
    path = find_file(data)
    try:
        size = path.stat().st_size
        content = path.read_bytes() if size <= MAX_BYTES else b""
    except OSError as error:
        raise ValueError(f"data {data!r} cannot be read ({error}); check the path") from None
    if size > MAX_BYTES:
        raise ValueError(
            f"data {data!r} has {size} bytes, expected at most {MAX_BYTES}; take a part of it"
        )
    if not content.strip():
        raise ValueError(f"data {data!r} is empty, expected a text; name another file")
    if b"\0" in content:
        raise ValueError(
            f"data {data!r} has a zero byte at {content.index(0)}, as binary files and UTF-16 have, expected a "
            "text in UTF-8; name a text, or convert it"
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"data {data!r} has the byte {content[error.start]:#04x} at {error.start}, which is not UTF-8, "
            "expected a text in UTF-8; convert it, e.g. iconv -f latin1 -t utf-8"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def shipped() -> str:
    """Return the text that comes with Python: the help on its language, or on its built-in names."""
    try:
        found = dict(import_module("pydoc_data.topics").topics)
    except ImportError:  # some distributions keep it in a package of its own
        found = {name: getattr(builtins, name).__doc__ or "" for name in dir(builtins)}
    return "\n".join(found[name] for name in sorted(found))
