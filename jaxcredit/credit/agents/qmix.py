import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import to_tokens
from jaxcredit.rollout import Rollout


@per_group(
    needs=("action_value", "value", "mixing"),
    paper="1803.11485",
    fidelity="ours",
    granularity="agent",
    family="agents",
    cost="a critic for each agent and a mixing network",
    min_group_size=1,
    reduces_to="action_value - value where mixing is 1 (an additive team value)",
)
def qmix(group: Rollout):
    """Agent's own advantage times the slope of QMIX's mixing network (our design).

        A_ik = dQ_tot / dq_a (q_a(u) - V_a),   Q_tot = f(q_1, .., q_A; s)

    The mixing weights are |W(s)|, so the slope is >= 0. A_ik is the first-order
    change of the team's value when the agent's action replaces its average action.

    Signals: action_value [N, G, K] (q_a of the action taken), value [N, G, K] (V_a),
    mixing [N, G, K] (the slope; `kernels.monotonic_mix_slope` computes it from the
    mixing network's weights). The rollout's own reward is not used.

    Returns:
        Advantage [N, R, T], the same for all tokens of a segment.

    Departs from the paper: QMIX learns Q_tot and acts greedily on each q_a. It defines
    no advantage of a policy.

    Source: QMIX, arXiv 1803.11485 (ICML 2018): the mixing network.
    """
    return to_tokens(
        jnp.where(
            group.segment_mask, group["mixing"] * (group["action_value"] - group["value"]), 0
        ),
        group,
    )
