from typing import Literal

import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import masked_mean, to_tokens
from jaxcredit.rollout import Rollout, outcome, trajectory_mask


@per_group(
    needs=("pivot", "pair"),
    paper="2601.03715",
    fidelity="code",
    granularity="turn",
    family="turns",
    cost="half of the group's answers are retries of the other half, each after a reflection",
    min_group_size=1,
    reduces_to='dr_grpo without pivots and with form="none"',
)
def r3l(group: Rollout, *, alpha: float = 3.0, form: Literal["docs", "code", "none"] = "docs"):
    """The outcome less the group's mean, successes amplified, and no credit before the turn from which a pair of rollouts differs.

        A_ik = f(R_i - mean R) [k >= pivot_i],   f(a) = alpha a if a > 0 else a;   alpha itself where R_i = max R > 0

    R^3L, arXiv 2601.03715, its released code and documents. Signals: pivot, the turn a retry started from (0 or out of range: no retry);
    pair, the other rollout of the pair (itself: none), for which the same pivot holds. form="docs" is the above; "code" gives 1 where
    R_i >= 1, so that a lesser success may outrank it; "none" amplifies nothing (OPMD). A trajectory alone is compared with 0, as
    single demonstrations are. The turns before the pivot leave the loss. Loss: `reinforce`, over (1 + tau) with tau=1.
    """
    R, there, real = outcome(group), trajectory_mask(group), group.segment_mask
    a = R - jnp.where(there.sum() > 1, masked_mean(R, there), 0)
    best = (R == jnp.max(R, where=there, initial=-jnp.inf)) & (R > 0)
    amplified = jnp.where(a > 0, alpha * a, a)
    A = {
        "docs": jnp.where(best, alpha, amplified),
        "code": jnp.where(R >= 1, 1, amplified),
        "none": a,
    }[form]
    turn = jnp.arange(real.shape[1])
    pivot = jnp.where(
        (real & (turn >= group["pivot"][:, None])).any(-1), jnp.maximum(group["pivot"], 0), 0
    )
    pair = jnp.clip(group["pair"], 0, R.shape[0] - 1)
    pivot = jnp.maximum(pivot, jnp.where(there[pair] & (pair == group["pair"]), pivot[pair], 0))
    after = to_tokens((real & (turn >= pivot[:, None])).astype(R.dtype), group)
    return {"advantage": to_tokens(A, group) * after, "weight": after}
