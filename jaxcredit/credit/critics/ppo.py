import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcredit.credit.lift import per_batch
from jaxcredit.kernels import at_segment_end, gae_over_rows, rounding_bound, standardize
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
    """Generalized advantage estimation over policy tokens, with the critic's target.

        delta_t = r_t + gamma V_(t+1) - V_t,   A_t = delta_t + gamma lam A_(t+1)
        target_t = A_t + V_t

    A segment's reward is earned at its last policy token. Tool tokens are
    skipped: t + 1 is the policy's next token. A later row of a trajectory continues the row
    before it.

    Signals: token_value [N, R, T].

    Args:
        gamma: float in [0, 1], discount for each policy token.
        lam: float in [0, 1]: 0 is the one-step TD error, 1 the return less the value.
        whiten: bool. True: the advantage has mean 0 and deviation 1 over the batch's
            policy tokens. False: a prompt's credit ignores other prompts.
        ddof: int, 0 or 1. The variance divides by n - ddof.
        eps: float >= 0, added to the standard deviation.

    Returns:
        A dict of "advantage" and "target" (before whitening), both [N, R, T], one
        number a token.

    Source: GAE, arXiv 1506.02438 (ICLR 2016); PPO, arXiv 1707.06347.
    """
    advantage = jax.vmap(lambda group: token_gae(group, gamma, lam))(batch)
    target = advantage + batch["token_value"]
    whitened = (
        standardize(advantage, where=batch.action_mask, ddof=ddof, eps=eps, slack=gae_slack(batch))
        if whiten
        else advantage
    )
    return {"advantage": whitened, "target": target}


def token_gae(group, gamma, lam):
    """Unwhitened advantage [R, T] of one group; `lam` may be an array [R, 1]."""
    reward, V = at_segment_end(group.reward, group), group["token_value"]
    return gae_over_rows(reward, V, group, gamma=gamma, lam=lam, where=group.action_mask)


def gae_slack(batch: Rollout) -> Float[Array, ""]:
    """Bound on the rounding error of a token-level advantage; smaller ones count as 0."""
    size = jnp.max(jnp.abs(batch["token_value"]), where=batch.action_mask, initial=0)
    return return_rounding(batch).max() + rounding_bound(size, batch.action_mask.shape[-1])
