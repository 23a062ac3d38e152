"""Baselines and token transforms."""

import numpy as np
from small_rollouts import basics, by_trajectory, earned, tokens, z

from reference_loops.core import loop_dr_grpo, loop_grpo


def white(groups, values, where, eps=1e-6):
    """Numbers of a whole batch in its standard deviations, over the entries of `where`; 0 elsewhere."""
    chosen = np.concatenate([v[w] for v, w in zip(values, where, strict=True)])
    if len(chosen) == 0 or np.all(chosen == chosen[0]):
        return [np.zeros(v.shape) for v in values]
    return [
        np.where(w, (v - chosen.mean()) / (chosen.std() + eps), 0)
        for v, w in zip(values, where, strict=True)
    ]


def batch_reinforce_pp_baseline(groups):
    A = []
    for g in groups:
        there, R = basics(g)
        A.append(by_trajectory(g, lambda i, r, t, R=R: R[i] - np.mean(list(R.values()))))
    return {"advantage": white(groups, A, [g["action_mask"] for g in groups])}


def batch_gpg(groups, form="code", f_norm=1.0):
    every = [list(basics(g)[1].values()) for g in groups]
    if form == "code":
        counts = [r != 0 for R in every for r in R]
    else:
        counts = [len(set(R)) > 1 for R in every if R]
    alpha = len(counts) / max(sum(counts), 1)
    return {"advantage": [alpha * loop_dr_grpo(g) / f_norm for g in groups]}


def loop_passk(g, normalize=True):
    there, R = basics(g)

    def number(i, r, t):
        others = [R[j] for j in there if j != i]
        if not others or len(set(R.values())) == 1:
            return 0.0
        return max(0.0, R[i] - max(others)) / (
            np.std(list(R.values())) + 1e-6 if normalize else 1.0
        )

    return by_trajectory(g, number)


def batch_gdpo(groups, weights=None, per_token=True):
    A, number = [], []
    for g in groups:
        there, _ = basics(g)
        C = g["components"].shape[1]
        w = np.ones(C) if weights is None else weights
        a = {
            i: sum(
                w[c] * z([g["components"][j, c] for j in there], g["components"][i, c])
                for c in range(C)
            )
            for i in there
        }
        number.append(a)
        A.append(by_trajectory(g, lambda i, r, t, a=a: a[i]))
    if per_token:
        return {"advantage": white(groups, A, [g["action_mask"] for g in groups])}
    every = [x for a in number for x in a.values()]
    answer = []
    for g, a in zip(groups, number, strict=True):
        answer.append(
            by_trajectory(g, lambda i, r, t, a=a: (a[i] - np.mean(every)) / (np.std(every) + 1e-6))
        )
    return {"advantage": answer}


def batch_vapo(groups, alpha=0.05, gamma=1.0, critic_lam=1.0, whiten=True):
    advantage, target = [], []
    for g in groups:
        A, B = np.zeros(g["action_mask"].shape), np.zeros(g["action_mask"].shape)
        for i in basics(g)[0]:
            at, r = earned(g, i)
            V = [g["token_value"][p] for p in at] + [0.0]
            lam = max(0.0, 1 - 1 / (alpha * len(at))) if at else 0.0
            for out, decay in ((A, lam), (B, critic_lam)):
                after = 0.0
                for n in reversed(range(len(at))):
                    after = r[n] + gamma * V[n + 1] - V[n] + gamma * decay * after
                    out[at[n]] = after
        advantage.append(A)
        target.append(np.where(g["action_mask"], B + g["token_value"], 0))
    return {
        "advantage": white(groups, advantage, [g["action_mask"] for g in groups])
        if whiten
        else advantage,
        "target": target,
    }


def loop_otb(g, zero_tail=False, eps=1e-8):
    R, T = g["action_mask"].shape
    G, W = np.zeros((R, T)), np.zeros((R, T))
    for i in set(g["row"].tolist()):
        total = 0.0
        for r, t in tokens(g, i):
            total += max(1 - 2 * np.exp(g["logp"][r, t]) + g["prob_square"][r, t], 0)
            W[r, t] = total + eps
            k = g["segment"][r, t]
            G[r, t] = sum(
                g["reward"][i, m] for m in range(k, g["reward"].shape[1]) if g["segment_mask"][i, m]
            )
    A = np.zeros((R, T))
    for t in range(T):
        rows = [r for r in range(R) if g["action_mask"][r, t]]
        base = sum(G[r, t] * W[r, t] for r in rows) / sum(W[r, t] for r in rows) if rows else 0.0
        for r in rows:
            lonely = len(rows) == 1 and g["action_mask"].any(1).sum() > 1
            A[r, t] = G[r, t] if zero_tail and lonely else G[r, t] - base
    return A


