import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.credit.trees.tree import NEEDS, edges, tree
from jaxcredit.kernels import path_mean
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
    """Value of a search step less the tree's mean and its parent's, per root of its leaves (our design).

        A_n = [(V_n - V_root) + (V_n - V_parent)] / sqrt(leaves_n),   V_n = mean outcome of the leaves below n

    TreePS-RAG, arXiv 2601.06922, gives the values; its advantage is not known to us and this one is our design: that of TreeRL's paper,
    with each leaf in its own baseline. Signals: node, node_parent; a node ends a step (reason, action, observation), an answer is a leaf.
    Every edge counts once (`weight`).
    """
    on = tree(group)
    V = path_mean(outcome(group), on)
    return edges(((V - V[0]) + (V - V[on.parent])) / jnp.sqrt(jnp.maximum(on.paths, 1)), on, group)
