from functools import partial
from typing import Literal

import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import (
    center,
    center_by_role,
    masked_mean,
    returns_with_rounding,
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
    """Outcome less the group's mean, plus each turn's return less the mean of visits to its state.

        A_ik = (R_i - mean R) + weight (G_ik - mean {G_jl : s_jl = s_ik})
        G_ik = r_ik + gamma G_i,k+1

    R_i is the sum of trajectory i's rewards. The second mean is over all turns of the group that
    began in the same state, turn ik included. Every visit counts, also several by one trajectory.
    A state that was visited once has the step term 0. The authors' penalty of an invalid action
    belongs into its reward.

    Signals: state [N, G, K] (int), equal for turns of the group that began in the same environment
    state.

    Args:
        gamma: float in [0, 1], discount per turn; 0.95 in the authors' scripts.
        weight: float, weight of the step term; 1 in the released code.
        normalize: bool. True: both terms are divided by the standard deviation of their pool (the
            code's "mean_std_norm"). False: not ("mean_norm").
        pool: "trajectory" (mean R counts each trajectory once) or "steps" (it counts each turn
            once, so that long trajectories weigh more; the released code's default).
        singleton: outcome term if only one trajectory of the group took place (one turn, for
            pool="steps"): "zero" (0) or "raw" (R_i, the released code).
        ddof: int, 0 or 1, for `normalize`. The variance divides by n - ddof; released code takes 1.
        eps: float >= 0, for `normalize`. Added to the standard deviation.

    Returns:
        Advantage [N, R, T], the same for all policy tokens of a turn. Policy tokens outside any
        turn get the outcome term alone.

    Raises:
        ValueError: `pool` or `singleton` is not one of its values, or a group has fewer than 2
            trajectories.

    Source: GiGPO, arXiv 2505.10978, and its released code.
    """
    relative = partial(standardize, ddof=ddof, eps=eps) if normalize else center
    R, turns, trajectories = outcome(group), group.segment_mask, trajectory_mask(group)
    if pool == "steps":
        per_turn = relative(jnp.broadcast_to(R[:, None], turns.shape), where=turns)
        episode, count = masked_mean(per_turn, turns, -1), turns.sum()
    else:
        episode, count = relative(R, where=trajectories), trajectories.sum()
    episode = jnp.where(count == 1, R if singleton == "raw" else 0 * R, episode)
    G, slack = returns_with_rounding(group.reward, gamma, where=turns)
    step = center_by_role(
        G, group["state"], turns, normalize=normalize, ddof=ddof, eps=eps, slack=slack
    )
    return to_tokens(episode, group) + weight * to_tokens(step, group)
