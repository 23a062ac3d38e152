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

EXACT_MAX_AGENTS = 8


@per_group(
    needs=("coalition", "agent"),
    fidelity="paper",
    granularity="agent",
    family="agents",
    cost="an outcome for each of the 2^A sets of agents",
    min_group_size=1,
)
def shapley(group: Rollout, *, orders: int = 0, seed: int = 0):
    """Shapley value of each agent: its mean marginal contribution over joining orders.

        A_ik = phi_a,   a = agent_ik
        phi_a = mean over orders of v(agents before a, and a) - v(agents before a)

    The agents' values sum to v(all agents) - v(no agents). They are exact for up to
    eight agents with `orders=0`, else estimated from sampled orders.

    Signals: coalition [N, G, S], the trajectory's outcome v for each of the S = 2^A sets
    of agents (bit a of the index: agent a is in the set); agent [N, G, K] (int).

    Args:
        orders: int >= 0, number of joining orders sampled. 0: exact up to eight agents,
            256 orders beyond.
        seed: int, seed of the orders, which all trajectories share.

    Returns:
        Advantage [N, R, T], the same for all tokens of a segment.

    Source: Shapley (1953), A Value for n-Person Games; no paper's code.
    """
    value, agent = group["coalition"], group["agent"]
    A = value.shape[-1].bit_length() - 1
    if A <= EXACT_MAX_AGENTS and not orders:
        phi = shapley_values(value)
    else:
        order = random_orders(orders or 256, A, seed=seed)
        phi = sampled_shapley_values(order, value[..., coalition_prefixes(order)])
    own = jnp.take_along_axis(phi, jnp.clip(agent, 0, A - 1), -1)
    return to_tokens(jnp.where(group.segment_mask, own, 0), group)
