"""Tree estimators and labels: worked examples, reductions, a tree as paths and as edges."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparisons import assert_close
from reference_loops import LOOPS
from reference_loops.prompt import groups, segments_of
from reference_loops.trees import Tree, lineage
from small_rollouts import columns, jitted, one_prompt, random_rollout

import jaxcredit.credit as catalogue
from jaxcredit import kernels, losses, signals
from jaxcredit.credit.trees.mars2 import node_rewards, shaped_rewards
from jaxcredit.rollout import Rollout
from jaxcredit.rollout.synthetic import _tree

vine, spo_chain, spo_tree, tree_rl, tree_rpo, treeps_rag, mars2, malt, slate = (
    jitted(getattr(catalogue, name))
    for name in (
        "vine",
        "spo_chain",
        "spo_tree",
        "tree_rl",
        "tree_rpo",
        "treeps_rag",
        "mars2",
        "malt",
        "slate",
    )
)
dr_grpo, grpo, rloo = (jitted(getattr(catalogue, name)) for name in ("dr_grpo", "grpo", "rloo"))
ON_TREES = [spo_tree, tree_rl, tree_rpo, treeps_rag, mars2, malt]


N, G, K, LONGEST = (
    8,
    27,
    3,
    3,
)  # one shape for all trees of this file, so that each program is compiled once
M = G * K + 1


def planted(paths, reward):
    """N copies of a tree, one token per edge.

    `paths` are lists of nodes; `reward` has each path's outcome, or one number for each edge.
    """
    real, node, parent, earned = (
        np.zeros((G, K), bool),
        np.full((G, K), 99),
        np.full(M, -7),
        np.zeros((G, K)),
    )
    parent[0] = -1
    for g, (path, r) in enumerate(zip(paths, reward, strict=True)):
        n = len(path)
        real[g, :n], node[g, :n], parent[path] = True, path, [0, *path[:-1]]
        earned[g, :n] = r if np.ndim(r) else [0] * (n - 1) + [r]
    T = K * LONGEST
    mask, segment = (
        np.pad(x, ((0, 0), (0, T - K)), constant_values=c)
        for x, c in ((real, False), (np.where(real, np.arange(K), -1), -1))
    )
    tokens, logp = np.zeros((G, T)), np.full((G, T), np.log(0.5))
    one = one_prompt(
        earned,
        tokens,
        mask,
        segment,
        real,
        row=np.arange(G),
        node=node,
        node_parent=parent,
        logp=logp,
    )
    return jax.tree.map(
        lambda x: jnp.asarray(np.repeat(np.asarray(x), N, 0)),
        replace(one, token_mask=one.action_mask),
    )


@jax.jit
@jax.vmap
def values(group):
    """Values of each node by path_mean and child_mean, leave-one-out values, labels and pairs."""
    tree = kernels.tree_of(group["node"], group["node_parent"], group.segment_mask)
    R = jnp.where(group.segment_mask, group.reward, 0).sum(-1)
    paths, children = kernels.path_mean(R, tree), kernels.child_mean(R, tree)
    left = kernels.center(R, where=group.segment_mask.any(-1), leave_one_out=True)
    label = signals.malt_labels(children)
    return {
        "paths": paths,
        "children": children,
        "left": left,
        "of left": kernels.path_mean(left, tree),
        "label": label,
        "pairs": signals.sibling_pairs(label, tree),
    }


@jax.jit
@jax.vmap
def shaped(group):
    """Shaped rewards of MARS^2 for each node, with in_place True and False."""
    tree = kernels.tree_of(group["node"], group["node_parent"], group.segment_mask)
    r, exists = node_rewards(group, tree)
    # node_rewards subtracts the largest reward; the shaping does not depend on it
    top = jnp.max(group.reward, where=group.segment_mask, initial=-jnp.inf)
    return tuple(top + shaped_rewards(r, tree, exists, in_place=x) for x in (True, False))


PAIRS = [[1, 3], [1, 4], [2, 5], [2, 6]]


@cache
def forest(seed, longest=LONGEST):
    """Random trees of up to 9 paths as two rollouts: a row per path, and a row per edge.

    Edges have 1 to 3 tokens, of high and of low probability.
    """
    rng = np.random.default_rng(seed)
    R, T = G, K * longest
    real = np.arange(K) < np.where(np.arange(G)[:, None] < 9, rng.integers(0, K + 1, (N, G, 1)), 0)
    signal = _tree(rng, real, M)
    kind = rng.integers(0, 2, (N, 1, 1))
    of_node = np.where(kind, rng.normal(size=(N, 1, M)), rng.integers(0, 2, (N, 1, M)))[:, 0]
    reward = np.take_along_axis(
        of_node, np.minimum(signal["node"], M - 1).reshape(N, -1), 1
    ).reshape(N, G, K)
    reward = np.where(real, reward, 1e3)
    size, p = rng.integers(1, longest + 1, (N, M)), rng.uniform(0.5, 1, (N, M * longest))
    shape, answer = (N, R, T), {}
    for layout in ("paths", "edges"):
        tokens, segment = np.zeros(shape, np.int32), np.full(shape, -1, np.int32)
        mask, valid, row = (
            np.zeros(shape, bool),
            np.zeros(shape, bool),
            np.full((N, R), G - 1, np.int32),
        )
        for n in range(N):
            used = {}  # row of each edge: that of the last path through it
            for g in range(G):
                t, row[n, g] = 0, g if layout == "paths" else row[n, g]
                line = np.zeros(T, np.int32)
                for k in np.flatnonzero(real[n, g]):
                    m = signal["node"][n, g, k]
                    width = size[n, m]
                    line[t : t + width] = m * longest + np.arange(width)
                    used[m] = (g, k, t, width, line.copy())
                    if layout == "paths":
                        tokens[n, g], segment[n, g, t : t + width] = line, k
                        mask[n, g, t : t + width] = valid[n, g, t : t + width] = True
                    t += width
            for r, (g, k, t, width, line) in enumerate(used.values() if layout == "edges" else ()):
                row[n, r], tokens[n, r], segment[n, r, t : t + width] = g, line, k
                mask[n, r, t : t + width], valid[n, r, : t + width] = True, True
        logp = np.where(
            mask, np.log(np.take_along_axis(p, tokens.reshape(N, -1), 1).reshape(shape)), 0
        )
        fields = {
            "tokens": tokens,
            "action_mask": mask,
            "logp": logp.astype(np.float32),
            "segment": segment,
            "reward": reward.astype(np.float32),
        }
        fields |= {"segment_mask": real, "row": row, "token_mask": valid}
        answer[layout] = Rollout(
            **{k: jnp.asarray(v) for k, v in fields.items()},
            signals={k: jnp.asarray(v) for k, v in signal.items()},
        )
    return answer["paths"], answer["edges"]


# ---------------------------------------------------------------- paths and edges


@jax.jit
def gradient(columns, rollout):
    """Gradient of the loss in each log-probability of each node's tokens, and the denominator."""
    at = jnp.arange(rollout.tokens.shape[0])[:, None, None]

    def loss(theta):
        new = theta[at, rollout.tokens]
        batch = losses.Batch(
            rollout.action_mask, jax.lax.stop_gradient(new), **columns, segment=rollout.segment
        )
        return losses.token_mean(losses.ppo_clip(new, batch), batch)

    slope, n = jax.grad(loss, has_aux=True)(jnp.full((rollout.tokens.shape[0], M * LONGEST), -1.0))
    return slope, n


