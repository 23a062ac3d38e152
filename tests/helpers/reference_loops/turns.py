"""Reference loops of the estimators in `jaxcredit/credit/turns/`."""

import numpy as np

from reference_loops.prompt import (
    discounted_returns,
    on_segments,
    on_tokens,
    segments,
    segments_of,
    token_positions,
    trajectory_returns,
    z_score,
)


def distribute(attribution, n, score, form, decay=0.9):
    """Rewards of the n turns of one trajectory in one dimension, from the attributions and the
    dimension's score.
    """
    good = [max(a, 0.0) for a in attribution]
    return {
        "scaled": [-1.0 if a < 0 else a / 3 * score for a in attribution],
        "normalized": [a / sum(good) * score if sum(good) > 0 else score / n for a in good],
        "progress": [a / 10 * score for a in attribution],
        "discount": [decay ** (n - 1 - k) * score for k in range(n)],
        "uniform": [score] * n,
        "key": [score if k == int(np.argmax(attribution)) else 0.0 for k in range(n)],
    }[form]


def batch_mars(groups, unique=False, normalize=False, whiten=False, ddof=0):
    returns, by_agent = [], {}
    for g in groups:
        R = {}
        for i, k in segments(g):
            R[i, k] = sum(
                g["reward"][i, m]
                for m in segments_of(g, i)
                if m >= k and g["agent"][i, m] == g["agent"][i, k]
            )
            by_agent.setdefault(g["agent"][i, k], []).append(R[i, k])
        returns.append(R)
    by_agent = {a: sorted(set(x)) if unique else x for a, x in by_agent.items()}
    A = []
    for g, R in zip(groups, returns, strict=True):
        peers = {u: by_agent[g["agent"][u]] for u in R}
        values = {
            u: z_score(peers[u], R[u], ddof) if normalize else R[u] - np.mean(peers[u]) for u in R
        }
        A.append(on_segments(g, values))
    if whiten:
        chosen = np.concatenate([a[g["action_mask"]] for a, g in zip(A, groups, strict=True)])
        std = chosen.std(ddof=ddof) + 1e-6
        A = [
            np.where(g["action_mask"], (a - chosen.mean()) / std, 0)
            for a, g in zip(A, groups, strict=True)
        ]
    return {"advantage": A}


def loop_r3l(g, alpha=3.0, form="docs"):
    trajectories, R = trajectory_returns(g)
    retry = {
        i: g["pivot"][i] if any(k >= g["pivot"][i] for k in segments_of(g, i)) else 0
        for i in trajectories
    }

    def amplified(i):
        a = R[i] - np.mean(list(R.values())) if len(trajectories) > 1 else R[i]
        if form == "docs" and R[i] == max(R.values()) and R[i] > 0:
            return alpha
        if form == "code" and R[i] >= 1:
            return 1.0
        return alpha * a if a > 0 and form != "none" else a

    def after_pivot(i, r, t):
        pair = g["pair"][i]
        return float(g["segment"][r, t] >= max(retry[i], retry.get(pair, 0), 0))

    return {
        "advantage": on_tokens(g, lambda i, r, t: amplified(i) * after_pivot(i, r, t)),
        "weight": on_tokens(g, after_pivot),
    }


def loop_gigpo(
    g, gamma=0.95, weight=1.0, normalize=False, pool="trajectory", singleton="zero", ddof=0
):
    trajectories, R = trajectory_returns(g)
    G, all_segments = discounted_returns(g, gamma), segments(g)

    def relative(values, own):
        return z_score(values, own, ddof) if normalize else own - np.mean(values)

    scores = list(R.values()) if pool == "trajectory" else [R[i] for i, _ in all_segments]
    A = {}
    for i, k in all_segments:
        raw = singleton == "raw" and len(scores) == 1
        episode = R[i] if raw else relative(scores, R[i])
        A[i, k] = episode + weight * relative(
            [G[u] for u in all_segments if g["state"][u] == g["state"][i, k]], G[i, k]
        )
    return on_segments(g, A)


def loop_hgpo(g, gamma=0.95, history=2, alpha=1.0, normalize=False):
    G, all_segments = discounted_returns(g, gamma), segments(g)

    def recent_states(u, level):
        """The last level + 1 states of the trajectory up to a turn; None if there are fewer."""
        i, k = u
        past = [g["state"][i, m] for m in segments_of(g, i) if m <= k]
        return tuple(past[-level - 1 :]) if len(past) > level else None

    A = {}
    for u in all_segments:
        parts = []
        for level in range(history + 1):
            peers = (
                [v for v in all_segments if recent_states(v, level) == recent_states(u, level)]
                if recent_states(u, level)
                else []
            )
            if len(peers) > 1:
                values = [G[v] for v in peers]
                own = z_score(values, G[u]) if normalize else G[u] - np.mean(values)
                parts.append(((level + 1) ** alpha, own))
        A[u] = sum(w * a for w, a in parts) / sum(w for w, _ in parts) if parts else 0.0
    return on_segments(g, A)


