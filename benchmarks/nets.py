"""The networks of `models`: a character transformer, two convolutional networks and the digits MLP.

Each is a problem with hyperparameters, and the same training as one would write it by hand. The optimizers of
the Adam family have `eps_root`, without which a loop by hand may have hypergradients of NaN.
"""

import pydoc_data.topics
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen, nnx

from hypergrad.core import tree
from hypergrad.core.flax import from_nnx
from hypergrad.core.types import Array, HParams, Key
from hypergrad.problem import Problem, split_loss
from hypergrad.space import schedule
from hypergrad.train import carried, split_key, trained, with_parts
from tasks.digits import read_digits

KEY = jax.random.key(0)
EPS_ROOT = 1e-10
NUM_TRAIN = 1400
"""Number of digits that train; the others validate."""


class Net(NamedTuple):
    """A network with its training.

    Attributes:
        name: Name of the case.
        kind: Name of the network for the peers.
        problem: Training loop.
        hparams: Hyperparameters.
        horizon: Number of steps.
        layers: Number of layers of a transformer.
    """

    name: str
    kind: str
    problem: Problem
    hparams: HParams
    horizon: int
    layers: int = 0


def by_hand(net: Net, hparams: HParams, key: Key, wrap: Callable = lambda body: body) -> Array:
    """Train in a loop of one's own, whose body is `wrap`ped, and return the objective `[]`."""
    problem = net.problem
    begin, judge = split_key(key)
    first, rest = split_key(begin)
    params = problem.init(first, hparams)
    optimizer = problem.optimizer(hparams)

    def step(carry: Any, t: Array) -> tuple[Any, None]:
        params, opt_state = carry
        batch = problem.train_batch(jax.random.fold_in(rest, t), t)

        def loss(weights: Any) -> tuple[Array, Any]:
            here = with_parts(params, weights, carried(params))
            return split_loss(here, problem.loss(here, hparams, batch))

        weights = trained(params)
        grads, state = jax.grad(loss, has_aux=True)(weights)
        updates, opt_state = optimizer.update(grads, opt_state, weights)
        return (with_parts(params, optax.apply_updates(weights, updates), state), opt_state), None

    carry = (params, optimizer.init(trained(params)))
    (params, _), _ = jax.lax.scan(wrap(step), carry, jnp.arange(net.horizon))
    return problem.objective(params, hparams, problem.valid_batch(judge))


def checkpointed(body: Callable) -> Callable:
    """Keep the state of each step only."""
    return jax.checkpoint(body, prevent_cse=False)


def arrays(net: Net) -> dict[str, np.ndarray]:
    """List all that a peer needs for the same training: first weights and state, batches, hyperparameters."""
    begin, judge = split_key(KEY)
    first, rest = split_key(begin)
    params = net.problem.init(first, net.hparams)
    steps = jnp.arange(net.horizon)
    batches = jax.vmap(lambda t: net.problem.train_batch(jax.random.fold_in(rest, t), t))(steps)
    found = {f"weight {name}": x for name, x in tree.named(trained(params)).items()}
    found |= {f"state {name}": x for name, x in tree.named(carried(params) or {}).items()}
    found |= {f"hparam {name}": x for name, x in net.hparams.items()}
    found |= {f"train {i}": x for i, x in enumerate(batches)}
    found |= {f"valid {i}": x for i, x in enumerate(net.problem.valid_batch(judge))}
    return {name: np.asarray(x) for name, x in found.items()}


class Block(linen.Module):
    """A block of a transformer, `[B, L, D] -> [B, L, D]`; `mask` scales the outputs of its second half."""

    heads: int

    @linen.compact
    def __call__(self, x: Array, mask: Array | float) -> Array:
        width = x.shape[-1]
        h = linen.LayerNorm(name="norm1")(x)
        causal = linen.make_causal_mask(jnp.ones(x.shape[:2]))
        x = x + linen.MultiHeadDotProductAttention(self.heads, name="attention")(h, h, mask=causal)
        h = linen.Dense(4 * width, name="up")(linen.LayerNorm(name="norm2")(x))
        return x + mask * linen.Dense(width, name="down")(linen.gelu(h))


