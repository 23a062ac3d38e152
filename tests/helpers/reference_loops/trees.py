"""Trees and Monte Carlo values. A tree is read off the paths here, by dictionaries and recursion; `node_parent` is never looked at."""

import math
from functools import cache

import numpy as np
from small_rollouts import basics, by_trajectory, tokens, z


def steps(g, i):
    return [k for k in range(g["reward"].shape[1]) if g["segment_mask"][i, k]]


class Tree:
    def __init__(self, g):
        there, self.R = basics(g)
        self.children, self.ends, self.through, self.parent, self.copies = (
            {0: []},
            {0: []},
            {0: []},
            {},
            {},
        )
        self.node, self.known = {}, {}
        for i in there:
            at = 0
            self.through[0].append(i)
            for k in steps(g, i):
                n = int(g["node"][i, k])
                if n not in self.children:
                    (
                        self.children[n],
                        self.ends[n],
                        self.through[n],
                        self.parent[n],
                        self.copies[n],
                    ) = [], [], [], at, set()
                    self.children[at].append(n)
                assert self.parent[n] == at
                self.through[n].append(i)
                self.node[i, k] = at = n
            self.ends[at].append(i)
            for r, t in tokens(g, i):
                if (i, int(g["segment"][r, t])) in self.node:
                    self.copies[self.node[i, int(g["segment"][r, t])]].add(i)

    def by_paths(self, n):
        return self.once(("paths", n), lambda: [self.R[i] for i in self.through[n]])

    def by_children(self, n):
        return self.once(("children", n), lambda: self.below(n, self.by_children))

    def once(self, name, values):
        if name not in self.known:
            self.known[name] = np.mean(values())
        return self.known[name]

    def below(self, n, value):
        """The values of a node's children; the paths that end in it are one more."""
        return [value(c) for c in self.children[n]] + (
            [np.mean([self.R[i] for i in self.ends[n]])] if self.ends[n] else []
        )


def on_edges(g, tree, number, kept=lambda n: True, heard=lambda r, t: True):
    once, kept = cache(number), cache(kept)

    def at(i, r, t):
        return tree.node.get((i, int(g["segment"][r, t])))

    def advantage(i, r, t):
        return 0.0 if at(i, r, t) is None else once(at(i, r, t))

    def weight(i, r, t):
        n = at(i, r, t)
        return 0.0 if n is None or not kept(n) or not heard(r, t) else 1 / len(tree.copies[n])

    return {"advantage": by_trajectory(g, advantage), "weight": by_trajectory(g, weight)}


def loop_vine(g):
    def number(i, r, t):
        k = g["segment"][r, t]
        after = [m for m in steps(g, i) if m > k]
        return g["reward"][i, k] + (g["value"][i, after[0]] if after else 0.0) - g["value"][i, k]

    return by_trajectory(g, number)


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


def equal(values):
    return np.ptp(values) <= 1e-9 * (1 + np.abs(values).max())


def loop_spo_tree(g, normalize=False, prob_mask=0.9, drop=True):
    tree = Tree(g)

    def number(n):
        p = tree.parent[n]
        around = tree.below(p, tree.by_children)
        A = tree.by_children(n) - tree.by_children(p)
        return 0.0 if equal(around) else A / (np.std(around) + 1e-6) if normalize else A

    return on_edges(
        g,
        tree,
        number,
        lambda n: not drop or abs(number(n)) > 1e-9,
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

    def number(n):
        p = tree.parent[n]
        if weighting == "code":
            V, W = tree.by_paths(n) / scale[n], tree.by_paths(p) / scale[p]
            return (V - W) + V
        A = (tree.by_paths(n) - tree.by_paths(0)) + (tree.by_paths(n) - tree.by_paths(p))
        return A / scale[n] if weighting == "paper" else A

    return on_edges(g, tree, number)


def loop_treeps_rag(g):
    tree = Tree(g)

    def number(n):
        V, p = tree.by_paths, tree.parent[n]
        return ((V(n) - V(0)) + (V(n) - V(p))) / math.sqrt(len(tree.through[n]))

    return on_edges(g, tree, number)


def loop_tree_rpo(g, std="bernoulli", mean="paths", drop=True):
    tree = Tree(g)
    V = tree.by_paths if mean == "paths" else tree.by_children

    def parts(n):
        around = tree.below(tree.parent[n], V)
        mu = np.mean(around)
        scale = math.sqrt(max(mu * (1 - mu), 0)) if std == "bernoulli" else np.std(around)
        return (V(n) - mu) / (scale + 1e-6) if scale > 0 and not equal(around) else None

    return on_edges(g, tree, lambda n: parts(n) or 0.0, lambda n: not drop or parts(n) is not None)


def loop_malt(g, leave_one_out=False):
    tree = Tree(g)

    def number(n):
        around = tree.below(tree.parent[n], tree.by_children)
        V = tree.by_children(n)
        if leave_one_out:
            return V - (sum(around) - V) / (len(around) - 1) if len(around) > 1 else 0.0
        return V - np.mean(around)

    return on_edges(g, tree, number)


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
    return on_edges(g, tree, lambda n: 0.0 if flat else z(list(shaped.values()), shaped[n]))


def lineage(tree, n):
    return [n, *lineage(tree, tree.parent[n])] if n else []


def loop_slate(g):
    where = [(i, k) for i in basics(g)[0] for k in steps(g, i)]

    def number(i, r, t):
        k = g["segment"][r, t]
        return z(
            [g["verdict"][at] for at in where if g["turn_parent"][at] == g["turn_parent"][i, k]],
            g["verdict"][i, k],
        )

    return by_trajectory(g, number)
