from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import returns_over_peers, shaping, to_tokens
from jaxcredit.rollout import FilledRollout


@per_group(
    needs=("info",),
    paper="1106.5267",
    fidelity="ours",
    granularity="step",
    family="steps",
    reduces_to="dr_grpo with one segment, and on first segments with gamma=1, if the group's "
    "potentials before them are equal",
)
def potential_shaping(group: FilledRollout, *, gamma: float = 1.0, terminal_zero: bool = True):
    """Return with potential-based shaping rewards, less the peers' mean (our design).

        A_ik = G_ik - mean_j G_jk,   G_ik = r_ik + F_ik + gamma G_i,k+1
        F_ik = gamma Phi_i,k+1 - Phi_ik,   Phi = 0 after the last segment

    The mean is over the trajectories of the group that have a segment k. The shaping rewards from
    segment k on add up to -Phi_ik, so no policy becomes better or worse than another. An estimator
    that uses only the return of the whole trajectory (`grpo`) sees no effect of the shaping.

    Signals: info [N, G, K+1], the potential Phi before each segment and after the last one.

    Args:
        gamma: float in [0, 1], discount per segment, the same in F and in the return.
        terminal_zero: bool. True: the potential after the last segment counts as 0 in trajectories
            that are `done`; one that was cut off keeps its last potential as an estimate of the
            rewards that it would have earned. False: every trajectory keeps its last potential.

    Returns:
        Advantage [N, R, T], the same for all tokens of a segment.

    Departs from the papers: they define F; the return less the peers' mean is not theirs.

    Source: Ng, Harada and Russell (ICML 1999); Wiewiora, arXiv 1106.5267.
    """
    F = shaping(group["info"], group.segment_mask, gamma=gamma, ended=group.done & terminal_zero)
    return to_tokens(
        returns_over_peers(group.reward + F, gamma=gamma, where=group.segment_mask), group
    )
