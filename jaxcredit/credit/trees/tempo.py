import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import (
    common_prefix,
    common_prefix_by_trajectory,
    prefix_value_changes,
    scatter_changes,
    standardize,
    std_by,
)
from jaxcredit.rollout import FilledRollout, outcome, trajectory_mask


@per_group(
    paper="2509.18314",
    fidelity="paper",
    granularity="token",
    family="trees",
    affine=True,
    reduces_to="grpo with gate=2 and no shared prefixes",
)
def tempo(group: FilledRollout, *, gate: int = 1, ddof: int = 0, eps: float = 1e-6):
    """GRPO plus temporal differences of the prefix value, on the tokens where answers branch.

        A_it = [(R_i - mean R) + V_i,t+1 - V_it] / (std R + eps)
        V_it = mean {R_j : y_j[:t] = y_i[:t]}

    V_it is the mean return of the trajectories that share the first t tokens y[:t], trajectory i
    included; V_i0 is the group's mean. The difference is 0 on every token at which no trajectory
    leaves i. R_i is the sum of trajectory i's rewards.

    A prefix consists of the prompt, all tokens of policy and tools, and the end of the trajectory.
    A difference on a token that the policy did not choose is given to no token.

    Args:
        gate: int >= 1. The difference on token t counts only if at least `gate` trajectories share
            y_i[:t+1]. 1 is the paper: on the token at which a trajectory leaves all others, the
            outcome enters twice. 2 removes the difference there.
        ddof: int, 0 or 1. The variance divides by n - ddof. The paper leaves it open.
        eps: float >= 0, added to the standard deviation.

    Returns:
        Advantage [N, R, T]. It is 0 if the returns of the group are equal.

    Source: Exploiting Tree Structure for Credit Assignment in RL Training of LLMs (TEMPO),
    arXiv 2509.18314; Findings of ACL 2026, 2026.findings-acl.524.
    """
    R, trajectories = outcome(group), trajectory_mask(group)
    row, token_mask = group.row, group.token_mask
    shared = common_prefix_by_trajectory(common_prefix(group.tokens, token_mask), row, R.shape[0])
    difference, sharing = prefix_value_changes(shared, row, R, where=trajectories)
    std = std_by(R, where=trajectories, ddof=ddof)[row][:, None]
    counts = (sharing >= gate) & (std > 0)
    difference = jnp.where(counts, difference / jnp.where(std > 0, std + eps, 1), 0)
    outcome_term = standardize(R, where=trajectories, ddof=ddof, eps=eps)[row]
    return scatter_changes(outcome_term, shared, difference, group.tokens.shape[1])
