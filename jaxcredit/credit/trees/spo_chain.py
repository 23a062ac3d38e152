import jax
import jax.numpy as jnp

from jaxcredit.credit.lift import per_batch
from jaxcredit.credit.trees.tree import uncertain_tokens
from jaxcredit.credit.trees.vine import vine
from jaxcredit.kernels import rounding_bound, standardize
from jaxcredit.rollout import FilledRollout, return_rounding


@per_batch(
    needs=("value",),
    paper="2505.23564",
    fidelity="code",
    granularity="segment",
    family="trees",
    cost="9 continuations a segment",
    min_group_size=1,
    reduces_to="vine with prob_mask=None",
)
def spo_chain(
    batch: FilledRollout,
    *,
    prob_mask: float | None = 0.9,
    whiten: bool = False,
    ddof: int = 0,
    eps: float = 1e-6,
):
    """Change of the value over a segment, on the tokens that were sampled with low probability.

        A_t = r_k + V_{k+1} - V_k  if p_t <= prob_mask, else 0,   k the segment of token t
        weight_t = 1               if p_t < prob_mask, else 0

    p_t is the probability with which token t was sampled. V is 0 after the last segment. Segments
    are cut by `jaxcredit.kernels.split_at_uncertainty`, so that each holds the same number of
    uncertain tokens. Tokens before the first cut belong to no segment and get 0.

    Signals: value [N, G, K], the mean outcome of fresh continuations from each segment's start.

    Args:
        prob_mask: float in (0, 1], or None for no mask; 0.9 in the released code.
        whiten: bool. True: the advantage is normalized over the batch's tokens of weight 1 (over
            all policy tokens, if no token has weight 1), as in the released code.
        ddof: int, 0 or 1, for `whiten`. The variance divides by n - ddof; released code takes 1.
        eps: float >= 0, for `whiten`. Added to the standard deviation.

    Returns:
        Dict of `advantage` and `weight`, each [N, R, T]. `weight` is a token's weight in the loss.

    Source: Segment Policy Optimization (SPO-chain), arXiv 2505.23564, and its released code.
    """
    advantage, policy_tokens = jax.vmap(vine.unlifted)(batch), batch.action_mask
    if prob_mask is None:
        trained = credited = policy_tokens
    else:
        trained = policy_tokens & uncertain_tokens(batch, prob_mask)
        credited = policy_tokens & (batch.logp <= jnp.log(prob_mask))
    advantage = jnp.where(credited, advantage, 0)
    if whiten:
        pool = jnp.where(trained.any(), trained, policy_tokens)
        largest_value = jnp.max(jnp.abs(batch["value"]), where=batch.segment_mask, initial=0)
        slack = return_rounding(batch).max() + rounding_bound(2 * largest_value)
        whitened = standardize(advantage, where=pool, ddof=ddof, eps=eps, slack=slack)
        advantage = jnp.where(pool, whitened, 0)
    return {"advantage": advantage, "weight": trained.astype(advantage.dtype)}