def batch_prime(groups, beta=0.05, gamma=1.0, outcome_weight=1.0, form="paper", whiten=False):
    answer = []
    for g in groups:
        there, R = basics(g)
        n, A = len(there), np.zeros(g["action_mask"].shape)
        reward = {
            p: beta * (g["prm_logp"][p] - g["ref_logp"][p]) for i in there for p in tokens(g, i)
        }
        m = {i: np.mean([reward[p] for p in tokens(g, i)]) if tokens(g, i) else 0.0 for i in there}
        for i in there if n > 1 else []:
            follow = 0.0
            for p in reversed(tokens(g, i)):
                if form == "paper":
                    step = reward[p] - np.mean([m[j] for j in there if j != i])
                else:
                    step = n / (n - 1) * (reward[p] - np.mean(list(m.values())))
                follow = step + gamma * follow
                A[p] = follow + outcome_weight * (R[i] - np.mean([R[j] for j in there if j != i]))
        answer.append(A)
    return {
        "advantage": white(groups, answer, [g["action_mask"] for g in groups]) if whiten else answer
    }


def loop_t_reg(g, beta=1.0):
    better, worse = np.exp(g["better_logp"]), np.exp(g["worse_logp"])
    return np.where(g["action_mask"], beta * (better / (better + worse) - 0.5), 0)


def loop_r_to_q_star(g, beta=0.1):
    return np.where(g["action_mask"], beta * (g["logp"] - g["ref_logp"]), 0)


def batch_entropy_mask(groups, rho=0.2):
    H = sorted(
        (g["entropy"][p] for g in groups for p in zip(*np.nonzero(g["action_mask"]), strict=True)),
        reverse=True,
    )
    least = H[max(1, int(rho * len(H) + 0.9999)) - 1]
    weight = [(g["action_mask"] & (g["entropy"] >= least)) * 1.0 for g in groups]
    return {
        "advantage": [loop_grpo(g) for g in groups],
        "weight": weight,
        "clip": [np.ones(g["action_mask"].shape) for g in groups],
    }


def loop_hicra(g, alpha=0.2, form="paper", share=0.3):
    A = loop_dr_grpo(g) if form == "paper" else loop_grpo(g)
    there, _ = basics(g)
    size = {i: len(tokens(g, i)) for i in there}
    out = A.copy()
    for r, i in enumerate(g["row"]):
        here = np.nonzero(g["action_mask"][r])[0]
        ordered = sorted(g["entropy"][r, here]) if form == "code" else []
        for t in here:
            plan = g["planning"][r, t] > 0
            if form == "code":
                floor = ordered[max(0, min(int((1 - share) * len(ordered)), len(ordered) - 1))]
                plan |= (
                    g["entropy"][r, t] > floor
                    and A[r, t] > 0
                    and size[i] > np.mean(list(size.values()))
                )
            out[r, t] = A[r, t] * (1 + alpha * np.sign(A[r, t])) if plan else A[r, t]
    return out


def loop_attention_rhythm(g, strategy="coupled", amplify=1.5, share=0.4, alpha=0.5, window=5):
    A, gain = loop_grpo(g), np.zeros(g["action_mask"].shape)

    def top(values):
        """The columns whose values are among the ceil(share n) largest."""
        if not values:
            return set()
        least = sorted(values.values(), reverse=True)[max(1, int(share * len(values) + 0.9999)) - 1]
        return {t for t, v in values.items() if v >= least}

    for r in range(len(A)):
        here = np.nonzero(g["action_mask"][r])[0].tolist()
        change = {t: abs(g["waad"][r, t] - g["waad"][r, t + 1]) for t in here if t + 1 in here}
        preplan = top(change)
        anchor = top({t: g["fai"][r, t] for t in here if g["fai"][r, t] > 0})
        low = top({t: -g["waad"][r, t] for t in here})
        if strategy != "coupled":
            for t in preplan if strategy == "local" else anchor:
                gain[r, t] = 1
            continue
        introduces = set()
        for t in anchor:
            before = [u for u in range(t - window, t) if u in preplan]
            if before and t in low:
                introduces.add(max(before, key=lambda u: (change[u], u)))
                gain[r, t] += 1 - alpha
            else:
                gain[r, t] += 1
        for u in introduces:
            gain[r, u] += alpha
    return A * (1 + (amplify - 1) * gain)


