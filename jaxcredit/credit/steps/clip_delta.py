import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import is_last, next_value, returns_over_peers, to_tokens
from jaxcredit.rollout import Rollout


@per_group(
    needs=("process",),
    paper="2410.15115",
    fidelity="ours",
    granularity="step",
    family="steps",
    reduces_to="returns of the reward alone with alpha=0; of the reward plus alpha times the "
    "process score with eta=None, delta=False",
)
def clip_delta(
    group: Rollout,
    *,
    alpha: float = 1.0,
    eta: float | None = 0.0,
    delta: bool = True,
    last_step: bool = False,
    gamma: float = 1.0,
):
    """Return of clipped and differenced process scores, less the peers' mean (our design).

        clip:   c_k = min(p_k - eta, 0)
        delta:  q_k = c_k - c_{k+1},   c = 0 for the last step and after it
        A_ik = G_ik - mean_j G_jk,   G_ik = r_ik + alpha q_ik + gamma G_i,k+1

    The mean is over the trajectories of the group that have a step k. Clipping makes a sum of
    scores at most 0, and the difference makes it independent of the number of steps.

    Signals: process [N, G, K], a process reward model's score p of each step.

    Args:
        alpha: float, weight of the process scores beside the rollout's reward.
        eta: float, threshold of the clip, or None for no clip (c = p). 0 is the middle of scores
            in [-1, 1].
        delta: bool. False: no difference (q = c).
        last_step: bool. True: the last step keeps its score before the difference. False: its
            score is 0, because the verifier's reward replaces it. Our sources leave this open.
        gamma: float in [0, 1], discount per step.

    Returns:
        Advantage [N, R, T], the same for all tokens of a step.

    Departs from the paper: the paper trains by PPO with a critic. Here the mean return of the peers
    at the same step is the baseline.

    Source: On Designing Effective RL Reward at Training Time for LLM Reasoning (Clip and Delta),
    arXiv 2410.15115.
    """
    q, segments = group["process"], group.segment_mask
    q = q if eta is None else jnp.minimum(q - eta, 0)
    if delta:
        q = q if last_step else jnp.where(is_last(segments), 0, q)
        q = q - next_value(q, segments)
    r = group.reward + alpha * jnp.where(segments, q, 0)
    return to_tokens(returns_over_peers(r, gamma=gamma, where=segments), group)
