"""How a policy moves: an optimizer that cuts its gradient, and several moves on the same draws."""

from typing import NamedTuple

import optax

from hypergrad.core.checks import check_share, check_whole

MAX_NORM = 20.0
"""Norm beyond which a policy's gradient is cut; see `policy_adam`."""


class Clipping(NamedTuple):
    """Several moves on the same draws, as far as the probabilities stay near; built by `clipped`.

    Attributes:
        epsilon: Largest change of a probability, as a share of it.
        num_epochs: Moves on the same draws.
    """

    epsilon: float
    num_epochs: int


def clipped(epsilon: float = 0.2, num_epochs: int = 4) -> Clipping:
    """Move several times on the same draws, with clipped ratios of probabilities (PPO).

    direct ← ∇ (1/S) Σ_s max(r_s A_s, clip(r_s, 1 − ε, 1 + ε) A_s),   r_s = π_φ(a_s) / π_old(a_s)

    The objective is to be lowered. The response is that of the first move.

    Reference:
        Schulman et al., 2017, arXiv:1707.06347, equation 7.
    """
    check_share("epsilon", epsilon, "(0, 1)", what="a number", example=0.2)
    check_whole("num_epochs", num_epochs)
    return Clipping(epsilon, num_epochs)


def policy_adam(learning_rate: optax.ScalarOrSchedule = 0.02) -> optax.GradientTransformation:
    """Build Adam for a policy, whose whole gradient is cut to a norm of 20.

    g ← g min(1, 20 / ‖g‖)

    Adam remembers the square of a gradient for a thousand updates. Shared weights that are about to diverge do
    give a gradient of 1e16, and a single one would stop the policy for good. Cutting the whole gradient keeps
    its direction, and leaving out its large entries would not. Where it cuts, its mean over draws is no longer
    the gradient's. In 200 updates of the task `supernet_digits` with each response, none of which diverged, the
    norm was 0.6 to 0.8 in the median and 8 (none), 11 (unrolled) and 18 (implicit) at most: 20 leaves such runs
    as they are.
    """
    return optax.chain(optax.clip_by_global_norm(MAX_NORM), optax.adam(learning_rate))
