from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import center, to_tokens
from jaxcredit.rollout import Rollout, outcome, trajectory_mask


@per_group(
    paper="2402.14740",
    fidelity="paper",
    family="baselines",
    zero_sum=True,
    reduces_to="n/(n-1) times dr_grpo",
)
def rloo(group: Rollout):
    """Leave-one-out advantage: the return less the mean return of the others.

        A_i = R_i - mean_(j != i) R_j = n / (n - 1) (R_i - mean R)

    n is the number of trajectories that took place in the group.

    Returns:
        Advantage [N, R, T], the same for all tokens of a trajectory. The
        trajectories of a group sum to 0.

    A group with one trajectory gets 0; of the released codes some give it 0 and
    some its whole return.

    Source: Back to Basics (RLOO), arXiv 2402.14740.
    """
    return to_tokens(
        center(outcome(group), where=trajectory_mask(group), leave_one_out=True), group
    )
