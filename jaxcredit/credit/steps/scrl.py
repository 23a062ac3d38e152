from functools import partial

import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import floor_power_of_two, map_turns, standardize, to_tokens
from jaxcredit.rollout import Rollout


@per_group(
    paper="2605.22074",
    fidelity="paper",
    granularity="segment",
    family="steps",
    reduces_to="grpo with one block, whose reward is 0 or 1",
)
def scrl(group: Rollout, *, ddof: int = 0, eps: float = 1e-6):
    """Group-normalized success of each block: its sub-problem and all earlier ones were solved.

        A_ij = (s_ij - mean_i s_ij) / (std_i s_ij + eps),   s_ij = prod_{l <= j} r_il

    An answer has one block (segment) per sub-problem; the last sub-problem is the original problem.
    The reward r_ij is 1 if block j solves its sub-problem, else 0. Mean and deviation are over the
    group's trajectories that have a block j.

    A block that was asked for and is missing needs segment_mask True and reward 0. An answer of
    wrong format needs reward 0 everywhere and segment -1 on its tokens: it counts in the mean and
    its tokens get 0.

    Args:
        ddof: int, 0 or 1. The variance divides by n - ddof.
        eps: float >= 0, added to the standard deviation.

    Returns:
        Advantage [N, R, T], the same for all tokens of a block; 0 on tokens outside the blocks.

    Rewards other than 0 and 1 are allowed. They are first divided by the largest power of two that
    is at most the group's largest |r| (and at least 1), so that the product cannot overflow. With
    one block the result is then `grpo`'s with `eps` multiplied by that power.

    Source: SCRL, arXiv 2605.22074.
    """
    unit = jnp.maximum(floor_power_of_two(jnp.abs(group.reward).max()), 1)
    r = jnp.where(group.segment_mask, group.reward / unit, 1)
    s = jnp.cumprod(r, -1)
    A = map_turns(partial(standardize, ddof=ddof, eps=eps), s, group.segment_mask)
    return to_tokens(A, group)
