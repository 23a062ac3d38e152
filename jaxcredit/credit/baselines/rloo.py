from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import center, to_tokens
from jaxcredit.rollout import Rollout, outcome, trajectory_mask


@per_group(
    paper="2402.14740",
    fidelity="paper",
    family="baselines",
    zero_sum=True,
    reduces_to="n/(n-1) times dr_grpo, always",
)
def rloo(group: Rollout):
    """The outcome against the mean of the others.

        A_i = R_i - mean_{j != i} R_j = n/(n-1) (R_i - mean R)

    Back to basics, arXiv 2402.14740. A group of one gets 0 (released code has both 0 and its whole reward).
    """
    return to_tokens(
        center(outcome(group), where=trajectory_mask(group), leave_one_out=True), group
    )
