"""Agents and games."""

import math
from itertools import permutations

import numpy as np
from small_rollouts import basics, by_trajectory, z


def units(g):
    G, K = g["reward"].shape
    return [(i, k) for i in range(G) for k in range(K) if g["segment_mask"][i, k]]


def by_segment(g, number):
    """Tokens outside any segment get 0."""
    return by_trajectory(g, lambda i, r, t: number(i, g["segment"][r, t]))


def batch_mars(groups, unique=False, normalize=False, whiten=False, ddof=0):
    follow, of = [], {}
    for g in groups:
        R = {}
        for i, k in units(g):
            later = range(k, g["reward"].shape[1])
            R[i, k] = sum(
                g["reward"][i, m]
                for m in later
                if g["segment_mask"][i, m] and g["agent"][i, m] == g["agent"][i, k]
            )
            of.setdefault(g["agent"][i, k], []).append(R[i, k])
        follow.append(R)
    of = {a: sorted(set(x)) if unique else x for a, x in of.items()}
    A = []
    for g, R in zip(groups, follow, strict=True):

        def number(i, k, g=g, R=R):
            peers = of[g["agent"][i, k]]
            return z(peers, R[i, k], ddof) if normalize else R[i, k] - np.mean(peers)

        A.append(by_segment(g, number))
    if whiten:
        chosen = np.concatenate([a[g["action_mask"]] for a, g in zip(A, groups, strict=True)])
        std = chosen.std(ddof=ddof) + 1e-6
        A = [
            np.where(g["action_mask"], (a - chosen.mean()) / std, 0)
            for a, g in zip(A, groups, strict=True)
        ]
    return {"advantage": A}


def loop_dr_mas(g, own=False, ddof=0):
    there, R = basics(g)

    def reward(i, k):
        mine = [m for j, m in units(g) if j == i and g["agent"][i, m] == g["agent"][i, k]]
        return sum(g["reward"][i, m] for m in mine) if own else R[i]

    def number(i, k):
        return z(
            [reward(j, m) for j, m in units(g) if g["agent"][j, m] == g["agent"][i, k]],
            reward(i, k),
            ddof,
        )

    return by_segment(g, number)


def loop_coma(g):
    def number(i, k):
        Q, pi, u = g["choice_value"][i, k], g["choice_prob"][i, k], g["choice"][i, k]
        return Q[u] - sum(p * q for p, q in zip(pi, Q, strict=True))

    return by_segment(g, number)


def shapley_by_orders(v):
    """phi by every order of joining."""
    A = int(math.log2(len(v)))
    phi = np.zeros(A)
    for order in permutations(range(A)):
        inside = 0
        for a in order:
            phi[a] += v[inside | 1 << a] - v[inside]
            inside |= 1 << a
    return phi / math.factorial(A)


def loop_shapley(g):
    phi = [shapley_by_orders(v) for v in g["coalition"]]
    return by_segment(g, lambda i, k: phi[i][g["agent"][i, k]])


def loop_difference_rewards(g):
    R = basics(g)[1]
    return by_segment(g, lambda i, k: R[i] - g["counterfactual"][i, k])


def loop_qmix(g):
    return by_segment(
        g, lambda i, k: g["mixing"][i, k] * (g["action_value"][i, k] - g["value"][i, k])
    )


def loop_gtalign(g):
    there, _ = basics(g)
    W = {
        i: math.prod(u) ** (1 / len(u)) if min(u) > 0 else 0.0
        for i in there
        for u in [list(g["utility"][i])]
    }
    return by_trajectory(g, lambda i, r, t: z(list(W.values()), W[i]))
