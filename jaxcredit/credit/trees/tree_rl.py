from typing import Literal

import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.credit.trees.tree import NEEDS, edge_columns, group_tree
from jaxcredit.kernels import ROOT, center, path_mean
from jaxcredit.rollout import Rollout, outcome, trajectory_mask


@per_group(
    needs=NEEDS,
    paper="2506.11902",
    fidelity="paper",
    granularity="segment",
    family="trees",
    cost="a tree of answers, branched at uncertain tokens",
    reduces_to="twice rloo on a tree of depth 1",
)
def tree_rl(group: Rollout, *, weighting: Literal["paper", "code", "none"] = "paper"):
    """Global advantage of a tree's step (value less the root's) plus local one (less the parent's).

        A_n = [(V_n - V_root) + (V_n - V_parent)] / sqrt(leaves_n)
        V_n = mean {R_i - mean_{j != i} R_j : trajectory i passes n}

    R_i is the sum of trajectory i's rewards. leaves_n is the number of trajectories through n.

    Signals: node [N, G, K] (int, the node in which each segment ends) and node_parent [N, M] (int,
    the parent of each node, -1 for the root, which is node 0).

    Args:
        weighting: "paper" (the formula), "code" (each value is divided by the square root of its
            own leaf count before the difference: A_n = 2 V'_n - V'_parent with
            V'_n = V_n / sqrt(leaves_n)) or "none" (no division).

    Returns:
        Dict of `advantage` and `weight`, each [N, R, T]. The advantage is the same for all tokens
        of a segment. In a segment that n trajectories share every token has weight 1 / n, so that
        the segment counts once in the loss.

    Raises:
        ValueError: `weighting` is not one of its values.

    Departs from released code: the code trains on a selection of the leaves, and it can subtract a
    mean over all tokens from the values.

    Source: TreeRL, arXiv 2506.11902.
    """
    tree = group_tree(group)
    R = center(outcome(group), where=trajectory_mask(group), leave_one_out=True)
    V = path_mean(R, tree)
    V = V - V[ROOT]  # the root's value, which is 0 up to rounding
    sqrt_leaves = jnp.sqrt(jnp.maximum(tree.paths, 1).astype(V.dtype))
    V = V / sqrt_leaves if weighting == "code" else V
    A = V + (V - V[tree.parent])
    return edge_columns(A / sqrt_leaves if weighting == "paper" else A, tree, group)
