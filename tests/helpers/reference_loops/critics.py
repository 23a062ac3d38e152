"""Reference loops of the estimators in `jaxcredit/credit/critics/`."""

import numpy as np

from reference_loops.prompt import (
    on_segments,
    segments,
    segments_of,
    standardize_batch,
    token_positions,
    token_rewards,
    trajectory_returns,
    z_score,
)


def hae_levels(g, gamma, lam_turn, lam_seg, bootstrap):
    """Advantages and targets {level: {(i, k): value}} of the levels low, plan and switch; plan only
    at first turns of subgoals.
    """
    low, plan, head = g["value"], g["value_plan"], g["value_switch"]
    A, target = {"low": {}, "plan": {}, "switch": {}}, {"low": {}, "plan": {}, "switch": {}}
    for i in trajectory_returns(g)[0]:
        ks, cut = segments_of(g, i), bootstrap and not g["done"][i]
        pieces = []  # the turns of each subgoal
        for n, k in enumerate(ks):
            if n == 0 or g["subgoal"][i, k] != g["subgoal"][i, ks[n - 1]]:
                pieces.append([])
            pieces[-1].append(k)
        next_A = next_V = 0.0
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
            reward = sum(gamma**j * g["reward"][i, k] for j, k in enumerate(piece))
            V_next = (plan[i, first] if cut else 0.0) if end else next_V
            next_A = reward + gamma**d * V_next - plan[i, first] + gamma**d * lam_seg * next_A
            next_V = plan[i, first]
            A["plan"][i, first], target["plan"][i, first] = next_A, next_A + plan[i, first]
    return A, target


def batch_ppo(groups, gamma=1.0, lam=0.95):
    advantage, target = [], []
    for g in groups:
        A, V = np.zeros(g["action_mask"].shape), g["token_value"]
        for i in trajectory_returns(g)[0]:
            positions, r = token_rewards(g, i)
            next_A = next_V = 0.0
            for n in reversed(range(len(positions))):
                A[positions[n]] = r[n] + gamma * next_V - V[positions[n]] + gamma * lam * next_A
                next_A, next_V = A[positions[n]], V[positions[n]]
        advantage.append(A)
        target.append(np.where(g["action_mask"], A + V, 0))
    masks = [g["action_mask"] for g in groups]
    return {"advantage": standardize_batch(advantage, masks), "target": target}


def batch_vapo(groups, alpha=0.05, gamma=1.0, critic_lam=1.0, whiten=True):
    advantage, target = [], []
    for g in groups:
        A, B = np.zeros(g["action_mask"].shape), np.zeros(g["action_mask"].shape)
        for i in trajectory_returns(g)[0]:
            positions, r = token_rewards(g, i)
            V = [g["token_value"][p] for p in positions] + [0.0]
            lam = max(0.0, 1 - 1 / (alpha * len(positions))) if positions else 0.0
            for out, decay in ((A, lam), (B, critic_lam)):
                after = 0.0
                for n in reversed(range(len(positions))):
                    after = r[n] + gamma * V[n + 1] - V[n] + gamma * decay * after
                    out[positions[n]] = after
        advantage.append(A)
        target.append(np.where(g["action_mask"], B + g["token_value"], 0))
    return {
        "advantage": standardize_batch(advantage, [g["action_mask"] for g in groups])
        if whiten
        else advantage,
        "target": target,
    }


def loop_ma_rlhf(g, gamma=1.0, lam=0.95, sigma="equal"):
    A, target = np.zeros(g["action_mask"].shape), np.zeros(g["action_mask"].shape)
    for i in trajectory_returns(g)[0]:
        positions, r = token_rewards(g, i)
        macros = []  # lists of indices into `positions`
        for n, (row, t) in enumerate(positions):
            same = (
                n > 0
                and positions[n - 1][0] == row
                and g["macro"][positions[n - 1]] == g["macro"][row, t]
            )
            macros = macros[:-1] + [[*macros[-1], n]] if same else [*macros, [n]]
        next_A = next_V = 0.0
        for m in reversed(macros):
            size = len(m)
            weight = {
                "equal": np.ones(size),
                "unit": np.eye(size)[-1],
                "position": 1 / (1.0 + np.arange(size)),
            }[sigma]
            weight = weight / weight.sum()
            V = sum(w * g["token_value"][positions[n]] for w, n in zip(weight, m, strict=True))
            R = sum(w * r[n] for w, n in zip(weight, m, strict=True))
            next_A = R + gamma * next_V - V + gamma * lam * next_A
            next_V = V
            for n in m:
                A[positions[n]], target[positions[n]] = next_A, next_A + V
    return {"advantage": A, "target": target}


