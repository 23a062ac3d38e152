"""Trees of trajectories as dense arrays, for one group: values of nodes, their backups, and sums.

A path is a trajectory, an edge is one of its segments, a node is a point where segments end. `node`
[G, K] is the node in which a segment ends, `parent` [M] the node before it. Node `ROOT` is the
root, whose parent is `NO_PARENT`; a parent has a lower number than its children. M may exceed the
number of nodes in use, and paths may end in inner nodes. Every backup is a weighted sum over the
paths through a node: one segment sum at any depth, without a loop over levels.
"""

from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxcredit.kernels.masked import root
from jaxcredit.kernels.precision import floor_power_of_two, rounding_bound
from jaxcredit.kernels.segments import Group, rows_of, to_tokens

ROOT = 0  # number of the root
NO_PARENT = -1  # parent of the root


class Tree(NamedTuple):
    """Tree of one group with its counts, from `tree_of`.

    Attributes:
        node: [G, K] node in which each segment ends. M, one past the last node, for segments that
            did not take place: segment sums drop it.
        parent: [M] parent of each node. The root is its own parent.
        last: [G, K] True on the last segment of each path.
        paths: [M] number of paths that pass the node or end in it, 0 for unused nodes.
        ends: [M] number of paths that end in the node.
        children: [M] number of children. The end of paths in the node counts as one more, as the
            stop token does in a prefix tree.
    """

    node: Int[Array, "G K"]
    parent: Int[Array, "M"]
    last: Bool[Array, "G K"]
    paths: Int[Array, "M"]
    ends: Int[Array, "M"]
    children: Int[Array, "M"]


def tree_of(node: Int[Array, "G K"], parent: Int[Array, "M"], where: Bool[Array, "G K"]) -> Tree:
    """Tree of one group, counted, with entries off `where` replaced by the sentinels of `Tree`.

    Args:
        node: [G, K] node in which each segment ends.
        parent: [M] parent of each node, `NO_PARENT` or any number at the root.
        where: [G, K] segments that took place.

    Returns:
        The tree.

    >>> tree = tree_of(jnp.array([[1], [2]]), jnp.array([-1, 0, 0]), jnp.ones((2, 1), bool))
    >>> tree.paths.tolist(), tree.children.tolist()
    ([2, 1, 1], [2, 1, 1])
    """
    M, K = parent.shape[0], node.shape[1]
    no_node = M  # segment sums drop it
    step = jnp.arange(K)
    last = where & (step == jnp.where(where, step, -1).max(-1, keepdims=True))
    node = jnp.where(where, node, no_node)
    paths, ends = segment_to_node(jnp.stack([where, last], -1).astype(jnp.int32), node, M).T
    paths = paths.at[ROOT].add(where.any(-1).sum(dtype=jnp.int32))
    parent = jnp.clip(parent, 0, M - 1)
    child = (paths > 0) & (jnp.arange(M) > ROOT)
    children = jax.ops.segment_sum(child.astype(jnp.int32), jnp.where(child, parent, no_node), M)
    return Tree(node, parent, last, paths, ends, children + (ends > 0))


def segment_to_node(x: Array, node: Int[Array, "G K"], nodes: int) -> Array:
    """Sum of segments over the paths at each node.

        s_n = sum_{ik: node_ik = n} x_ik

    Args:
        x: [G, K, ...] values of segments.
        node: [G, K] node of each segment; numbers >= `nodes` are dropped.
        nodes: number of nodes M.

    Returns:
        [M, ...] sums.
    """
    return jax.ops.segment_sum(x.reshape(node.size, *x.shape[2:]), node.reshape(-1), nodes)


def path_mean(reward: Float[Array, "G"], tree: Tree) -> Float[Array, "M"]:
    """Mean reward of the paths through each node, in which each path counts once.

        V_n = mean {R_i : path i passes n or ends in it}

    On the tree of common prefixes this is `prefix_value`. It equals `child_mean` if all branches
    are full; otherwise a child with many paths has more weight here. Equal rewards give exactly
    their value.

    Args:
        reward: [G] return of each path.
        tree: tree of the group.

    Returns:
        [M] values, 0 for unused nodes.

    >>> tree = tree_of(jnp.array([[1], [1], [2]]), jnp.array([-1, 0, 0]), jnp.ones((3, 1), bool))
    >>> path_mean(jnp.array([1.0, 0.0, 2.0]), tree).tolist()
    [1.0, 0.5, 2.0]
    """
    relative, largest = _below_top(reward, tree)
    used = tree.node < tree.paths.shape[0]
    total = segment_to_node(jnp.where(used, relative[:, None], 0), tree.node, tree.paths.shape[0])
    return _mean(total.at[ROOT].add(relative.sum()), tree.paths, largest)


