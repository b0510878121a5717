"""The peers, run as a script by a Python that has torch: one request a line in, one answer a line out.

Requests are JSON objects: {"peer", "data", "wide", "optimizer", "horizon"} once, then {"run": "gradient"} or
{"run": "train"} any number of times.
"""

import time

import numpy as np
import torch
from worker import serve

torch.set_num_threads(1)
B2, EPS = 0.999, 1e-8


class Net(torch.nn.Module):
    """The MLP of the benchmark, from given weights."""

    def __init__(self, weights):
        super().__init__()
        self.w1, self.b1, self.w2, self.b2 = (torch.nn.Parameter(w.clone()) for w in weights)

    def forward(self, x):
        return forward((self.w1, self.b1, self.w2, self.b2), x)


def forward(weights, x):
    w1, b1, w2, b2 = weights
    return torch.relu(x @ w1 + b1) @ w2 + b2


class Case:
    """One training run and its hypergradient, in each peer's own way."""

    def __init__(self, request):
        data = {name: torch.from_numpy(array) for name, array in np.load(request["data"]).items()}
        if request["wide"]:
            data = {name: x.double() if x.is_floating_point() else x for name, x in data.items()}
        self.x, self.y, self.indices = data["x"], data["y"].long(), data["indices"].long()
        self.valid = data["valid_x"], data["valid_y"].long()
        self.weights = [data[name] for name in ("w1", "b1", "w2", "b2")]
        self.hparams = data["hparams"]
        self.adam = request["optimizer"] == "adam"
        self.horizon = request["horizon"]
        self.objective = getattr(self, request["peer"])

    def loss(self, outputs, weights, log_l2, step):
        targets = self.y[self.indices[step]] if self.indices.numel() else self.y
        squares = weights[0].square().sum() + weights[2].square().sum()
        return torch.nn.functional.cross_entropy(outputs, targets) + 0.5 * log_l2.exp() * squares

    def inputs(self, step):
        return self.x[self.indices[step]] if self.indices.numel() else self.x

    def judge(self, outputs):
        return torch.nn.functional.cross_entropy(outputs, self.valid[1])

    def torch(self, hparams, differentiate=True):
        """Plain PyTorch: the optimizer written out, autograd through the loop."""
        log_lr, logit_momentum, log_l2 = hparams
        lr, momentum = log_lr.exp(), logit_momentum.sigmoid()
        weights = [w.clone().requires_grad_(True) for w in self.weights]
        first = [torch.zeros_like(w) for w in weights]
        second = [torch.zeros_like(w) for w in weights]
        for step in range(self.horizon):
            loss = self.loss(forward(weights, self.inputs(step)), weights, log_l2, step)
            grads = torch.autograd.grad(loss, weights, create_graph=differentiate)
            if self.adam:
                first = [
                    momentum * m + (1 - momentum) * g for m, g in zip(first, grads, strict=True)
                ]
                second = [B2 * v + (1 - B2) * g * g for v, g in zip(second, grads, strict=True)]
                scale = 1 - momentum ** (step + 1)
                updates = [
                    (m / scale) / ((v / (1 - B2 ** (step + 1))).sqrt() + EPS)
                    for m, v in zip(first, second, strict=True)
                ]
            else:
                first = [momentum * m + g for m, g in zip(first, grads, strict=True)]
                updates = first
            weights = [w - lr * u for w, u in zip(weights, updates, strict=True)]
            if not differentiate:
                weights = [w.detach().requires_grad_(True) for w in weights]
        return self.judge(forward(weights, self.valid[0]))

    def higher(self, hparams):
        """Its Adam adds ε before the bias correction, the others after it."""
        import higher

        log_lr, logit_momentum, log_l2 = hparams
        model = Net(self.weights)
        if self.adam:
            optimizer = torch.optim.Adam(model.parameters(), lr=0.1, betas=(0.9, B2), eps=EPS)
            override = {"lr": [log_lr.exp()], "betas": [(logit_momentum.sigmoid(), B2)]}
        else:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            override = {"lr": [log_lr.exp()], "momentum": [logit_momentum.sigmoid()]}
        with higher.innerloop_ctx(model, optimizer, override=override) as (net, diffopt):
            for step in range(self.horizon):
                weights = list(net.parameters())
                diffopt.step(self.loss(net(self.inputs(step)), weights, log_l2, step))
            return self.judge(net(self.valid[0]))

    def torchopt(self, hparams):
        import torchopt

        log_lr, logit_momentum, log_l2 = hparams
        lr, momentum = log_lr.exp(), logit_momentum.sigmoid()
        model = Net(self.weights)
        if self.adam:
            # its moments take a number as β₁, not a tensor: that hypergradient is missing
            optimizer = torchopt.MetaAdam(
                model,
                lr=lambda count: lr,
                betas=(float(momentum.detach()), B2),
                eps=EPS,
                moment_requires_grad=True,
            )
        else:
            optimizer = torchopt.MetaSGD(
                model, lr=lambda count: lr, momentum=momentum, moment_requires_grad=True
            )
        for step in range(self.horizon):
            weights = (model.w1, model.b1, model.w2, model.b2)
            optimizer.step(self.loss(model(self.inputs(step)), weights, log_l2, step))
        return self.judge(model(self.valid[0]))

    def run(self, request):
        began = time.perf_counter()
        if request["run"] == "train":
            value, grads = self.torch(self.hparams, differentiate=False), []
        else:
            hparams = [h.clone().requires_grad_(True) for h in self.hparams]
            value = self.objective(hparams)
            found = torch.autograd.grad(value, hparams, allow_unused=True)
            grads = [None if g is None else float(g) for g in found]
        seconds = time.perf_counter() - began
        return {
            "seconds": seconds,
            "value": float(value),
            "gradient": grads,
            "peak_bytes": peak_bytes(),
        }


def peak_bytes():
    """Return the peak memory of this program; unlike ru_maxrss it does not begin with the parent's."""
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    serve(Case, {"torch": torch.__version__})
