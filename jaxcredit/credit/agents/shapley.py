import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import (
    coalition_prefixes,
    random_orders,
    sampled_shapley_values,
    shapley_values,
    to_tokens,
)
from jaxcredit.rollout import Rollout

EXACT = 8  # agents, at most


@per_group(
    needs=("coalition", "agent"),
    fidelity="paper",
    granularity="agent",
    family="agents",
    cost="an outcome for each of the 2^A sets of agents",
    min_group_size=1,
)
def shapley(group: Rollout, *, orders: int = 0, seed: int = 0):
    """What an agent adds to the others, averaged over all orders in which they may join.

        A_ik = phi_a,   a = agent_ik,   phi_a = mean over orders of v(those before a, and a) - v(those before a)

    Shapley (1953); no paper's code. Signals: coalition (the trajectory's outcome for each set of agents; bit a says whether a is in),
    agent. The agents' numbers sum to v(all) - v(none). Exact up to eight agents; beyond, or where `orders` is set, over that many
    orders (256 where it is 0) drawn with `seed`, the same for all trajectories.
    """
    value, agent = group["coalition"], group["agent"]
    A = value.shape[-1].bit_length() - 1
    if A <= EXACT and not orders:
        phi = shapley_values(value)
    else:
        order = random_orders(orders or 256, A, seed=seed)
        phi = sampled_shapley_values(order, value[..., coalition_prefixes(order)])
    share = jnp.take_along_axis(phi, jnp.clip(agent, 0, A - 1), -1)
    return to_tokens(jnp.where(group.segment_mask, share, 0), group)
