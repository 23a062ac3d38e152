import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.credit.trees.tree import NEEDS, edge_columns, group_tree
from jaxcredit.kernels import child_mean
from jaxcredit.rollout import Rollout, outcome


@per_group(
    needs=NEEDS,
    paper="2412.01928",
    fidelity="ours",
    granularity="agent",
    family="trees",
    cost="a tree of 3 answers, 3 critiques of each, 3 refinements of each",
    reduces_to="spo_tree with prob_mask=None and drop=False; with one agent dr_grpo, or rloo with "
    "leave_one_out",
)
def malt(group: Rollout, *, leave_one_out: bool = False):
    """Value of a generator-verifier-refiner tree's node, less its siblings' mean (our design).

        A_n = V_n - mean {V_c : c a child of n's parent}
        V_n = mean {V_c : c a child of n},   V = R at a leaf

    A node is one agent's contribution: an answer, a critique of it or a refinement. R is the sum of
    a trajectory's rewards.

    Signals: node [N, G, K] (int, the node in which each segment ends) and node_parent [N, M] (int,
    the parent of each node, -1 for the root, which is node 0).

    Args:
        leave_one_out: bool. True: the mean excludes n itself. False: it includes n.

    Returns:
        Dict of `advantage` and `weight`, each [N, R, T]. The advantage is the same for all tokens
        of a segment. In a segment that n trajectories share every token has weight 1 / n, so that
        the segment counts once in the loss. A missing node (a failed generation) enters no mean.

    Departs from the paper: the paper computes these values and trains offline, on labels and pairs
    (`signals.malt_labels`, `signals.sibling_pairs`). Online training is our design.

    Source: MALT, arXiv 2412.01928 (the tree and its values).
    """
    tree = group_tree(group)
    V = child_mean(outcome(group), tree)
    siblings = tree.children[tree.parent].astype(V.dtype)
    scale = siblings / jnp.maximum(siblings - 1, 1) if leave_one_out else 1
    return edge_columns((V - V[tree.parent]) * scale, tree, group)
