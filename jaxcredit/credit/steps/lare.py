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
    """Return of rewards decoded from latent factors, less the peers' mean (our design).

        A_ik = G_ik - mean_j G_jk,   G_ik = f(z_ik) + gamma G_i,k+1

    z are factors of a segment, computed by code that a language model wrote, and f is a learned
    decoder. The mean is over the trajectories of the group that have a segment k. With several
    agents the segments of all agents share one return. The formula is that of `rrd`; the methods
    differ in the model that makes the signal.

    Signals: progress [N, G, K], the decoder's reward f(z). Fit the decoder with
    `decomposition_loss` or `sampled_decomposition_loss` of `jaxcredit.kernels`. The rollout's own
    reward is used by these losses only.

    Args:
        gamma: float in [0, 1], discount per segment.

    Returns:
        Advantage [N, R, T], the same for all tokens of a segment.

    Departs from the paper: the reward decomposition is the paper's, the policy gradient is not (the
    paper trains actor-critic methods).

    Source: LaRe, arXiv 2412.11120 (the decomposition).
    """
    return to_tokens(
        returns_over_peers(group["progress"], gamma=gamma, where=group.segment_mask), group
    )
