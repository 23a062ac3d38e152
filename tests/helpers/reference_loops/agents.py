"""Reference loops of the estimators in `jaxcredit/credit/agents/`."""

import math
from itertools import permutations

import numpy as np

from reference_loops.prompt import on_segments, segments, trajectory_returns, z_score


def shapley_by_orders(v):
    """Shapley values from the coalition values v[bit mask], by enumeration of all orders of
    joining.
    """
    A = int(math.log2(len(v)))
    phi = np.zeros(A)
    for order in permutations(range(A)):
        coalition = 0
        for agent in order:
            phi[agent] += v[coalition | 1 << agent] - v[coalition]
            coalition |= 1 << agent
    return phi / math.factorial(A)


def loop_dr_mas(g, own=False, ddof=0):
    _, R = trajectory_returns(g)
    agent = {(i, k): g["agent"][i, k] for i, k in segments(g)}
    reward = {
        (i, k): sum(g["reward"][j, m] for j, m in agent if j == i and agent[j, m] == agent[i, k])
        if own
        else R[i]
        for i, k in agent
    }
    return on_segments(
        g,
        {
            u: z_score([reward[v] for v in agent if agent[v] == agent[u]], reward[u], ddof)
            for u in agent
        },
    )


def loop_coma(g):
    A = {}
    for u in segments(g):
        Q, pi = g["choice_value"][u], g["choice_prob"][u]
        A[u] = Q[g["choice"][u]] - sum(p * q for p, q in zip(pi, Q, strict=True))
    return on_segments(g, A)


def loop_shapley(g):
    phi = [shapley_by_orders(v) for v in g["coalition"]]
    return on_segments(g, {(i, k): phi[i][g["agent"][i, k]] for i, k in segments(g)})


def loop_difference_rewards(g):
    _, R = trajectory_returns(g)
    return on_segments(g, {(i, k): R[i] - g["counterfactual"][i, k] for i, k in segments(g)})


def loop_qmix(g):
    gain = g["action_value"] - g["value"]
    return on_segments(g, {u: g["mixing"][u] * gain[u] for u in segments(g)})