def child_mean(reward: Float[Array, "G"], tree: Tree) -> Float[Array, "M"]:
    """Value of each node as the mean of its children's, in which each child counts once.

        V_n = mean {V_c : c child of n, and the mean reward of paths that end in n}
            = sum_i R_i P(i | n)

    P(i | n) is the probability of path i for a walk from n that takes each child alike.

    Args:
        reward: [G] return of each path.
        tree: tree of the group.

    Returns:
        [M] values, 0 for unused nodes.

    >>> tree = tree_of(jnp.array([[1], [1], [2]]), jnp.array([-1, 0, 0]), jnp.ones((3, 1), bool))
    >>> child_mean(jnp.array([1.0, 0.0, 2.0]), tree).tolist()
    [1.25, 0.5, 2.0]
    """
    relative, largest = _below_top(reward, tree)
    used, M = tree.node < tree.paths.shape[0], tree.paths.shape[0]
    node = jnp.minimum(tree.node, M - 1)
    branching = jnp.where(used, tree.children[node], 1) * jnp.where(tree.last, tree.ends[node], 1)
    chance = jax.lax.cumprod(
        1 / jnp.maximum(branching, 1).astype(reward.dtype), axis=1, reverse=True
    )
    total = segment_to_node(jnp.where(used, chance * relative[:, None], 0), tree.node, M)
    total = total.at[ROOT].add(
        (chance[:, 0] * relative).sum() / jnp.maximum(tree.children[ROOT], 1)
    )
    return _mean(total, jnp.minimum(tree.paths, 1), largest)


def child_statistics(
    value: Float[Array, "M"], reward: Float[Array, "G"], tree: Tree, *, ddof: int = 0
) -> tuple[Float[Array, "M"], Float[Array, "M"]]:
    """Mean and standard deviation of the values of each node's children.

        mean_n = mean {v_c : c child of n},   std_n^2 = sum_c (v_c - mean_n)^2 / (children_n - ddof)

    If paths end in a node, their mean reward counts as one more child. A deviation within the
    rounding of the rewards is exactly 0.

    Args:
        value: [M] value of each node.
        reward: [G] return of each path.
        tree: tree of the group.
        ddof: degrees of freedom taken off the number of children.

    Returns:
        [M] means, 0 without children.
        [M] standard deviations.
    """
    M = no_node = value.shape[0]
    used, number = tree.paths > 0, jnp.arange(M)
    relative, largest = _below_top(reward, tree)
    end = _mean(
        segment_to_node(jnp.where(tree.last, relative[:, None], 0), tree.node, M),
        tree.ends,
        largest,
    )
    ids, ends_here = jnp.where(used & (number > ROOT), tree.parent, no_node), tree.ends > 0

    def total(x, own):
        return jax.ops.segment_sum(x, ids, M) + jnp.where(ends_here, own, 0)

    # Relative to the least value, equal siblings of that value differ by exactly 0.
    low = jnp.min(value, where=used, initial=jnp.inf)
    low = jnp.where(jnp.isfinite(low), low, 0)
    n = jnp.maximum(tree.children, 1)
    mean = low + total(jnp.where(used, value - low, 0), end - low) / n
    centered, own = (
        jnp.where(used, value - mean[tree.parent], 0),
        jnp.where(ends_here, end - mean, 0),
    )
    # In this unit squares do not overflow.
    unit = floor_power_of_two(jnp.maximum(jnp.abs(centered).max(), jnp.abs(own).max()))
    square = total((centered / unit) ** 2, (own / unit) ** 2)
    denominator = tree.children - ddof
    std = root(jnp.where(denominator > 0, square / jnp.maximum(denominator, 1), 0)) * unit
    slack = jnp.maximum(
        backup_rounding(reward, tree),
        rounding_bound(jnp.max(jnp.abs(value), where=used, initial=0)),
    )
    return jnp.where(tree.children > 0, mean, 0), jnp.where(std > slack, std, 0)


def backup_rounding(reward: Float[Array, "G"], tree: Tree) -> Float[Array, ""]:
    """Bound on the rounding of values backed up from these rewards.

    Siblings whose values differ by no more are equal.

    Args:
        reward: [G] return of each path.
        tree: tree of the group.

    Returns:
        Bound, >= 0.
    """
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
    """Sum over the subtree of each node, discounted by a factor for each edge.

        S_n = x_n + sum_{c child of n} keep_c S_c

    keep = 1 sums subtrees, keep = 0.9 discounts by distance. Pointer jumping takes log2(depth)
    rounds.

    Args:
        x: [M] value of each node.
        parent: [M] parent of each node. A number that is no node, as `NO_PARENT`, has no effect.
        keep: factor of the edge to the parent, one number or one for each node.
        depth: largest number of edges between the root and a node. None: M - 1.

    Returns:
        [M] sums.

    >>> sum_up_tree(jnp.array([1.0, 2.0, 4.0]), jnp.array([NO_PARENT, 0, 0])).tolist()
    [7.0, 2.0, 4.0]
    """
    M = x.shape[0]
    no_node = M  # segment sums drop it
    up = jnp.where((parent >= 0) & (parent < M), parent, no_node)
    keep = jnp.broadcast_to(jnp.asarray(keep, x.dtype), x.shape)
    for _ in range((M - 1 if depth is None else depth).bit_length()):
        x = x + jax.ops.segment_sum(keep * x, up, M)
        on = jnp.minimum(up, M - 1)
        keep, up = keep * keep[on], jnp.where(up < M, up[on], no_node)
    return x


