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
    """Discounted return of each token, normalized over the whole batch.

        G_t = r_t + gamma G_(t+1)
        A_t = (G_t - mean G) / (std G + eps),   over all policy tokens of the batch

    A segment's reward is earned at its last policy token. G_t continues over the
    later rows of the same trajectory.

    Args:
        gamma: float in [0, 1], discount for each policy token; 1 in the paper.
        ddof: int, 0 or 1. The variance divides by n - ddof; released code
            takes 1.
        eps: float >= 0, added to the standard deviation. Released
            code adds 1e-8 to the variance instead (eps=0 here).

    Returns:
        Advantage [N, R, T], one number a token.

    Departs from released code in two ways. Tokens of tools and of the environment
    neither discount nor cut the return: a token before a tool call gets the rewards
    that follow the tool's answer, where verl's code resets the return to 0 at each
    token outside of the response mask. And the KL penalty of the reward is a term of
    the loss here.

    Source: REINFORCE++, arXiv 2501.03262.
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
