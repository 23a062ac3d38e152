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
    """Outcome less the group's mean, amplified on success, from the turn at which a retry began.

        A_ik = f(R_i - mean R) if k >= pivot_i, else 0
        f(a) = alpha if R_i = max R > 0;   otherwise alpha a if a > 0, else a

    R_i is the sum of trajectory i's rewards. Half of the group are retries of the other half. A
    retry and its original share the turns before the pivot, which leave the loss.

    Signals: pivot [N, G] (int), the turn from which the retry continued (0 or below, or no turn of
    the trajectory: no retry); pair [N, G] (int), the index of the other trajectory of the pair (its
    own index: none). A trajectory takes the larger pivot of its own and its pair's.

    Args:
        alpha: float, amplification of success; 3 in the paper.
        form: f. "docs" is the above, from the authors' documents. "code" is the released code: 1 if
            R_i >= 1, else alpha a if a > 0, else a (a lesser success can outrank a full one).
            "none" is f(a) = a.

    Returns:
        Dict of `advantage` and `weight`, each [N, R, T]. `weight` is 1 from the pivot on and 0
        before it. A trajectory alone in its group has baseline 0. The paper's loss is
        `losses.reinforce` divided by 1 + tau with tau = 1.

    Raises:
        ValueError: `form` is not one of its values.

    Source: R^3L, arXiv 2601.03715, its released code and documents.
    """
    R, trajectories, turns = outcome(group), trajectory_mask(group), group.segment_mask
    a = R - jnp.where(trajectories.sum() > 1, masked_mean(R, trajectories), 0)
    best = (R == jnp.max(R, where=trajectories, initial=-jnp.inf)) & (R > 0)
    amplified = jnp.where(a > 0, alpha * a, a)
    A = {
        "docs": jnp.where(best, alpha, amplified),
        "code": jnp.where(R >= 1, 1, amplified),
        "none": a,
    }[form]
    k = jnp.arange(turns.shape[1])
    has_pivot = (turns & (k >= group["pivot"][:, None])).any(-1)
    pivot = jnp.where(has_pivot, jnp.maximum(group["pivot"], 0), 0)
    pair = jnp.clip(group["pair"], 0, R.shape[0] - 1)
    has_pair = trajectories[pair] & (pair == group["pair"])
    pivot = jnp.maximum(pivot, jnp.where(has_pair, pivot[pair], 0))
    weight = to_tokens((turns & (k >= pivot[:, None])).astype(R.dtype), group)
    return {"advantage": to_tokens(A, group) * weight, "weight": weight}
