import jax
import jax.numpy as jnp

from jaxcredit.credit.critics.ppo import gae_slack, token_gae
from jaxcredit.credit.lift import per_batch
from jaxcredit.kernels import standardize, trajectory_lengths
from jaxcredit.rollout import Rollout


@per_batch(
    needs=("token_value",),
    paper="2504.05118",
    fidelity="paper",
    granularity="token",
    family="critics",
    min_group_size=1,
    reduces_to="ppo with lam = 1 - 1 / (alpha n) if all lengths are n (except the critic's target)",
)
def vapo(
    batch: Rollout,
    *,
    alpha: float = 0.05,
    gamma: float = 1.0,
    critic_lam: float = 1.0,
    whiten: bool = True,
    ddof: int = 0,
    eps: float = 1e-6,
):
    """Generalized advantage estimation with a lambda that grows with answer length.

        lam_i = max(0, 1 - 1 / (alpha n_i))
        delta_t = r_t + gamma V_(t+1) - V_t,   A_t = delta_t + gamma lam_i A_(t+1)
        target_t = V_t + (A_t computed with critic_lam)

    n_i is the number of policy tokens of trajectory i.

    Signals: token_value [N, R, T].

    Args:
        alpha: float > 0, sets lam_i; 0.05 in the paper.
        gamma: float in [0, 1], discount for each policy token; 1 in the paper.
        critic_lam: float in [0, 1], lambda of the critic's target; 1 in the paper
            (the whole return).
        whiten: bool. True: the advantage is normalized over the batch's policy tokens,
            which the paper leaves open.
        ddof: int, 0 or 1. The variance divides by n - ddof.
        eps: float >= 0, added to the standard deviation.

    Returns:
        A dict of "advantage" and "target", both [N, R, T], one number a token.

    The paper's value pre-training, clip-higher and likelihood of right answers belong
    to the trainer and the losses.

    Source: VAPO, arXiv 2504.05118.
    """

    def advantages(group):
        n = jnp.maximum(trajectory_lengths(group), 1).astype(group.reward.dtype)[group.row][:, None]
        return token_gae(group, gamma, jnp.maximum(0, 1 - 1 / (alpha * n))), token_gae(
            group, gamma, critic_lam
        )

    policy, critic = jax.vmap(advantages)(batch)
    return {
        "advantage": standardize(
            policy, where=batch.action_mask, ddof=ddof, eps=eps, slack=gae_slack(batch)
        )
        if whiten
        else policy,
        "target": critic + batch["token_value"],
    }
