from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import returns_over_peers, to_tokens
from jaxcredit.rollout import Rollout


@per_group(
    needs=("progress",),
    paper="2111.13485",
    fidelity="ours",
    granularity="step",
    family="steps",
    cost="a reward model, learned beside the policy",
)
def rrd(group: Rollout, *, gamma: float = 1.0):
    """Return of learned rewards that sum to the outcome, less the peers' mean (our design).

        A_ik = G_ik - mean_j G_jk,   G_ik = r^_ik + gamma G_i,k+1

    r^_ik is a reward model's number for segment k; its sum over a trajectory predicts the outcome.
    The mean is over the trajectories of the group that have a segment k.

    Signals: progress [N, G, K], the model's reward r^. Fit the model with
    `jaxcredit.kernels.sampled_decomposition_loss`. The rollout's own reward is used by that loss
    only.

    Args:
        gamma: float in [0, 1], discount per segment.

    Returns:
        Advantage [N, R, T], the same for all tokens of a segment.

    Departs from the paper: the reward decomposition is the paper's, the policy gradient is not (the
    paper trains off-policy critics).

    Source: Randomized return decomposition (RRD), arXiv 2111.13485 (the decomposition).
    """
    return to_tokens(
        returns_over_peers(group["progress"], gamma=gamma, where=group.segment_mask), group
    )
