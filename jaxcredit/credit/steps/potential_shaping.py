from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import returns_over_peers, shaping, to_tokens
from jaxcredit.rollout import FilledRollout


@per_group(
    needs=("info",),
    paper="1106.5267",
    fidelity="ours",
    granularity="step",
    family="steps",
    reduces_to="dr_grpo with one segment, and on first segments with gamma=1 (potentials before them being equal)",
)
def potential_shaping(group: FilledRollout, *, gamma: float = 1.0, terminal_zero: bool = True):
    """Returns with a difference of potentials added, less the mean of the peers (our design).

        A_ik = G_ik - mean_j G_jk,   G_ik = r_ik + F_ik + gamma G_i,k+1,   F_k = gamma Phi_{k+1} - Phi_k,   Phi(end) = 0

    Ng, Harada and Russell (ICML 1999); Wiewiora, arXiv 1106.5267. Signal: info, the potentials. Where a trajectory was cut off (not
    `done`) its last potential stays: it stands for what was not seen; `terminal_zero=False` keeps all. What is added from k on telescopes
    to -Phi_k, so an estimator that looks at whole trajectories (grpo) sees nothing of it. The return against its peers is our design.
    """
    F = shaping(group["info"], group.segment_mask, gamma=gamma, ended=group.done & terminal_zero)
    return to_tokens(
        returns_over_peers(group.reward + F, gamma=gamma, where=group.segment_mask), group
    )
