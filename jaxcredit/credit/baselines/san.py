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
    """The outcome against trajectories of the same structure, blended with the whole group.

        A_i = alpha (R_i - mean_k) / (std_k + eps) + (1 - alpha) (R_i - mean) / (std + eps),   k the stratum of i

    Stratified GRPO, arXiv 2510.06214. Signal: stratum (`signals.strata`: the number of calls, or any int signal). A stratum of one, or
    of equal rewards, gives its first term 0, which is why there is a second. The paper's alpha is not known (0.6 to 0.8 by notes about
    it): choose it; `kernels.variance_parts` tells how much of the group's variance lies between the strata.
    """
    R, real = outcome(group), trajectory_mask(group)
    within = standardize(R, by=group["stratum"], where=real, ddof=ddof, eps=eps)
    return to_tokens(
        alpha * within + (1 - alpha) * standardize(R, where=real, ddof=ddof, eps=eps), group
    )
