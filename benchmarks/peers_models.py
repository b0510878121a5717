"""The peers of `models`, run as a script by a Python that has torch: a request a line in, an answer a line out.

Requests are JSON objects: {"peer", "data", "kind", "horizon", "layers"} once, then {"run": "gradient"} or
{"run": "train"} any number of times. Networks and optimizers are those of `nets`, on the same arrays.
"""

import math
import time

import numpy as np
import torch
from peers_torch import peak_bytes
from torch.nn import functional
from worker import serve

torch.set_num_threads(1)
B1, B2, EPS, EPS_ROOT = 0.9, 0.999, 1e-8, 1e-10


def layer_norm(w, name, x):
    return functional.layer_norm(x, x.shape[-1:], w[f"{name}.scale"], w[f"{name}.bias"], eps=1e-6)


def dense(w, name, x):
    return x @ w[f"{name}.kernel"] + w[f"{name}.bias"]


def attention(w, name, x):
    q, k, v = (
        torch.einsum("bld,dhk->bhlk", x, w[f"{name}.{part}.kernel"])
        + w[f"{name}.{part}.bias"][:, None]
        for part in ("query", "key", "value")
    )
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
    shares = scores.masked_fill(future, torch.finfo(scores.dtype).min).softmax(-1)
    return (
        torch.einsum("bhqk,hkd->bqd", shares @ v, w[f"{name}.out.kernel"]) + w[f"{name}.out.bias"]
    )


def transformer(w, state, tokens, train, masks=None, layers=1):
    x = w["embed.embedding"][tokens.long()] + w["position"]
    for i in range(layers):
        x = x + attention(w, f"block{i}.attention", layer_norm(w, f"block{i}.norm1", x))
        h = dense(w, f"block{i}.up", layer_norm(w, f"block{i}.norm2", x))
        h = dense(w, f"block{i}.down", functional.gelu(h, approximate="tanh"))
        x = x + (h if masks is None else masks[i] * h)
    return dense(w, "out", layer_norm(w, "norm", x)), state


def conv(w, name, x, stride=1, padding=1):
    kernel = w[f"{name}.kernel"].permute(3, 2, 0, 1)
    return functional.conv2d(x, kernel, w.get(f"{name}.bias"), stride, padding)


def batch_norm(w, state, name, x, train):
    mean, var = state[f"{name}.mean"], state[f"{name}.var"]
    if train:
        here, spread = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        state = {
            **state,
            f"{name}.mean": 0.9 * mean + 0.1 * here,
            f"{name}.var": 0.9 * var + 0.1 * spread,
        }
        mean, var = here, spread
    scale = w[f"{name}.scale"] / (var + 1e-5).sqrt()
    shape = (1, -1, 1, 1)
    return (x - mean.view(shape)) * scale.view(shape) + w[f"{name}.bias"].view(shape), state


def cnn(w, state, x, train):
    x = x.permute(0, 3, 1, 2)
    for i in (1, 2):
        x, state = batch_norm(w, state, f"norm{i}", conv(w, f"conv{i}", x, 2), train)
        x = x.relu()
    return dense(w, "out", x.permute(0, 2, 3, 1).flatten(1)), state


def resnet(w, state, x, train):
    x, state = batch_norm(w, state, "norm", conv(w, "conv", x.permute(0, 3, 1, 2)), train)
    x = x.relu()
    for i, stride in ((1, 1), (2, 2), (3, 2)):
        name = f"block{i}"
        h = conv(w, f"{name}.conv1", x, stride)
        h, state = batch_norm(w, state, f"{name}.norm1", h, train)
        h = conv(w, f"{name}.conv2", h.relu())
        h, state = batch_norm(w, state, f"{name}.norm2", h, train)
        around = f"{name}.around"
        x = (h + (conv(w, around, x, stride, 0) if f"{around}.kernel" in w else x)).relu()
    return dense(w, "out", x.mean((2, 3))), state


