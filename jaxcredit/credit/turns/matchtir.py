from functools import partial
from typing import Literal

import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import map_turns, rewards_to_go, standardize, to_tokens
from jaxcredit.rollout import Rollout, outcome, trajectory_mask


@per_group(
    paper="2601.10712",
    fidelity="code",
    granularity="turn",
    family="turns",
    reduces_to="grpo with one turn",
)
def matchtir(
    group: Rollout,
    *,
    gamma: float = 0.9,
    singleton: Literal["zero", "raw"] = "zero",
    ddof: int = 0,
    eps: float = 1e-6,
):
    """Half the outcome against the group, half what follows each turn against the same turn of the others.

        A_ik = (z_i(R_i) + z_k(D_ik)) / 2,   D_ik = r_ik + gamma D_i,k+1,   z over the group's trajectories, or those that have a turn k

    MatchTIR, arXiv 2601.10712, and its released code (ddof=1 there). A turn's reward is how well its tool calls match the gold ones:
    `kernels.optimal_assignment` (the paper), `greedy_assignment` (released) or `transport`. A turn that one trajectory alone has gives
    0; with `singleton="raw"`, as released, it keeps its D, and a lone trajectory its R.
    """
    z = partial(standardize, ddof=ddof, eps=eps)
    R, there, real = outcome(group), trajectory_mask(group), group.segment_mask
    D, slack = rewards_to_go(group.reward, gamma, where=real)
    whole, turn = z(R, where=there), map_turns(z, D, real, slack)
    if singleton == "raw":
        whole = jnp.where(there.sum() == 1, R, whole)
        turn = jnp.where(real & (real.sum(0) == 1), D, turn)
    return (to_tokens(whole, group) + to_tokens(turn, group)) / 2
