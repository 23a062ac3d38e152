import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import returns_over_peers, to_tokens
from jaxcredit.rollout import Rollout


@per_group(
    needs=("achieved", "subgoal"),
    paper="2409.12798",
    fidelity="ours",
    granularity="segment",
    family="steps",
    cost="a judge that decides whether a segment reached its subgoal",
    reduces_to="returns of the reward alone with c=0",
)
def calm(group: Rollout, *, c: float = 0.1, gamma: float = 1.0):
    """Return with a bonus for each subgoal's first success, less the peers' mean (our design).

        A_ik = G_ik - mean_j G_jk,   G_ik = r_ik + c n_ik + gamma G_i,k+1

    n_ik is 1 if segment k is the first of trajectory i that achieves its subgoal, else 0. The mean
    is over the trajectories of the group that have a segment k. The bonus can change the optimal
    policy; the reward shaping of `potential_shaping` cannot.

    Signals: achieved [N, G, K] (1 if the segment reached its subgoal; above 0.5 counts as 1) and
    subgoal [N, G, K] (int; equal numbers are one subgoal).

    Args:
        c: float, the bonus of a subgoal in units of the reward. The paper's value is not known.
        gamma: float in [0, 1], discount per segment.

    Returns:
        Advantage [N, R, T], the same for all tokens of a segment.

    Departs from the paper: the paper trains no policy on the labels. The return, its baseline and
    the rule that a subgoal pays once are our design.

    Source: CALM, arXiv 2409.12798 (subgoals that a language model marks as achieved).
    """
    segments, subgoal = group.segment_mask, group["subgoal"]
    achieved = segments & (group["achieved"] > 0.5)
    repeated = (
        (subgoal[:, :, None] == subgoal[:, None])
        & achieved[:, None]
        & jnp.tri(segments.shape[1], k=-1, dtype=bool)
    ).any(-1)
    r = group.reward + c * (achieved & ~repeated)
    return to_tokens(returns_over_peers(r, gamma=gamma, where=segments), group)
