"""A training that is compiled alone, or a study over it, in a process of its own, for `first_answer`."""

import itertools
import time
import warnings
from typing import Any

import jax

import hypergrad as hg
from benchmarks import nets
from benchmarks.worker import serve
from hypergrad.study import Callback

HORIZON = 27
GENERATIONS = 4


class Case:
    """The transformer of `models` with fewer steps."""

    def __init__(self, request: dict[str, Any]):
        jax.config.update("jax_enable_compilation_cache", False)
        quick = request["quick"]
        self.net = nets.transformer(3, 1, 8) if quick else nets.transformer(HORIZON)
        self.population = 9 if quick else 64

    def run(self, request: dict[str, str]) -> dict[str, float]:
        """Measure one of the two, in seconds of the clock."""
        return self.alone() if request["run"] == "alone" else self.study()

    def alone(self) -> dict[str, float]:
        """Trace and compile one training that is written by hand."""
        net, began = self.net, time.perf_counter()
        jax.jit(lambda h: nets.by_hand(net, h, nets.KEY)).lower(net.hparams).compile()
        return {"training compiles": time.perf_counter() - began}

    def study(self) -> dict[str, float]:
        """Search with cross-entropy and halving, and judge the best."""
        net, ends = self.net, []
        space = {
            "lr": hg.Sequence(hg.LogReal(1e-4, 1e-2, default=1e-3), net.horizon),
            "decay": hg.LogReal(1e-4, 1e-1, default=1e-2),
        }
        began = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            hg.tune(
                net.problem,
                space,
                horizon=net.horizon,
                method="cross_entropy",
                scheduler="halving",
                population=self.population,
                generations=GENERATIONS,
                callbacks=[Callback(step=lambda now: ends.append(time.perf_counter()))],
            )
        *generations, begun, judged = ends
        later = [after - before for before, after in itertools.pairwise(generations)]
        return {
            "first generation": generations[0] - began,
            "a later generation": sorted(later)[len(later) // 2],
            "judge": judged - begun,
        }


if __name__ == "__main__":
    serve(Case, {"jax": jax.__version__})
