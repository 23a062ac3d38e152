import jax
import jax.numpy as jnp

from jaxcredit.credit.critics.ppo import gae_slack
from jaxcredit.credit.lift import per_batch
from jaxcredit.kernels import at_segment_end, gae_over_rows, standardize
from jaxcredit.rollout import Rollout


@per_batch(
    needs=("token_value",),
    paper="2405.15821",
    fidelity="code",
    granularity="token",
    family="critics",
    min_group_size=1,
    reduces_to="ppo with gamma=1 or with within=gamma",
)
def poad(
    batch: Rollout,
    *,
    gamma: float = 0.95,
    lam: float = 0.95,
    within: float = 1.0,
    whiten: bool = True,
    ddof: int = 0,
    eps: float = 1e-6,
):
    """Generalised advantage estimation in which time passes between actions (segments), not between the tokens of one.

        A_t = d_t + g_t lam A_{t+1},   d_t = r_t + g_t V_{t+1} - V_t,   g_t = gamma at the last token of a segment, else within
        target_t = A_t + V_t (before whitening)

    Action decomposition (POAD), arXiv 2405.15821, and its released code. Signal: token_value. `within=gamma` is its naive NTPO, where an
    action's length discounts it. The advantage is whitened over the batch's policy tokens, as released.
    """

    def advantage(group):
        last = at_segment_end(jnp.ones(group.segment_mask.shape, jnp.float32), group) > 0
        g = jnp.where(last, gamma, within).astype(group["token_value"].dtype)
        return gae_over_rows(
            at_segment_end(group.reward, group),
            group["token_value"],
            group,
            gamma=g,
            lam=lam,
            where=group.action_mask,
        )

    A = jax.vmap(advantage)(batch)
    target = A + batch["token_value"]
    return {
        "advantage": standardize(
            A, where=batch.action_mask, ddof=ddof, eps=eps, slack=gae_slack(batch)
        )
        if whiten
        else A,
        "target": target,
    }