def mlp(w, state, x, train):
    return (x @ w["w1"] + w["b1"]).relu() @ w["w2"] + w["b2"], state


class Net(torch.nn.Module):
    """A network with parameters of its own, for the peers whose optimizers want a module."""

    def __init__(self, weights):
        super().__init__()
        self.names = {name: name.replace(".", "_") for name in weights}
        for name, safe in self.names.items():
            self.register_parameter(safe, torch.nn.Parameter(weights[name].clone()))

    def forward(self, function):
        return function({name: getattr(self, safe) for name, safe in self.names.items()})


class Case:
    """One training run and its hypergradient, in a peer's own way."""

    def __init__(self, request):
        data = {name: torch.from_numpy(array) for name, array in np.load(request["data"]).items()}

        def part(kind):
            return {n.removeprefix(f"{kind} "): x for n, x in data.items() if n.startswith(kind)}

        self.weights, self.state, self.hparams = map(part, ("weight", "state", "hparam"))
        self.train, self.valid = part("train"), part("valid")
        self.kind, self.horizon, self.layers = (request[n] for n in ("kind", "horizon", "layers"))
        self.peer = request["peer"]

    def outputs(self, w, state, x, train, *masks):
        if self.kind == "transformer":
            return transformer(w, state, x, train, *masks, layers=self.layers)
        return {"cnn": cnn, "resnet": resnet, "mlp": mlp}[self.kind](w, state, x, train)

    def loss(self, w, state, h, t):
        x, y, *masks = (self.train[name][t] for name in sorted(self.train))
        logits, state = self.outputs(w, state, x, True, *masks)
        logs, y = logits.log_softmax(-1), y.long()
        value = -logs.gather(-1, y[..., None]).mean()
        if "smoothing" in h:
            value = (1 - h["smoothing"]) * value - h["smoothing"] * logs.mean(-1).mean()
        if "l2" in h:
            value = value + 0.5 * h["l2"] * sum((w[n] ** 2).sum() for n in ("w1", "w2"))
        return value, state

    def judge(self, w, state):
        logits, _ = self.outputs(w, state, self.valid["0"], False)
        return -logits.log_softmax(-1).gather(-1, self.valid["1"].long()[..., None]).mean()

    def rate(self, h, t):
        if self.kind == "transformer":
            return h["lr"][t]
        if self.kind == "mlp":
            return h["lr"]
        warm = h["warmup"] * self.horizon
        share = ((t - warm) / (self.horizon - warm)).clamp(0, 1)
        down = 0.5 * (1 + (math.pi * share).cos())
        return h["lr"] * torch.where(t < warm, t / warm, down)

    def update(self, w, slots, grads, h, t):
        """Apply the optimizer; `slots` are its moments."""
        first, second, new = {}, {}, {}
        rate, adam = self.rate(h, t), self.kind in ("transformer", "cnn")
        for name, g in grads.items():
            x = w[name]
            if adam:
                first[name] = B1 * slots[0][name] + (1 - B1) * g
                second[name] = B2 * slots[1][name] + (1 - B2) * g * g
                m = first[name] / (1 - B1 ** (t + 1))
                v = second[name] / (1 - B2 ** (t + 1))
                move = m / ((v + EPS_ROOT).sqrt() + EPS) + h["decay"] * x
            else:
                g = g + h["decay"] * x if "decay" in h else g
                first[name] = move = h.get("momentum", 0.9) * slots[0][name] + g
            new[name] = x - rate * move
        return new, (first, second)

    def trained(self, h, gradient, between=lambda w: w):
        """Train by (weights, state, hparams, step) -> (grads, state); return the objective."""
        w, state = between(dict(self.weights)), self.state
        zeros = {name: torch.zeros_like(x) for name, x in w.items()}
        slots = (zeros, zeros)
        for t in range(self.horizon):
            grads, state = gradient(w, state, h, t)
            w, slots = self.update(w, slots, grads, h, t)
            w = between(w)
        return self.judge(w, state)

    def plain(self, h):
        """Without a graph from step to step."""

        def gradient(w, state, h, t):
            value, state = self.loss(w, state, h, t)
            grads = torch.autograd.grad(value, list(w.values()))
            return dict(zip(w, grads, strict=True)), {n: x.detach() for n, x in state.items()}

        def fresh(w):
            return {name: x.detach().requires_grad_(True) for name, x in w.items()}

        return self.trained(h, gradient, fresh)

    def torch(self, h):
        def gradient(w, state, h, t):
            value, state = self.loss(w, state, h, t)
            grads = torch.autograd.grad(value, list(w.values()), create_graph=True)
            return dict(zip(w, grads, strict=True)), state

        return self.trained(
            h,
            gradient,
            lambda w: {
                n: x if x.requires_grad else x.clone().requires_grad_(True) for n, x in w.items()
            },
        )

    def functional(self, h):
        def gradient(w, state, h, t):
            return torch.func.grad(lambda w: self.loss(w, state, h, t), has_aux=True)(w)

        return self.trained(h, gradient)

    def higher(self, h):
        """Its Adam adds ε before the bias correction, the others after it."""
        import higher

        net, state = Net(self.weights), self.state
        optimizer, override = self.torch_optimizer(net, h)
        with higher.innerloop_ctx(net, optimizer, override=override) as (fast, diffopt):
            for t in range(self.horizon):
                value, state = fast(lambda w, s=state, t=t: self.loss(w, s, h, t))
                diffopt.step(value, override={"lr": [self.rate(h, t)]})
            return fast(lambda w: self.judge(w, state))

    def torch_optimizer(self, net, h):
        if self.kind in ("transformer", "cnn"):
            optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.1, eps=EPS)
            return optimizer, {"weight_decay": [h["decay"]]}
        decay = 0.1 if "decay" in h else 0.0
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=decay)
        override = {"weight_decay": [h["decay"]]} if "decay" in h else {}
        return optimizer, {**override, **({"momentum": [h["momentum"]]} if "momentum" in h else {})}

    def torchopt(self, h):
        """It takes the decay as a number, not as a tensor: that hypergradient is missing."""
        import torchopt

        net, state = Net(self.weights), self.state
        decay = float(h["decay"].detach()) if "decay" in h else 0.0

        def rate(count):
            return self.rate(h, int(count))

        common = {"lr": rate, "weight_decay": decay, "moment_requires_grad": True}
        if self.kind in ("transformer", "cnn"):
            optimizer = torchopt.MetaAdamW(net, eps=EPS, eps_root=EPS_ROOT, **common)
        else:
            momentum = h.get("momentum", 0.9)
            optimizer = torchopt.MetaSGD(net, momentum=momentum, **common)
        for t in range(self.horizon):
            value, state = net(lambda w, s=state, t=t: self.loss(w, s, h, t))
            optimizer.step(value)
        return net(lambda w: self.judge(w, state))

    def run(self, request):
        began = time.perf_counter()
        if request["run"] == "train":
            value, grads = self.plain(self.hparams), {}
        elif self.peer == "torch.func":
            grads, value = torch.func.grad_and_value(self.functional)(self.hparams)
        else:
            h = {name: x.clone().requires_grad_(True) for name, x in self.hparams.items()}
            value = getattr(self, self.peer)(h)
            found = torch.autograd.grad(value, list(h.values()), allow_unused=True)
            grads = dict(zip(h, found, strict=True))
        seconds = time.perf_counter() - began
        nan = {n: torch.full_like(x, math.nan) for n, x in self.hparams.items()}
        return {
            "seconds": seconds,
            "value": float(value),
            "gradient": {n: (nan[n] if g is None else g).tolist() for n, g in grads.items()},
            "peak_bytes": peak_bytes(),
        }


if __name__ == "__main__":
    serve(Case, {"torch": torch.__version__})