@pytest.mark.parametrize("credit", ON_TREES, ids=lambda c: c.__name__)
def test_a_tree_as_paths_and_as_edges_gives_one_gradient(credit):
    paths, edges = forest(0)
    (a, n), (b, m) = (gradient(catalogue.columns(credit(r), r), r) for r in (paths, edges))
    assert_close(a, b, 1e-6)
    assert float(n) == pytest.approx(float(m)) and float(n) > 20 and (np.abs(a) > 1e-3).sum() > 20
    if credit is not tree_rpo:  # its credit is 0 on most edges, shared ones included
        alike = catalogue.columns(credit(paths), paths) | {"weight": paths.action_mask * 1.0}
        assert (
            jnp.abs(gradient(alike, paths)[0] - b) > 1e-3
        ).any()  # without the weights, shared edges count several times


def test_each_edge_counts_once():
    for rollout in forest(0):
        weight = np.asarray(malt(rollout)["weight"])
        for w, g in zip(weight, groups(rollout), strict=True):
            total = np.bincount(g["tokens"][g["action_mask"]], w[g["action_mask"]])
            assert_close(total[total > 0], 1.0)


# ---------------------------------------------------------------- the loops, with other knobs


GRPO, ALL, CHILDREN = (
    {"normalize": True},
    {"prob_mask": None, "drop": False},
    {"std": "children", "mean": "children", "drop": False},
)


