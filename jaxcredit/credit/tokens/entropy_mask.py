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
    """Only the tokens at which the policy was least sure are trained: the forks.

        weight_it = [H_it is among the ceil(rho n) largest of the batch's n policy tokens],   A_it = A_base

    Beyond the 80/20 rule, arXiv 2506.01939. Signal: entropy, of the policy that sampled. The loss divides by the weights it keeps.
    Tokens equal to the last one kept are kept too, where the released code takes any of them.
    """
    answer = columns(base(batch), batch)
    forks = top_share(batch["entropy"].reshape(-1), rho, batch.action_mask.reshape(-1)).reshape(
        batch.action_mask.shape
    )
    return {**answer, "weight": jnp.where(forks, answer["weight"], 0)}
