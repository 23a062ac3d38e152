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
    cost="A short answers forced at the end of each segment",
    reduces_to="dr_grpo of the scores with one budget",
)
def brpo(group: Rollout, *, prior: float = 0.0, decay: float = 0.5, history: float | None = None):
    """What thinking on is worth at every budget, against the answer's own past and against the group.

        A_s = R_s - w_s V1_s - (1 - w_s) V2_s,   R_s = sum_{j >= s} P_j x_j,   w_s = s / S
        V1_s = (sum_{j < s} decay^{-j} x_j / sum_{j < s} decay^{-j}) sum_{j >= s} P_j,   V2_s = mean over the group of R_s

    BRPO of AnytimeReasoner, arXiv 2505.13438, and its released code. Signal: anytime, the score x_j at the end of segment j, which is
    the budget j; S is the group's largest number of segments, and an answer that ended early keeps its last score. P_j ~ (j + 1)^prior:
    0 the uniform prior, 1 the linear one, inf all on the last. `history` sets w: 1 is the code's v1only, 0 its v2only. Departs from the
    code alone in the group: V2 is then its own R_s and not 0.
    """
    real, there = group.segment_mask, trajectory_mask(group)
    K = real.shape[1]
    s = jnp.arange(K)
    x = forward_fill(group["anytime"], real)
    S = jnp.max(jnp.where(real, s + 1, 0), initial=1).astype(x.dtype)
    P = jnp.where(s < S, jnp.minimum((s + 1) / S, 1) ** prior, 0).astype(x.dtype)
    P = P / P.sum()
    R = returns_to_go(P * x)
    past = jnp.where(s < s[:, None], decay ** jnp.maximum(s[:, None] - 1 - s, 0), 0).astype(x.dtype)
    past = past / jnp.maximum(past.sum(-1, keepdims=True), 1)
    V1 = jnp.matmul(x, past.T, precision=jax.lax.Precision.HIGHEST) * returns_to_go(P)
    V2 = masked_mean(R, jnp.broadcast_to(there[:, None], R.shape), axis=0, keepdims=True)
    w = s / S if history is None else history
    return to_tokens(w * (R - V1) + (1 - w) * (R - V2), group)