@pytest.mark.parametrize(
    ("credit", "knobs"),
    [
        (spo_tree, GRPO),
        (spo_tree, ALL),
        (tree_rl, {"weighting": "code"}),
        (tree_rl, {"weighting": "none"}),
        (tree_rpo, CHILDREN),
        pytest.param(
            mars2, {"gamma": 0.3, "lam": 0.2, "in_place": False}, marks=pytest.mark.slow
        ),  # its shaping is tested below
        (malt, {"leave_one_out": True}),
    ],
    ids=lambda x: x.__name__ if callable(x) else "-".join(f"{k}={v}" for k, v in x.items()),
)
def test_oracle_with_knobs(credit, knobs):
    rollout, loop = forest(1)[0], LOOPS[credit.__name__]
    got, other = columns(credit(rollout, **knobs)), columns(credit(rollout))
    for n, g in enumerate(groups(rollout)):
        for name, want in columns(loop(g, **knobs)).items():
            assert_close(got[name][n], want, 2e-4)
    assert any((np.abs(got[name] - other[name]) > 1e-3).any() for name in got)


@pytest.mark.parametrize(
    "knobs", [{"prob_mask": 0.3, "whiten": True, "ddof": 1}, {"prob_mask": None}], ids=str
)
def test_spo_chain_oracle_with_knobs(knobs):
    rollout = random_rollout(3, ("value",), T=14)
    got, want = spo_chain(rollout, **knobs), LOOPS["spo_chain"](groups(rollout), **knobs)
    assert_close(got["weight"], want["weight"])
    assert_close(got["advantage"], want["advantage"], 2e-4)


# ---------------------------------------------------------------- kernels


def test_tempo_s_prefix_tree():
    """On the tree of common prefixes path_mean is `prefix_value`; child_mean only on full trees."""
    rng = np.random.default_rng(0)
    tokens, reward = rng.integers(0, 2, (7, 5)), jnp.asarray(rng.normal(size=7), jnp.float32)
    prefixes = sorted({tuple(y[:t]) for y in tokens for t in range(6)}, key=len)
    number = {p: i for i, p in enumerate(prefixes)}
    node = jnp.asarray([[number[tuple(y[: t + 1])] for t in range(5)] for y in tokens], jnp.int32)
    parent = jnp.asarray([number[p[:-1]] if p else -1 for p in prefixes], jnp.int32)
    ones = jnp.ones((7, 5), bool)

    @jax.jit
    def both(tokens, node, parent):
        tree = kernels.tree_of(node, parent, ones)
        V = [mean(reward, tree) for mean in (kernels.path_mean, kernels.child_mean)]
        return [
            jnp.pad(kernels.node_to_segment(v, tree), ((0, 0), (1, 0)), constant_values=v[0])
            for v in V
        ], kernels.prefix_value(tokens, ones, reward, where=ones[:, 0])

    (paths, children), want = both(jnp.asarray(tokens), node, parent)
    assert_close(paths, want, 1e-6)
    assert np.abs(children - want).max() > 0.05


def test_the_two_means_agree_on_full_trees_and_on_ragged_ones_do_not():
    for paths, same in ((PAIRS, True), ([*PAIRS, [2, 7]], False)):
        V = values(planted(paths, np.arange(len(paths)) ** 2.0))
        assert np.allclose(V["paths"], V["children"]) == same
    assert_close(V["paths"][0, :3], [30 / 5, 0.5, 29 / 3])
    assert_close(V["children"][0, :3], [(0.5 + 29 / 3) / 2, 0.5, 29 / 3])


@pytest.mark.parametrize("reward", [0.7, 1e4 + 0.3, -3.3e-5])
def test_equal_rewards_of_any_value_are_exactly_nothing(reward):
    rollout = planted([[1, 3], [1, 4], [1, 5], [2, 6], [2]], [reward] * 5)
    for credit in (spo_tree, tree_rl, tree_rpo, treeps_rag, malt):
        assert (credit(rollout)["advantage"] == 0).all()
    assert (
        mars2(replace(rollout, reward=jnp.full_like(rollout.reward, reward)))["advantage"] == 0
    ).all()


