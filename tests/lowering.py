"""What programs are compiled to."""

import os
import re

import jax
import jax.export

PLAIN = "optimization_level=0" in os.environ.get("XLA_FLAGS", "")
"""Whether XLA makes plain code, see `conftest.py`: some of it rounds otherwise when the same is computed in
another place, so that `reversible` cannot undo the run, and says so. It is tested as users compile it."""
NOT_REPEATED = "XLA_FLAGS asks for plain code, in which a step is not repeated to the bit"


def wide_results(program, *arguments):
    """Lower a jitted program for a TPU; list its results in 64 bits, none if x64 is on: who asks gets them.

    `jax.random` counts in 64 bits of its own, but what comes out of its operations has 32.
    """
    exported = jax.export.export(program, platforms=["tpu"])(*arguments)
    assert exported.platforms == ("tpu",)
    results = re.findall(r"-> tensor<[^>]*>", exported.mlir_module())
    assert results
    if jax.config.read("jax_enable_x64"):
        return []
    return [one for one in results if re.search(r"(f|[<x]i)64>", one)]
