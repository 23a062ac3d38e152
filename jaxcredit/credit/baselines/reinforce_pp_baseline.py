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
    """The outcome less the group's mean, in standard deviations of the whole batch.

        A_i = (a_i - mean a) / (std a + eps),   a_i = R_i - mean_group R,   mean and std over all policy tokens of the batch

    REINFORCE++ with a baseline, arXiv 2501.03262, as in verl. Long answers weigh more in the batch's statistics. Departs from the code:
    a group of one gets a = 0, not its whole reward; the code takes the sample variance and adds 1e-8 to it (ddof=1, eps=0 here).
    """
    far = jax.vmap(lambda R, real: center(R, where=real))(outcome(batch), trajectory_mask(batch))
    return standardize(jax.vmap(to_tokens)(far, batch), where=batch.action_mask, ddof=ddof, eps=eps)
