import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxcredit.credit.lift import per_group
from jaxcredit.credit.trees.tree import NEEDS, edge_columns, group_tree
from jaxcredit.kernels import (
    ROOT,
    Tree,
    rounding_bound,
    segment_to_node,
    standardize,
    sum_down_tree,
)
from jaxcredit.rollout import Rollout


@per_group(
    needs=NEEDS,
    fidelity="code",
    granularity="segment",
    family="trees",
    cost="a search tree of 8 answers, each refining its parent's",
    reduces_to="grpo on nodes with gamma=0",
)
def mars2(
    group: Rollout,
    *,
    gamma: float = 0.5,
    lam: float = 0.5,
    in_place: bool = True,
    ddof: int = 0,
    eps: float = 1e-6,
):
    """Node reward raised where it beats parent and siblings, normalized over the tree's nodes.

        r'_n = r_n + gamma (r_n - b_n)
        b_n = (1 - lam) r'_parent + lam mean {r_c : c a sibling of n}
        A_n = (r'_n - mean r') / (std r' + eps)   over the nodes of the tree

    A node is an answer that refines its parent's. Its reward r_n is that of the segment that ends
    in it (the mean, if trajectories that share the segment have different ones). b_n is the
    siblings' mean alone for a child of the root, and r'_parent alone for an only child. An only
    child of the root keeps r' = r.

    Signals: node [N, G, K] (int, the node in which each segment ends) and node_parent [N, M] (int,
    the parent of each node, -1 for the root, which is node 0).

    Args:
        gamma: float, strength of the shaping; 0.5 in the released code.
        lam: float in [0, 1], weight of the siblings in the baseline; 0.5 in the released code.
        in_place: bool. True: b_n uses the parent's shaped reward r' (the code, which overwrites the
            rewards from the root down). False: it uses the parent's own reward r.
        ddof: int, 0 or 1. The variance divides by n - ddof; released code takes 1.
        eps: float >= 0, added to the standard deviation; 1e-9 in the released code.

    Returns:
        Dict of `advantage` and `weight`, each [N, R, T]. The advantage is the same for all tokens
        of a segment. In a segment that n trajectories share every token has weight 1 / n, so that
        the segment counts once in the loss.

    Source: MARS^2, the released code (MARTI, ab_mcts_processor); no paper's formula is known.
    """
    tree = group_tree(group)
    r, exists = node_rewards(group, tree)
    shaped = shaped_rewards(r, tree, exists, gamma=gamma, lam=lam, in_place=in_place)
    magnitude = (1 + 2 * abs(gamma)) * jnp.max(jnp.abs(r), where=exists, initial=0)
    slack = rounding_bound(magnitude, group.segment_mask.shape[0])
    A = standardize(shaped, where=exists, ddof=ddof, eps=eps, slack=slack)
    return edge_columns(A, tree, group)


def node_rewards(group: Rollout, tree: Tree) -> tuple[Float[Array, "M"], Bool[Array, "M"]]:
    """Reward of each node, less the largest of the tree, and a mask of the nodes that exist.

    The shaping and the normalization of `mars2` do not depend on the subtracted constant. The root
    does not count as a node.
    """
    M = tree.paths.shape[0]
    exists = (tree.paths > 0) & (jnp.arange(M) != ROOT)
    top = jnp.max(group.reward, where=group.segment_mask, initial=-jnp.inf)
    top = jnp.where(jnp.isfinite(top), top, 0)
    relative = jnp.where(group.segment_mask, group.reward - top, 0)
    return segment_to_node(relative, tree.node, M) / jnp.maximum(tree.paths, 1), exists


def shaped_rewards(
    r: Float[Array, "M"],
    tree: Tree,
    exists: Bool[Array, "M"],
    *,
    gamma: float = 0.5,
    lam: float = 0.5,
    in_place: bool = True,
) -> Float[Array, "M"]:
    """Shaped reward r' of each node, by the equation of `mars2`.

    r' is linear in the parent's r', so shaping in place is one recurrence from the root down.
    """
    M = r.shape[0]
    parent = jnp.where(exists, tree.parent, M)  # segment_sum drops M
    count, total = jax.ops.segment_sum(
        jnp.stack([exists.astype(r.dtype), jnp.where(exists, r, 0)], -1), parent, M
    )[tree.parent].T
    has_siblings, has_parent = count > 1, exists & (tree.parent != ROOT)
    sibling_mean = jnp.where(has_siblings, (total - r) / jnp.maximum(count - 1, 1), 0)
    parent_weight = jnp.where(has_parent, jnp.where(has_siblings, 1 - lam, 1), 0)
    sibling_weight = jnp.where(exists & has_siblings, jnp.where(has_parent, lam, 1), 0)
    own = r + gamma * ((parent_weight + sibling_weight) * r - sibling_weight * sibling_mean)
    if not in_place:
        return own - gamma * parent_weight * r[tree.parent]
    return sum_down_tree(own, tree.parent, -gamma * parent_weight, depth=tree.node.shape[1])
