import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import center_by_role, rounding, to_tokens
from jaxcredit.rollout import Rollout, outcome


@per_group(
    needs=("agent",),
    paper="2602.08847",
    fidelity="code",
    granularity="agent",
    family="agents",
    affine=True,
    reduces_to="grpo with one agent and one segment each",
)
def dr_mas(group: Rollout, *, own: bool = False, ddof: int = 0, eps: float = 1e-6):
    """GRPO with statistics of its own for each agent.

        A_ik = (R_i - mean_a) / (std_a + eps),   a = agent_ik, over the segments of agent a in the group

    Dr.MAS, arXiv 2602.08847, by its released code (which takes ddof=1 and gives an agent's only segment its whole reward; here 0).
    Signal: agent. R_i is the trajectory's outcome, which all agents share; with `own=True` it is what the agent itself earned in
    the trajectory, for teams whose members are rewarded apart.
    """
    agent, real = group["agent"], group.segment_mask
    same = (agent[:, :, None] == agent[:, None, :]) & real[:, None, :]
    r = jnp.where(same, group.reward[:, None, :], 0)
    R = r.sum(-1) if own else jnp.where(real, outcome(group)[:, None], 0)
    slack = (
        rounding(jnp.abs(r).sum(-1), r.shape[-1]) if own else None
    )  # outcomes that are equal but for rounding are so already
    return to_tokens(
        center_by_role(R, agent, real, normalize=True, ddof=ddof, eps=eps, slack=slack), group
    )
