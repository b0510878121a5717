"""One way to differentiate the training of a network, in a process of its own, for `models`.

The first request names the network and the way; the answer to {"run": "first"} has its cost and gradient, and
that to {"run": "again"} the seconds of another run.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.nets import KEY, LARGE, NETS, QUICK, Net, by_hand, checkpointed
from benchmarks.worker import serve
from hypergrad.core import tree
from hypergrad.core.types import HParams
from hypergrad.estimators import plan, reverse
from hypergrad.estimators.base import temporary_bytes
from hypergrad.estimators.unrolled.adjoint import mixed_mode
from hypergrad.train import init_state, split_key, unroll


def by_unroll(net: Net, hparams: HParams) -> Any:
    """Train by `unroll`, with a checkpoint a step, and return the objective `[]`."""
    begin, judge = split_key(KEY)
    start = init_state(net.problem, begin, hparams)
    state = unroll(net.problem, hparams, start, net.horizon, checkpoint=(1,))
    return net.problem.objective(state.params, hparams, net.problem.valid_batch(judge))


def by_reverse(
    net: Net, memory: int | None = None, offload: bool = False
) -> Callable[[HParams], Any]:
    """Make the default pass, the one within a budget, or one whose states lie in the memory of the host."""
    backward = mixed_mode(offload=True) if offload else None
    if memory is not None:
        backward = plan(net.problem, net.hparams, net.horizon, memory).backward
    estimator = reverse(net.problem, net.horizon, backward=backward)
    return lambda hparams: estimator.estimate(KEY, (), hparams)[1].hypergrad


def way(net: Net, request: dict[str, Any]) -> Callable[[HParams], Any]:
    """Return the function hparams -> what the request names."""
    made: dict[str, Callable[[], Callable[[HParams], Any]]] = {
        "training": lambda: lambda h: by_hand(net, h, KEY),
        "grad, naive": lambda: jax.grad(lambda h: by_hand(net, h, KEY)),
        "grad, checkpoint": lambda: jax.grad(lambda h: by_hand(net, h, KEY, checkpointed)),
        "grad of unroll, checkpoint": lambda: jax.grad(lambda h: by_unroll(net, h)),
        "reverse": lambda: by_reverse(net),
        "reverse, a quarter": lambda: by_reverse(net, request["memory"]),
        "reverse, offloaded": lambda: by_reverse(net, offload=True),
    }
    return made[request["way"]]()


class Case:
    """A compiled way, and what it cost to make it, in CPU time."""

    def __init__(self, request: dict[str, Any]):
        jax.config.update("jax_enable_compilation_cache", False)
        net = (QUICK if request["quick"] else NETS | LARGE)[request["net"]]()
        self.hparams = net.hparams
        jax.jit(way(net, {"way": "training"})).lower(net.hparams)  # loads what jax loads late
        function = way(net, request)
        jax.clear_caches()
        began = time.process_time()
        lowered = jax.jit(function).lower(net.hparams)
        traced = time.process_time()
        self.compiled = lowered.compile()
        done = time.process_time()
        self.cost = {
            "trace": traced - began,
            "compile": done - traced,
            "memory": temporary_bytes(self.compiled),
        }

    def run(self, request: dict[str, str]) -> dict[str, Any]:
        """Run once."""
        if request["run"] == "first":
            before = status("VmRSS")
            forget_peak()
            found = jax.block_until_ready(self.compiled(self.hparams))
            on_device = jax.devices()[0].memory_stats() or {}
            peak = on_device.get("peak_bytes_in_use", max(0, status("VmHWM") - before))
            gradient = [float(x) for leaf in jax.tree.leaves(found) for x in np.ravel(leaf)]
            names = tree.leaf_names(found)
            return {**self.cost, "peak": peak, "gradient": gradient, "names": names}
        began = time.perf_counter()
        jax.block_until_ready(self.compiled(self.hparams))
        return {"seconds": time.perf_counter() - began}


def status(name: str) -> int:
    """Return a number of bytes that Linux keeps of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def forget_peak() -> None:
    """Let the peak of this process begin anew: compiling takes more memory than running."""
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    serve(Case, {"jax": jax.__version__})
