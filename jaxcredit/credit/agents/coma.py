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
    """Counterfactual advantage of an agent's choice, all other agents' choices fixed.

        A_ik = Q(s, u) - sum_u' pi(u' | s) Q(s, (u_-a, u'))

    u is the joint choice and u_-a that of the others. Under the policy the expected
    credit of a decision is 0.

    Signals: choice [N, G, K] (int), choice_value [N, G, K, U] (Q of each choice),
    choice_prob [N, G, K, U] (pi; must sum to 1 and is not rescaled). The rollout's own
    reward is not used.

    Returns:
        Advantage [N, R, T], the same for all tokens of a segment.

    Source: COMA, arXiv 1705.08926 (AAAI 2018).
    """
    A = choice_advantage(group["choice_value"], group["choice_prob"], group["choice"])
    return to_tokens(jnp.where(group.segment_mask, A, 0), group)
