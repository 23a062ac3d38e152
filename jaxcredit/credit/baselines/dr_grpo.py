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
    """The outcome against the group, without the division that favours easy and hard prompts.

        A_i = R_i - mean R

    Understanding R1-Zero-like training, arXiv 2503.20783. Its other half is the loss: a sum over tokens divided by a constant
    (the aggregate `constant`), so that long wrong answers are not treated mildly.
    """
    return to_tokens(center(outcome(group), where=trajectory_mask(group)), group)
