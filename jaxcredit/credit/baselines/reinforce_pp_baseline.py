import jax

from jaxcredit.credit.lift import per_batch
from jaxcredit.kernels import center, standardize, to_tokens
from jaxcredit.rollout import Rollout, outcome, trajectory_mask


@per_batch(
    paper="2501.03262",
    fidelity="code",
    family="baselines",
    affine=True,
)
def reinforce_pp_baseline(batch: Rollout, *, ddof: int = 0, eps: float = 1e-6):
    """Return less the group's mean, normalized over the whole batch.

        a_i = R_i - mean R                   in each group
        A_i = (a_i - mean a) / (std a + eps)    over all policy tokens of the batch

    Long answers count more in the batch's mean and deviation, since every token counts.

    Args:
        ddof: int, 0 or 1. The variance divides by n - ddof; released
            code takes 1.
        eps: float >= 0, added to the standard deviation. Released
            code adds 1e-8 to the variance instead (eps=0 here).

    Returns:
        Advantage [N, R, T], the same for all tokens of a trajectory.

    Departs from released code: a group with one trajectory has a_i = 0, not its
    whole return.

    Source: REINFORCE++ with a baseline, arXiv 2501.03262, as in verl.
    """
    centered = jax.vmap(lambda R, real: center(R, where=real))(
        outcome(batch), trajectory_mask(batch)
    )
    return standardize(
        jax.vmap(to_tokens)(centered, batch), where=batch.action_mask, ddof=ddof, eps=eps
    )
