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
    """Discounted return from each turn on, over the largest magnitude in its trajectory.

        A_ik = G_ik / max_l |G_il|,   G_ik = r_ik + gamma G_i,k+1
        weight of a token in turn k = 1 / (K_i n_ik)

    n_ik is the number of policy tokens of turn k, and K_i the number of turns, so all turns of a
    trajectory have the same total weight. In the paper a turn that a judge marked as critical has
    reward 1, an unmarked last turn the final score, and every other turn 0. There is no baseline:
    a turn with a positive return is always reinforced.

    Args:
        gamma: float in [0, 1], discount per turn; 0.99 in the released code.

    Returns:
        Columns `advantage` and `weight`, each [N, R, T], the same for all tokens of a turn. The
        advantage is in [-1, 1]. With `losses.reinforce` and the aggregate `token_mean` the loss is
        the paper's mean over trajectories.

    Source: EPO (explicit policy optimization), arXiv 2502.12486, and its released code.
    """
    segments = group.segment_mask
    G = returns_to_go(group.reward, gamma, where=segments)
    largest = jnp.where(segments, jnp.abs(G), 0).max(-1, keepdims=True)
    A = jnp.where(segments, G / jnp.where(largest > 0, largest, 1), 0)
    K = jnp.maximum(segments.sum(-1, keepdims=True), 1)
    n = jnp.maximum(segment_lengths(group), 1)
    weight = jnp.where(segments, 1 / (K * n).astype(A.dtype), 0)
    return {"advantage": to_tokens(A, group), "weight": to_tokens(weight, group)}
