from functools import partial

import jax.numpy as jnp

from jaxcredit.credit._lift import per_group
from jaxcredit.kernels import centre, centre_roles, masked_mean, returns, spread, standardise
from jaxcredit.rollout import Rollout, alive, outcome


@per_group(
    needs={"state": "G K"},
    paper="2505.10978",
    fidelity="code",
    granularity="turn",
    reduces="dr_grpo with weight=0 or without repeated states",
)
def gigpo(
    group: Rollout,
    *,
    gamma: float = 0.95,
    weight: float = 1.0,
    mode: str = "mean_norm",
    pool: str = "trajectory",
    singleton: str = "zero",
    ddof: int = 0,
    eps: float = 1e-6,
):
    """The outcome against the group, and what followed a state against the other visits of that state.

        A_ik = (R_i - mean R) + weight (G_ik - mean {G_jl : s_jl = s_ik}),   G_ik = r_ik + gamma G_i,k+1

    GiGPO, arXiv 2505.10978, as in its released code, where `mode="mean_std_norm"` divides both by their pool's deviation (ddof=1 there).
    Signal: state. `pool`: the mean R is over trajectories, or, as released by default, over their turns ("steps": long ones weigh
    more). A state seen once gives 0; a lone trajectory too, or its R with `singleton="raw"` (released). Invalid actions: lower the reward.
    """
    scale = {"mean_norm": False, "mean_std_norm": True}[mode]
    against = partial(standardise, ddof=ddof, eps=eps) if scale else centre
    R, real, there = outcome(group), group.real, alive(group)
    pooled = {
        "trajectory": lambda: (against(R, where=there), there.sum()),
        "steps": lambda: (masked_mean(against(jnp.broadcast_to(R[:, None], real.shape), where=real), real, -1), real.sum()),
    }
    episode, units = pooled[pool]()
    episode = jnp.where(units == 1, {"zero": 0 * R, "raw": R}[singleton], episode)
    G, slack = returns(group.reward, gamma, where=real)
    step = centre_roles(G, group["state"], real, scale=scale, ddof=ddof, eps=eps, slack=slack)
    return spread(episode, group) + weight * spread(step, group)
