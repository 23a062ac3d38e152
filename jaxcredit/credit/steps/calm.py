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
    cost="a judge that says whether a segment reached its subgoal",
    reduces_to="returns of the reward alone with c=0",
)
def calm(group: Rollout, *, c: float = 0.1, gamma: float = 1.0):
    """Returns with a bonus for the first segment that reaches each subgoal, less the mean of the peers (our design).

        A_ik = G_ik - mean_j G_jk,   G_ik = r_ik + c n_ik + gamma G_i,k+1,   n_ik = 1 where k is the first to achieve its subgoal

    Our design, after the abstract of CALM, arXiv 2409.12798, which has no policy trained on it: its c and the rule that a subgoal counts
    once are not known to us. Signals: achieved; subgoal, equal where two segments served the same. Not policy invariant:
    `potential_shaping` is.
    """
    real, subgoal = group.segment_mask, group["subgoal"]
    achieved = real & (group["achieved"] > 0.5)
    again = (
        (subgoal[:, :, None] == subgoal[:, None])
        & achieved[:, None]
        & jnp.tri(real.shape[1], k=-1, dtype=bool)
    )
    r = group.reward + c * (achieved & ~again.any(-1))
    return to_tokens(returns_over_peers(r, gamma=gamma, where=real), group)
