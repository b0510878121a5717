"""Policies over hyperparameters, and the estimators that learn them.

- `baselines`: Baselines of the score function, with which values are compared.
- `draws`: Shared weights: train and judge one set of weights in expectation over a policy's draws.
- `heads`: Policies with heads: one for each leaf of a space, over a state that all of them share.
- `mixed`: Hypergradients of real, integer and categorical leaves at once: the direct part and the response
  to each.
- `policy`: Policies: distributions over the integers and choices of a space, differentiable where values
  are not.
- `relaxations`: Relaxations: differentiable stand-ins for a categorical draw.
- `relaxed`: Relaxed hypergradients: options are mixed instead of chosen, so that any estimator
  differentiates them.
- `responses`: Responses of the shared weights to a change of the hyperparameters.
- `score`: Score-function hypergradients: runs weighted by how much better they are than others (REINFORCE).
- `shared`: One policy for architecture and optimizer over weights that keep training: direct gradient and
  response.
"""

from hypergrad.estimators.policies.baselines import (
    Baseline,
    leave_one_out,
    mean_of_others,
    no_baseline,
    running_mean,
)
from hypergrad.estimators.policies.draws import (
    Draws,
    check_policy,
    check_shared,
    draw_outcomes,
    enumerated,
    expected,
    own_leaves,
    sampled,
    unboxed,
)
from hypergrad.estimators.policies.heads import (
    Network,
    Sizes,
    independent,
    multitask,
    sizes,
)
from hypergrad.estimators.policies.mixed import MixedInfo, mixed, no_response
from hypergrad.estimators.policies.policy import (
    Policy,
    factorized,
    natural,
)
from hypergrad.estimators.policies.relaxations import (
    Relaxation,
    concrete,
    gumbel_softmax,
    mixture,
    relax,
    softmax,
    straight_through,
)
from hypergrad.estimators.policies.relaxed import RelaxedInfo, relaxed
from hypergrad.estimators.policies.responses import (
    RESPONSES,
    Pull,
    Response,
    ResponseWindow,
    at_rest,
    left_out,
    unrolled,
    ways,
)
from hypergrad.estimators.policies.score import ScoreInfo, score, score_shared
from hypergrad.estimators.policies.shared import SharedInfo, SharedState, shared

__all__ = [
    "RESPONSES",
    "Baseline",
    "Draws",
    "MixedInfo",
    "Network",
    "Policy",
    "Pull",
    "Relaxation",
    "RelaxedInfo",
    "Response",
    "ResponseWindow",
    "ScoreInfo",
    "SharedInfo",
    "SharedState",
    "Sizes",
    "at_rest",
    "check_policy",
    "check_shared",
    "concrete",
    "draw_outcomes",
    "enumerated",
    "expected",
    "factorized",
    "gumbel_softmax",
    "independent",
    "leave_one_out",
    "left_out",
    "mean_of_others",
    "mixed",
    "mixture",
    "multitask",
    "natural",
    "no_baseline",
    "no_response",
    "own_leaves",
    "relax",
    "relaxed",
    "running_mean",
    "sampled",
    "score",
    "score_shared",
    "shared",
    "sizes",
    "softmax",
    "straight_through",
    "unboxed",
    "unrolled",
    "ways",
]
