from functools import partial

import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import (
    center_by_role,
    intersect_partitions,
    peer_count,
    previous_value,
    returns_with_rounding,
    to_tokens,
)
from jaxcredit.rollout import Rollout


@per_group(
    needs=("state",),
    paper="2602.22817",
    fidelity="code",
    granularity="turn",
    family="turns",
    reduces_to="gigpo's step term with history=0",
)
def hgpo(
    group: Rollout,
    *,
    gamma: float = 0.95,
    history: int = 2,
    alpha: float = 1.0,
    normalize: bool = False,
    skip_zero: bool = False,
    ddof: int = 0,
    eps: float = 1e-6,
):
    """Turn's return less its peers' mean, averaged over peers that share ever longer histories.

        A_ik = sum_l w_l a_ikl / sum_l w_l,   w_l = (l + 1)^alpha,   l = 0 .. history
        a_ikl = G_ik - mean {G_jm : the state and the l states before it agree}
        G_ik = r_ik + gamma G_i,k+1

    The mean is over the turns of the group, turn ik included, and every visit of a state counts.
    Both sums are over the levels l at which the turn has a peer besides itself. A turn with fewer
    than l turns before it has no level l. A turn without any peer gets 0. There is no term for the
    outcome of the whole trajectory.

    Signals: state [N, G, K] (int), equal for turns of the group that began in the same environment
    state.

    Args:
        gamma: float in [0, 1], discount per turn.
        history: int >= 0, number of earlier states in the longest history; 2 in the released code.
        alpha: float, exponent of the levels' weights: above 0 longer histories weigh more; 1 in the
            released code.
        normalize: bool. True: a_ikl is divided by the standard deviation of its peers.
        skip_zero: bool. True: a level with a_ikl = 0 is left out, as in the released code.
        ddof: int, 0 or 1, for `normalize`. The variance divides by n - ddof.
        eps: float >= 0, for `normalize`. Added to the standard deviation.

    Returns:
        Advantage [N, R, T], the same for all tokens of a turn.

    Source: HGPO, arXiv 2602.22817, by its released code.
    """
    relative = partial(center_by_role, normalize=normalize, ddof=ddof, eps=eps)
    turns, state = group.segment_mask, group["state"]
    G, slack = returns_with_rounding(group.reward, gamma, where=turns)
    number = jnp.cumsum(turns, -1) - 1
    key = earlier_state = state
    total = weights = jnp.zeros_like(G)
    for level in range(history + 1):
        if level:
            earlier_state = previous_value(earlier_state, turns)
            key = intersect_partitions(key, earlier_state)
        eligible = turns & (number >= level)
        a = relative(G, key, eligible, slack=slack)
        w = jnp.where(peer_count(key, eligible) > 1, (level + 1.0) ** alpha, 0)
        w = jnp.where(a == 0, 0, w) if skip_zero else w
        total, weights = total + w * a, weights + w
    return to_tokens(total / jnp.where(weights > 0, weights, 1), group)
