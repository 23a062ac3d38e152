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
    """Returns with a judge's reward for new messages, less the mean of the peers (our design).

        A_ik = G_ik - mean_j G_jk,   G_ik = beta_e r_ik + beta_l verdict_ik seen_ik^{-beta_c} + gamma G_i,k+1

    ONI, arXiv 2410.23022, and its released code (beta_e 0.1 where the task is the score). Signals: verdict, the label of the segment's
    message (`jaxcredit.rewards.oni`: by table, classifier or ranking; 0 for a message not labelled yet); seen, its count in the
    episode. The policy gradient around it is our design: the release trains a critic.
    """
    real = group.segment_mask
    seen = jnp.where(real, jnp.maximum(group["seen"], 1), 1)
    r = beta_e * group.reward + beta_l * jnp.where(real, group["verdict"], 0) * seen**-beta_c
    return to_tokens(returns_over_peers(r, gamma=gamma, where=real), group)
