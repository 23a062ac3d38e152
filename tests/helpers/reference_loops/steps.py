"""Steps, segments and redistributed rewards."""

import numpy as np
from small_rollouts import basics, by_trajectory, earned, tokens, z


def steps(g, i):
    """The trajectory's real segments, in order."""
    return [k for k in range(g["reward"].shape[1]) if g["segment_mask"][i, k]]


def by_segment(g, number):
    """number[i, k] on the tokens of segment k."""
    return by_trajectory(g, lambda i, r, t: number[i, g["segment"][r, t]])


def over_peers(g, r, gamma=1.0):
    """G_ik - mean_j G_jk with rewards r[i, k]."""
    there, _ = basics(g)
    G = {}
    for i in there:
        follow = 0.0
        for k in reversed(steps(g, i)):
            follow = r[i, k] + gamma * follow
            G[i, k] = follow
    return by_segment(
        g,
        {(i, k): x - np.mean([y for (_, m), y in G.items() if m == k]) for (i, k), x in G.items()},
    )


def loop_clip_delta(g, alpha=1.0, eta=0.0, delta=True, last_step=False, gamma=1.0):
    r = {}
    for i in basics(g)[0]:
        ks = steps(g, i)
        p = [g["process"][i, k] if eta is None else min(g["process"][i, k] - eta, 0) for k in ks]
        if delta and last_step:
            p = [p[n] - p[n + 1] for n in range(len(p) - 1)] + p[-1:]
        elif delta:
            p = [p[n] - p[n + 1] for n in range(len(p) - 2)] + p[-2:-1] + [0]
        r |= {(i, k): g["reward"][i, k] + alpha * q for k, q in zip(ks, p, strict=True)}
    return over_peers(g, r, gamma)


def loop_capo(g, w_whole=2.0, w_proc=1.0):
    there, R = basics(g)
    r = {
        at: w_whole * R[i] - w_proc * g["error"][i, g["segment"][at]]
        for i in there
        for at in tokens(g, i)
    }
    A = np.zeros(g["action_mask"].shape)
    for at in r:
        A[at] = z(list(r.values()), r[at])
    return A


def loop_tp_grpo(g, alpha=0.5):
    there, R = basics(g)
    acc = np.mean([R[i] > 0.5 for i in there]) if there else 0.0
    number = {}
    for i in there:
        o = z(list(R.values()), R[i])
        for k in steps(g, i):
            e = g["error"][i, k]
            number[i, k] = o - alpha * acc * e if R[i] > 0.5 else e * o
    return by_segment(g, number)


def batch_vsrm(groups, gamma=0.7, Q=3, threshold=0.05):
    returns, chosen = [np.zeros(g["action_mask"].shape) for g in groups], []
    for g, G in zip(groups, returns, strict=True):
        g = {**g, "reward": g["reward"].copy()}
        for i in basics(g)[0]:
            ks = steps(g, i)
            d = [g["info"][i, k + 1] - g["info"][i, k] for k in ks]
            for n, k in enumerate(ks):
                r = d[n] if abs(d[n]) >= threshold else 0.0
                if abs(d[n]) < threshold:
                    for q in range(1, Q + 1):
                        if n + q < len(ks) and abs(d[n + q]) >= threshold:
                            r = np.sign(d[n + q]) * abs(d[n + q]) * gamma**q
                            break
                g["reward"][i, k] += r
            at, r = earned(g, i)
            for n, place in enumerate(at):
                G[place] = sum(r[n:])
        chosen += list(G[g["action_mask"]])
    return {
        "advantage": [
            np.where(g["action_mask"], (G - np.mean(chosen)) / (np.std(chosen) + 1e-6), 0)
            for g, G in zip(groups, returns, strict=True)
        ]
    }


def loop_scrl(g):
    there, _ = basics(g)
    solved = {
        (i, k): np.prod([g["reward"][i, m] for m in steps(g, i) if m <= k])
        for i in there
        for k in steps(g, i)
    }
    return by_segment(
        g,
        {
            (i, k): z([y for (_, m), y in solved.items() if m == k], x)
            for (i, k), x in solved.items()
        },
    )


def loop_brpo(g, prior="uniform", decay=0.5, history=None):
    there, _ = basics(g)
    S = max((k + 1 for i in there for k in steps(g, i)), default=0)
    P = {"uniform": np.ones(S), "linear": 1.0 + np.arange(S), "base": np.eye(max(S, 1))[-1, :S]}[
        prior
    ]
    P = P / P.sum()
    x = np.zeros((g["reward"].shape[0], S))
    for i in there:
        last = 0.0
        for s in range(S):
            last = g["anytime"][i, s] if g["segment_mask"][i, s] else last
            x[i, s] = last
    R = {(i, s): sum(P[j] * x[i, j] for j in range(s, S)) for i in there for s in range(S)}
    number = {}
    for i, s in R:
        past = (
            sum(decay**-j * x[i, j] for j in range(s)) / sum(decay**-j for j in range(s))
            if s
            else 0.0
        )
        V1, V2 = past * sum(P[s:]), np.mean([R[j, s] for j in there])
        w = s / S if history is None else history
        number[i, s] = R[i, s] - w * V1 - (1 - w) * V2
    return by_segment(g, number)


