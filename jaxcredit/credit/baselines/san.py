from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import standardize, to_tokens
from jaxcredit.rollout import Rollout, outcome, trajectory_mask


@per_group(
    needs=("stratum",),
    paper="2510.06214",
    fidelity="paper",
    family="baselines",
    affine=True,
    zero_sum=True,
    reduces_to="grpo with one stratum, or alpha=0",
)
def san(group: Rollout, *, alpha: float = 0.6, ddof: int = 0, eps: float = 1e-6):
    """Stratified GRPO: normalized within the stratum, blended with the whole group.

        A_i = alpha (R_i - mean_k) / (std_k + eps) + (1 - alpha) (R_i - mean) / (std + eps)

    mean_k and std_k are over the trajectories of the group in i's stratum k.

    Signals: stratum [N, G], int: for example the number of tool calls
    (`signals.strata`).

    Args:
        alpha: float in [0, 1], weight of the within-stratum term. The paper's value
            is not known (secondary notes say 0.6 to 0.8), so tune it.
            `kernels.variance_parts` splits the group's variance within and between
            strata.
        ddof: int, 0 or 1. The variance divides by n - ddof.
        eps: float >= 0, added to the standard deviation.

    Returns:
        Advantage [N, R, T], the same for all tokens of a trajectory. The
        trajectories of a group sum to 0.

    In a stratum with one trajectory, or with equal returns, the first term is 0.

    Source: Stratified GRPO, arXiv 2510.06214.
    """
    R, real = outcome(group), trajectory_mask(group)
    within = standardize(R, by=group["stratum"], where=real, ddof=ddof, eps=eps)
    return to_tokens(
        alpha * within + (1 - alpha) * standardize(R, where=real, ddof=ddof, eps=eps), group
    )
