"""The PyTorch peers of `implicit`, run as a script by a Python that has torch: one JSON request a line.

First {"peer", "data", "tuned", "layers", "iterations", "rate"}, then "gradient" or "time" any number of times.
"""

import time
from types import SimpleNamespace

import numpy as np
import torch
from worker import serve

torch.set_num_threads(1)


class Case:
    """One implicit hypergradient: a step of training and a solve, in each peer's own way."""

    def __init__(self, request):
        data = {name: torch.from_numpy(array) for name, array in np.load(request["data"]).items()}
        self.layers, self.tuned = request["layers"], request["tuned"]
        self.iterations, self.rate = request["iterations"], request["rate"]
        self.train = data["x"], data["y"].long()
        self.valid = data["valid_x"], data["valid_y"].long()
        # sorted: the flat order of the penalties is that of the names
        self.names = sorted(name for name in data if name[0] in "wb" and name[1:].isdigit())
        self.weights = tuple(data[name] for name in self.names)
        self.hparams = data["hparams"]
        peer, _, solver = request["peer"].partition(" ")
        self.estimate = getattr(self, peer.lower())
        self.solver = solver

    def entropies(self, weights, batch):
        named = dict(zip(self.names, weights, strict=True))
        out = batch[0]
        for i in range(self.layers):
            out = out @ named[f"w{i}"] + named[f"b{i}"]
            out = torch.tanh(out) if i < self.layers - 1 else out
        return torch.nn.functional.cross_entropy(out, batch[1], reduction="none")

    def loss(self, weights, hparams):
        each = self.entropies(weights, self.train)
        flat = torch.cat([w.reshape(-1) for w in weights])
        if self.tuned == "weight":
            return (hparams.sigmoid() * each).mean() + 0.005 * flat.square().sum()
        return each.mean() + 0.5 * (hparams.exp() * flat.square()).sum()

    def step(self, weights, hparams):
        weights = [w.detach().requires_grad_(True) for w in weights]
        with torch.enable_grad():  # TorchOpt calls this where gradients are off
            loss = self.loss(weights, hparams)
        grads = torch.autograd.grad(loss, weights)
        return tuple(
            (w - self.rate * g).detach().requires_grad_(True)
            for w, g in zip(weights, grads, strict=True)
        )

    def torch(self, hparams):
        """Plain PyTorch: conjugate gradients on one double-backward graph."""
        weights = self.step(self.weights, hparams.detach())
        value = self.entropies(weights, self.valid).mean()
        b = torch.autograd.grad(value, weights)
        grads = torch.autograd.grad(self.loss(weights, hparams), weights, create_graph=True)

        def dot(left, right):
            return sum((a * b).sum() for a, b in zip(left, right, strict=True))

        x = [torch.zeros_like(w) for w in weights]
        r, p = list(b), list(b)
        square = dot(r, r)
        for _ in range(self.iterations):
            q = torch.autograd.grad(grads, weights, grad_outputs=p, retain_graph=True)
            alpha = square / dot(p, q)
            x = [x + alpha * p for x, p in zip(x, p, strict=True)]
            r = [r - alpha * q for r, q in zip(r, q, strict=True)]
            new = dot(r, r)
            p = [r + new / square * p for r, p in zip(r, p, strict=True)]
            square = new
        return -torch.autograd.grad(grads, hparams, grad_outputs=x)[0]

    def torchopt(self, hparams):
        """TorchOpt's `custom_root`."""
        import torchopt
        from torchopt.diff.implicit import custom_root

        make = getattr(torchopt.linear_solve, f"solve_{self.solver}")
        solve = make(maxiter=self.iterations, rtol=0.0, atol=0.0)
        gradient = torch.func.grad(self.loss)

        @custom_root(gradient, argnums=1, solve=solve)
        def train(weights, hparams):
            return self.step(weights, hparams.detach())

        weights = train(self.weights, hparams)
        return torch.autograd.grad(self.entropies(weights, self.valid).mean(), hparams)[0]

    def betty(self, hparams):
        """betty-ml's `cg`, with the methods that it needs of its problems and nothing else."""
        from betty.hypergradient.cg import cg

        weights = self.step(self.weights, hparams.detach())
        b = torch.autograd.grad(self.entropies(weights, self.valid).mean(), weights)
        inner = SimpleNamespace(
            paths=(),
            config=SimpleNamespace(cg_iterations=self.iterations, cg_alpha=1.0),
            cur_batch=None,
            training_step_exec=lambda batch: self.loss(weights, hparams),
            parameters=lambda: weights,
            trainable_parameters=lambda: weights,
        )
        return cg(b, inner, SimpleNamespace(trainable_parameters=lambda: [hparams]))[0]

    def run(self, what):
        began = time.perf_counter()
        found = self.estimate(self.hparams.clone().requires_grad_(True))
        seconds = time.perf_counter() - began
        return {"seconds": seconds} if what == "time" else {"gradient": found.tolist()}


if __name__ == "__main__":
    serve(Case, {"torch": torch.__version__})
