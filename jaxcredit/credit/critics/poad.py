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
    """Generalized advantage estimation with a discount between actions, not tokens.

        delta_t = r_t + g_t V_(t+1) - V_t,   A_t = delta_t + g_t lam A_(t+1)
        g_t = gamma at the last token of an action (segment), else `within`

    Signals: token_value [N, R, T].

    Args:
        gamma: float in [0, 1], discount between actions; 0.95 in the released code.
        lam: float in [0, 1], GAE's lambda; 0.95 in the released code.
        within: float in [0, 1], discount between the tokens of an action; 1 in the
            paper. `within=gamma` is its naive token-level baseline (NTPO).
        whiten: bool. True: the advantage is normalized over the batch's policy tokens
            (released code).
        ddof: int, 0 or 1. The variance divides by n - ddof.
        eps: float >= 0, added to the standard deviation.

    Returns:
        A dict of "advantage" and "target" = unwhitened advantage + value, both
        [N, R, T], one number a token.

    Source: Action decomposition (POAD), arXiv 2405.15821, and its released code.
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
