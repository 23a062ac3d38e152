from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import returns_over_peers, to_tokens
from jaxcredit.rollout import Rollout


@per_group(
    needs=("progress",),
    paper="2412.11120",
    fidelity="ours",
    granularity="step",
    family="steps",
    cost="factors of a segment from code that a language model wrote once, and a small decoder",
    reduces_to="rrd with one agent, whose signal it shares",
)
def lare(group: Rollout, *, gamma: float = 1.0):
    """Returns of a learned reward of latent factors, less the mean of the peers (our design).

        A_ik = G_ik - mean_j G_jk,   G_ik = f(z_ik) + gamma G_i,k+1

    LaRe, arXiv 2412.11120. Signal: progress, f(z), the decoder's reward of the segment's latent factors, learned by `decomposition_loss`
    or `sampled_decomposition_loss` of `jaxcredit.kernels`. The team's return is decomposed over agents and time at once. The policy
    gradient around it is our design.
    """
    return to_tokens(
        returns_over_peers(group["progress"], gamma=gamma, where=group.segment_mask), group
    )
