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
    """Outcome less the outcome with this segment's action replaced by a default.

        A_ik = R_i - R_i(action of segment k replaced)

    Signals: counterfactual [N, G, K], the outcome after the replacement.

    Returns:
        Advantage [N, R, T], the same for all tokens of a segment. Where agents depend
        on each other the credits sum to more than the outcome; where one can replace
        another, to less. `shapley` divides the outcome exactly.

    Source: Wolpert and Tumer (2001), doi:10.1142/S0219525901000188; no paper's code.
    """
    return to_tokens(
        jnp.where(group.segment_mask, outcome(group)[:, None] - group["counterfactual"], 0), group
    )