def loop_a2tgpo(g, alpha=0.3, kappa=0.3, gamma=1.0):
    trajectories, R = trajectory_returns(g)
    queries = {i: segments_of(g, i)[:-1] for i in trajectories}
    n = {
        (i, k): z_score([g["gain"][j, k] for j in trajectories if k in queries[j]], g["gain"][i, k])
        for i in trajectories
        for k in queries[i]
    }
    A, clip = {}, {}
    for i in trajectories:
        for k in segments_of(g, i):
            D = [
                gam * n[i, m]
                for gam, m in (
                    (gamma ** sum(k <= x < m for x in queries[i]), m) for m in queries[i] if m >= k
                )
            ]
            A[i, k] = z_score(list(R.values()), R[i]) + (
                alpha * sum(D) / np.sqrt(len(D)) if D else 0.0
            )
            clip[i, k] = kappa * (2 / (1 + np.exp(-n[i, k])) - 1) if (i, k) in n else 0.0
    return {"advantage": on_segments(g, A), "clip": 1 + on_segments(g, clip)}


def loop_igpo(g, kind="log", pool="separate", gamma=1.0):
    trajectories, R = trajectory_returns(g)
    m = np.exp(g["info"]) if kind == "prob" else g["info"]
    gain = {(i, k): m[i, k + 1] - m[i, k] for i in trajectories for k in segments_of(g, i)[:-1]}
    final = {(i, segments_of(g, i)[-1]): R[i] for i in trajectories}
    if pool == "joint":
        x = gain | final
        x = {u: z_score(list(x.values()), v) for u, v in x.items()}
    else:
        x = {u: z_score(list(pool.values()), v) for pool in (gain, final) for u, v in pool.items()}
    return on_segments(g, discounted_returns(g, gamma, x))


def loop_siop(g, lam=0.5, gamma=1.0, floor=1e-8):
    r = {}
    for i in trajectory_returns(g)[0]:
        ks, q = segments_of(g, i), g["answer_weight"][i]
        if q <= 0:
            continue
        for k in ks:
            p = np.exp(g["info"][i, [k, k + 1]]) + floor
            r[i, k] = q * np.log(p[1] / p[0]) if len(ks) > 1 else 0.0
        r[i, ks[-1]] += (1 - lam) * q
    x = {u: z_score(list(r.values()), v) for u, v in r.items()}
    return on_segments(g, discounted_returns(g, gamma, {u: x.get(u, 0.0) for u in segments(g)}))


def loop_matchtir(g, gamma=0.9, singleton="zero", ddof=0):
    trajectories, R = trajectory_returns(g)
    D, A = discounted_returns(g, gamma), {}
    for i, k in D:
        peers = [D[j, k] for j in trajectories if (j, k) in D]
        whole, turn = z_score(list(R.values()), R[i], ddof), z_score(peers, D[i, k], ddof)
        if singleton == "raw":
            whole, turn = R[i] if len(R) == 1 else whole, D[i, k] if len(peers) == 1 else turn
        A[i, k] = (whole + turn) / 2
    return on_segments(g, A)


def batch_sotopia(groups, form="scaled"):
    x = []
    for g in groups:
        x.append({})
        for i in trajectory_returns(g)[0]:
            ks = segments_of(g, i)
            parts = [
                distribute([g["attribution"][i, k, d] for k in ks], len(ks), s, form)
                for d, s in enumerate(g["score"][i])
            ]
            x[-1] |= {(i, k): np.array([part[n] for part in parts]) for n, k in enumerate(ks)}
    pooled = np.array([v for one in x for v in one.values()])
    low, high = pooled.min(0), pooled.max(0)
    A = []
    for g, one in zip(groups, x, strict=True):
        unit = [
            np.where(high > low, (v - low) / np.where(high > low, high - low, 1), 0)
            for v in one.values()
        ]
        r = {u: 10 * v.mean() for u, v in zip(one, unit, strict=True)}
        A.append(
            on_segments(
                g,
                {(i, k): z_score([v for (_, m), v in r.items() if m == k], r[i, k]) for i, k in r},
            )
        )
    return {"advantage": A}


def loop_epo(g, gamma=0.99):
    G = discounted_returns(g, gamma)
    largest = {
        i: max(abs(x) for (j, _), x in G.items() if j == i) for i in trajectory_returns(g)[0]
    }
    size = {(i, k): sum(g["segment"][p] == k for p in token_positions(g, i)) for i, k in G}
    return {
        "advantage": on_segments(
            g, {(i, k): x / largest[i] if largest[i] else 0.0 for (i, k), x in G.items()}
        ),
        "weight": on_segments(
            g, {(i, k): 1 / (len(segments_of(g, i)) * max(size[i, k], 1)) for i, k in G}
        ),
    }
