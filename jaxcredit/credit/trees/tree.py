"""Helpers of the estimators on trees: a group's tree, node credit as columns, uncertain tokens."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxcredit.kernels import Tree, edge_to_tokens, tree_of
from jaxcredit.rollout import Rollout

NEEDS = ("node", "node_parent")  # signals from which `group_tree` builds the tree


def group_tree(group: Rollout) -> Tree:
    """Tree of one group: each segment is an edge, which ends in a node.

    Args:
        group: one prompt's rollout with the signals node [G, K] (the node in which each segment
            ends) and node_parent [M] (the parent of each node, -1 for the root, which is node 0).

    Returns:
        `jaxcredit.kernels.Tree` of M nodes.
    """
    return tree_of(group["node"], group["node_parent"], group.segment_mask)


def edge_columns(
    advantage: Float[Array, "M"],
    tree: Tree,
    group: Rollout,
    *,
    trained: Bool[Array, "M"] | None = None,
) -> dict[str, Array]:
    """Columns that give each edge its node's advantage, and each edge the same total weight.

    Args:
        advantage: [M] advantage of the edge that ends in each node.
        tree: the group's tree.
        group: one prompt's rollout.
        trained: [M] edges that enter the loss; None: all.

    Returns:
        Dict of `advantage` and `weight`, each [R, T]. The weight is 1 over the number of
        trajectories that contain the edge, and 0 for edges that do not enter the loss.
    """
    token_advantage, weight = edge_to_tokens(advantage, tree, group, kept=trained)
    return {"advantage": token_advantage, "weight": weight}


def uncertain_tokens(group: Rollout, prob_mask: float | None) -> Bool[Array, "*N R T"]:
    """Tokens that were sampled with a probability below `prob_mask`; all tokens for None."""
    if prob_mask is None:
        return jnp.ones(group.action_mask.shape, bool)
    return group.logp < jnp.log(prob_mask)
