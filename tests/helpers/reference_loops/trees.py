"""Reference loops of the estimators in `jaxcredit/credit/trees/`."""

import math
from functools import cache

import numpy as np

from reference_loops.prompt import (
    on_segments,
    on_tokens,
    segments,
    segments_of,
    token_positions,
    trajectory_returns,
    z_score,
)


class Tree:
    """The tree of one prompt, read from the nodes along each trajectory by dictionaries;
    `node_parent` is not used.
    """

    def __init__(self, g):
        trajectories, self.R = trajectory_returns(g)
        self.children = {0: []}
        self.ends = {0: []}  # trajectories that end in the node
        self.through = {0: []}  # trajectories that pass through the node
        self.parent = {}
        self.copies = {}  # trajectories with tokens in the node
        self.node = {}  # (i, k): the node of a segment
        self.means = {}
        for i in trajectories:
            above = 0
            self.through[0].append(i)
            for k in segments_of(g, i):
                n = int(g["node"][i, k])
                if n not in self.children:
                    self.children[n], self.ends[n], self.through[n] = [], [], []
                    self.parent[n], self.copies[n] = above, set()
                    self.children[above].append(n)
                assert self.parent[n] == above
                self.through[n].append(i)
                self.node[i, k] = above = n
            self.ends[above].append(i)
            for r, t in token_positions(g, i):
                if (i, int(g["segment"][r, t])) in self.node:
                    self.copies[self.node[i, int(g["segment"][r, t])]].add(i)

    def by_paths(self, n):
        """Mean return of the trajectories through a node."""
        return self.mean(("paths", n), lambda: [self.R[i] for i in self.through[n]])

    def by_children(self, n):
        """Mean over a node's children of their values, recursively."""
        return self.mean(("children", n), lambda: self.below(n, self.by_children))

    def mean(self, key, values):
        if key not in self.means:
            self.means[key] = np.mean(values())
        return self.means[key]

    def below(self, n, value):
        """The values of a node's children, and one more: the mean return of the trajectories that
        end in the node.
        """
        return [value(c) for c in self.children[n]] + (
            [np.mean([self.R[i] for i in self.ends[n]])] if self.ends[n] else []
        )


def on_edges(g, tree, node_value, keep_node=lambda n: True, keep_token=lambda r, t: True):
    """Advantage and weight columns: a node's value on its tokens, weighted by 1 / the trajectories
    with tokens in it.

    Tokens get weight 0 where `keep_node` or `keep_token` is false.

    """
    node_value, keep_node = cache(node_value), cache(keep_node)

    def node(i, r, t):
        return tree.node.get((i, int(g["segment"][r, t])))

    def advantage(i, r, t):
        return 0.0 if node(i, r, t) is None else node_value(node(i, r, t))

    def weight(i, r, t):
        n = node(i, r, t)
        return (
            0.0
            if n is None or not keep_node(n) or not keep_token(r, t)
            else 1 / len(tree.copies[n])
        )

    return {"advantage": on_tokens(g, advantage), "weight": on_tokens(g, weight)}


def equal(values):
    """Whether values differ by rounding only."""
    return np.ptp(values) <= 1e-9 * (1 + np.abs(values).max())


def lineage(tree, n):
    """A node, its parent and so on, without the root."""
    return [n, *lineage(tree, tree.parent[n])] if n else []


def loop_tempo(g, gate=1):
    trajectories, R = trajectory_returns(g)
    rows = {i: [r for r, j in enumerate(g["row"]) if j == i] for i in trajectories}
    std = np.std(list(R.values())) if trajectories else 0.0
    flat = len(set(R.values())) <= 1

    def same_prefix(r, q, t):
        return all(
            g["token_mask"][r, c] == g["token_mask"][q, c]
            and (not g["token_mask"][r, c] or g["tokens"][r, c] == g["tokens"][q, c])
            for c in range(t)
        )

    def members(r, t):
        return [j for j in trajectories if any(same_prefix(r, q, t) for q in rows[j])]

    def value(i, r, t):
        if flat:
            return 0.0
        before, after = members(r, t), members(r, t + 1)
        change = (
            np.mean([R[j] for j in after]) - np.mean([R[j] for j in before])
            if len(after) >= gate
            else 0.0
        )
        return (R[i] - np.mean(list(R.values())) + change) / (std + 1e-6)

    return on_tokens(g, value)


def loop_sploo(g, lam=0.0, a=0.0, c=3.0, c_b=3.0, ramp=8.0, least=2, kurtosis=True):
    """Computed column by column from the common prefixes."""
    trajectories, R = trajectory_returns(g)
    rows, T = g["action_mask"].shape
    A = np.zeros((rows, T))
    key = np.where(g["token_mask"], g["tokens"], -1)
    end = [max([t + 1 for t in range(T) if g["token_mask"][r, t]], default=0) for r in range(rows)]

    def lcp(r, q):
        differ = np.nonzero(key[r] != key[q])[0]
        return int(differ[0]) if len(differ) else T

    for r, i in enumerate(g["row"]):
        O = [j for j in trajectories if j != i]  # noqa: E741
        if i not in trajectories or not O:
            continue
        row_of = {
            j: max((q for q in range(rows) if g["row"][q] == j), key=lambda q, r=r: (lcp(r, q), -q))
            for j in O
        }
        L = {j: lcp(r, row_of[j]) for j in O}
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
                child = next((k for k in children if lcp(row_of[k[0]], row_of[j]) >= t + 1), None)
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
                left = np.mean([end[row_of[j]] - t - 1 for j in inside])
                beta = a * (1 - c / e) * min(1, max(left, 0) / ramp) ** 2 if e > c else 0.0
            omega = 1 + lam * (1 - 1 / (m + 1)) / (1 - 1 / len(trajectories)) + beta
            A[r, t] = omega * (R[i] - b) if g["action_mask"][r, t] else 0.0
    return A


