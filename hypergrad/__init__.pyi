from hypergrad import (
    curvature as curvature,
    estimators as estimators,
    populations as populations,
    schedulers as schedulers,
    searchers as searchers,
    space as space,
    study as study,
    tuners as tuners,
)
from hypergrad.core.equinox import from_equinox as from_equinox
from hypergrad.core.flax import from_linen as from_linen, from_nnx as from_nnx
from hypergrad.core.haiku import from_haiku as from_haiku
from hypergrad.core.host import host_batches as host_batches
from hypergrad.core.types import Variables as Variables
from hypergrad.estimators import Estimate as Estimate, Estimator as Estimator
from hypergrad.estimators.attribution.attribution import attribution as attribution
from hypergrad.estimators.implicit.response import best_response as best_response
from hypergrad.estimators.policies import Policy as Policy
from hypergrad.estimators.recommend import recommend as recommend
from hypergrad.estimators.unrolled.inner_gradient import mixed_mode_grad as mixed_mode_grad
from hypergrad.estimators.verify import verify as verify
from hypergrad.populations import Population as Population
from hypergrad.problem import Examples as Examples, Problem as Problem, Task as Task
from hypergrad.report.study import Study as Study
from hypergrad.searchers import Searcher as Searcher, Trials as Trials
from hypergrad.space import (
    Choice as Choice,
    Integer as Integer,
    LogReal as LogReal,
    Real as Real,
    Sequence as Sequence,
    schedule as schedule,
    schedules as schedules,
    select as select,
)
from hypergrad.study import (
    Callback as Callback,
    Progress as Progress,
    load_schedule as load_schedule,
)
from hypergrad.train import (
    TrainState as TrainState,
    averaged as averaged,
    init_state as init_state,
    unroll as unroll,
)
from hypergrad.tuners import Tuner as Tuner
from hypergrad.tuning.replay import replay as replay
from hypergrad.tuning.resume import resume as resume
from hypergrad.tuning.settings import Settings as Settings
from hypergrad.tuning.tune import tune as tune
from hypergrad.validation import validate as validate

__version__: str
