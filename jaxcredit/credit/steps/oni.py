import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import returns_over_peers, to_tokens
from jaxcredit.rollout import Rollout


@per_group(
    needs=("verdict", "seen"),
    paper="2410.23022",
    fidelity="ours",
    granularity="step",
    family="steps",
    cost="a judge's label of each new message",
    reduces_to="returns of the reward alone with beta_l=0, beta_e=1",
)
def oni(
    group: Rollout,
    *,
    beta_e: float = 10.0,
    beta_l: float = 0.4,
    beta_c: float = 3.0,
    gamma: float = 1.0,
):
    """Return with a judge's count-discounted message reward, less the peers' mean (our design).

        A_ik = G_ik - mean_j G_jk
        G_ik = beta_e r_ik + beta_l verdict_ik seen_ik^-beta_c + gamma G_i,k+1

    The mean is over the trajectories of the group that have a segment k.

    Signals: verdict [N, G, K], the judge's label of the segment's message, 0 if it has none yet
    (`jaxcredit.rewards.oni` has the paper's three labels: table, classifier, ranking); seen
    [N, G, K], how often the message has occurred in the episode, itself included (below 1 counts
    as 1).

    Args:
        beta_e: float, weight of the environment's reward. Released code: 10, and 0.1 where the task
            is the game's score.
        beta_l: float, weight of the judge's reward; 0.4 in the released code.
        beta_c: float >= 0, exponent of the message's count; 3 in the released code, 0 for none.
        gamma: float in [0, 1], discount per segment.

    Returns:
        Advantage [N, R, T], the same for all tokens of a segment.

    Departs from released code: the reward is the code's, the baseline is not (the code trains a
    critic).

    Source: ONI, arXiv 2410.23022, and its released code (the reward).
    """
    segments = group.segment_mask
    count = jnp.where(segments, jnp.maximum(group["seen"], 1), 1)
    verdict = jnp.where(segments, group["verdict"], 0)
    r = beta_e * group.reward + beta_l * verdict * count**-beta_c
    return to_tokens(returns_over_peers(r, gamma=gamma, where=segments), group)
