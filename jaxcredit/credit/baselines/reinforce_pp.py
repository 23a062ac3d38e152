import jax

from jaxcredit.credit.lift import per_batch
from jaxcredit.kernels import at_segment_end, chain_rows, returns_to_go, standardize
from jaxcredit.rollout import Rollout, return_rounding


@per_batch(
    paper="2501.03262",
    fidelity="paper",
    granularity="token",
    family="baselines",
    min_group_size=1,
    affine=True,
)
def reinforce_pp(batch: Rollout, *, gamma: float = 1.0, ddof: int = 0, eps: float = 1e-6):
    """The discounted return of each token, in standard deviations of the whole batch.

        A_t = (G_t - mean G) / (std G + eps),   G_t = r_t + gamma G_{t+1},   mean and std over all policy tokens of the batch

    REINFORCE++, arXiv 2501.03262. A segment's reward is earned at its last token. Departs from released code: that takes the sample
    variance and adds 1e-8 to it (ddof=1, eps=0 here), and its KL penalty inside the reward is the loss's business here.
    """

    def returns(group):
        return chain_rows(
            returns_to_go(at_segment_end(group.reward, group), gamma, where=group.action_mask),
            gamma,
            group,
        )

    return standardize(
        jax.vmap(returns)(batch),
        where=batch.action_mask,
        ddof=ddof,
        eps=eps,
        slack=return_rounding(batch).max(),
    )
