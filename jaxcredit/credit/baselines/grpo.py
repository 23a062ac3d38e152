from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import standardize, to_tokens
from jaxcredit.rollout import Rollout, outcome, trajectory_mask


@per_group(
    paper="2402.03300",
    fidelity="paper",
    family="baselines",
    affine=True,
    zero_sum=True,
)
def grpo(group: Rollout, *, ddof: int = 0, eps: float = 1e-6):
    """Group-normalized advantage: the return in standard deviations of its group.

        A_i = (R_i - mean R) / (std R + eps)

    R_i is the sum of the rewards of trajectory i's segments.

    Args:
        ddof: int, 0 or 1. The variance divides by n - ddof. The paper leaves
            it open; released code takes 1.
        eps: float >= 0, added to the standard deviation.

    Returns:
        Advantage [N, R, T], the same for all tokens of a trajectory. The
        trajectories of a group sum to 0.

    Departs from released code: a group with one trajectory gets exactly 0, not its
    whole return. A group with equal returns gets exactly 0.

    Source: DeepSeekMath, arXiv 2402.03300.
    """
    return to_tokens(
        standardize(outcome(group), where=trajectory_mask(group), ddof=ddof, eps=eps), group
    )
