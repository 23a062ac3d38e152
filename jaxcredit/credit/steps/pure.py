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
    reduces_to="rloo where process is 0",
)
def pure(
    group: Rollout, *, temperature: float = 0.1, outcome_weight: float = 1.0, per_token: bool = True
):
    """Process scores under a soft minimum, plus the outcome, each less a leave-one-out baseline.

        q_k = p_k softmax_k(-p / temperature),   Q_i = sum_k q_ik
        A_ik = sum_{l >= k} (q_il - b_i n_il) + outcome_weight (R_i - mean_{j != i} R_j)
        b_i = sum_{j != i} Q_j / sum_{j != i} n_j

    Q_i is close to the lowest score of trajectory i's steps, so a trajectory is worth its worst
    step. n_il is the number of policy tokens of step l, n_j that of trajectory j. R_i is the sum of
    trajectory i's rewards (the verifier's). `jaxcredit.kernels.min_to_go` is the textbook form of
    the minimum.

    Signals: process [N, G, K], a process reward model's score p of each step, in [-1, 1].

    Args:
        temperature: float > 0, of the soft minimum; 0.1 in the paper. Towards 0, Q_i is the minimum
            of the scores; for large values, their mean.
        outcome_weight: float, weight of the outcome's term; 1 in the released code.
        per_token: bool. True: the baseline is b_i per policy token. False: it is
            b_i = mean_{j != i} Q_j / K_j per step (n_il = 1, K_j the steps of trajectory j), which
            favors answers of few steps.

    Returns:
        Advantage [N, R, T], the same for all tokens of a step.

    Departs from released code: the KL penalty is not part of the reward. A separator token belongs
    to its step and gets the step's advantage; give it segment -1 to get 0 as in the code. A group
    with one trajectory gets 0 (the code refuses it).

    Source: PURE, arXiv 2504.15275, and its released code.
    """
    p, segments, trajectories = group["process"], group.segment_mask, trajectory_mask(group)
    lowest = jnp.min(p, -1, keepdims=True, where=segments, initial=jnp.inf)
    excess = jnp.where(segments, p - lowest, 0)
    weights = jnp.where(segments, jnp.exp(-excess / jnp.maximum(temperature, 1e-30)), 0)
    q = jnp.where(segments, p, 0) * weights / jnp.maximum(weights.sum(-1, keepdims=True), 1)
    Q = q.sum(-1)
    if per_token:
        tokens = jnp.where(trajectories, trajectory_lengths(group), 0).astype(q.dtype)
        b = _sum_of_others(Q) / jnp.maximum(_sum_of_others(tokens), 1)
        n = segment_lengths(group).astype(q.dtype)
    else:
        n = segments.astype(q.dtype)
        mean_score = Q / jnp.maximum(n.sum(-1), 1)
        peers = _sum_of_others(trajectories.astype(q.dtype))
        b = _sum_of_others(mean_score) / jnp.maximum(peers, 1)
    A = returns_to_go(q - b[:, None] * n, where=segments)
    R = center(outcome(group), where=trajectories, leave_one_out=True)
    A = A + outcome_weight * R[:, None]
    return to_tokens(jnp.where(trajectories.sum() > 1, A, 0), group)


def _sum_of_others(x):
    """Sum over the other trajectories, sum_{j != i} x_j [G].

    A matmul keeps summands that are small beside x_i; the total minus x_i would round them off.
    """
    return jnp.matmul(
        1 - jnp.eye(x.shape[0], dtype=x.dtype), x, precision=jax.lax.Precision.HIGHEST
    )
