from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import returns_to_go, to_tokens
from jaxcredit.rollout import Rollout


@per_group(
    needs=("greedy_reward",),
    paper="2310.10505",
    fidelity="paper",
    granularity="segment",
    family="baselines",
    min_group_size=1,
)
def remax(group: Rollout):
    """What is still to come, against the reward of the greedy answer to the same prompt.

        A_ik = sum_{l >= k} r_il - R(greedy)

    ReMax, arXiv 2310.10505. Signal: greedy_reward. With one segment it is R_i - R(greedy); no group is needed.
    """
    return to_tokens(
        returns_to_go(group.reward, where=group.segment_mask) - group["greedy_reward"], group
    )