def loop_vine(g):
    def value(i, r, t):
        k = g["segment"][r, t]
        after = [m for m in segments_of(g, i) if m > k]
        return g["reward"][i, k] + (g["value"][i, after[0]] if after else 0.0) - g["value"][i, k]

    return on_tokens(g, value)


def batch_spo_chain(groups, prob_mask=0.9, whiten=False, ddof=0):
    advantage, weight = [loop_vine(g) for g in groups], []
    for g, A in zip(groups, advantage, strict=True):
        p = np.exp(g["logp"])
        weight.append(g["action_mask"] & (p < prob_mask) if prob_mask else g["action_mask"])
        A[p > (prob_mask or 2)] = 0
    if whiten:
        some = any(w.any() for w in weight)
        counted = [w if some else g["action_mask"] for w, g in zip(weight, groups, strict=True)]
        x = np.concatenate([A[c] for A, c in zip(advantage, counted, strict=True)])
        advantage = [
            np.where(c, (A - x.mean()) / (x.std(ddof=ddof) + 1e-6), 0)
            for A, c in zip(advantage, counted, strict=True)
        ]
    return {"advantage": advantage, "weight": [w.astype(float) for w in weight]}


def loop_spo_tree(g, normalize=False, prob_mask=0.9, drop=True):
    tree = Tree(g)

    def node_value(n):
        p = tree.parent[n]
        siblings = tree.below(p, tree.by_children)
        A = tree.by_children(n) - tree.by_children(p)
        return 0.0 if equal(siblings) else A / (np.std(siblings) + 1e-6) if normalize else A

    return on_edges(
        g,
        tree,
        node_value,
        lambda n: not drop or abs(node_value(n)) > 1e-9,
        lambda r, t: not prob_mask or np.exp(g["logp"][r, t]) < prob_mask,
    )


def loop_tree_rl(g, weighting="paper"):
    tree = Tree(g)
    R = dict(tree.R)
    if len(R) > 1:
        tree.R = {i: R[i] - np.mean([R[j] for j in R if j != i]) for i in R}
    else:
        tree.R = dict.fromkeys(R, 0.0)
    scale = {n: math.sqrt(len(below)) if below else 1.0 for n, below in tree.through.items()}

    def node_value(n):
        p = tree.parent[n]
        if weighting == "code":
            V, W = tree.by_paths(n) / scale[n], tree.by_paths(p) / scale[p]
            return (V - W) + V
        A = (tree.by_paths(n) - tree.by_paths(0)) + (tree.by_paths(n) - tree.by_paths(p))
        return A / scale[n] if weighting == "paper" else A

    return on_edges(g, tree, node_value)


def loop_treeps_rag(g):
    tree = Tree(g)

    def node_value(n):
        V, p = tree.by_paths, tree.parent[n]
        return ((V(n) - V(0)) + (V(n) - V(p))) / math.sqrt(len(tree.through[n]))

    return on_edges(g, tree, node_value)


def loop_tree_rpo(g, std="bernoulli", mean="paths", drop=True):
    tree = Tree(g)
    V = tree.by_paths if mean == "paths" else tree.by_children

    def parts(n):
        siblings = tree.below(tree.parent[n], V)
        mu = np.mean(siblings)
        scale = math.sqrt(max(mu * (1 - mu), 0)) if std == "bernoulli" else np.std(siblings)
        return (V(n) - mu) / (scale + 1e-6) if scale > 0 and not equal(siblings) else None

    return on_edges(g, tree, lambda n: parts(n) or 0.0, lambda n: not drop or parts(n) is not None)


def loop_malt(g, leave_one_out=False):
    tree = Tree(g)

    def node_value(n):
        siblings = tree.below(tree.parent[n], tree.by_children)
        V = tree.by_children(n)
        if leave_one_out:
            return V - (sum(siblings) - V) / (len(siblings) - 1) if len(siblings) > 1 else 0.0
        return V - np.mean(siblings)

    return on_edges(g, tree, node_value)


def loop_mars2(g, gamma=0.5, lam=0.5, in_place=True):
    tree = Tree(g)
    r = {
        n: np.mean([g["reward"][i, k] for (i, k), m in tree.node.items() if m == n])
        for n in tree.parent
    }
    shaped = {}
    for n in sorted(r, key=lambda n: (len(lineage(tree, n)), n)):  # parents before their children
        p = tree.parent[n]
        others = [r[c] for c in tree.children[p] if c != n]
        above = (shaped if in_place else r).get(p)
        if above is None:
            base = np.mean(others) if others else r[n]
        else:
            base = (1 - lam) * above + lam * np.mean(others) if others else above
        shaped[n] = r[n] + gamma * (r[n] - base)
    flat = len(r) > 0 and equal(list(r.values()))
    return on_edges(g, tree, lambda n: 0.0 if flat else z_score(list(shaped.values()), shaped[n]))


def loop_slate(g):
    parent, verdict = g["turn_parent"], g["verdict"]
    return on_segments(
        g,
        {
            u: z_score([verdict[v] for v in segments(g) if parent[v] == parent[u]], verdict[u])
            for u in segments(g)
        },
    )
