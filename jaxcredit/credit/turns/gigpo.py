from functools import partial
from typing import Literal

import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import (
    center,
    center_by_role,
    masked_mean,
    rewards_to_go,
    standardize,
    to_tokens,
)
from jaxcredit.rollout import Rollout, outcome, trajectory_mask


@per_group(
    needs=("state",),
    paper="2505.10978",
    fidelity="code",
    granularity="turn",
    family="turns",
    reduces_to="dr_grpo with weight=0 or without repeated states",
)
def gigpo(
    group: Rollout,
    *,
    gamma: float = 0.95,
    weight: float = 1.0,
    normalize: bool = False,
    pool: Literal["trajectory", "steps"] = "trajectory",
    singleton: Literal["zero", "raw"] = "zero",
    ddof: int = 0,
    eps: float = 1e-6,
):
    """The outcome against the group, and what followed a state against the other visits of that state.

        A_ik = (R_i - mean R) + weight (G_ik - mean {G_jl : s_jl = s_ik}),   G_ik = r_ik + gamma G_i,k+1

    GiGPO, arXiv 2505.10978, as in its released code, whose "mean_std_norm" is `normalize`: both are divided by their pool's
    deviation (ddof=1 there). Signal: state. `pool`: the mean R is over trajectories, or, as released by default, over their turns
    ("steps": long ones weigh more). A state seen once gives 0. A lone trajectory gives 0 too, or its R with `singleton="raw"`
    (released). Invalid actions: lower the reward.
    """
    against = partial(standardize, ddof=ddof, eps=eps) if normalize else center
    R, real, there = outcome(group), group.segment_mask, trajectory_mask(group)
    if pool == "steps":
        episode, units = (
            masked_mean(against(jnp.broadcast_to(R[:, None], real.shape), where=real), real, -1),
            real.sum(),
        )
    else:
        episode, units = against(R, where=there), there.sum()
    episode = jnp.where(units == 1, R if singleton == "raw" else 0 * R, episode)
    G, slack = rewards_to_go(group.reward, gamma, where=real)
    step = center_by_role(
        G, group["state"], real, normalize=normalize, ddof=ddof, eps=eps, slack=slack
    )
    return to_tokens(episode, group) + weight * to_tokens(step, group)
