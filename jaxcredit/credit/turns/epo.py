import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import returns_to_go, segment_lengths, to_tokens
from jaxcredit.rollout import Rollout


@per_group(
    paper="2502.12486",
    fidelity="code",
    granularity="turn",
    family="turns",
    min_group_size=1,
)
def epo(group: Rollout, *, gamma: float = 0.99):
    """What each strategic turn was followed by, in units of the trajectory's largest; every turn counts alike in the loss.

        A_ik = G_ik / max_l |G_il|,   G_ik = r_ik + gamma G_i,k+1,   weight of a token 1 / (K_i n_ik)

    EPO, arXiv 2502.12486, and its released code. Rewards: 1 on turns that a judge called critical, the final score on the last turn
    otherwise. No baseline: every step of positive return is pushed up. n_ik are the policy's tokens of a turn, K_i the turns. Meant for
    losses.reinforce with token_mean, which is then the mean over trajectories.
    """
    G = returns_to_go(group.reward, gamma, where=group.segment_mask)
    most = jnp.where(group.segment_mask, jnp.abs(G), 0).max(-1, keepdims=True)
    A = jnp.where(group.segment_mask, G / jnp.where(most > 0, most, 1), 0)
    turns = jnp.maximum(group.segment_mask.sum(-1, keepdims=True), 1)
    weight = jnp.where(
        group.segment_mask, 1 / (turns * jnp.maximum(segment_lengths(group), 1)).astype(A.dtype), 0
    )
    return {"advantage": to_tokens(A, group), "weight": to_tokens(weight, group)}