def test_siblings_that_are_equal_but_for_rounding_have_no_deviation():
    """A tree of three subtrees with the same outcomes in different orders."""
    paths, reward = [], []
    for a, order in enumerate(([0.1, 0.2, 0.7], [0.7, 0.1, 0.2], [0.2, 0.7, 0.1])):
        for b, r in enumerate(order):
            paths.append([1 + a, 4 + 3 * a + b])
            reward.append(r)
    rollout = planted(paths, reward)
    for answer in (spo_tree(rollout, **GRPO), tree_rpo(rollout, **CHILDREN)):
        assert (answer["advantage"][0, :, 0] == 0).all()
        assert np.abs(answer["advantage"][0, :9, 1]).max() > 1


def test_sums_up_and_down_a_tree_of_parents():
    rng = np.random.default_rng(2)
    M = 40
    parent = np.array([-1, *(rng.integers(max(0, i - 3), i) for i in range(1, M))])
    x, keep = rng.normal(size=M), rng.uniform(0.5, 1, M)
    up, down = x.copy(), x.copy()
    for i in range(M - 1, 0, -1):
        up[parent[i]] += keep[i] * up[i]
    for i in range(1, M):
        down[i] += keep[i] * down[parent[i]]
    x, parent, keep = (
        jnp.asarray(x, jnp.float32),
        jnp.asarray(parent, jnp.int32),
        jnp.asarray(keep, jnp.float32),
    )
    got = jax.jit(
        lambda: (
            kernels.sum_up_tree(x, parent, keep),
            kernels.sum_down_tree(x, parent, keep),
            kernels.sum_up_tree(x, parent),
        )
    )()
    assert_close(got[0], up, 1e-5)
    assert_close(got[1], down, 1e-5)
    assert_close(got[2][0], x.sum(), 1e-5)


def test_leave_one_out_of_leaves_sums_to_zero_and_so_is_the_root():
    V = values(planted(PAIRS, [1, 0, 1, 1]))
    assert_close(V["left"][0, :4], [1 / 3, -1, 1 / 3, 1 / 3], 1e-6)
    assert_close(V["of left"][0, :3], [0, -1 / 3, 1 / 3], 1e-6)
    assert_close(values(forest(2)[0])["left"].sum(-1), 0, 1e-5)


# ---------------------------------------------------------------- chains


def test_vine_example_and_telescoping():
    rollout = one_prompt(
        [[0, 0, 1]], [[1, 2, 3, 4]], segment=[[0, 1, 1, 2]], value=[[0.4, 0.7, 0.6]]
    )
    assert_close(vine(rollout)[0, 0], [0.3, -0.1, -0.1, 0.4])
    several = random_rollout(4, ("value",), T=14)
    A = np.asarray(vine(several))
    for a, g in zip(A, groups(several), strict=True):
        for i in range(len(g["segment_mask"])):
            by_step = {
                int(k): a[i][(g["segment"][i] == k) & g["action_mask"][i]]
                for k in segments_of(g, i)
            }
            if by_step and all(len(x) for x in by_step.values()):
                assert_close(
                    sum(x[0] for x in by_step.values()),
                    g["reward"][i][g["segment_mask"][i]].sum() - g["value"][i, 0],
                    1e-4,
                )
    assert_close(vine(several), spo_chain(several, prob_mask=None)["advantage"], 0)
    assert (jnp.abs(vine(several) - spo_chain(several)["advantage"]) > 1e-3).any()


def test_spo_chain_example():
    p = np.array([0.95, 0.5, 0.99, 0.7, 0.97, 0.6, 0.98, 0.8])
    segment = kernels.split_at_uncertainty(jnp.log(p), jnp.ones(8, bool), interval=2)
    assert segment.tolist() == [-1, 0, 0, 0, 0, 1, 1, 1]  # cut after 0 and after 4
    rollout = one_prompt(
        [[0, 1]], [range(8)], segment=[segment], value=[[0.4, 0.7]], logp=[np.log(p)]
    )
    assert_close(spo_chain(rollout, prob_mask=None)["advantage"][0, 0], [0] + [0.3] * 7, 1e-6)
    answer = spo_chain(rollout)
    assert_close(answer["advantage"][0, 0], [0, 0.3] * 4, 1e-6)
    assert_close(answer["weight"][0, 0], [0, 1] * 4)


