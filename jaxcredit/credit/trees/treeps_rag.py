import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.credit.trees.tree import NEEDS, edge_columns, group_tree
from jaxcredit.kernels import ROOT, path_mean
from jaxcredit.rollout import Rollout, outcome


@per_group(
    needs=NEEDS,
    paper="2601.06922",
    fidelity="ours",
    granularity="step",
    family="trees",
    cost="a tree of search steps, pruned to the budget of plain answers",
    reduces_to="tree_rl times (G - 1) / G",
)
def treeps_rag(group: Rollout):
    """Global plus local advantage of a search step: value less root's and parent's (our design).

        A_n = [(V_n - V_root) + (V_n - V_parent)] / sqrt(leaves_n)
        V_n = mean {R_i : trajectory i passes n}

    A node ends a step (reason, action, observation) and an answer is a leaf. R_i is the sum of
    trajectory i's rewards. leaves_n is the number of trajectories through n.

    Signals: node [N, G, K] (int, the node in which each segment ends) and node_parent [N, M] (int,
    the parent of each node, -1 for the root, which is node 0).

    Returns:
        Dict of `advantage` and `weight`, each [N, R, T]. The advantage is the same for all tokens
        of a segment. In a segment that n trajectories share every token has weight 1 / n, so that
        the segment counts once in the loss.

    The values are the paper's. Its advantage is not known to us: the formula is that of the TreeRL
    paper, except that each leaf is part of its own baseline.

    Source: TreePS-RAG, arXiv 2601.06922 (the values).
    """
    tree = group_tree(group)
    V = path_mean(outcome(group), tree)
    A = ((V - V[ROOT]) + (V - V[tree.parent])) / jnp.sqrt(jnp.maximum(tree.paths, 1))
    return edge_columns(A, tree, group)
