from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import center, to_tokens
from jaxcredit.rollout import Rollout, outcome, trajectory_mask


@per_group(
    paper="2503.20783",
    fidelity="paper",
    family="baselines",
    zero_sum=True,
)
def dr_grpo(group: Rollout):
    """Group-mean advantage: the return less the mean return of its group.

        A_i = R_i - mean R

    R_i is the sum of the rewards of trajectory i's segments. GRPO's division by the
    standard deviation is absent, so easy and hard prompts are not weighted up.

    Returns:
        Advantage [N, R, T], the same for all tokens of a trajectory. The
        trajectories of a group sum to 0.

    Departs from released code (verl): a group with one trajectory gets 0, not its
    whole return.

    The paper's loss sums over tokens and divides by a constant: use the aggregate
    `constant`, so that long wrong answers are not penalized less.

    Source: Understanding R1-Zero-Like Training (Dr. GRPO), arXiv 2503.20783.
    """
    return to_tokens(center(outcome(group), where=trajectory_mask(group)), group)
