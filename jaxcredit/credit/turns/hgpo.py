from functools import partial

import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import (
    center_by_role,
    intersect_partitions,
    peer_count,
    previous_value,
    rewards_to_go,
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
    """What followed a state, against visits that came to it by the same way: closer peers, which are fewer, weigh more.

        A_ik = sum_l w_l a_ikl / sum_l w_l,   a_ikl = G_ik - mean {G_jm : the last l + 1 states agree},   w_l = (l + 1)^alpha

    over the levels l = 0..history at which the turn has a peer. HGPO, from its released code. Signal: state. `normalize`
    divides by the pool's deviation. A turn with fewer than l turns before it has no level l. The released code also leaves levels out
    whose advantage happens to be exactly 0 (`skip_zero=True`).
    """
    against = partial(center_by_role, normalize=normalize, ddof=ddof, eps=eps)
    real, state = group.segment_mask, group["state"]
    (G, slack), age = rewards_to_go(group.reward, gamma, where=real), jnp.cumsum(real, -1) - 1
    key = past = state
    total = weights = jnp.zeros_like(G)
    for level in range(history + 1):
        if level:
            past = previous_value(past, real)
            key = intersect_partitions(key, past)
        old_enough = real & (age >= level)
        a = against(G, key, old_enough, slack=slack)
        w = jnp.where(peer_count(key, old_enough) > 1, (level + 1.0) ** alpha, 0)
        w = jnp.where(a == 0, 0, w) if skip_zero else w
        total, weights = total + w * a, weights + w
    return to_tokens(total / jnp.where(weights > 0, weights, 1), group)
