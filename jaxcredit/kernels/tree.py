"""Trees of answers as dense arrays, for one group: a path is a trajectory, an edge one of its segments, a node where segments end.

`node` [G, K] says in which node a segment ends, `parent` [M] which node that came out of. The root is 0, a parent's number is below its
children's; where `where` [G, K] is False there is junk, and M may exceed the nodes in use. Paths may end in inner nodes, several in one.
Every backup is a weighted sum over the paths through a node: one segment sum, whatever the depth, and no loop over levels or nodes.
"""

from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxcredit.kernels.masked import root
from jaxcredit.kernels.precision import floor_power_of_two, rounding_bound
from jaxcredit.kernels.segments import to_tokens


class Tree(NamedTuple):
    """The tree of one group, and how often each of its nodes is passed."""

    node: Int[Array, "G K"]  # M where no segment took place
    parent: Int[Array, "M"]  # the root's is the root
    last: Bool[Array, "G K"]  # the segment is its path's last
    paths: Int[
        Array, "M"
    ]  # how many paths pass the node or end in it; 0 where a number is not in use
    ends: Int[Array, "M"]  # how many end in it
    children: Int[
        Array, "M"
    ]  # how many it has; where paths end in it, that end is one more (as the stop token is in a prefix tree)


def tree_of(node: Int[Array, "G K"], parent: Int[Array, "M"], where: Bool[Array, "G K"]) -> Tree:
    """Junk put aside, and everything counted."""
    M, K = parent.shape[0], node.shape[1]
    step = jnp.arange(K)
    last = where & (step == jnp.where(where, step, -1).max(-1, keepdims=True))
    node = jnp.where(where, node, M)
    paths, ends = segment_to_node(jnp.stack([where, last], -1).astype(jnp.int32), node, M).T
    paths = paths.at[0].add(where.any(-1).sum(dtype=jnp.int32))
    parent = jnp.clip(parent, 0, M - 1)
    child = (paths > 0) & (jnp.arange(M) > 0)
    children = jax.ops.segment_sum(child.astype(jnp.int32), jnp.where(child, parent, M), M)
    return Tree(node, parent, last, paths, ends, children + (ends > 0))


def segment_to_node(x: Array, node: Int[Array, "G K"], nodes: int) -> Array:
    """What all paths bring to each node, [G, K, ...] -> [M, ...]:  s_n = sum_{ik: node_ik = n} x_ik"""
    return jax.ops.segment_sum(x.reshape(node.size, *x.shape[2:]), node.reshape(-1), nodes)


def path_mean(reward: Float[Array, "G"], tree: Tree) -> Float[Array, "M"]:
    """The mean of the paths through a node: each path counts once.  V_n = mean {R_i : path i passes n or ends in it}

    On the tree of common prefixes this is `prefix_value`. Where all branches are full it is `child_mean`; where they are not, a child
    with many paths weighs more here. Equal rewards of any value give exactly that value; a number not in use gives 0.
    """
    far, top = _below_top(reward, tree)
    used = tree.node < tree.paths.shape[0]
    total = segment_to_node(jnp.where(used, far[:, None], 0), tree.node, tree.paths.shape[0])
    return _mean(total.at[0].add(far.sum()), tree.paths, top)


def child_mean(reward: Float[Array, "G"], tree: Tree) -> Float[Array, "M"]:
    """The mean of a node's children: each child counts once.  V_n = mean {V_c : c child of n, and the mean reward of paths that end in n}

    That is the reward expected of a walk that goes to any child alike, V_n = sum_i R_i P(i | n), where P is the product of
    1 / children over the nodes from n to the path's end.
    """
    far, top = _below_top(reward, tree)
    used, M = tree.node < tree.paths.shape[0], tree.paths.shape[0]
    node = jnp.minimum(tree.node, M - 1)
    fork = jnp.where(used, tree.children[node], 1) * jnp.where(tree.last, tree.ends[node], 1)
    chance = jax.lax.cumprod(1 / jnp.maximum(fork, 1).astype(reward.dtype), axis=1, reverse=True)
    total = segment_to_node(jnp.where(used, chance * far[:, None], 0), tree.node, M)
    total = total.at[0].add((chance[:, 0] * far).sum() / jnp.maximum(tree.children[0], 1))
    return _mean(total, jnp.minimum(tree.paths, 1), top)


