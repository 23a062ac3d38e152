"""Estimators of several turns."""

import numpy as np
from small_rollouts import basics, by_trajectory, tokens, z

from reference_loops.core import batch_ppo


def turns(g, i):
    """The segments of a trajectory that took place, in time order."""
    return [k for k in range(g["reward"].shape[1]) if g["segment_mask"][i, k]]


def units(g):
    return [(i, k) for i in basics(g)[0] for k in turns(g, i)]


def returns(g, gamma, r=None):
    G = {}
    for i in basics(g)[0]:
        after = 0.0
        for k in reversed(turns(g, i)):
            after = G[i, k] = (g["reward"][i, k] if r is None else r[i, k]) + gamma * after
    return G


def by_turn(g, number):
    """number[(i, k)] on the tokens of the turn."""
    return by_trajectory(g, lambda i, r, t: number.get((i, g["segment"][r, t]), 0.0))


def loop_gigpo(
    g, gamma=0.95, weight=1.0, normalize=False, pool="trajectory", singleton="zero", ddof=0
):
    there, R = basics(g)
    G, all_units = returns(g, gamma), units(g)

    def against(values, own):
        return z(values, own, ddof) if normalize else own - np.mean(values)

    scores = list(R.values()) if pool == "trajectory" else [R[i] for i, _ in all_units]
    A = {}
    for i, k in all_units:
        raw = singleton == "raw" and len(scores) == 1
        episode = R[i] if raw else against(scores, R[i])
        A[i, k] = episode + weight * against(
            [G[u] for u in all_units if g["state"][u] == g["state"][i, k]], G[i, k]
        )
    return by_turn(g, A)


def loop_hgpo(g, gamma=0.95, history=2, alpha=1.0, normalize=False):
    G, all_units = returns(g, gamma), units(g)

    def way(u, level):
        """The last level + 1 states, or nothing for a turn too early to have them."""
        i, k = u
        past = [g["state"][i, m] for m in turns(g, i) if m <= k]
        return tuple(past[-level - 1 :]) if len(past) > level else None

    A = {}
    for u in all_units:
        parts = []
        for level in range(history + 1):
            peers = (
                [v for v in all_units if way(v, level) == way(u, level)] if way(u, level) else []
            )
            if len(peers) > 1:
                values = [G[v] for v in peers]
                own = z(values, G[u]) if normalize else G[u] - np.mean(values)
                parts.append(((level + 1) ** alpha, own))
        A[u] = sum(w * a for w, a in parts) / sum(w for w, _ in parts) if parts else 0.0
    return by_turn(g, A)


def hae_levels(g, gamma, lam_turn, lam_seg, bootstrap):
    """For each turn: the low, planning and switch advantages and their targets; planning only where a subgoal begins."""
    low, plan, head = g["value"], g["value_plan"], g["value_switch"]
    A, target = {"low": {}, "plan": {}, "switch": {}}, {"low": {}, "plan": {}, "switch": {}}
    for i in basics(g)[0]:
        ks, cut = turns(g, i), bootstrap and not g["done"][i]
        pieces = []  # the turns of each subgoal
        for n, k in enumerate(ks):
            if n == 0 or g["subgoal"][i, k] != g["subgoal"][i, ks[n - 1]]:
                pieces.append([])
            pieces[-1].append(k)
        after_A = after_V = 0.0
        for n in reversed(range(len(pieces))):
            piece, end = pieces[n], n == len(pieces) - 1
            first = piece[0]
            G = (plan[i, first] if cut else 0.0) if end else plan[i, pieces[n + 1][0]]
            V, a = (low[i, piece[-1]] if cut else 0.0) if end else plan[i, pieces[n + 1][0]], 0.0
            for k in reversed(piece):
                a = g["reward"][i, k] + gamma * V - low[i, k] + gamma * lam_turn * a
                V = low[i, k]
                G = g["reward"][i, k] + gamma * G
                A["low"][i, k], target["low"][i, k] = a, a + low[i, k]
                A["switch"][i, k], target["switch"][i, k] = G - head[i, k], G
            d = len(piece)
            earned = sum(gamma**j * g["reward"][i, k] for j, k in enumerate(piece))
            V_next = (plan[i, first] if cut else 0.0) if end else after_V
            after_A = earned + gamma**d * V_next - plan[i, first] + gamma**d * lam_seg * after_A
            after_V = plan[i, first]
            A["plan"][i, first], target["plan"][i, first] = after_A, after_A + plan[i, first]
    return A, target


