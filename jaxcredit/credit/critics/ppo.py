import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcredit.credit.lift import per_batch
from jaxcredit.kernels import at_segment_end, gae_over_rows, rounding, standardize
from jaxcredit.rollout import Rollout, return_rounding


@per_batch(
    needs=("token_value",),
    paper="1506.02438",
    fidelity="paper",
    granularity="token",
    family="critics",
    min_group_size=1,
)
def ppo(
    batch: Rollout,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    whiten: bool = True,
    ddof: int = 0,
    eps: float = 1e-6,
):
    """Generalised advantage estimation over the policy's tokens, whitened over the batch; the critic's target beside it.

        A_t = delta_t + gamma lam A_{t+1},   delta_t = r_t + gamma V_{t+1} - V_t,   target_t = A_t + V_t (before whitening)

    arXiv 1506.02438 and 1707.06347. Signal: token_value. A segment's reward is earned at its last token; tokens that the policy did
    not choose carry V_{t+1} and A_{t+1} through. A later row of a trajectory goes on where the row before it ended.
    Whitening takes one mean and deviation over all policy tokens of the batch; `whiten=False` makes a prompt independent of others.
    """
    advantage = jax.vmap(lambda group: token_gae(group, gamma, lam))(batch)
    target = advantage + batch["token_value"]
    white = (
        standardize(advantage, where=batch.action_mask, ddof=ddof, eps=eps, slack=gae_slack(batch))
        if whiten
        else advantage
    )
    return {"advantage": white, "target": target}


def token_gae(group, gamma, lam):
    """A_t of one group, before any whitening; `lam` may differ by row."""
    reward, V = at_segment_end(group.reward, group), group["token_value"]
    return gae_over_rows(reward, V, group, gamma=gamma, lam=lam, where=group.action_mask)


def gae_slack(batch: Rollout) -> Float[Array, ""]:
    """A bound on the rounding of advantages that are summed over tokens, by the rewards and values that enter: less is no advantage."""
    size = jnp.max(jnp.abs(batch["token_value"]), where=batch.action_mask, initial=0)
    return return_rounding(batch).max() + rounding(size, batch.action_mask.shape[-1])
