"""Searches that begin with what earlier ones found."""

from collections.abc import Sequence as Many

import jax
import numpy as np

from hypergrad import static, tree
from hypergrad.searchers.base import Outcome, Searcher
from hypergrad.types import PyTree


def warm_start(
    searcher: Searcher, outcomes: Many[Outcome], space: PyTree | None = None
) -> Searcher:
    """Tell a searcher of earlier trials before it is asked for the first.

    Args:
        searcher: any searcher over the space of those trials.
        outcomes: what came of them, such as `Study.outcomes`; values that were measured alike.
        space: whose static dimensions have the values in the outcomes that the user named, as `tune` has
            them; None where there are none.

    Raises:
        ValueError: where an outcome is none, and (from the searcher) where it is of another space.
    """
    outcomes = list(outcomes)
    tell = searcher.tell if searcher.host else jax.jit(searcher.tell)
    for index, outcome in enumerate(outcomes):
        if not isinstance(outcome, Outcome):
            raise ValueError(
                f"outcomes[{index}] is {type(outcome).__name__}, expected an Outcome; "
                "pass e.g. study.outcomes"
            )
        if space is not None:
            numbers = static.numbered(space, outcome.hparams)
            outcomes[index] = outcome._replace(hparams=numbers)
        for name, leaf in tree.named(outcomes[index].hparams).items():
            if np.asarray(leaf).dtype.kind == "U":
                raise ValueError(
                    f"outcomes[{index}] has texts at {name!r}, expected numbers; pass the space, whose "
                    "static dimension it is, too"
                )

    def init(key):
        state = searcher.init(key)
        for outcome in outcomes:
            state = tell(state, outcome)
        return state

    return searcher._replace(init=init)
