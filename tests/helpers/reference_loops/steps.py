"""Reference loops of the estimators in `jaxcredit/credit/steps/`."""

import numpy as np

from reference_loops.prompt import (
    discounted_returns,
    on_segments,
    on_tokens,
    segments,
    segments_of,
    standardize_batch,
    token_positions,
    token_rewards,
    trajectory_returns,
    z_score,
)


def return_minus_peers(g, r, gamma=1.0):
    """Discounted return of the rewards r[i, k] minus its mean over the trajectories that have
    segment k.
    """
    G = discounted_returns(g, gamma, r)
    return on_segments(
        g,
        {(i, k): x - np.mean([y for (_, m), y in G.items() if m == k]) for (i, k), x in G.items()},
    )


def loop_pure(g, temperature=0.1):
    trajectories, R = trajectory_returns(g)
    if len(trajectories) < 2:
        return np.zeros(g["action_mask"].shape)
    K = g["reward"].shape[1]
    q, Q = {}, {}
    for i in trajectories:
        ks = [k for k in range(K) if g["segment_mask"][i, k]]
        p = np.array([g["process"][i, k] for k in ks])
        w = np.exp(-(p - p.min()) / temperature)
        q[i] = dict(zip(ks, p * w / w.sum(), strict=True))
        Q[i] = sum(q[i].values())
    size = {i: len(token_positions(g, i)) for i in trajectories}
    count = {
        (i, k): sum(g["segment"][p] == k for p in token_positions(g, i))
        for i in trajectories
        for k in range(K)
    }

    def value(i, r, t):
        others = [j for j in trajectories if j != i]
        base = sum(Q[j] for j in others) / max(sum(size[j] for j in others), 1)
        following = sum(q[i][m] - base * count[i, m] for m in q[i] if m >= g["segment"][r, t])
        return following + R[i] - np.mean([R[j] for j in others])

    return on_tokens(g, value)


def loop_clip_delta(g, alpha=1.0, eta=0.0, delta=True, last_step=False, gamma=1.0):
    r = {}
    for i in trajectory_returns(g)[0]:
        ks = segments_of(g, i)
        p = [g["process"][i, k] if eta is None else min(g["process"][i, k] - eta, 0) for k in ks]
        if delta and last_step:
            p = [p[n] - p[n + 1] for n in range(len(p) - 1)] + p[-1:]
        elif delta:
            p = [p[n] - p[n + 1] for n in range(len(p) - 2)] + p[-2:-1] + [0]
        r |= {(i, k): g["reward"][i, k] + alpha * q for k, q in zip(ks, p, strict=True)}
    return return_minus_peers(g, r, gamma)


def loop_capo(g, w_whole=2.0, w_proc=1.0):
    trajectories, R = trajectory_returns(g)
    r = {
        p: w_whole * R[i] - w_proc * g["error"][i, g["segment"][p]]
        for i in trajectories
        for p in token_positions(g, i)
    }
    A = np.zeros(g["action_mask"].shape)
    for p in r:
        A[p] = z_score(list(r.values()), r[p])
    return A


def loop_tp_grpo(g, alpha=0.5):
    trajectories, R = trajectory_returns(g)
    acc = np.mean([R[i] > 0.5 for i in trajectories]) if trajectories else 0.0
    A = {}
    for i in trajectories:
        o = z_score(list(R.values()), R[i])
        for k in segments_of(g, i):
            e = g["error"][i, k]
            A[i, k] = o - alpha * acc * e if R[i] > 0.5 else e * o
    return on_segments(g, A)


def batch_vsrm(groups, gamma=0.7, Q=3, threshold=0.05):
    returns = [np.zeros(g["action_mask"].shape) for g in groups]
    for g, G in zip(groups, returns, strict=True):
        g = {**g, "reward": g["reward"].copy()}
        for i in trajectory_returns(g)[0]:
            ks = segments_of(g, i)
            d = [g["info"][i, k + 1] - g["info"][i, k] for k in ks]
            for n, k in enumerate(ks):
                r = d[n] if abs(d[n]) >= threshold else 0.0
                if abs(d[n]) < threshold:
                    for q in range(1, Q + 1):
                        if n + q < len(ks) and abs(d[n + q]) >= threshold:
                            r = np.sign(d[n + q]) * abs(d[n + q]) * gamma**q
                            break
                g["reward"][i, k] += r
            positions, r = token_rewards(g, i)
            for n, p in enumerate(positions):
                G[p] = sum(r[n:])
    return {"advantage": standardize_batch(returns, [g["action_mask"] for g in groups])}


def loop_scrl(g):
    trajectories, _ = trajectory_returns(g)
    solved = {
        (i, k): np.prod([g["reward"][i, m] for m in segments_of(g, i) if m <= k])
        for i in trajectories
        for k in segments_of(g, i)
    }
    return on_segments(
        g,
        {
            (i, k): z_score([y for (_, m), y in solved.items() if m == k], x)
            for (i, k), x in solved.items()
        },
    )