def batch_hae(
    groups, gamma=1.0, lam_turn=1.0, lam_seg=0.95, bootstrap=True, plan_switch=False, whiten=False
):
    names = {1: "plan", 2: "switch", 3: "low"}
    found = [hae_levels(g, gamma, lam_turn, lam_seg, bootstrap) for g in groups]
    answer = {
        "advantage": [np.zeros(g["action_mask"].shape) for g in groups],
        "target": [np.zeros(g["action_mask"].shape) for g in groups],
    }
    if whiten:
        for kind, name in names.items():
            owners = []
            for n, g in enumerate(groups):
                kinds = (1, 2) if plan_switch and name == "plan" else (kind,)
                held = {
                    (i, g["segment"][at])
                    for i in basics(g)[0]
                    for at in tokens(g, i)
                    if g["kind"][at] in kinds
                }
                owners += [(n, u) for u in found[n][0][name] if u in held]
            values = [found[n][0][name][u] for n, u in owners]
            new = {(n, u): z(values, found[n][0][name][u], eps=1e-6) for n, u in owners}
            for (n, u), x in new.items():
                found[n][0][name][u] = x
    for n, g in enumerate(groups):
        A, target = found[n]
        for i in basics(g)[0]:
            for at in tokens(g, i):
                u = (i, g["segment"][at])
                if u[1] < 0:
                    continue
                kind = g["kind"][at]
                if kind in names:
                    answer["advantage"][n][at] = A[names[kind]].get(u, 0.0)
                if kind == 2 and plan_switch:
                    answer["advantage"][n][at] += A["plan"].get(u, 0.0)
                own = target[names.get(kind, "low")]
                answer["target"][n][at] = own.get(u, target["low"][u])
    return answer


def loop_a2tgpo(g, alpha=0.3, kappa=0.3, gamma=1.0):
    there, R = basics(g)
    asks = {i: turns(g, i)[:-1] for i in there}
    n = {
        (i, k): z([g["gain"][j, k] for j in there if k in asks[j]], g["gain"][i, k])
        for i in there
        for k in asks[i]
    }
    A, clip = {}, {}
    for i in there:
        for k in turns(g, i):
            D = [
                gam * n[i, m]
                for gam, m in (
                    (gamma ** sum(k <= x < m for x in asks[i]), m) for m in asks[i] if m >= k
                )
            ]
            A[i, k] = z(list(R.values()), R[i]) + (alpha * sum(D) / np.sqrt(len(D)) if D else 0.0)
            clip[i, k] = kappa * (2 / (1 + np.exp(-n[i, k])) - 1) if (i, k) in n else 0.0
    return {"advantage": by_turn(g, A), "clip": 1 + by_turn(g, clip)}


def loop_igpo(g, kind="log", pool="separate", gamma=1.0):
    there, R = basics(g)
    m = np.exp(g["info"]) if kind == "prob" else g["info"]
    gain = {(i, k): m[i, k + 1] - m[i, k] for i in there for k in turns(g, i)[:-1]}
    final = {(i, turns(g, i)[-1]): R[i] for i in there}
    if pool == "joint":
        x = gain | final
        x = {u: z(list(x.values()), v) for u, v in x.items()}
    else:
        x = {u: z(list(pool.values()), v) for pool in (gain, final) for u, v in pool.items()}
    return by_turn(g, returns(g, gamma, x))


def loop_siop(g, lam=0.5, gamma=1.0, floor=1e-8):
    r = {}
    for i in basics(g)[0]:
        ks, q = turns(g, i), g["answer_weight"][i]
        if q <= 0:
            continue
        for k in ks:
            p = np.exp(g["info"][i, [k, k + 1]]) + floor
            r[i, k] = q * np.log(p[1] / p[0]) if len(ks) > 1 else 0.0
        r[i, ks[-1]] += (1 - lam) * q
    x = {u: z(list(r.values()), v) for u, v in r.items()}
    return by_turn(g, returns(g, gamma, {u: x.get(u, 0.0) for u in units(g)}))


def loop_matchtir(g, gamma=0.9, singleton="zero", ddof=0):
    there, R = basics(g)
    D, A = returns(g, gamma), {}
    for i, k in D:
        peers = [D[j, k] for j in there if (j, k) in D]
        whole, turn = z(list(R.values()), R[i], ddof), z(peers, D[i, k], ddof)
        if singleton == "raw":
            whole, turn = R[i] if len(R) == 1 else whole, D[i, k] if len(peers) == 1 else turn
        A[i, k] = (whole + turn) / 2
    return by_turn(g, A)


def batch_spa(groups, alpha=1.0, beta=0.5, gamma=1.0, lam=0.95, form="paper"):
    fused = []
    for g in groups:
        there, R = basics(g)
        reward = np.zeros(g["reward"].shape)
        for i, k in units(g):
            ks, others = turns(g, i), [R[j] for j in there if j != i]
            if form == "paper":
                reward[i, k] = alpha * g["progress"][i, k] + beta * g["grounded"][i, k]
            else:
                loo = R[i] - np.mean(others) if others else 0.0
                reward[i, k] = (loo + beta * g["grounded"][i, k]) * (len(ks) - ks.index(k) - 1)
        fused.append({**g, "reward": reward})
    return batch_ppo(fused, gamma, lam)


