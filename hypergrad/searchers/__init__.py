"""Searchers: what to try. One method, one file, one contract (`base.Searcher`).

- `base`: The contract of every searcher, which suggests the next trials.
- `bayes`: Bayesian optimization: a Gaussian process over the space, and an acquisition that is maximised on
  it.
- `cma_es`: CMA-ES: a normal distribution that moves, widens and turns towards the better half of every
  generation.
- `cross_entropy`: Cross-entropy search (CEHPO): draw from a distribution, fit it to the best draws, smooth,
  repeat.
- `evolution`: Differential evolution: trials made of differences between members of a population.
- `grid`: Grid search: every combination of a few values of each dimension.
- `models/`: What searchers model with: densities, Gaussian processes, points that fill a cube.
- `optuna/`: Optuna as a searcher, and our searchers as samplers of Optuna.
- `prior`: Search near the user's prior: independent trials from it.
- `random`: Random search: the baseline that every other searcher has to beat.
- `sobol`: Scrambled Sobol search: trials that fill the unit cube more evenly than independent ones.
- `tpe`: Tree-structured Parzen estimators: try what is likelier among good trials than among the others.
- `wrappers`: Searchers made of others: two in turn, long schedules held constant, earlier trials told
  first.
"""

from hypergrad.core.methods import Method, by_name
from hypergrad.searchers.base import Searcher, SearcherWarning, Trials, final_values
from hypergrad.searchers.bayes import BAYES, TrustRegion, bayes
from hypergrad.searchers.cma_es import CMA_ES, cma_es
from hypergrad.searchers.cross_entropy import CROSS_ENTROPY, Stop, cross_entropy, steps_to
from hypergrad.searchers.evolution import EVOLUTION, evolution
from hypergrad.searchers.grid import GRID, grid
from hypergrad.searchers.models.distribution import distribution
from hypergrad.searchers.models.families import Smoothing
from hypergrad.searchers.models.priors import Prior
from hypergrad.searchers.optuna.searcher import OPTUNA_CMA, OPTUNA_GP, OPTUNA_TPE
from hypergrad.searchers.prior import PRIOR, prior
from hypergrad.searchers.random import RANDOM, random
from hypergrad.searchers.sobol import SOBOL, sobol
from hypergrad.searchers.tpe import TPE, tpe
from hypergrad.searchers.wrappers import first_then, held_constant, warm_start

SEARCHERS: dict[str, Method] = by_name(
    RANDOM,
    GRID,
    SOBOL,
    PRIOR,
    CROSS_ENTROPY,
    EVOLUTION,
    CMA_ES,
    BAYES,
    TPE,
    OPTUNA_TPE,
    OPTUNA_CMA,
    OPTUNA_GP,
)
"""The searchers by name; `make(space, num_trials, size, prior)` builds one.

The arguments are the space without static dimensions, the trials that it will be asked for or told in all,
those of a generation, and {leaf name: `Prior`} or None. Schedules of more than a few free steps are held
constant.
"""

__all__ = [
    "SEARCHERS",
    "Prior",
    "Searcher",
    "SearcherWarning",
    "Smoothing",
    "Stop",
    "Trials",
    "TrustRegion",
    "bayes",
    "cma_es",
    "cross_entropy",
    "distribution",
    "evolution",
    "final_values",
    "first_then",
    "grid",
    "held_constant",
    "prior",
    "random",
    "sobol",
    "steps_to",
    "tpe",
    "warm_start",
]
