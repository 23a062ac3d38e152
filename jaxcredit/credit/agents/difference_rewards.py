import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import to_tokens
from jaxcredit.rollout import Rollout, outcome


@per_group(
    needs=("counterfactual",),
    fidelity="paper",
    granularity="agent",
    family="agents",
    cost="an outcome with each segment's action replaced",
    min_group_size=1,
)
def difference_rewards(group: Rollout):
    """The outcome less what it would have been with this action replaced, and everything else as it was.

        A_ik = R_i - R_i(action of segment k replaced by a default)

    Wolpert and Tumer (2001); no paper's code. Signal: counterfactual. Where agents need each other their credits sum to more than the
    outcome, where they stand in for each other to less: `shapley` is the rule that shares it out.
    """
    return to_tokens(
        jnp.where(group.segment_mask, outcome(group)[:, None] - group["counterfactual"], 0), group
    )
