import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import center, to_tokens, trajectory_lengths
from jaxcredit.rollout import Rollout, outcome, trajectory_mask


@per_group(
    paper="2505.23585",
    fidelity="paper",
    family="baselines",
)
def opo(group: Rollout):
    """Return less the minimum-variance baseline: the group's length-weighted mean.

        A_i = R_i - sum_j n_j R_j / sum_j n_j

    n_j is the number of policy tokens of trajectory j. The baseline minimizes the
    variance if the squared score of a trajectory grows with its length.

    Returns:
        Advantage [N, R, T], the same for all tokens of a trajectory. Summed over
        the policy tokens of a group it is 0.

    Departs from released code (verl): a group with one trajectory gets 0, not its
    whole return.

    Source: On-Policy RL with Optimal Reward Baseline (OPO), arXiv 2505.23585.
    """
    real = trajectory_mask(group)
    R = center(outcome(group), where=real)  # equal returns become exactly 0, then are weighted
    n = jnp.where(real, trajectory_lengths(group), 0).astype(R.dtype)
    return to_tokens(jnp.where(real, R - (n * R).sum() / jnp.maximum(n.sum(), 1), 0), group)
