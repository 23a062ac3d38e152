import jax
import jax.numpy as jnp

from jaxcredit.credit._lift import per_batch
from jaxcredit.kernels import after_row, at_end, following, gae, link, standardise
from jaxcredit.rollout import Rollout


@per_batch(needs={"token_value": "R T"}, paper="1506.02438", fidelity="paper", granularity="token", family="TD", peers=1)
def ppo(batch: Rollout, *, gamma: float = 1.0, lam: float = 0.95, whiten: bool = True, ddof: int = 0, eps: float = 1e-6):
    """Generalised advantage estimation over the policy's tokens, whitened over the batch; the critic's target beside it.

        A_t = delta_t + gamma lam A_{t+1},   delta_t = r_t + gamma V_{t+1} - V_t,   target_t = A_t + V_t (before whitening)

    arXiv 1506.02438 and 1707.06347. Signal: token_value. A segment's reward is earned at its last token; tokens that the policy did
    not choose carry V_{t+1} and A_{t+1} through. A later row of a trajectory goes on where the row before it ended.
    Whitening takes one mean and deviation over all policy tokens of the batch; `whiten=False` makes a prompt independent of others.
    """
    advantage = jax.vmap(lambda group: token_gae(group, gamma, lam))(batch)
    target = advantage + batch["token_value"]
    return {"advantage": standardise(advantage, where=batch.mask, ddof=ddof, eps=eps) if whiten else advantage, "target": target}


def token_gae(group, gamma, lam):
    """A_t of one group, before any whitening; `lam` may differ by row."""
    V, mask = group["token_value"], group.mask
    first = following(jnp.pad(V, ((0, 0), (1, 0))), jnp.pad(mask, ((0, 0), (1, 0))))[:, 0]
    bootstrap = after_row(first, jnp.where(mask.any(-1), 0, 1).astype(V.dtype), group)
    last = mask & (jnp.cumsum(mask, 1) == mask.sum(1, keepdims=True))
    reward = at_end(group.reward, group) + jnp.where(last, gamma * bootstrap[:, None], 0)
    return link(gae(reward, V, gamma=gamma, lam=lam, where=mask), gamma * lam, group)
