import jax.numpy as jnp

from jaxcredit.credit.baselines.grpo import grpo
from jaxcredit.credit.lift import Credit, columns, per_batch
from jaxcredit.kernels import top_share
from jaxcredit.rollout import Rollout


@per_batch(
    needs=("entropy",),
    paper="2506.01939",
    fidelity="paper",
    granularity="token",
    family="tokens",
    reduces_to="its base with rho=1",
)
def entropy_mask(batch: Rollout, *, rho: float = 0.2, base: Credit = grpo):
    """Base credit restricted to the batch's tokens of highest sampling entropy.

        weight_it = 1 if H_it is among the ceil(rho n) largest of the batch's n policy
                    tokens, else 0
        A_it = A_base

    Signals: entropy [N, R, T], in nats, of the policy that sampled.

    Args:
        rho: float in (0, 1], share of policy tokens that are trained; 0.2 in the paper.
        base: the credit A_base, any estimator.

    Returns:
        The base's columns as a dict, each [N, R, T], with "weight" set to 0 outside of
        the chosen tokens. The loss divides by the sum of the weights.

    Departs from released code: tokens that tie with the last one chosen are chosen
    too, where the code takes any of them.

    Source: Beyond the 80/20 Rule, arXiv 2506.01939.
    """
    base_columns = columns(base(batch), batch)
    forks = top_share(batch["entropy"].reshape(-1), rho, batch.action_mask.reshape(-1)).reshape(
        batch.action_mask.shape
    )
    return {**base_columns, "weight": jnp.where(forks, base_columns["weight"], 0)}