def test_cut_points():
    logp, mask = jnp.log(jnp.array([0.5, 0.5, 0.95, 0.5, 0.5])), jnp.array([1, 0, 1, 1, 1], bool)
    assert kernels.split_at_uncertainty(logp, mask, interval=1).tolist() == [
        0,
        -1,
        0,
        1,
        2,
    ]  # a cut before an uncertain first token
    assert kernels.split_at_uncertainty(logp, mask, interval=1, most=2).tolist() == [0, -1, 0, 1, 1]
    assert kernels.split_at_uncertainty(logp, mask, rho=0.99, interval=2).tolist() == [
        0,
        -1,
        0,
        1,
        1,
    ]
    assert (
        kernels.split_at_uncertainty(logp, mask, rho=0.4).tolist() == [-1] * 5
    )  # no uncertain token: no segment
    whole = kernels.split_at_uncertainty(logp, mask, interval=10**6)
    assert whole.tolist() == [0, -1, 0, 0, 0]
    assert_close(
        vine(one_prompt([1], [range(5)], action_mask=[mask], segment=[whole], value=[[0.3]]))[0, 0],
        0.7 * mask,
    )  # r - V(prompt)


def test_spo_chain_whitens_over_tokens_with_a_weight_or_over_all():
    logp = np.log([[0.5, 0.95, 0.5], [0.5, 0.5, 0.95]])
    rollout = one_prompt(
        [[0, 1], [0, 0]], segment=[[0, 0, 1], [0, 1, 1]], value=[[0.4, 0.7], [0.4, 0.2]], logp=logp
    )
    x = np.array([0.3, 0.3, -0.2, -0.2])
    A = np.asarray(spo_chain(rollout, whiten=True, ddof=1, eps=0.0)["advantage"][0])
    assert_close(A[[0, 0, 1, 1], [0, 2, 0, 1]], (x - x.mean()) / x.std(ddof=1))
    assert A[0, 1] == A[1, 2] == 0
    sure = spo_chain(replace(rollout, logp=jnp.zeros((1, 2, 3))), whiten=True)
    assert (sure["weight"] == 0).all() and (sure["advantage"] == 0).all()


# ---------------------------------------------------------------- trees


def test_spo_tree_example():
    rollout = planted(PAIRS, [1, 0, 1, 1])
    answer = spo_tree(rollout)
    assert_close(
        answer["advantage"][0, :4, :2], [[-0.25, 0.5], [-0.25, -0.5], [0.25, 0], [0.25, 0]]
    )
    assert_close(
        answer["weight"][0, :4, :2], [[0.5, 1], [0.5, 1], [0.5, 0], [0.5, 0]]
    )  # equal siblings have weight 0
    assert_close(spo_tree(rollout, **ALL)["weight"][0, 2:4, :2], [[0.5, 1]] * 2)
    assert_close(spo_tree(rollout, **GRPO)["advantage"][0, :4:2, 0], [-0.999996, 0.999996], 1e-6)
    sure = replace(rollout, logp=rollout.logp.at[0, 0, :2].set(jnp.log(jnp.array([0.95, 0.85]))))
    assert_close(spo_tree(sure)["weight"][0, 0, :2], [0, 1])


def test_spo_tree_paths_sum_to_leaf_less_root_and_siblings_to_zero():
    rollout = forest(2)[0]
    A = np.asarray(spo_tree(rollout)["advantage"])
    for a, g in zip(A, groups(rollout), strict=True):
        tree = Tree(g)
        of = {n: 0.0 for n in tree.parent}
        for (i, k), n in tree.node.items():
            of[n] = a[i][(g["segment"][i] == k) & g["action_mask"][i]][0]
        for i in tree.R:
            ends = tree.node[i, segments_of(g, i)[-1]]
            assert_close(
                sum(of[n] for n in lineage(tree, ends)),
                tree.by_children(ends) - tree.by_children(0),
                1e-4,
            )
        for n, children in tree.children.items():
            if children and not tree.ends[n]:
                assert abs(sum(of[c] for c in children)) < 1e-4


