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
    reduces_to="ppo with lam = 1 - 1 / (alpha length), where all lengths are equal (but for the critic's target)",
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
    """Generalised advantage estimation that looks the further ahead the longer the answer; the critic learns from whole returns.

        A_t = delta_t + gamma lam_i A_{t+1},   lam_i = max(0, 1 - 1 / (alpha n_i)),   target_t = V_t + A_t at critic_lam

    VAPO, arXiv 2504.05118. Signal: token_value. n_i are the tokens that the policy chose in the trajectory. Whitened as ppo is, which
    the paper leaves open. Its value pre-training, clip-higher and likelihood of right answers belong to the trainer and the losses.
    """

    def both(group):
        n = jnp.maximum(trajectory_lengths(group), 1).astype(group.reward.dtype)[group.row][:, None]
        return token_gae(group, gamma, jnp.maximum(0, 1 - 1 / (alpha * n))), token_gae(
            group, gamma, critic_lam
        )

    policy, critic = jax.vmap(both)(batch)
    return {
        "advantage": standardize(
            policy, where=batch.action_mask, ddof=ddof, eps=eps, slack=gae_slack(batch)
        )
        if whiten
        else policy,
        "target": critic + batch["token_value"],
    }
