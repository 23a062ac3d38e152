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
    """Rewards to come, less the reward of the greedy answer to the same prompt.

        A_ik = sum_(l >= k) r_il - R(greedy)

    With one segment A_i = R_i - R(greedy). No group is needed.

    Signals: greedy_reward [N].

    Returns:
        Advantage [N, R, T], the same for all tokens of a segment.

    Source: ReMax, arXiv 2310.10505.
    """
    return to_tokens(
        returns_to_go(group.reward, where=group.segment_mask) - group["greedy_reward"], group
    )
