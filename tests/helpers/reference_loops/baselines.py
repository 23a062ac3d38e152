"""Reference loops of the estimators in `jaxcredit/credit/baselines/`."""

import math

import numpy as np

from reference_loops.prompt import (
    discounted_returns,
    on_segments,
    on_tokens,
    standardize_batch,
    token_positions,
    token_rewards,
    trajectory_returns,
    z_score,
)


def loop_grpo(g):
    _, R = trajectory_returns(g)
    return on_tokens(g, lambda i, r, t: z_score(list(R.values()), R[i]))


def loop_dr_grpo(g):
    _, R = trajectory_returns(g)
    return on_tokens(g, lambda i, r, t: R[i] - np.mean(list(R.values())))


def loop_rloo(g):
    trajectories, R = trajectory_returns(g)
    return on_tokens(
        g,
        lambda i, r, t: (
            R[i] - np.mean([R[j] for j in trajectories if j != i]) if len(trajectories) > 1 else 0.0
        ),
    )


def loop_opo(g):
    trajectories, R = trajectory_returns(g)
    n = {i: len(token_positions(g, i)) for i in trajectories}
    base = sum(n[i] * R[i] for i in trajectories) / max(sum(n.values()), 1)
    return on_tokens(g, lambda i, r, t: R[i] - base)


def loop_remax(g):
    G = discounted_returns(g, 1.0)
    return on_segments(g, {u: x - g["greedy_reward"] for u, x in G.items()})


def loop_san(g, alpha=0.6):
    trajectories, R = trajectory_returns(g)
    s = g["stratum"]
    within = {i: z_score([R[j] for j in trajectories if s[j] == s[i]], R[i]) for i in trajectories}
    return on_tokens(
        g, lambda i, r, t: alpha * within[i] + (1 - alpha) * z_score(list(R.values()), R[i])
    )


def batch_reinforce_pp(groups, gamma=1.0):
    returns = [np.zeros(g["action_mask"].shape) for g in groups]
    for g, G in zip(groups, returns, strict=True):
        for i in trajectory_returns(g)[0]:
            positions, r = token_rewards(g, i)
            following = 0.0
            for n in reversed(range(len(positions))):
                following = r[n] + gamma * following
                G[positions[n]] = following
    return {"advantage": standardize_batch(returns, [g["action_mask"] for g in groups])}


def loop_gtalign(g):
    trajectories, _ = trajectory_returns(g)
    W = {
        i: math.prod(u) ** (1 / len(u)) if min(u) > 0 else 0.0
        for i in trajectories
        for u in [list(g["utility"][i])]
    }
    return on_tokens(g, lambda i, r, t: z_score(list(W.values()), W[i]))


def batch_reinforce_pp_baseline(groups):
    A = []
    for g in groups:
        trajectories, R = trajectory_returns(g)
        A.append(on_tokens(g, lambda i, r, t, R=R: R[i] - np.mean(list(R.values()))))
    return {"advantage": standardize_batch(A, [g["action_mask"] for g in groups])}


def batch_gpg(groups, form="code", f_norm=1.0):
    every = [list(trajectory_returns(g)[1].values()) for g in groups]
    if form == "code":
        counts = [r != 0 for R in every for r in R]
    else:
        counts = [len(set(R)) > 1 for R in every if R]
    alpha = len(counts) / max(sum(counts), 1)
    return {"advantage": [alpha * loop_dr_grpo(g) / f_norm for g in groups]}


def loop_passk(g, normalize=True):
    trajectories, R = trajectory_returns(g)

    def value(i, r, t):
        others = [R[j] for j in trajectories if j != i]
        if not others or len(set(R.values())) == 1:
            return 0.0
        return max(0.0, R[i] - max(others)) / (
            np.std(list(R.values())) + 1e-6 if normalize else 1.0
        )

    return on_tokens(g, value)


def batch_gdpo(groups, weights=None, per_token=True):
    A, values = [], []
    for g in groups:
        trajectories, _ = trajectory_returns(g)
        C = g["components"].shape[1]
        w = np.ones(C) if weights is None else weights
        a = {
            i: sum(
                w[c] * z_score([g["components"][j, c] for j in trajectories], g["components"][i, c])
                for c in range(C)
            )
            for i in trajectories
        }
        values.append(a)
        A.append(on_tokens(g, lambda i, r, t, a=a: a[i]))
    if per_token:
        return {"advantage": standardize_batch(A, [g["action_mask"] for g in groups])}
    every = [x for a in values for x in a.values()]
    A = []
    for g, a in zip(groups, values, strict=True):
        A.append(
            on_tokens(g, lambda i, r, t, a=a: (a[i] - np.mean(every)) / (np.std(every) + 1e-6))
        )
    return {"advantage": A}


def loop_search_r2(g, weight=0.5, form="gated"):
    trajectories, R = trajectory_returns(g)
    d = g["density"]
    H = {
        i: {
            "gated": R[i] + weight * R[i] * d[i],
            "weighted": R[i] + weight * d[i],
            "product": R[i] * d[i],
        }[form]
        for i in trajectories
    }
    return on_tokens(g, lambda i, r, t: z_score(list(H.values()), H[i]))