def test_where_branches_part_at_the_root_alone_trees_are_baselines():
    rng = np.random.default_rng(0)
    fan = planted([[1], [2], [3], [4], [5]], rng.normal(size=5))
    deep = planted([[1], [2], [3], [4], [4, 6]], rng.normal(size=5))
    for rollout, same in ((fan, True), (deep, False)):
        pairs = [
            (spo_tree(rollout), dr_grpo(rollout)),
            (malt(rollout), dr_grpo(rollout)),
            (malt(rollout, leave_one_out=True), rloo(rollout)),
            (tree_rl(rollout, weighting="none"), 2 * rloo(rollout)),
            (tree_rl(rollout, weighting="paper"), 2 * rloo(rollout)),
            (tree_rpo(rollout, **CHILDREN), grpo(rollout)),
            (mars2(rollout, gamma=0.0), grpo(rollout)),
        ]
        for a, b in pairs:
            assert np.allclose(a["advantage"], b, atol=1e-5) == same
    chain = planted([[1, 2]], [3.0])  # an only child
    for credit in (spo_tree, malt, tree_rpo):
        assert (credit(chain)["advantage"] == 0).all()


def test_tree_rl_example():
    rollout = planted(PAIRS, [1, 0, 1, 1])
    A = tree_rl(rollout)["advantage"][0]
    assert_close(A[[0, 2], 0], [-0.471405, 0.471405], 1e-5)
    assert_close(A[:2, 1], [1.0, -1.666667], 1e-5)
    s = np.sqrt(2)
    code = tree_rl(rollout, weighting="code")["advantage"][0]
    assert_close(
        code[[0, 2], 0], [-2 / 3 / s, 2 / 3 / s], 1e-5
    )  # the root's value is 0, whatever it is divided by
    assert_close(code[:2, 1], [2 / 3 + 1 / 3 / s, -2 + 1 / 3 / s], 1e-5)
    assert_close(tree_rl(rollout, weighting="none")["advantage"][0, :4:2, 0], [-2 / 3, 2 / 3], 1e-5)


def test_treeps_rag_is_tree_rl_with_each_leaf_in_its_baseline():
    rollout = forest(2)[0]
    n = np.asarray(rollout.segment_mask.any(-1).sum(-1))[:, None, None]
    assert_close(
        treeps_rag(rollout)["advantage"],
        tree_rl(rollout)["advantage"] * (n - 1) / np.maximum(n, 1),
        1e-4,
    )
    assert (jnp.abs(treeps_rag(rollout)["advantage"] - tree_rl(rollout)["advantage"]) > 1e-3).any()


def test_tree_rpo_example_and_what_it_has_of_spo_tree():
    answer = tree_rpo(planted(PAIRS, [1, 0, 1, 1]))
    assert_close(
        answer["advantage"][0, :4, :2],
        [[-0.57735, 1], [-0.57735, -1], [0.57735, 0], [0.57735, 0]],
        1e-5,
    )
    assert_close(answer["weight"][0, :4, :2], [[0.5, 1], [0.5, 1], [0.5, 0], [0.5, 0]])
    rollout = forest(2)[0]
    a, b = tree_rpo(rollout, **CHILDREN), spo_tree(rollout, **GRPO)
    assert_close(a["advantage"], b["advantage"], 1e-4)
    assert (jnp.abs(tree_rpo(rollout)["advantage"] - b["advantage"]) > 1e-3).any()


def test_mars2_example():
    rollout = planted([[1], [2, 3], [2, 4]], [[0.2], [0.6, 0.4], [0.6, 1.0]])
    in_place, apart = shaped(rollout)
    assert_close(in_place[0, 1:5], [0, 0.8, 0.15, 1.2], 1e-6)
    assert_close(apart[0, 1:5], [0, 0.8, 0.2, 1.25], 1e-6)
    A = np.asarray(mars2(rollout, ddof=1)["advantage"][0])
    assert_close(
        [A[0, 0], A[1, 0], A[1, 1], A[2, 1]], [-0.956737, 0.467244, -0.689741, 1.179235], 1e-5
    )
    off = mars2(rollout, gamma=0.0)["advantage"][0]
    z = (np.array([0.2, 0.6, 0.4, 1]) - 0.55) / np.std([0.2, 0.6, 0.4, 1])
    assert_close([off[0, 0], off[1, 0], off[1, 1], off[2, 1]], z, 1e-5)
    only = shaped(planted([[1, 2]], [[0.5, 0.9]]))[
        0
    ]  # only children: the first keeps r, the second has its parent as baseline
    assert_close(only[0, 1:3], [0.5, 0.9 + 0.5 * 0.4], 1e-6)
    equal = planted(PAIRS, [[0.3, 0.3]] * 4)
    assert_close(shaped(equal)[0][0, 1:7], [0.3] * 6, 1e-6)


