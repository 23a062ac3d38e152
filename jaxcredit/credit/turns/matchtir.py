from functools import partial
from typing import Literal

import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import map_turns, returns_with_rounding, standardize, to_tokens
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
    """Mean of the normalized outcome and the turn's return, normalized over the same turn number.

        A_ik = (z_i(R_i) + z_k(D_ik)) / 2,   D_ik = r_ik + gamma D_i,k+1
        z(y) = (y - mean y) / (std y + eps)

    z_i is over the group's trajectories and z_k over those that have a turn k. R_i is the
    undiscounted sum of trajectory i's rewards. In the paper a turn's reward is the match of its
    tool calls with the gold calls, and the last turn's the match of the answer. The matchings of
    `jaxcredit.kernels` are `optimal_assignment` (the paper), `greedy_assignment` (the released
    code) and `optimal_transport`.

    Args:
        gamma: float in [0, 1], discount per turn; 0.9 in the released code.
        singleton: "zero" (z of a single value is 0) or "raw" (released code: a turn k that only one
            trajectory has keeps D_ik, and the only trajectory of a group keeps R_i).
        ddof: int, 0 or 1. The variance divides by n - ddof; released code takes 1.
        eps: float >= 0, added to the standard deviation.

    Returns:
        Advantage [N, R, T], the same for all tokens of a turn. Tokens outside any turn get
        z_i(R_i) / 2.

    Raises:
        ValueError: `singleton` is not one of its values.

    Source: MatchTIR, arXiv 2601.10712, and its released code.
    """
    z = partial(standardize, ddof=ddof, eps=eps)
    R, trajectories, turns = outcome(group), trajectory_mask(group), group.segment_mask
    D, slack = returns_with_rounding(group.reward, gamma, where=turns)
    episode, turn = z(R, where=trajectories), map_turns(z, D, turns, slack)
    if singleton == "raw":
        episode = jnp.where(trajectories.sum() == 1, R, episode)
        turn = jnp.where(turns & (turns.sum(0) == 1), D, turn)
    return (to_tokens(episode, group) + to_tokens(turn, group)) / 2
