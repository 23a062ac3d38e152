"""The estimators of the spine."""

import numpy as np
from small_rollouts import basics, by_trajectory, earned, tokens, z


def loop_grpo(g):
    there, R = basics(g)
    return by_trajectory(g, lambda i, r, t: z(list(R.values()), R[i]))


def loop_dr_grpo(g):
    there, R = basics(g)
    return by_trajectory(g, lambda i, r, t: R[i] - np.mean(list(R.values())))


def loop_rloo(g):
    there, R = basics(g)
    return by_trajectory(
        g,
        lambda i, r, t: R[i] - np.mean([R[j] for j in there if j != i]) if len(there) > 1 else 0.0,
    )


def loop_opo(g):
    there, R = basics(g)
    n = {i: len(tokens(g, i)) for i in there}
    base = sum(n[i] * R[i] for i in there) / max(sum(n.values()), 1)
    return by_trajectory(g, lambda i, r, t: R[i] - base)


def loop_remax(g):
    def number(i, r, t):
        k = g["segment"][r, t]
        return (
            sum(
                g["reward"][i, m] for m in range(k, g["reward"].shape[1]) if g["segment_mask"][i, m]
            )
            - g["greedy_reward"]
        )

    return by_trajectory(g, number)


def loop_san(g, alpha=0.6):
    there, R = basics(g)
    s = g["stratum"]
    within = {i: z([R[j] for j in there if s[j] == s[i]], R[i]) for i in there}
    return by_trajectory(
        g, lambda i, r, t: alpha * within[i] + (1 - alpha) * z(list(R.values()), R[i])
    )


def loop_tempo(g, gate=1):
    there, R = basics(g)
    rows = {i: [r for r, j in enumerate(g["row"]) if j == i] for i in there}
    std = np.std(list(R.values())) if there else 0.0
    flat = len(set(R.values())) <= 1

    def same(r, q, t):
        return all(
            g["token_mask"][r, c] == g["token_mask"][q, c]
            and (not g["token_mask"][r, c] or g["tokens"][r, c] == g["tokens"][q, c])
            for c in range(t)
        )

    def members(r, t):
        return [j for j in there if any(same(r, q, t) for q in rows[j])]

    def number(i, r, t):
        if flat:
            return 0.0
        before, after = members(r, t), members(r, t + 1)
        change = (
            np.mean([R[j] for j in after]) - np.mean([R[j] for j in before])
            if len(after) >= gate
            else 0.0
        )
        return (R[i] - np.mean(list(R.values())) + change) / (std + 1e-6)

    return by_trajectory(g, number)


def loop_pure(g, temperature=0.1):
    there, R = basics(g)
    if len(there) < 2:
        return np.zeros(g["action_mask"].shape)
    K = g["reward"].shape[1]
    q, Q = {}, {}
    for i in there:
        ks = [k for k in range(K) if g["segment_mask"][i, k]]
        p = np.array([g["process"][i, k] for k in ks])
        w = np.exp(-(p - p.min()) / temperature)
        q[i] = dict(zip(ks, p * w / w.sum(), strict=True))
        Q[i] = sum(q[i].values())
    size = {i: len(tokens(g, i)) for i in there}
    count = {
        (i, k): sum(g["segment"][at] == k for at in tokens(g, i)) for i in there for k in range(K)
    }

    def number(i, r, t):
        others = [j for j in there if j != i]
        base = sum(Q[j] for j in others) / max(sum(size[j] for j in others), 1)
        follow = sum(q[i][m] - base * count[i, m] for m in q[i] if m >= g["segment"][r, t])
        return follow + R[i] - np.mean([R[j] for j in others])

    return by_trajectory(g, number)


def batch_reinforce_pp(groups, gamma=1.0):
    returns, chosen = [np.zeros(g["action_mask"].shape) for g in groups], []
    for g, G in zip(groups, returns, strict=True):
        for i in basics(g)[0]:
            at, r = earned(g, i)
            follow = 0.0
            for n in reversed(range(len(at))):
                follow = r[n] + gamma * follow
                G[at[n]] = follow
        chosen += list(G[g["action_mask"]])
    return {
        "advantage": [
            np.where(g["action_mask"], (G - np.mean(chosen)) / (np.std(chosen) + 1e-6), 0)
            for g, G in zip(groups, returns, strict=True)
        ]
    }


def batch_ppo(groups, gamma=1.0, lam=0.95):
    advantage, target, chosen = [], [], []
    for g in groups:
        A, V = np.zeros(g["action_mask"].shape), g["token_value"]
        for i in basics(g)[0]:
            at, r = earned(g, i)
            after_A = after_V = 0.0
            for n in reversed(range(len(at))):
                A[at[n]] = r[n] + gamma * after_V - V[at[n]] + gamma * lam * after_A
                after_A, after_V = A[at[n]], V[at[n]]
        chosen += list(A[g["action_mask"]])
        advantage.append(A)
        target.append(np.where(g["action_mask"], A + V, 0))
    white = [
        np.where(g["action_mask"], (A - np.mean(chosen)) / (np.std(chosen) + 1e-6), 0)
        for g, A in zip(groups, advantage, strict=True)
    ]
    return {"advantage": white, "target": target}
