from functools import partial
from typing import Literal

import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import (
    center,
    implicit_rewards,
    masked_mean,
    returns_to_go,
    rounding,
    segment_sum,
    standardize,
    to_tokens,
)
from jaxcredit.rollout import Rollout, outcome, trajectory_mask


@per_group(
    needs=("prm_logp", "ref_logp"),
    paper="2509.19199",
    fidelity="paper",
    granularity="step",
    family="steps",
    cost="a forward of an implicit reward model",
    reduces_to="rloo with weight=0 or prm_logp = ref_logp",
)
def oprl(
    group: Rollout,
    *,
    beta: float = 0.05,
    weight: float = 1.0,
    mode: Literal["rloo", "grpo"] = "rloo",
    baseline: Literal["steps", "first"] = "steps",
    singleton: Literal["zero", "raw"] = "zero",
    scale: bool = False,
    ddof: int = 0,
    eps: float = 1e-6,
):
    """The outcome against the others, and each step's implied reward against all other steps of the group.

        A_ik = (R_i - mean_{j != i} R_j) + weight (r_ik - mean_{jl != ik} r_jl),   r_ik = beta sum_{t in k} log p_prm - log p_ref

    OPRL (iStar), arXiv 2509.19199. Signals: prm_logp, ref_logp (in released code the rollout's own policy). p_prm is trained by
    `kernels.trajectory_preference_loss`. `mode="grpo"` standardises both instead (ddof=1 in the code). `baseline="first"` is the
    code's: the mean of each trajectory's first step alone, times n/(n - 1) for n trajectories. A lone trajectory gives 0
    (`singleton="raw"`, the code: what it earned). `scale` divides a trajectory's r by its largest |sum from a step on| + 1e-6.
    """
    real, there, R = group.segment_mask, trajectory_mask(group), outcome(group)
    r = implicit_rewards(group["prm_logp"], group["ref_logp"], group, beta=beta)
    r = r / (jnp.abs(returns_to_go(r, where=real)).max(-1, keepdims=True) + 1e-6) if scale else r
    against = (
        partial(standardize, ddof=ddof, eps=eps)
        if mode == "grpo"
        else partial(center, leave_one_out=True)
    )
    episode, n = against(R, where=there), there.sum()
    if baseline == "first":
        first = real & (jnp.cumsum(real, -1) == 1)
        step = jnp.where(real & (n > 1), (r - masked_mean(r, first)) * n / jnp.maximum(n - 1, 1), 0)
    else:
        error = rounding(
            beta * segment_sum(jnp.abs(group["prm_logp"]) + jnp.abs(group["ref_logp"]), group),
            group.action_mask.shape[-1],
        )
        step = (
            against(r, where=real, slack=error)
            if mode == "grpo" and not scale
            else against(r, where=real)
        )
    if singleton == "raw":
        episode, step = jnp.where(n == 1, R, episode), jnp.where(n == 1, r, step)
    return to_tokens(episode, group) + weight * to_tokens(step, group)