def child_statistics(
    value: Float[Array, "M"], reward: Float[Array, "G"], tree: Tree, *, ddof: int = 0
) -> tuple[Float[Array, "M"], Float[Array, "M"]]:
    """Mean and deviation of a node's children, whatever their value is; where paths end in it, their mean reward is one child more.

        mean_n = mean {v_c : c child of n},   std_n^2 = sum_c (v_c - mean_n)^2 / (children_n - ddof)

    A deviation within the rounding of the rewards is exactly 0: siblings that are equal have none to be divided by.
    """
    M = value.shape[0]
    used, number = tree.paths > 0, jnp.arange(M)
    far, top = _below_top(reward, tree)
    end = _mean(
        segment_to_node(jnp.where(tree.last, far[:, None], 0), tree.node, M), tree.ends, top
    )
    ids, here = jnp.where(used & (number > 0), tree.parent, M), tree.ends > 0

    def total(x, own):
        return jax.ops.segment_sum(x, ids, M) + jnp.where(here, own, 0)

    low = jnp.min(value, where=used, initial=jnp.inf)
    low = jnp.where(
        jnp.isfinite(low), low, 0
    )  # siblings that are equal and least differ by exactly 0
    n = jnp.maximum(tree.children, 1)
    mean = low + total(jnp.where(used, value - low, 0), end - low) / n
    far, own = jnp.where(used, value - mean[tree.parent], 0), jnp.where(here, end - mean, 0)
    unit = floor_power_of_two(
        jnp.maximum(jnp.abs(far).max(), jnp.abs(own).max())
    )  # squares do not overflow
    square = total((far / unit) ** 2, (own / unit) ** 2)
    left = tree.children - ddof
    std = root(jnp.where(left > 0, square / jnp.maximum(left, 1), 0)) * unit
    slack = jnp.maximum(
        backup_rounding(reward, tree),
        rounding_bound(jnp.max(jnp.abs(value), where=used, initial=0)),
    )
    return jnp.where(tree.children > 0, mean, 0), jnp.where(std > slack, std, 0)


def backup_rounding(reward: Float[Array, "G"], tree: Tree) -> Float[Array, ""]:
    """A bound on the rounding of the values that are backed up from these rewards: siblings closer than that are equal."""
    real = tree.last.any(-1)
    return rounding_bound(
        jnp.max(jnp.abs(reward), where=real, initial=0), jnp.maximum(real.sum(), 9)
    )


def sum_up_tree(
    x: Float[Array, "M"],
    parent: Int[Array, "M"],
    keep: float | Float[Array, "M"] = 1.0,
    *,
    depth: int | None = None,
) -> Float[Array, "M"]:
    """Sums up a tree that is given by its parents alone.  S_n = x_n + sum_{c child of n} keep_c S_c

    keep=1 sums subtrees, keep=0.9 discounts by distance. Pointers jump, 1, 2, 4 ... edges at once: log2(depth) rounds, `depth` being
    the most edges between the root and a node (None: M - 1). A parent that is not a number of a node (-1) is nobody's.
    """
    M = x.shape[0]
    up = jnp.where((parent >= 0) & (parent < M), parent, M)
    keep = jnp.broadcast_to(jnp.asarray(keep, x.dtype), x.shape)
    for _ in range((M - 1 if depth is None else depth).bit_length()):
        x = x + jax.ops.segment_sum(keep * x, up, M)
        on = jnp.minimum(up, M - 1)
        keep, up = keep * keep[on], jnp.where(up < M, up[on], M)
    return x


