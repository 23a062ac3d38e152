import jax
import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import center, returns_to_go, segment_lengths, to_tokens, trajectory_lengths
from jaxcredit.rollout import Rollout, outcome, trajectory_mask


@per_group(
    needs=("process",),
    paper="2504.15275",
    fidelity="code",
    granularity="step",
    family="steps",
    reduces_to="rloo where process is 0; a sum of the least step's score as temperature goes to 0, of the mean score as it grows",
)
def pure(
    group: Rollout, *, temperature: float = 0.1, outcome_weight: float = 1.0, per_token: bool = True
):
    """A trajectory is worth its worst step: process scores under a soft minimum, against the others, with the verifier's reward.

        q_k = p_k softmax_k(-p / temperature),   Q_i = sum_k q_ik
        A_ik = sum_{l >= k} (q_il - b_i n_il) + outcome_weight (R_i - mean_{j != i} R_j),   b_i = sum_{j != i} Q_j / sum_{j != i} n_j

    PURE, arXiv 2504.15275, and its released code. Signal: process, in [-1, 1]. n_il are the policy's tokens of a step, n_j of the whole
    trajectory. With `per_token=False` the baseline is one number a step: b_i = mean_{j != i} Q_j / K_j and n_il = 1 (which favours
    few steps). Departs from the code: KL is not in the reward; separators count as part of their step and are credited, unless they
    are given segment -1, which is how the code treats them; alone in its group a trajectory gets 0. `min_to_go` is the textbook form.
    """
    p, real, there = group["process"], group.segment_mask, trajectory_mask(group)
    least = jnp.min(p, -1, keepdims=True, where=real, initial=jnp.inf)
    worst = jnp.where(
        real, jnp.exp(-jnp.where(real, p - least, 0) / jnp.maximum(temperature, 1e-30)), 0
    )
    q = jnp.where(real, p, 0) * worst / jnp.maximum(worst.sum(-1, keepdims=True), 1)
    Q = q.sum(-1)
    steps = real.astype(q.dtype)
    if per_token:
        n = jnp.where(there, trajectory_lengths(group), 0).astype(q.dtype)
        base, units = (
            _others(Q) / jnp.maximum(_others(n), 1),
            segment_lengths(group).astype(q.dtype),
        )
    else:
        base, units = (
            _others(Q / jnp.maximum(steps.sum(-1), 1))
            / jnp.maximum(_others(there.astype(q.dtype)), 1),
            steps,
        )
    A = returns_to_go(q - base[:, None] * units, where=real)
    A = A + outcome_weight * center(outcome(group), where=there, leave_one_out=True)[:, None]
    return to_tokens(jnp.where(there.sum() > 1, A, 0), group)


def _others(x):
    """sum_{j != i} x_j. A matmul, not a difference: the total minus oneself loses what is small beside oneself."""
    return jnp.matmul(
        1 - jnp.eye(x.shape[0], dtype=x.dtype), x, precision=jax.lax.Precision.HIGHEST
    )