def batch_masked_gae(groups, gamma=1.0, lam=1.0):
    return batch_ppo(groups, gamma, lam)


def loop_oprl(
    g, beta=0.05, weight=1.0, mode="rloo", baseline="steps", singleton="zero", scale=False
):
    there, R = basics(g)
    gap = g["prm_logp"] - g["ref_logp"]
    r = {
        (i, k): beta * sum(gap[at] for at in tokens(g, i) if g["segment"][at] == k)
        for i, k in units(g)
    }
    if scale:
        most = {i: max(abs(x) for (j, _), x in returns(g, 1.0, r).items() if j == i) for i in there}
        r = {(i, k): x / (most[i] + 1e-6) for (i, k), x in r.items()}
    A, n = {}, len(there)
    for i, k in r:
        steps = list(r.values())
        if mode == "grpo":
            episode, step = z(list(R.values()), R[i]), z(steps, r[i, k])
        else:
            episode = n / (n - 1) * (R[i] - np.mean(list(R.values()))) if n > 1 else 0.0
            step = (
                len(steps) / (len(steps) - 1) * (r[i, k] - np.mean(steps))
                if len(steps) > 1
                else 0.0
            )
        if baseline == "first":
            step = (
                n / (n - 1) * (r[i, k] - np.mean([r[j, turns(g, j)[0]] for j in there]))
                if n > 1
                else 0.0
            )
        if singleton == "raw" and n == 1:
            episode, step = R[i], r[i, k]
        A[i, k] = episode + weight * step
    return by_turn(g, A)


def loop_archer(g, baseline=False):
    A = by_turn(g, {u: g["action_value"][u] - g["value"][u] for u in units(g)})
    return (
        {"advantage": np.where(g["action_mask"], A - g["token_value"], 0), "target": A}
        if baseline
        else A
    )


def loop_search_r2(g, weight=0.5, form="gated"):
    there, R = basics(g)
    d = g["density"]
    H = {
        i: {
            "gated": R[i] + weight * R[i] * d[i],
            "weighted": R[i] + weight * d[i],
            "product": R[i] * d[i],
        }[form]
        for i in there
    }
    return by_trajectory(g, lambda i, r, t: z(list(H.values()), H[i]))


def share(marks, n, score, form, decay=0.9):
    """One trajectory's rewards in one dimension."""
    good = [max(a, 0.0) for a in marks]
    return {
        "scaled": [-1.0 if a < 0 else a / 3 * score for a in marks],
        "normalised": [a / sum(good) * score if sum(good) > 0 else score / n for a in good],
        "progress": [a / 10 * score for a in marks],
        "discount": [decay ** (n - 1 - k) * score for k in range(n)],
        "uniform": [score] * n,
        "key": [score if k == int(np.argmax(marks)) else 0.0 for k in range(n)],
    }[form]


def batch_sotopia(groups, form="scaled"):
    x = []
    for g in groups:
        x.append({})
        for i in basics(g)[0]:
            ks = turns(g, i)
            parts = [
                share([g["attribution"][i, k, d] for k in ks], len(ks), s, form)
                for d, s in enumerate(g["score"][i])
            ]
            x[-1] |= {(i, k): np.array([part[n] for part in parts]) for n, k in enumerate(ks)}
    every = np.array([v for one in x for v in one.values()])
    low, high = every.min(0), every.max(0)
    answer = []
    for g, one in zip(groups, x, strict=True):
        unit = [
            np.where(high > low, (v - low) / np.where(high > low, high - low, 1), 0)
            for v in one.values()
        ]
        r = {u: 10 * v.mean() for u, v in zip(one, unit, strict=True)}
        answer.append(
            by_turn(g, {(i, k): z([v for (_, m), v in r.items() if m == k], r[i, k]) for i, k in r})
        )
    return {"advantage": answer}


def loop_epo(g, gamma=0.99):
    G = returns(g, gamma)
    most = {i: max(abs(x) for (j, _), x in G.items() if j == i) for i in basics(g)[0]}
    size = {(i, k): sum(g["segment"][at] == k for at in tokens(g, i)) for i, k in G}
    return {
        "advantage": by_turn(
            g, {(i, k): x / most[i] if most[i] else 0.0 for (i, k), x in G.items()}
        ),
        "weight": by_turn(g, {(i, k): 1 / (len(turns(g, i)) * max(size[i, k], 1)) for i, k in G}),
    }