def sum_down_tree(
    x: Float[Array, "M"],
    parent: Int[Array, "M"],
    keep: float | Float[Array, "M"] = 1.0,
    *,
    depth: int | None = None,
) -> Float[Array, "M"]:
    """Sum over the ancestors of each node, itself included, discounted by a factor for each edge.

        S_n = x_n + keep_n S_parent,   S_root = x_root

    Pointer jumping takes log2(depth) rounds.

    Args:
        x: [M] value of each node.
        parent: [M] parent of each node. A number that is no node, as `NO_PARENT`, has no effect.
        keep: factor of the edge to the parent, one number or one for each node.
        depth: largest number of edges between the root and a node. None: M - 1.

    Returns:
        [M] sums.

    >>> sum_down_tree(jnp.array([1.0, 2.0, 4.0]), jnp.array([NO_PARENT, 0, 1])).tolist()
    [1.0, 3.0, 7.0]
    """
    M = x.shape[0]
    has = (parent >= 0) & (parent < M) & (parent != jnp.arange(M))
    up = jnp.where(has, parent, 0)
    keep = jnp.where(has, jnp.asarray(keep, x.dtype), 0)
    for _ in range((M - 1 if depth is None else depth).bit_length()):
        x, keep, up = x + keep * x[up], keep * keep[up], up[up]
    return x


def node_to_segment(x: Float[Array, "M"], tree: Tree) -> Float[Array, "G K"]:
    """Value of the node in which each segment ends, 0 for segments that did not take place.

    Args:
        x: [M] value of each node.
        tree: tree of the group.

    Returns:
        [G, K] values.
    """
    M = x.shape[0]
    return jnp.where(tree.node < M, x[jnp.minimum(tree.node, M - 1)], 0)


def edge_to_tokens(
    x: Float[Array, "M"], tree: Tree, group: Group, *, kept: Bool[Array, "M"] | None = None
) -> tuple[Float[Array, "R T"], Float[Array, "R T"]]:
    """Value of its edge for each token, and a weight with which each edge counts once.

    The weight is 1 / (number of trajectories that have policy tokens of the edge). Rows may be
    whole paths, which repeat the edges they share, or single edges, whose `row` is any path through
    them. Rows of one trajectory never repeat an edge.

    Args:
        x: [M] value of each node, the lower end of its edge.
        tree: tree of the group.
        group: rollout of one prompt.
        kept: [M] edges with a weight; the others get weight 0. None: all.

    Returns:
        [R, T] values.
        [R, T] weights.
    """
    present = has_policy_tokens(group) & (tree.node < x.shape[0])
    copies = segment_to_node(present.astype(x.dtype), tree.node, x.shape[0])
    once = 1 / jnp.maximum(copies, 1)
    once = once if kept is None else jnp.where(kept, once, 0)
    # With one index array the two gathers would share it as a long temporary, which is slow on
    # a CPU. The barrier keeps them apart.
    copy: Any = SimpleNamespace(
        action_mask=group.action_mask,
        segment_mask=group.segment_mask,
        row=group.row,
        segment=jax.lax.optimization_barrier(group.segment),
    )
    return to_tokens(node_to_segment(x, tree), group), to_tokens(node_to_segment(once, tree), copy)


def has_policy_tokens(group: Group) -> Bool[Array, "G K"]:
    """Mask of the segments in which the policy sampled a token, [G, K].

    Segments are bits of a word, so one pass over the tokens serves 32 of them.
    """
    G, K = group.segment_mask.shape
    row = rows_of(group)
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
    present = jnp.concatenate(words, -1)[:, :K].astype(jnp.int32)
    return jax.ops.segment_sum(present, row, G) > 0


def _below_top(reward, tree):
    """Rewards minus the largest, and the largest; 0 for paths that do not exist.

    Whole numbers stay whole, so that sums of them are exact in any order.
    """
    real = tree.last.any(-1)
    largest = jnp.max(reward, where=real, initial=-jnp.inf)
    largest = jnp.where(jnp.isfinite(largest), largest, 0)
    return jnp.where(real, reward - largest, 0), largest


def _mean(total, n, top):
    return jnp.where(n > 0, top + total / jnp.maximum(n, 1), 0)
