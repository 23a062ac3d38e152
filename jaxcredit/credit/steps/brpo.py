import jax
import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import forward_fill, masked_mean, returns_to_go, to_tokens
from jaxcredit.rollout import Rollout, trajectory_mask


@per_group(
    needs=("anytime",),
    paper="2505.13438",
    fidelity="code",
    granularity="segment",
    family="steps",
    cost="several short answers, forced at the end of each segment",
    reduces_to="dr_grpo of the scores with one budget",
)
def brpo(group: Rollout, *, prior: float = 0.0, decay: float = 0.5, history: float | None = None):
    """Return over token budgets, less a mix of the answer's own past scores and the group mean.

        A_s = R_s - w_s V1_s - (1 - w_s) V2_s,   R_s = sum_{j >= s} P_j x_j,   w_s = s / S
        V1_s = (sum_{j < s} decay^-j x_j / sum_{j < s} decay^-j) sum_{j >= s} P_j,   V1_0 = 0
        V2_s = mean of R_s over the trajectories of the group

    Segment j is the reasoning between two token budgets, and x_j is the score at its end. S is the
    largest number of segments in the group. A trajectory with fewer segments keeps its last score
    for the later budgets. P_j, proportional to (j + 1)^prior, weights the budgets and sums to 1.

    Signals: anytime [N, G, K], the mean score of answers that are forced at the end of each
    segment. The rollout's own reward is not used.

    Args:
        prior: float >= 0, or inf. Exponent of the budgets' weights: 0 is the uniform prior of the
            paper, 1 the linear one; inf puts all weight on the last budget.
        decay: float in (0, 1]. Weight of a score in V1 relative to the score of the next segment;
            0.5 in the released code.
        history: float in [0, 1], or None for w_s = s / S. A number is w in every segment: 1 is the
            `v1only` of the released code, 0 its `v2only`.

    Returns:
        Advantage [N, R, T], the same for all tokens of a segment.

    Departs from released code: in a group with one trajectory V2 is that trajectory's R_s, not 0.

    Source: AnytimeReasoner (budget relative policy optimization), arXiv 2505.13438, and its
    released code.
    """
    segments, K = group.segment_mask, group.segment_mask.shape[1]
    trajectories = trajectory_mask(group)
    s = jnp.arange(K)
    x = forward_fill(group["anytime"], segments)
    S = jnp.max(jnp.where(segments, s + 1, 0), initial=1).astype(x.dtype)
    P = jnp.where(s < S, jnp.minimum((s + 1) / S, 1) ** prior, 0).astype(x.dtype)
    P = P / P.sum()
    R = returns_to_go(P * x)
    earlier = s < s[:, None]
    weights = jnp.where(earlier, decay ** jnp.maximum(s[:, None] - 1 - s, 0), 0).astype(x.dtype)
    weights = weights / jnp.maximum(weights.sum(-1, keepdims=True), 1)
    past_score = jnp.matmul(x, weights.T, precision=jax.lax.Precision.HIGHEST)
    V1 = past_score * returns_to_go(P)
    V2 = masked_mean(R, jnp.broadcast_to(trajectories[:, None], R.shape), axis=0, keepdims=True)
    w = s / S if history is None else history
    return to_tokens(w * (R - V1) + (1 - w) * (R - V2), group)