def loop_brpo(g, prior="uniform", decay=0.5, history=None):
    trajectories, _ = trajectory_returns(g)
    S = max((k + 1 for i in trajectories for k in segments_of(g, i)), default=0)
    P = {"uniform": np.ones(S), "linear": 1.0 + np.arange(S), "base": np.eye(max(S, 1))[-1, :S]}[
        prior
    ]
    P = P / P.sum()
    x = np.zeros((g["reward"].shape[0], S))
    for i in trajectories:
        last = 0.0
        for s in range(S):
            last = g["anytime"][i, s] if g["segment_mask"][i, s] else last
            x[i, s] = last
    R = {(i, s): sum(P[j] * x[i, j] for j in range(s, S)) for i in trajectories for s in range(S)}
    A = {}
    for i, s in R:
        past = (
            sum(decay**-j * x[i, j] for j in range(s)) / sum(decay**-j for j in range(s))
            if s
            else 0.0
        )
        V1, V2 = past * sum(P[s:]), np.mean([R[j, s] for j in trajectories])
        w = s / S if history is None else history
        A[i, s] = R[i, s] - w * V1 - (1 - w) * V2
    return on_segments(g, A)


def loop_interventions(g):
    w = on_tokens(g, lambda i, r, t: float(g["segment"][r, t] <= g["pivot"][i]))
    return {"advantage": w, "weight": w}


def loop_rudder(g, residual="last", gamma=1.0):
    trajectories, R = trajectory_returns(g)
    r = {}
    for i in trajectories:
        ks = segments_of(g, i)
        gains = {k: g["info"][i, k + 1] - g["info"][i, k] for k in ks}
        residue = R[i] - sum(gains.values())
        for k in ks:
            r[i, k] = gains[k] + (
                residue / len(ks) if residual == "uniform" else residue * (k == ks[-1])
            )
    return return_minus_peers(g, r, gamma)


def loop_rrd(g, gamma=1.0):
    return return_minus_peers(g, g["progress"], gamma)


def loop_lare(g, gamma=1.0):
    return return_minus_peers(g, g["progress"], gamma)


def loop_calm(g, c=0.1, gamma=1.0):
    r = {}
    for i in trajectory_returns(g)[0]:
        reached = set()
        for k in segments_of(g, i):
            new = g["achieved"][i, k] > 0.5 and g["subgoal"][i, k] not in reached
            reached |= {g["subgoal"][i, k]} if new else set()
            r[i, k] = g["reward"][i, k] + c * new
    return return_minus_peers(g, r, gamma)


def loop_potential_shaping(g, gamma=1.0, terminal_zero=True):
    r = {}
    for i in trajectory_returns(g)[0]:
        ks = segments_of(g, i)
        for k in ks:
            after = 0.0 if k == ks[-1] and g["done"][i] and terminal_zero else g["info"][i, k + 1]
            r[i, k] = g["reward"][i, k] + gamma * after - g["info"][i, k]
    return return_minus_peers(g, r, gamma)


def loop_oni(g, beta_e=10.0, beta_l=0.4, beta_c=3.0, gamma=1.0):
    r = {}
    for i in trajectory_returns(g)[0]:
        for k in segments_of(g, i):
            r[i, k] = (
                beta_e * g["reward"][i, k]
                + beta_l * g["verdict"][i, k] * max(g["seen"][i, k], 1.0) ** -beta_c
            )
    return return_minus_peers(g, r, gamma)


def loop_oprl(
    g, beta=0.05, weight=1.0, mode="rloo", baseline="steps", singleton="zero", scale=False
):
    trajectories, R = trajectory_returns(g)
    gap = g["prm_logp"] - g["ref_logp"]
    r = {
        (i, k): beta * sum(gap[p] for p in token_positions(g, i) if g["segment"][p] == k)
        for i, k in segments(g)
    }
    if scale:
        largest = {
            i: max(abs(x) for (j, _), x in discounted_returns(g, 1.0, r).items() if j == i)
            for i in trajectories
        }
        r = {(i, k): x / (largest[i] + 1e-6) for (i, k), x in r.items()}
    A, n = {}, len(trajectories)
    for i, k in r:
        steps = list(r.values())
        if mode == "grpo":
            episode, step = z_score(list(R.values()), R[i]), z_score(steps, r[i, k])
        else:
            episode = n / (n - 1) * (R[i] - np.mean(list(R.values()))) if n > 1 else 0.0
            step = (
                len(steps) / (len(steps) - 1) * (r[i, k] - np.mean(steps))
                if len(steps) > 1
                else 0.0
            )
        if baseline == "first":
            step = (
                n
                / (n - 1)
                * (r[i, k] - np.mean([r[j, segments_of(g, j)[0]] for j in trajectories]))
                if n > 1
                else 0.0
            )
        if singleton == "raw" and n == 1:
            episode, step = R[i], r[i, k]
        A[i, k] = episode + weight * step
    return on_segments(g, A)