def loop_ma_rlhf(g, gamma=1.0, lam=0.95, sigma="equal"):
    A, target = np.zeros(g["action_mask"].shape), np.zeros(g["action_mask"].shape)
    for i in basics(g)[0]:
        at, r = earned(g, i)
        macros = []  # lists of positions in `at`
        for n, (row, t) in enumerate(at):
            same = n > 0 and at[n - 1][0] == row and g["macro"][at[n - 1]] == g["macro"][row, t]
            macros = macros[:-1] + [[*macros[-1], n]] if same else [*macros, [n]]
        after_A = after_V = 0.0
        for m in reversed(macros):
            size = len(m)
            weight = {
                "equal": np.ones(size),
                "unit": np.eye(size)[-1],
                "position": 1 / (1.0 + np.arange(size)),
            }[sigma]
            weight = weight / weight.sum()
            V = sum(w * g["token_value"][at[n]] for w, n in zip(weight, m, strict=True))
            R = sum(w * r[n] for w, n in zip(weight, m, strict=True))
            after_A = R + gamma * after_V - V + gamma * lam * after_A
            after_V = V
            for n in m:
                A[at[n]], target[at[n]] = after_A, after_A + V
    return {"advantage": A, "target": target}


def batch_poad(groups, gamma=0.95, lam=0.95, within=1.0):
    advantage, target, chosen = [], [], []
    for g in groups:
        A, V = np.zeros(g["action_mask"].shape), g["token_value"]
        for i in basics(g)[0]:
            at, r = earned(g, i)
            after_A = after_V = 0.0
            for n in reversed(range(len(at))):
                k = g["segment"][at[n]]
                ends = all(g["segment"][later] != k for later in at[n + 1 :])
                step = gamma if ends else within
                after_A = r[n] + step * after_V - V[at[n]] + step * lam * after_A
                A[at[n]], after_V = after_A, V[at[n]]
        chosen += list(A[g["action_mask"]])
        advantage.append(A)
        target.append(np.where(g["action_mask"], A + V, 0))
    white = [
        np.where(g["action_mask"], (A - np.mean(chosen)) / (np.std(chosen) + 1e-6), 0)
        for g, A in zip(groups, advantage, strict=True)
    ]
    return {"advantage": white, "target": target}


def loop_pppo(g, eta=0.15):
    there, R = basics(g)
    S = {i: R[i] + g["continued"][i] for i in there}
    A = np.zeros(g["action_mask"].shape)
    for i in there:
        at = tokens(g, i)
        for place in at[: max(1, int(np.floor(eta * len(at) + 1e-9)))]:
            A[place] = z(list(S.values()), S[i])
    return A


def loop_interventions(g):
    w = by_trajectory(g, lambda i, r, t: float(g["segment"][r, t] <= g["pivot"][i]))
    return {"advantage": w, "weight": w}


def loop_r3l(g, alpha=3.0, form="docs"):
    there, R = basics(g)
    retry = {i: g["pivot"][i] if any(k >= g["pivot"][i] for k in steps(g, i)) else 0 for i in there}

    def amplified(i):
        a = R[i] - np.mean(list(R.values())) if len(there) > 1 else R[i]
        if form == "docs" and R[i] == max(R.values()) and R[i] > 0:
            return alpha
        if form == "code" and R[i] >= 1:
            return 1.0
        return alpha * a if a > 0 and form != "none" else a

    def kept(i, r, t):
        pair = g["pair"][i]
        return float(g["segment"][r, t] >= max(retry[i], retry.get(pair, 0), 0))

    return {
        "advantage": by_trajectory(g, lambda i, r, t: amplified(i) * kept(i, r, t)),
        "weight": by_trajectory(g, kept),
    }


def loop_rudder(g, residual="last", gamma=1.0):
    there, R = basics(g)
    r = {}
    for i in there:
        ks = steps(g, i)
        mine = {k: g["info"][i, k + 1] - g["info"][i, k] for k in ks}
        left = R[i] - sum(mine.values())
        for k in ks:
            r[i, k] = mine[k] + (left / len(ks) if residual == "uniform" else left * (k == ks[-1]))
    return over_peers(g, r, gamma)


def loop_rrd(g, gamma=1.0):
    return over_peers(g, g["progress"], gamma)


def loop_lare(g, gamma=1.0):
    return over_peers(g, g["progress"], gamma)


def loop_calm(g, c=0.1, gamma=1.0):
    r = {}
    for i in basics(g)[0]:
        reached = set()
        for k in steps(g, i):
            new = g["achieved"][i, k] > 0.5 and g["subgoal"][i, k] not in reached
            reached |= {g["subgoal"][i, k]} if new else set()
            r[i, k] = g["reward"][i, k] + c * new
    return over_peers(g, r, gamma)


def loop_potential_shaping(g, gamma=1.0, terminal_zero=True):
    r = {}
    for i in basics(g)[0]:
        ks = steps(g, i)
        for k in ks:
            after = 0.0 if k == ks[-1] and g["done"][i] and terminal_zero else g["info"][i, k + 1]
            r[i, k] = g["reward"][i, k] + gamma * after - g["info"][i, k]
    return over_peers(g, r, gamma)


def loop_oni(g, beta_e=10.0, beta_l=0.4, beta_c=3.0, gamma=1.0):
    r = {}
    for i in basics(g)[0]:
        for k in steps(g, i):
            r[i, k] = (
                beta_e * g["reward"][i, k]
                + beta_l * g["verdict"][i, k] * max(g["seen"][i, k], 1.0) ** -beta_c
            )
    return over_peers(g, r, gamma)
