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
    """The outcome against the baseline of least variance, when a trajectory's squared score grows with its length.

        A_i = R_i - sum_j n_j R_j / sum_j n_j,   n_j the tokens that the policy chose

    On-policy RL with optimal reward baseline, arXiv 2505.23585. Credit summed over tokens is 0 in each group.
    """
    R = center(
        outcome(group), where=trajectory_mask(group)
    )  # so that equal rewards are exactly 0 before they are weighed
    n = jnp.where(trajectory_mask(group), trajectory_lengths(group), 0).astype(R.dtype)
    return to_tokens(
        jnp.where(trajectory_mask(group), R - (n * R).sum() / jnp.maximum(n.sum(), 1), 0), group
    )
