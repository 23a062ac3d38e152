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
    reduces_to="action_value - value, the agent's own advantage, where mixing is 1 (values that just add up)",
)
def qmix(group: Rollout):
    """First-order effect of an agent's action on the team's value: its own advantage times the mixing slope (our design).

        A_ik = dQ_tot / dq_a (q_a(u) - V_a),   Q_tot = f(q_1 .. q_A; s) with |W(s)| as weights, so that the slope is >= 0

    Our design: QMIX, arXiv 1803.11485, learns Q_tot and acts greedily on q_a, and gives no policy any advantage; this is the first-order
    change of Q_tot when the agent's action is replaced by its average. Signals: action_value (q_a of the action taken), value (V_a),
    mixing (the slope, which `kernels.monotonic_mix_slope` computes from the mixing network's weights).
    """
    return to_tokens(
        jnp.where(
            group.segment_mask, group["mixing"] * (group["action_value"] - group["value"]), 0
        ),
        group,
    )