def loop_sploo(g, lam=0.0, a=0.0, c=3.0, c_b=3.0, ramp=8.0, least=2, kurtosis=True):
    """From common prefixes alone, column by column, with no array over branches."""
    there, R = basics(g)
    rows, T = g["action_mask"].shape
    A = np.zeros((rows, T))
    key = np.where(g["token_mask"], g["tokens"], -1)
    end = [max([t + 1 for t in range(T) if g["token_mask"][r, t]], default=0) for r in range(rows)]

    def lcp(r, q):
        differ = np.nonzero(key[r] != key[q])[0]
        return int(differ[0]) if len(differ) else T

    for r, i in enumerate(g["row"]):
        O = [j for j in there if j != i]  # noqa: E741
        if i not in there or not O:
            continue
        seen = {
            j: max((q for q in range(rows) if g["row"][q] == j), key=lambda q, r=r: (lcp(r, q), -q))
            for j in O
        }
        L = {j: lcp(r, seen[j]) for j in O}
        mu = np.mean([R[j] for j in O])
        flat = len({R[j] for j in O}) == 1
        v = 0.0 if flat else np.mean([(R[j] - mu) ** 2 for j in O])
        kappa = np.mean([(R[j] - mu) ** 4 for j in O]) / v**2 - 3 if v > 0 and kurtosis else 0.0
        b = mu
        for t in range(T):
            inside, out = [j for j in O if L[j] >= t], [j for j in O if L[j] == t - 1]
            if out and len(inside) >= least and v > 0:
                h = 1 / len(inside) + 1 / len(out)
                z2 = (np.mean([R[j] for j in inside]) - np.mean([R[j] for j in out])) ** 2 / (v * h)
                limit = 1 + (c_b - 1) * np.sqrt(1 + max(0, kappa * (h - 3 / len(inside + out))) / 2)
                if z2 > limit:
                    b += (1 - limit / z2) * (np.mean([R[j] for j in inside]) - b)
            children = []
            for j in inside:
                child = next((k for k in children if lcp(seen[k[0]], seen[j]) >= t + 1), None)
                children.append([j]) if child is None else child.append(j)
            classes = [k for k in children if len(k) > 1]
            singles = [k[0] for k in children if len(k) == 1]
            classes += [singles] if singles else []
            C, m, beta = len(classes), len(inside), 0.0
            if C >= 2:
                mean = np.mean([R[j] for j in inside])
                between = sum(len(k) * (np.mean([R[j] for j in k]) - mean) ** 2 for k in classes)
                within = sum((R[j] - np.mean([R[q] for q in k])) ** 2 for k in classes for j in k)
                noise = (within + 4 * v) / (m - C + 4)
                e = -np.inf
                if noise > 0:
                    e = (between / noise - (C - 1)) / np.sqrt(
                        2 * (C - 1)
                        + max(0, kappa * (sum(1 / len(k) for k in classes) - (2 * C - 1) / m))
                    )
                left = np.mean([end[seen[j]] - t - 1 for j in inside])
                beta = a * (1 - c / e) * min(1, max(left, 0) / ramp) ** 2 if e > c else 0.0
            omega = 1 + lam * (1 - 1 / (m + 1)) / (1 - 1 / len(there)) + beta
            A[r, t] = omega * (R[i] - b) if g["action_mask"][r, t] else 0.0
    return A


def loop_pooled(g, eps=1e-6):
    there, R = basics(g)
    std = np.std([R[i] for i in there]) if len({R[i] for i in there}) > 1 else np.inf
    return (
        loop_sploo(g, lam=1.0) / (std + eps) * np.where(g["action_mask"], g["decision_weight"], 0)
    )
