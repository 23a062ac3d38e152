from typing import Literal

import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.credit.trees.tree import NEEDS, edge_columns, group_tree
from jaxcredit.kernels import child_mean, child_statistics, path_mean
from jaxcredit.kernels.masked import root
from jaxcredit.rollout import Rollout, outcome


@per_group(
    needs=NEEDS,
    paper="2506.05183",
    fidelity="ours",
    granularity="step",
    family="trees",
    cost="a tree of steps, N children a node",
    reduces_to="spo_tree(normalize=True, prob_mask=None) with std='children' and mean='children'",
)
def tree_rpo(
    group: Rollout,
    *,
    std: Literal["bernoulli", "children"] = "bernoulli",
    mean: Literal["paths", "children"] = "paths",
    drop: bool = True,
    eps: float = 1e-6,
):
    """GRPO among the siblings of a tree: a node's value is its leaves' mean outcome (our design).

        A_n = (V_n - mu) / (sqrt(mu (1 - mu)) + eps),   mu = mean {V_c : c a child of n's parent}
        V_n = mean {R_i : trajectory i passes n}

    R_i is the sum of trajectory i's rewards, which must lie in [0, 1] for the Bernoulli deviation.

    Signals: node [N, G, K] (int, the node in which each segment ends) and node_parent [N, M] (int,
    the parent of each node, -1 for the root, which is node 0).

    Args:
        std: "bernoulli" (the formula) or "children" (the standard deviation of the siblings'
            values).
        mean: "paths" (the formula) or "children" (V_n is the mean of its children's values; the
            same on a full tree).
        drop: bool. True: siblings of equal value leave the loss.
        eps: float >= 0, added to the deviation.

    Returns:
        Dict of `advantage` and `weight`, each [N, R, T]. The advantage is the same for all tokens
        of a segment, and 0 for siblings of equal value. In a segment that n trajectories share
        every token has weight 1 / n, so that the segment counts once in the loss.

    Raises:
        ValueError: `std` or `mean` is not one of its values.

    The paper defines the siblings as the group and the values. Its deviation is not certain in our
    sources, hence our design.

    Source: TreeRPO, arXiv 2506.05183.
    """
    tree, R = group_tree(group), outcome(group)
    V = path_mean(R, tree) if mean == "paths" else child_mean(R, tree)
    mu, sibling_std = (x[tree.parent] for x in child_statistics(V, R, tree))
    scale = root(mu * (1 - mu)) if std == "bernoulli" else sibling_std
    unequal = (sibling_std > 0) & (scale > 0)
    A = jnp.where(unequal, (V - mu) / jnp.where(unequal, scale + eps, 1), 0)
    return edge_columns(A, tree, group, trained=unequal if drop else None)
