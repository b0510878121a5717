"""What the certificates of a study's hypergradients say, in sentences for its report."""

import numpy as np

from hypergrad.core import tree
from hypergrad.estimators.advice import kind_of
from hypergrad.estimators.base import NOISE
from hypergrad.report.study import Study
from hypergrad.tuners.descent import LEAF_SIZES

POOR_RESIDUAL = 0.5
"""Relative residual of the linear system at the end of "bilevel" above which its hypergradients are poor."""


def troubles(found: Study) -> list[str]:
    """Say what is wrong with the hypergradients of a study, by the names of leaves; empty if nothing is."""
    return [*_quotes(found), *_noise(found), *_unsolved(found)]


def _quotes(found: Study) -> list[str]:
    """Quote what `advice` said of the hypergradients, each trouble once, with the number of its outer steps.

    The noise of single steps is left out: a descent averages over it.
    """
    first: dict[str, str] = {}
    steps: dict[str, set[int]] = {}
    for step, trials in enumerate(found.trials):
        for line in "\n".join(map(str, trials.info.get("advice", ()))).splitlines():
            if NOISE not in line:
                kind = kind_of(line)
                first.setdefault(kind, f"first at step {step}: {line}")
                steps.setdefault(kind, set()).add(step)
    num = len(found.trials)
    return [f"in {len(steps[kind])} of {num} outer steps, {first[kind]}" for kind in first]


def _noise(found: Study) -> list[str]:
    """Name the leaves whose hypergradients, summed over the steps so far, were noise at every step.

    A sum of noise alone is as large as its standard error, give or take a share of about 1 / √(its numbers).
    """
    if not found.trials or LEAF_SIZES[0] not in found.trials[0].info:
        return []
    hparams = tree.named(found.trials[0].hparams)
    sizes, errors = (
        np.stack([np.asarray(t.info[name], float) for t in found.trials]) for name in LEAF_SIZES
    )
    said = []
    for i, (name, leaf) in enumerate(hparams.items()):
        bound = 1 + 1.5 / np.sqrt(leaf[0].size)
        size, error = sizes[..., i], errors[..., i]
        if np.all((size < bound * error) & (error > 0)):
            said.append(
                f"the hypergradients of hparams[{name!r}] are {NOISE}: their sum over all outer steps has the "
                f"norm {size[-1].max():.1e} and the standard error {error[-1].max():.1e}; raise num_seeds, or "
                "the budget"
            )
    return said


def _unsolved(found: Study) -> list[str]:
    """Say where the linear system of "bilevel" was far from solved at the end of the study."""
    last = found.trials[-1].info if found.trials else {}
    if "gradient_norm" not in last or not np.max(last["residual"]) > POOR_RESIDUAL:
        return []
    return [
        f"the linear system was left with a relative residual of {np.max(last['residual']):.2g} at the end: "
        "the hypergradient is off by about as much; raise the budget, or pass tuners.bilevel a slower "
        "optimizer of the hyperparameters, or another linear"
    ]
