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
    """The outcome against the group, in its standard deviations.

        A_i = (R_i - mean R) / (std R + eps)

    DeepSeekMath, arXiv 2402.03300. Departs from released code: it takes the sample deviation (ddof=1 here), and gives a group of one
    its whole reward; here ddof=0, and a group of one or of equal rewards gets exactly 0.
    """
    return to_tokens(
        standardize(outcome(group), where=trajectory_mask(group), ddof=ddof, eps=eps), group
    )
