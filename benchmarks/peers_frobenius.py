"""The PyTorch peers of `frobenius`, run as a script by a Python that has torch: one JSON request a line.

First {"peer", "data", "layers"}, then "norm" or "time" any number of times. The answer of a peer that goes
column by column holds for its first `columns` columns; the parent scales the time.
"""

import time
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch
from worker import serve

torch.set_num_threads(1)


class Case:
    """The Hessian of one ReLU network with cross-entropy, in each peer's own way."""

    def __init__(self, request):
        data = {name: torch.from_numpy(array) for name, array in np.load(request["data"]).items()}
        self.batch = data["x"], data["y"].long()
        self.model = torch.nn.Sequential()
        for i in range(request["layers"]):
            kernel, bias = data[f"w{i}"], data[f"b{i}"]
            layer = torch.nn.Linear(*kernel.shape)
            with torch.no_grad():
                layer.weight.copy_(kernel.T)
                layer.bias.copy_(bias)
            self.model.append(layer)
            if i < request["layers"] - 1:
                self.model.append(torch.nn.ReLU())
        self.criterion = torch.nn.CrossEntropyLoss()
        self.columns = request["columns"]
        self.size = sum(w.numel() for w in self.model.parameters())
        self.square = getattr(self, request["peer"].replace(".", "_").lower())

    def torch_func_hessian(self):
        """torch.func.hessian of the flat weights."""
        shapes = {name: w.shape for name, w in self.model.named_parameters()}
        flat = torch.cat([w.detach().reshape(-1) for w in self.model.parameters()])

        def loss(flat):
            parts = flat.split([s.numel() for s in shapes.values()])
            named = {n: p.reshape(s) for (n, s), p in zip(shapes.items(), parts, strict=True)}
            outputs = torch.func.functional_call(self.model, named, self.batch[0])
            return self.criterion(outputs, self.batch[1])

        return torch.func.hessian(loss)(flat).square().sum()

    def curvlinops(self):
        """curvlinops' Hessian times the columns of the identity, side by side."""
        import curvlinops

        params = list(self.model.parameters())
        linear = curvlinops.HessianLinearOperator(
            self.model, self.criterion, params, [self.batch], check_deterministic=False
        )
        return (linear @ torch.eye(self.size, self.columns)).square().sum()

    def pyhessian(self):
        """PyHessian's products with the columns of the identity, one after another, on a fresh model."""
        import pyhessian
        from pyhessian.utils import hessian_vector_product

        self.model.zero_grad()  # a second object on one model adds its gradients to those of the first
        made = pyhessian.hessian(self.model, self.criterion, data=self.batch, cuda=False)
        total = torch.zeros(())
        shapes = [p.shape for p in made.params]
        for index in range(self.columns):
            unit = torch.zeros(self.size)
            unit[index] = 1
            parts = unit.split([s.numel() for s in shapes])
            vector = [p.reshape(s) for p, s in zip(parts, shapes, strict=True)]
            for row in hessian_vector_product(made.gradsH, made.params, vector):
                total += row.square().sum()
        return total

    def run(self, what):
        began = time.perf_counter()
        norm = float(self.square().sqrt())
        return {"seconds": time.perf_counter() - began, "norm": norm}


def installed(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    names = ("torch", "curvlinops-for-pytorch", "PyHessian")
    serve(Case, {"version": ", ".join(f"{name} {installed(name)}" for name in names)})