def batch_poad(groups, gamma=0.95, lam=0.95, within=1.0):
    advantage, target = [], []
    for g in groups:
        A, V = np.zeros(g["action_mask"].shape), g["token_value"]
        for i in trajectory_returns(g)[0]:
            positions, r = token_rewards(g, i)
            next_A = next_V = 0.0
            for n in reversed(range(len(positions))):
                k = g["segment"][positions[n]]
                ends = all(g["segment"][later] != k for later in positions[n + 1 :])
                step = gamma if ends else within
                next_A = r[n] + step * next_V - V[positions[n]] + step * lam * next_A
                A[positions[n]], next_V = next_A, V[positions[n]]
        advantage.append(A)
        target.append(np.where(g["action_mask"], A + V, 0))
    masks = [g["action_mask"] for g in groups]
    return {"advantage": standardize_batch(advantage, masks), "target": target}


def batch_hae(
    groups, gamma=1.0, lam_turn=1.0, lam_seg=0.95, bootstrap=True, plan_switch=False, whiten=False
):
    names = {1: "plan", 2: "switch", 3: "low"}
    levels = [hae_levels(g, gamma, lam_turn, lam_seg, bootstrap) for g in groups]
    columns = {
        "advantage": [np.zeros(g["action_mask"].shape) for g in groups],
        "target": [np.zeros(g["action_mask"].shape) for g in groups],
    }
    if whiten:
        for kind, name in names.items():
            owners = []
            for n, g in enumerate(groups):
                kinds = (1, 2) if plan_switch and name == "plan" else (kind,)
                members = {
                    (i, g["segment"][p])
                    for i in trajectory_returns(g)[0]
                    for p in token_positions(g, i)
                    if g["kind"][p] in kinds
                }
                owners += [(n, u) for u in levels[n][0][name] if u in members]
            values = [levels[n][0][name][u] for n, u in owners]
            new = {(n, u): z_score(values, levels[n][0][name][u], eps=1e-6) for n, u in owners}
            for (n, u), x in new.items():
                levels[n][0][name][u] = x
    for n, g in enumerate(groups):
        A, target = levels[n]
        for i in trajectory_returns(g)[0]:
            for p in token_positions(g, i):
                u = (i, g["segment"][p])
                if u[1] < 0:
                    continue
                kind = g["kind"][p]
                if kind in names:
                    columns["advantage"][n][p] = A[names[kind]].get(u, 0.0)
                if kind == 2 and plan_switch:
                    columns["advantage"][n][p] += A["plan"].get(u, 0.0)
                own = target[names.get(kind, "low")]
                columns["target"][n][p] = own.get(u, target["low"][u])
    return columns


def batch_spa(groups, alpha=1.0, beta=0.5, gamma=1.0, lam=0.95, form="paper"):
    blended = []
    for g in groups:
        trajectories, R = trajectory_returns(g)
        reward = np.zeros(g["reward"].shape)
        for i, k in segments(g):
            ks, others = segments_of(g, i), [R[j] for j in trajectories if j != i]
            if form == "paper":
                reward[i, k] = alpha * g["progress"][i, k] + beta * g["grounded"][i, k]
            else:
                loo = R[i] - np.mean(others) if others else 0.0
                reward[i, k] = (loo + beta * g["grounded"][i, k]) * (len(ks) - ks.index(k) - 1)
        blended.append({**g, "reward": reward})
    return batch_ppo(blended, gamma, lam)


def batch_masked_gae(groups, gamma=1.0, lam=1.0):
    return batch_ppo(groups, gamma, lam)


def loop_archer(g, baseline=False):
    A = on_segments(g, {u: g["action_value"][u] - g["value"][u] for u in segments(g)})
    return (
        {"advantage": np.where(g["action_mask"], A - g["token_value"], 0), "target": A}
        if baseline
        else A
    )
