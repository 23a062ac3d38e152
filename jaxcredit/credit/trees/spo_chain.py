import jax
import jax.numpy as jnp

from jaxcredit.credit.lift import per_batch
from jaxcredit.credit.trees.tree import unsure
from jaxcredit.credit.trees.vine import vine
from jaxcredit.kernels import rounding, standardize
from jaxcredit.rollout import Rollout, return_rounding


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
    batch: Rollout,
    *,
    prob_mask: float | None = 0.9,
    whiten: bool = False,
    ddof: int = 0,
    eps: float = 1e-6,
):
    """The change of value between cut points, on the tokens that were not certain.

        A_t = (r_k + V_{k+1} - V_k) [p_t <= prob_mask],   k the segment of t;   weight_t = [p_t < prob_mask]

    Segment Policy Optimization, arXiv 2505.23564, as released. Signal: value, at the cuts that `kernels.cut_points` makes (a token before
    the first cut is in no segment and gets 0). The release whitens over the batch (ddof=1): `whiten=True`, over tokens with a weight,
    over all where none has one.
    """
    advantage = jax.vmap(vine.unlifted)(batch)
    if prob_mask is None:
        kept, heard = batch.action_mask, batch.action_mask
    else:
        kept, heard = (
            batch.action_mask & unsure(batch, prob_mask),
            batch.action_mask & (batch.logp <= jnp.log(prob_mask)),
        )
    advantage = jnp.where(heard, advantage, 0)
    if whiten:
        counted = jnp.where(kept.any(), kept, batch.action_mask)
        error = return_rounding(batch).max() + rounding(
            2 * jnp.max(jnp.abs(batch["value"]), where=batch.segment_mask, initial=0)
        )
        advantage = jnp.where(
            counted, standardize(advantage, where=counted, ddof=ddof, eps=eps, slack=error), 0
        )
    return {"advantage": advantage, "weight": kept.astype(advantage.dtype)}