class Transformer(linen.Module):
    """A model of the next character, `[B, L] -> [B, L, vocabulary]`; `tied` reads out with the embedding."""

    vocabulary: int
    length: int
    width: int
    layers: int
    heads: int = 4
    tied: bool = False

    @linen.compact
    def __call__(self, tokens: Array, masks: Array | None = None) -> Array:
        embed = linen.Embed(self.vocabulary, self.width, name="embed")
        x = embed(tokens)
        x += self.param("position", linen.initializers.normal(0.02), (self.length, self.width))
        for i in range(self.layers):
            x = Block(self.heads, name=f"block{i}")(x, 1.0 if masks is None else masks[i])
        x = linen.LayerNorm(name="norm")(x)
        return embed.attend(x) if self.tied else linen.Dense(self.vocabulary, name="out")(x)


def characters() -> Array:
    """Return a text that ships with Python, its manual, as numbers below 96."""
    text = "\n".join(pydoc_data.topics.topics.values()).encode("ascii", "replace")
    codes = np.frombuffer(text[:60_000], np.uint8).astype(np.int32)
    return jnp.asarray(np.clip(codes - 31, 0, 95))


def cross_entropy(logits: Any, labels: Array) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def transformer(horizon: int, layers: int = 4, width: int = 64) -> Net:
    """Attention, LayerNorm, embedding and dropout; AdamW with a rate for every step."""
    ids, length, size, keep = characters(), 32, 4, 0.9
    model = Transformer(96, length, width, layers)
    num_train = len(ids) * 9 // 10

    def train_batch(key: Key, step: Array) -> tuple[Array, Array, Array]:
        draw, drop = jax.random.split(key)
        first = jax.random.randint(draw, (size,), 0, num_train - length - 1)
        rows = first[:, None] + jnp.arange(length)
        masks = jax.random.bernoulli(drop, keep, (layers, size, length, width)) / keep
        return ids[rows], ids[rows + 1], masks

    valid = (num_train + jnp.arange(16) * length)[:, None] + jnp.arange(length)
    problem = Problem(
        init=lambda key, h: model.init(key, ids[:length][None])["params"],
        loss=lambda p, h, b: cross_entropy(model.apply({"params": p}, b[0], b[2]), b[1]),
        objective=lambda p, h, b: cross_entropy(model.apply({"params": p}, b[0]), b[1]),
        optimizer=lambda h: optax.adamw(
            schedule(h["lr"]), weight_decay=h["decay"], eps_root=EPS_ROOT
        ),
        train_batch=train_batch,
        valid_batch=lambda key: (ids[valid], ids[valid + 1]),
    )
    hparams = {"lr": jnp.full(horizon, 1e-3), "decay": jnp.asarray(1e-2)}
    name = f"transformer, {width} wide, {layers} layers, AdamW, T = {horizon}"
    return Net(name, "transformer", problem, hparams, horizon, layers)


def gpt2(horizon: int = 1000, layers: int = 12, vocabulary: int = 50257) -> Net:
    """GPT-2 of 124M weights on random tokens, 2 texts of 1024 a step; AdamW with a rate for every step."""
    length, size = 1024, 2
    model = Transformer(vocabulary, length, 768, layers, 12, tied=True)

    def draw(key: Key) -> tuple[Array, Array]:
        tokens = jax.random.randint(key, (size, length + 1), 0, vocabulary)
        return tokens[:, :-1], tokens[:, 1:]

    def loss(p: Any, h: HParams, batch: tuple[Array, Array]) -> Array:
        return cross_entropy(model.apply({"params": p}, batch[0]), batch[1])

    problem = Problem(
        init=lambda key, h: model.init(key, jnp.zeros((1, length), jnp.int32))["params"],
        loss=loss,
        objective=loss,
        optimizer=lambda h: optax.adamw(
            schedule(h["lr"]), weight_decay=h["decay"], eps_root=EPS_ROOT
        ),
        train_batch=lambda key, step: draw(key),
        valid_batch=draw,
    )
    hparams = {"lr": jnp.full(horizon, 3e-4), "decay": jnp.asarray(0.1)}
    return Net(f"GPT-2, {layers} layers, AdamW, T = {horizon}", "gpt2", problem, hparams, horizon)


