from functools import partial
from typing import Literal

import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import (
    center,
    implicit_step_rewards,
    masked_mean,
    returns_to_go,
    rounding_bound,
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
    """Leave-one-out outcome, plus each step's implicit reward less that of the group's other steps.

        A_ik = (R_i - mean_{j != i} R_j) + weight (r_ik - mean_{jl != ik} r_jl)
        r_ik = beta sum_{t in step k} (log p_prm - log p_ref)

    R_i is the sum of trajectory i's rewards. The second mean is over all steps of all trajectories
    of the group. p_prm is an implicit process reward model, trained by
    `jaxcredit.kernels.trajectory_preference_loss`.

    Signals: prm_logp [N, R, T] and ref_logp [N, R, T], the tokens' log-probabilities under p_prm
    and under the reference (in released code the policy that sampled the rollout).

    Args:
        beta: float, scale of the implicit reward; 0.05 in the paper.
        weight: float, weight of the step term; 1 in the paper.
        mode: "rloo" (both terms less a leave-one-out mean) or "grpo" (both terms less the mean,
            divided by the standard deviation).
        baseline: "steps" (the formula) or "first" (released code: the step term is
            n / (n - 1) times r_ik less the mean reward of the n trajectories' first steps, in
            either mode).
        singleton: "zero" (a group with one trajectory gets 0) or "raw" (released code: it gets
            R_i + weight r_ik).
        scale: bool. True: r_ik is divided by max_l |sum_{m >= l} r_im| + 1e-6 of its trajectory.
        ddof: int, 0 or 1, for "grpo". The variance divides by n - ddof; released code takes 1.
        eps: float >= 0, for "grpo". Added to the standard deviation.

    Returns:
        Advantage [N, R, T], the same for all tokens of a step. Tokens outside any step get the
        outcome term alone.

    Raises:
        ValueError: `mode`, `baseline` or `singleton` is not one of its values.

    Source: OPRL (in its released code iStar), arXiv 2509.19199.
    """
    segments, trajectories, R = group.segment_mask, trajectory_mask(group), outcome(group)
    r = implicit_step_rewards(group["prm_logp"], group["ref_logp"], group, beta=beta)
    if scale:
        r = r / (jnp.abs(returns_to_go(r, where=segments)).max(-1, keepdims=True) + 1e-6)
    normalize = (
        partial(standardize, ddof=ddof, eps=eps)
        if mode == "grpo"
        else partial(center, leave_one_out=True)
    )
    episode, n = normalize(R, where=trajectories), trajectories.sum()
    if baseline == "first":
        first = segments & (jnp.cumsum(segments, -1) == 1)
        centered = (r - masked_mean(r, first)) * n / jnp.maximum(n - 1, 1)
        step = jnp.where(segments & (n > 1), centered, 0)
    elif mode == "grpo" and not scale:
        magnitude = segment_sum(jnp.abs(group["prm_logp"]) + jnp.abs(group["ref_logp"]), group)
        slack = rounding_bound(beta * magnitude, group.action_mask.shape[-1])
        step = normalize(r, where=segments, slack=slack)
    else:
        step = normalize(r, where=segments)
    if singleton == "raw":
        episode, step = jnp.where(n == 1, R, episode), jnp.where(n == 1, r, step)
    return to_tokens(episode, group) + weight * to_tokens(step, group)
