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
    """Returns of a learned reward whose sum predicts the outcome, less the mean of the peers (our design).

        A_ik = G_ik - mean_j G_jk,   G_ik = r^_ik + gamma G_i,k+1

    Randomised return decomposition, arXiv 2111.13485. Signal: progress, the model's reward r^ of a segment, learned by
    `jaxcredit.kernels.sampled_decomposition_loss`; the reward itself is seen by that loss alone. The decomposition is the paper's; the
    policy gradient around it is our design (the paper has off-policy critics).
    """
    return to_tokens(
        returns_over_peers(group["progress"], gamma=gamma, where=group.segment_mask), group
    )
