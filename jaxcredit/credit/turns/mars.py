import jax
import jax.numpy as jnp

from jaxcredit.credit.lift import per_batch
from jaxcredit.kernels import center_by_role, rounding_bound, standardize, to_tokens
from jaxcredit.rollout import Rollout


@per_batch(
    needs=("agent",),
    paper="2510.15414",
    fidelity="paper",
    granularity="turn",
    family="turns",
    min_group_size=1,
)
def mars(
    batch: Rollout,
    *,
    unique: bool = False,
    normalize: bool = False,
    whiten: bool = False,
    ddof: int = 0,
    eps: float = 1e-6,
):
    """Player's own rewards from a turn on, less the mean over that player's turns in the batch.

        A_ik = R_ik - mean {R_jl : agent_jl = agent_ik}
        R_ik = sum_{l >= k, agent_il = agent_ik} r_il

    R_ik is undiscounted. The mean is over all prompts, and every turn of the player counts once,
    also several turns of one trajectory. Rewards are summed before they are normalized; the other
    order would favor players with few turns.

    Signals: agent [N, G, K] (int), the player who acts in each turn. Give the same role in
    different games different numbers, so that each role has a baseline of its own.

    Args:
        unique: bool. True: the mean (and the deviation) is over the role's distinct values of R_ik,
            each counted once, as in the released code. Values that differ only by rounding are
            equal.
        normalize: bool. True: A_ik is divided by the standard deviation of the same values; an
            option of the released code.
        whiten: bool. True: the result is normalized over the policy's tokens of the batch, as in
            the released code.
        ddof: int, 0 or 1, for `normalize` and `whiten`. The variance divides by n - ddof; the
            code's whitening takes 1.
        eps: float >= 0, for `normalize` and `whiten`. Added to the standard deviation.

    Returns:
        Advantage [N, R, T], the same for all tokens of a turn. It is 0 for a player whose R_ik are
        all equal.

    Source: MARS (MARSHAL), arXiv 2510.15414.
    """
    agent, turns = batch["agent"], batch.segment_mask
    K = turns.shape[-1]
    from_now_on = jnp.arange(K) >= jnp.arange(K)[:, None]
    same_player = (agent[..., :, None] == agent[..., None, :]) & from_now_on
    r = jnp.where(same_player, jnp.where(turns, batch.reward, 0)[..., None, :], 0)
    slack = rounding_bound(jnp.abs(r).sum(-1), K)
    A = center_by_role(
        r.sum(-1),
        agent,
        turns,
        unique=unique,
        normalize=normalize,
        ddof=ddof,
        eps=eps,
        slack=slack,
    )
    A = jax.vmap(to_tokens)(A, batch)
    return standardize(A, where=batch.action_mask, ddof=ddof, eps=eps) if whiten else A