LEAVES = np.array(
    [
        [[1, 1, 0], [1, 0, 0], [0, 0, 0]],
        [[0, 0, 1], [0, 0, 0], [0, 0, 0]],
        [[1, 1, 1], [1, 1, 0], [0, 1, 1]],
    ],
    np.float32,
)
CHAIN = [[1 + a, 4 + 3 * a + b, 13 + 9 * a + 3 * b + c] for a, b, c in np.ndindex(3, 3, 3)]


def test_malt_example():
    rollout = planted(CHAIN, LEAVES.reshape(-1))
    answer = jax.tree.map(lambda x: np.asarray(x[0]), values(rollout))
    V, label = answer["children"], answer["label"]
    assert_close(V[1:4], [0.333, 0.111, 0.778], 1e-3)
    assert_close(V[1:4], LEAVES.mean((1, 2)), 1e-6)  # the mean of all n^2 leaves
    assert_close(V[4:13], [0.667, 0.333, 0, 0.333, 0, 0, 1, 0.667, 0.667], 1e-3)
    assert label[4:13].tolist() == [1, 0, 0, 0, 0, 0, 1, 1, 1] and label[1:4].tolist() == [0, 0, 1]
    assert not signals.malt_labels(jnp.array([0.5])).any()  # a value equal to theta is negative
    pairs = {(int(a), int(b)) for a, b in np.argwhere(answer["pairs"])}
    assert {p for p in pairs if p[0] < 13} == {
        (3, 1),
        (3, 2),
        (4, 5),
        (4, 6),
    }  # no pairs of siblings with equal labels
    assert {p for p in pairs if p[0] >= 31} == {(34, 36), (35, 36), (38, 37), (39, 37)}
    A = malt(rollout)["advantage"][0]
    assert_close(A[::9, 0], LEAVES.mean((1, 2)) - LEAVES.mean(), 1e-5)
    assert_close(A[::3, 1], (LEAVES.mean(2) - LEAVES.mean((1, 2))[:, None]).reshape(-1), 1e-5)
    assert_close(A[:, 2], (LEAVES - LEAVES.mean(2, keepdims=True)).reshape(-1), 1e-5)


def test_malt_of_a_ragged_tree_takes_the_mean_of_those_that_are_there_and_is_spo_tree():
    there = np.delete(
        np.arange(27), [1, 5, 6, 7, 8]
    )  # without one refinement, and without the third critique of the first answer
    V = values(planted([CHAIN[i] for i in there], LEAVES.reshape(-1)[there]))["children"][0]
    assert_close(V[jnp.array([1, 4, 5, 6])], [0.5, 0.5, 0.5, 0])
    full = forest(2)[0]
    a, b = malt(full), spo_tree(full, **ALL)
    assert_close(a["advantage"], b["advantage"], 1e-5)
    assert_close(a["weight"], b["weight"], 1e-6)
    more = replace(full, reward=full.reward.at[:, 0].add(0.5))  # values grow with every leaf
    rise = np.asarray(values(more)["children"] - values(full)["children"])
    assert (rise >= -1e-5).all() and (rise > 0.01).any()


# ---------------------------------------------------------------- SLATE


def test_slate_example():
    r = [1, 0, -1, 1, 1]
    one = one_prompt([0] * 5, turn_parent=[[4]] * 5, verdict=np.array(r)[:, None])
    assert_close(slate(one, eps=0.0)[0, :, 0], [0.75, -0.5, -1.75, 0.75, 0.75], 1e-5)
    assert_close(slate(one, ddof=1)[0, :, 0], [0.6708, -0.4472, -1.5652, 0.6708, 0.6708], 1e-4)
    assert_close(slate(one), grpo(replace(one, reward=one["verdict"])), 1e-6)  # one step
    assert (
        slate(one_prompt([0] * 5, turn_parent=[[4]] * 5, verdict=np.full((5, 1), 0.7))) == 0
    ).all()


