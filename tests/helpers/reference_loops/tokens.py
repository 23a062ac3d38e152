"""Reference loops of the estimators in `jaxcredit/credit/tokens/`."""

import numpy as np

from reference_loops.baselines import loop_dr_grpo, loop_grpo
from reference_loops.prompt import (
    segments_of,
    standardize_batch,
    token_positions,
    trajectory_returns,
    z_score,
)
from reference_loops.trees import loop_sploo


def loop_otb(g, zero_tail=False, eps=1e-8):
    R, T = g["action_mask"].shape
    G, W = np.zeros((R, T)), np.zeros((R, T))
    for i in set(g["row"].tolist()):
        total = 0.0
        for r, t in token_positions(g, i):
            total += max(1 - 2 * np.exp(g["logp"][r, t]) + g["prob_square"][r, t], 0)
            W[r, t] = total + eps
            k = g["segment"][r, t]
            G[r, t] = sum(g["reward"][i, m] for m in segments_of(g, i) if m >= k)
    A = np.zeros((R, T))
    for t in range(T):
        rows = [r for r in range(R) if g["action_mask"][r, t]]
        base = sum(G[r, t] * W[r, t] for r in rows) / sum(W[r, t] for r in rows) if rows else 0.0
        for r in rows:
            alone = len(rows) == 1 and g["action_mask"].any(1).sum() > 1
            A[r, t] = G[r, t] if zero_tail and alone else G[r, t] - base
    return A


def batch_prime(groups, beta=0.05, gamma=1.0, outcome_weight=1.0, form="paper", whiten=False):
    A_all = []
    for g in groups:
        trajectories, R = trajectory_returns(g)
        n, A = len(trajectories), np.zeros(g["action_mask"].shape)
        reward = {
            p: beta * (g["prm_logp"][p] - g["ref_logp"][p])
            for i in trajectories
            for p in token_positions(g, i)
        }
        m = {
            i: np.mean([reward[p] for p in token_positions(g, i)]) if token_positions(g, i) else 0.0
            for i in trajectories
        }
        for i in trajectories if n > 1 else []:
            following = 0.0
            for p in reversed(token_positions(g, i)):
                if form == "paper":
                    step = reward[p] - np.mean([m[j] for j in trajectories if j != i])
                else:
                    step = n / (n - 1) * (reward[p] - np.mean(list(m.values())))
                following = step + gamma * following
                A[p] = following + outcome_weight * (
                    R[i] - np.mean([R[j] for j in trajectories if j != i])
                )
        A_all.append(A)
    return {
        "advantage": standardize_batch(A_all, [g["action_mask"] for g in groups])
        if whiten
        else A_all
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
    threshold = H[max(1, int(rho * len(H) + 0.9999)) - 1]
    weight = [(g["action_mask"] & (g["entropy"] >= threshold)) * 1.0 for g in groups]
    return {
        "advantage": [loop_grpo(g) for g in groups],
        "weight": weight,
        "clip": [np.ones(g["action_mask"].shape) for g in groups],
    }


def loop_hicra(g, alpha=0.2, form="paper", share=0.3):
    A = loop_dr_grpo(g) if form == "paper" else loop_grpo(g)
    trajectories, _ = trajectory_returns(g)
    size = {i: len(token_positions(g, i)) for i in trajectories}
    out = A.copy()
    for r, i in enumerate(g["row"]):
        chosen_columns = np.nonzero(g["action_mask"][r])[0]
        ordered = sorted(g["entropy"][r, chosen_columns]) if form == "code" else []
        for t in chosen_columns:
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
        threshold = sorted(values.values(), reverse=True)[
            max(1, int(share * len(values) + 0.9999)) - 1
        ]
        return {t for t, v in values.items() if v >= threshold}

    for r in range(len(A)):
        chosen_columns = np.nonzero(g["action_mask"][r])[0].tolist()
        change = {
            t: abs(g["waad"][r, t] - g["waad"][r, t + 1])
            for t in chosen_columns
            if t + 1 in chosen_columns
        }
        preplan = top(change)
        anchor = top({t: g["fai"][r, t] for t in chosen_columns if g["fai"][r, t] > 0})
        low = top({t: -g["waad"][r, t] for t in chosen_columns})
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


def loop_pooled(g, eps=1e-6):
    trajectories, R = trajectory_returns(g)
    std = np.std([R[i] for i in trajectories]) if len({R[i] for i in trajectories}) > 1 else np.inf
    return (
        loop_sploo(g, lam=1.0) / (std + eps) * np.where(g["action_mask"], g["decision_weight"], 0)
    )


def loop_pppo(g, eta=0.15):
    trajectories, R = trajectory_returns(g)
    S = {i: R[i] + g["continued"][i] for i in trajectories}
    A = np.zeros(g["action_mask"].shape)
    for i in trajectories:
        positions = token_positions(g, i)
        for p in positions[: max(1, int(np.floor(eta * len(positions) + 1e-9)))]:
            A[p] = z_score(list(S.values()), S[i])
    return A
