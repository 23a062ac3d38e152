import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import center_by_role, rounding_bound, to_tokens
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
    """Group-normalized advantage with a mean and deviation for each agent.

        A_ik = (R_i - mean_a) / (std_a + eps),   a = agent_ik

    mean_a and std_a are over the segments of agent a in the group.

    Signals: agent [N, G, K] (int).

    Args:
        own: bool. False: R_i is the trajectory's outcome, shared by all agents. True:
            it is what the agent's own segments earned in the trajectory.
        ddof: int, 0 or 1. The variance divides by n - ddof; the released
            code takes 1.
        eps: float >= 0, added to the standard deviation.

    Returns:
        Advantage [N, R, T], the same for all tokens of a segment.

    Departs from released code: an agent with one segment in the group gets 0, not its
    whole return.

    Source: Dr. MAS, arXiv 2602.08847, and its released code.
    """
    agent, real = group["agent"], group.segment_mask
    same = (agent[:, :, None] == agent[:, None, :]) & real[:, None, :]
    r = jnp.where(same, group.reward[:, None, :], 0)
    R = r.sum(-1) if own else jnp.where(real, outcome(group)[:, None], 0)
    # `outcome` has already merged returns that differ only by rounding.
    slack = rounding_bound(jnp.abs(r).sum(-1), r.shape[-1]) if own else None
    return to_tokens(
        center_by_role(R, agent, real, normalize=True, ddof=ddof, eps=eps, slack=slack), group
    )