def test_slate_compares_siblings_alone_and_a_prefix_gets_nothing():
    rollout = one_prompt(
        np.zeros((4, 2)),
        np.zeros((4, 4)),
        segment=[[-1, 0, 1, 1]] * 4,
        turn_parent=[[0, 1], [0, 1], [0, 2], [0, 2]],
        verdict=[[1, 1], [0, -1], [-1, 5], [0, 5]],
    )
    A = np.asarray(slate(rollout)[0])
    assert (A[:, 0] == 0).all() and (A[2:, 2] == 0).all()
    assert_close(A[:2, 2], [1, -1], 1e-5)
    assert_close(A[:, 1].sum(), 0, 1e-5)
    assert np.abs(A[:, 1]).max() > 1


def test_steps_that_are_compared_among_siblings_have_less_variance():
    """Var(return) / Var(step) = T (1 + (T - 1) rho) for T steps of correlation rho.

    Centering among k siblings multiplies both by (k - 1) / k.
    """
    rng = np.random.default_rng(0)
    center = jax.jit(jax.vmap(kernels.center))
    own, common = rng.normal(size=(40_000, 5, 4)), rng.normal(size=(40_000, 5, 1))
    for rho, ratio in ((0.0, 4), (0.5, 10)):
        r = np.sqrt(1 - rho) * own + np.sqrt(rho) * common
        whole, step = (np.var(center(jnp.asarray(x, jnp.float32))) for x in (r.sum(-1), r[..., 0]))
        assert whole / step == pytest.approx(ratio, rel=0.02)
        assert step == pytest.approx(0.8, rel=0.02)


def test_a_judge_s_parts():
    parts, read = jnp.array([[1.0, -1, 1], [1, 0, 9]]), jnp.array([[1, 1, 1], [1, 1, 0]], bool)
    assert_close(signals.judge_total(parts, where=read), [1, 1])
    assert_close(signals.judge_total(parts, where=read, mean=True), [1 / 3, 1 / 2])
    assert_close(signals.judge_total(parts), [1, 10])


# ---------------------------------------------------------------- labels


def test_ovm_and_tvm_labels():
    tokens, correct = jnp.array([[1, 2, 3], [1, 2, 4], [1, 5, 6]]), jnp.array([1.0, 0, 1])
    ones = jnp.ones((3, 3), bool)
    program = jax.jit(partial(signals.tvm, where=jnp.ones(3, bool)))
    tvm = program(tokens, ones, ones, correct)
    assert_close(tvm, [[2 / 3, 0.5, 1], [2 / 3, 0.5, 0], [2 / 3, 1, 1]], 1e-5)
    ovm = signals.ovm(correct, jnp.arange(3), ones)
    assert_close(ovm, [[1] * 3, [0] * 3, [1] * 3])
    alone = np.array([[0, 0, 1], [0, 0, 1], [0, 1, 1]], bool)  # prefixes of one answer only
    assert_close(ovm[alone], tvm[alone])
    assert_close(tvm[0, 1], ovm[:2, 1].mean())  # the mean of OVM's labels over a prefix
    assert program(tokens, ones, ones & (np.arange(3) > 0), correct)[0, 0] == 0


def test_grounded_prm_labels():
    u = jax.jit(signals.grounded_prm, static_argnames="by_length")
    v, F, three = jnp.array([1.0, -1, 1] + [9.0] * 4), jnp.array(1.0), jnp.arange(7) < 3
    assert_close(u(v, F, where=three), 0.555556, 1e-5)
    assert_close(u(v, F, where=three, by_length=False), 0.222222 + 1, 1e-5)
    assert_close(u(-v, -F, where=three), -0.555556, 1e-5)
    for N in (1, 3, 7):
        assert_close(u(jnp.ones(7), F, where=jnp.arange(7) < N), (N + 1) / (2 * N) + 1 / N, 1e-5)
    assert_close(u(v, -F, where=jnp.arange(7) < 0), -1)
    backed = jax.jit(signals.grounded_prm_values)
    value, visits = backed(
        jnp.array([0, 0, 0.5555556, 0.1]), jnp.array([0, 0, 1, 2]), jnp.array([-1, 0, 1, 1])
    )
    assert_close(value, [0.81 * 0.6555556, 0.9 * 0.6555556, 0.5555556, 0.1], 1e-5)
    assert visits.tolist() == [3, 3, 1, 2]
