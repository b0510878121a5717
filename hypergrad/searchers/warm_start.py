"""Searches that begin with what earlier ones found."""

from collections.abc import Sequence as Many

import jax

from hypergrad.searchers.base import Outcome, Searcher


def warm_start(searcher: Searcher, outcomes: Many[Outcome]) -> Searcher:
    """Tell a searcher of earlier trials before it is asked for the first.

    Args:
        searcher: any searcher over the space of those trials.
        outcomes: what came of them, such as `Study.outcomes`; values that were measured alike.

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

    def init(key):
        state = searcher.init(key)
        for outcome in outcomes:
            state = tell(state, outcome)
        return state

    return searcher._replace(init=init)
