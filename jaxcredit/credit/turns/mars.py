import jax
import jax.numpy as jnp

from jaxcredit.credit.lift import per_batch
from jaxcredit.kernels import center_by_role, rounding, standardize, to_tokens
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
    """What a player still earns from a turn on, against all turns of that player in the batch: sum first, then normalise.

        A_ik = R_ik - mean {R_jl : agent_jl = agent_ik},   R_ik = sum_{l >= k, agent_il = agent_ik} r_il

    MARS (MARSHAL), arXiv 2510.15414. Signal: agent; give the roles of different games different numbers, and each role its own baseline.
    Released code takes the mean over the role's different values, each counted once (`unique=True`), may divide by their deviation
    (`normalize=True`), and whitens over the policy's tokens of the batch at last (`whiten=True`, ddof=1). Normalising the turns first and
    summing then would favour players of few turns.
    """
    agent, K = batch["agent"], batch.segment_mask.shape[-1]
    later = jnp.arange(K) >= jnp.arange(K)[:, None]
    mine = (agent[..., :, None] == agent[..., None, :]) & later
    r = jnp.where(mine, jnp.where(batch.segment_mask, batch.reward, 0)[..., None, :], 0)
    slack = rounding(jnp.abs(r).sum(-1), K)
    A = center_by_role(
        r.sum(-1),
        agent,
        batch.segment_mask,
        unique=unique,
        normalize=normalize,
        ddof=ddof,
        eps=eps,
        slack=slack,
    )
    A = jax.vmap(to_tokens)(A, batch)
    return standardize(A, where=batch.action_mask, ddof=ddof, eps=eps) if whiten else A