def sum_down_tree(
    x: Float[Array, "M"],
    parent: Int[Array, "M"],
    keep: float | Float[Array, "M"] = 1.0,
    *,
    depth: int | None = None,
) -> Float[Array, "M"]:
    """Sums down a tree that is given by its parents alone.  S_n = x_n + keep_n S_parent, S_root = x_root

    In log2(depth) rounds of pointers that jump, as `from_children`, and without a sum that collides.
    """
    M = x.shape[0]
    has = (parent >= 0) & (parent < M) & (parent != jnp.arange(M))
    up = jnp.where(has, parent, 0)
    keep = jnp.where(has, jnp.asarray(keep, x.dtype), 0)
    for _ in range((M - 1 if depth is None else depth).bit_length()):
        x, keep, up = x + keep * x[up], keep * keep[up], up[up]
    return x


def node_to_segment(x: Float[Array, "M"], tree: Tree) -> Float[Array, "G K"]:
    """Each segment gets the number of the node it ends in; 0 where none took place."""
    M = x.shape[0]
    return jnp.where(tree.node < M, x[jnp.minimum(tree.node, M - 1)], 0)


def edge_to_tokens(
    x: Float[Array, "M"], tree: Tree, group, *, kept: Bool[Array, "M"] | None = None
) -> tuple[Float[Array, "R T"], Float[Array, "R T"]]:
    """Every token gets its node's number, and 1 / (trajectories that have tokens of its edge) as a weight: each edge counts once.

    Edges that are not `kept` count 0.

    A tree comes as paths (a row a path, which repeats the edges it shares) or as edges (a row an edge, `row` naming any one path
    through it). Rows of one trajectory never repeat each other, so what is counted is trajectories.
    """
    present = has_policy_tokens(group) & (tree.node < x.shape[0])
    copies = segment_to_node(present.astype(x.dtype), tree.node, x.shape[0])
    once = 1 / jnp.maximum(copies, 1)
    once = once if kept is None else jnp.where(kept, once, 0)
    # Two gathers by the same index share it, as an array as long as the rows: six times slower than either gather on a CPU.
    again = SimpleNamespace(
        action_mask=group.action_mask,
        row=group.row,
        segment=jax.lax.optimization_barrier(group.segment),
    )
    return to_tokens(node_to_segment(x, tree), group), to_tokens(node_to_segment(once, tree), again)


def has_policy_tokens(group) -> Bool[Array, "G K"]:
    """Segments in which the policy chose a token. One bit a segment, and one pass over the tokens for each 32 of them."""
    (G, K), (R, _) = group.segment_mask.shape, group.action_mask.shape
    row = jnp.arange(R) if group.row is None else group.row
    words = []
    for first in range(0, K, 32):
        k = group.segment - first
        bit = jnp.where(
            group.action_mask & (k >= 0) & (k < 32),
            jnp.left_shift(jnp.uint32(1), jnp.clip(k, 0, 31).astype(jnp.uint32)),
            0,
        )
        word = jax.lax.reduce(bit, jnp.uint32(0), jax.lax.bitwise_or, (1,))
        words.append(jnp.right_shift(word[:, None], jnp.arange(32, dtype=jnp.uint32)) & 1)
    here = jnp.concatenate(words, -1)[:, :K].astype(jnp.int32)
    return jax.ops.segment_sum(here, row, G) > 0


def _below_top(reward, tree):
    """Rewards less the greatest: whole numbers stay whole, so that sums of them are exact in any order. 0 for paths that are not."""
    real = tree.last.any(-1)
    top = jnp.max(reward, where=real, initial=-jnp.inf)
    top = jnp.where(jnp.isfinite(top), top, 0)
    return jnp.where(real, reward - top, 0), top


def _mean(total, n, top):
    return jnp.where(n > 0, top + total / jnp.maximum(n, 1), 0)
