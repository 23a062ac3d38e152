import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import choice_advantage, to_tokens
from jaxcredit.rollout import Rollout


@per_group(
    needs=("choice", "choice_value", "choice_prob"),
    paper="1705.08926",
    fidelity="paper",
    granularity="agent",
    family="agents",
    cost="a critic's value of every choice of the agent",
    min_group_size=1,
)
def coma(group: Rollout):
    """The choice against what the same agent would have chosen on average, all others' choices fixed.

        A_ik = Q(s, u) - sum_u' pi(u' | s) Q(s, (u_-a, u'))

    Counterfactual multi-agent policy gradients (COMA), arXiv 1705.08926. Signals: choice, choice_value, choice_prob (not rescaled: give
    probabilities that sum to 1). Under the policy the credit of a decision is 0 on average.
    """
    A = choice_advantage(group["choice_value"], group["choice_prob"], group["choice"])
    return to_tokens(jnp.where(group.segment_mask, A, 0), group)