class CNN(nnx.Module):
    """Two convolutions with BatchNorm and a dense layer, `[B, 16, 16, 1] -> [B, 10]`."""

    def __init__(self, rngs: nnx.Rngs):
        conv = partial(
            nnx.Conv, kernel_size=(3, 3), strides=2, padding=1, use_bias=False, rngs=rngs
        )
        self.conv1, self.norm1 = conv(1, 8), batch_norm(rngs, 8)
        self.conv2, self.norm2 = conv(8, 16), batch_norm(rngs, 16)
        self.out = nnx.Linear(4 * 4 * 16, 10, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        x = nnx.relu(self.norm1(self.conv1(x)))
        x = nnx.relu(self.norm2(self.conv2(x)))
        return self.out(x.reshape(x.shape[0], -1))


def batch_norm(rngs: nnx.Rngs, width: int) -> nnx.BatchNorm:
    return nnx.BatchNorm(width, momentum=0.9, rngs=rngs)


class Residual(nnx.Module):
    """Two convolutions beside a way around them."""

    def __init__(self, inputs: int, width: int, strides: int, rngs: nnx.Rngs):
        conv = partial(nnx.Conv, use_bias=False, rngs=rngs)
        self.conv1 = conv(inputs, width, (3, 3), strides=strides, padding=1)
        self.conv2 = conv(width, width, (3, 3), padding=1)
        self.norm1, self.norm2 = batch_norm(rngs, width), batch_norm(rngs, width)
        self.strides = strides
        if inputs != width:
            self.around = conv(inputs, width, (1, 1), strides=strides, padding=0)

    def __call__(self, x: Array) -> Array:
        h = nnx.relu(self.norm1(self.conv1(x)))
        h = self.norm2(self.conv2(h))
        return nnx.relu(h + (self.around(x) if hasattr(self, "around") else x))


class ResNet8(nnx.Module):
    """A convolution, three residual blocks and a dense layer, `[B, 16, 16, 1] -> [B, 10]`."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.conv = nnx.Conv(1, width, (3, 3), padding=1, use_bias=False, rngs=rngs)
        self.norm = batch_norm(rngs, width)
        self.block1 = Residual(width, width, 1, rngs)
        self.block2 = Residual(width, 2 * width, 2, rngs)
        self.block3 = Residual(2 * width, 4 * width, 2, rngs)
        self.out = nnx.Linear(4 * width, 10, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        x = nnx.relu(self.norm(self.conv(x)))
        x = self.block3(self.block2(self.block1(x)))
        return self.out(x.mean((1, 2)))


def digits() -> tuple[np.ndarray, np.ndarray]:
    images, labels = read_digits()
    return (images / 16).astype(np.float32), labels.astype(np.int32)


def convolutional(kind: str, horizon: int, batch_size: int, width: int = 16) -> Net:
    """Images of 16 x 16 by a `CNN` with AdamW, or a `ResNet8` by SGD with momentum; warm-up and cosine."""
    flat, labels = digits()
    images = np.kron(flat.reshape(-1, 8, 8), np.ones((1, 2, 2), np.float32))[..., None]
    x, y = jnp.asarray(images), jnp.asarray(labels)
    resnet = kind == "resnet"
    model = from_nnx((lambda rngs: ResNet8(width, rngs)) if resnet else CNN)

    def loss(params: Any, h: HParams, batch: tuple[Array, Array]) -> tuple[Array, Any]:
        logits, state = model.apply(params, batch[0], train=True)
        targets = optax.smooth_labels(jax.nn.one_hot(batch[1], 10), h["smoothing"])
        return optax.softmax_cross_entropy(logits, targets).mean(), state

    def optimizer(h: HParams) -> optax.GradientTransformation:
        def rate(count: Any) -> Array:
            warm = h["warmup"] * horizon
            share = jnp.clip((count - warm) / (horizon - warm), 0, 1)
            down = 0.5 * (1 + jnp.cos(jnp.pi * share))
            return h["lr"] * jnp.where(count < warm, count / warm, down)

        if resnet:
            return optax.chain(optax.add_decayed_weights(h["decay"]), optax.sgd(rate, momentum=0.9))
        return optax.adamw(rate, weight_decay=h["decay"], eps_root=EPS_ROOT)

    def train_batch(key: Key, step: Array) -> tuple[Array, Array]:
        rows = jax.random.randint(key, (batch_size,), 0, NUM_TRAIN)
        return x[rows], y[rows]

    problem = Problem(
        init=lambda key, h: model.init(key, x[:1]),
        loss=loss,
        objective=lambda p, h, b: cross_entropy(model.apply(p, b[0])[0], b[1]),
        optimizer=optimizer,
        train_batch=train_batch,
        valid_batch=lambda key: (x[NUM_TRAIN:], y[NUM_TRAIN:]),
    )
    values = {"lr": 0.1 if resnet else 1e-2, "warmup": 0.1, "smoothing": 0.05}
    values["decay"] = 1e-4 if resnet else 1e-2
    hparams = {name: jnp.float32(value) for name, value in values.items()}
    what = f"ResNet-8, {width} channels, momentum" if resnet else "CNN with BatchNorm, AdamW"
    return Net(f"{what}, batch {batch_size}, T = {horizon}", kind, problem, hparams, horizon)


def mlp(horizon: int, width: int = 64, batch_size: int = 128) -> Net:
    """An MLP with one hidden layer on digits, by SGD with momentum and an L2 penalty."""
    images, labels = digits()
    x, y = jnp.asarray(images), jnp.asarray(labels)

    def init(key: Key, h: HParams) -> dict[str, Array]:
        first, second = jax.random.split(key)
        return {
            "w1": jax.random.normal(first, (64, width)) / 8,
            "b1": jnp.zeros(width),
            "w2": jax.random.normal(second, (width, 10)) / width**0.5,
            "b2": jnp.zeros(10),
        }

    def logits(p: dict[str, Array], x: Array) -> Array:
        return jax.nn.relu(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]

    def loss(p: dict[str, Array], h: HParams, batch: tuple[Array, Array]) -> Array:
        penalty = 0.5 * h["l2"] * (jnp.sum(p["w1"] ** 2) + jnp.sum(p["w2"] ** 2))
        return cross_entropy(logits(p, batch[0]), batch[1]) + penalty

    def train_batch(key: Key, step: Array) -> tuple[Array, Array]:
        rows = jax.random.randint(key, (batch_size,), 0, NUM_TRAIN)
        return x[rows], y[rows]

    problem = Problem(
        init=init,
        loss=loss,
        objective=lambda p, h, b: cross_entropy(logits(p, b[0]), b[1]),
        optimizer=lambda h: optax.sgd(h["lr"], momentum=h["momentum"]),
        train_batch=train_batch,
        valid_batch=lambda key: (x[NUM_TRAIN:], y[NUM_TRAIN:]),
    )
    values = {"lr": 0.08, "momentum": 0.9, "l2": 3e-4}
    hparams = {name: jnp.float32(value) for name, value in values.items()}
    name = f"digits MLP, 64-{width}-10, momentum, batch {batch_size}, T = {horizon}"
    return Net(name, "mlp", problem, hparams, horizon)


NETS: dict[str, Callable[[], Net]] = {
    "transformer": lambda: transformer(100),
    "cnn": lambda: convolutional("cnn", 100, 64),
    "resnet": lambda: convolutional("resnet", 40, 32),
    "mlp": lambda: mlp(1000),
}
QUICK: dict[str, Callable[[], Net]] = {
    "mlp": lambda: mlp(8, 8, 16),
}
LARGE: dict[str, Callable[[], Net]] = {"gpt2": gpt2}
"""Networks for an accelerator alone."""
