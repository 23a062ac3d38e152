import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.credit.trees.tree import NEEDS, edges, tree
from jaxcredit.kernels import child_mean
from jaxcredit.rollout import Rollout, outcome


@per_group(
    needs=NEEDS,
    paper="2412.01928",
    fidelity="ours",
    granularity="agent",
    family="trees",
    cost="a tree of 3 answers, 3 critiques of each, 3 refinements of each",
    reduces_to="spo_tree with prob_mask=None and drop=False; dr_grpo with one agent, rloo with leave_one_out",
)
def malt(group: Rollout, *, leave_one_out: bool = False):
    """Value of a node of a generator-verifier-refiner tree, less the mean of its siblings (our design).

        A_n = V_n - mean {V_c : c sibling of n, n itself},   V_refine = R, V_verify = mean V_refine, V_generate = mean V_verify

    MALT, arXiv 2412.01928, gives the tree and its values, and trains off line on labels and pairs (signals.malt_labels,
    signals.sibling_pairs); to train on line by the advantage is our design. Signals: node, node_parent. With `leave_one_out` the
    mean is over the other siblings. A generation that failed is not there; every edge counts once (`weight`).
    """
    on = tree(group)
    V = child_mean(outcome(group), on)
    n = on.children[on.parent].astype(V.dtype)
    return edges(
        (V - V[on.parent]) * (n / jnp.maximum(n - 1, 1) if leave_one_out else 1), on, group
    )
