from typing import Literal

import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.credit.trees.tree import NEEDS, edges, tree
from jaxcredit.kernels import child_mean, over_children, path_mean
from jaxcredit.kernels.masked import root
from jaxcredit.rollout import Rollout, outcome


@per_group(
    needs=NEEDS,
    paper="2506.05183",
    fidelity="ours",
    granularity="step",
    family="trees",
    cost="a tree of steps, N children a node",
    reduces_to="spo_tree with normalize=True and prob_mask=None, where std='children' and mean='children'",
)
def tree_rpo(
    group: Rollout,
    *,
    std: Literal["bernoulli", "children"] = "bernoulli",
    mean: Literal["paths", "children"] = "paths",
    drop: bool = True,
    eps: float = 1e-6,
):
    """GRPO among siblings of a tree, a node's reward being the mean outcome of its leaves (our design).

        A_n = (V_n - mu) / (sqrt(mu (1 - mu)) + eps),   mu = mean of V over the children of n's parent, outcomes in [0, 1]

    TreeRPO, arXiv 2506.05183. Its Bernoulli deviation is from memory, hence our design; std="children" takes that of the siblings.
    mean="children" backs up from children to parents instead, which is the same on full trees. Signals: node, node_parent. Every edge
    counts once (`weight`); siblings that are equal get 0 and, with `drop`, leave the loss.
    """
    on, R = tree(group), outcome(group)
    V = path_mean(R, on) if mean == "paths" else child_mean(R, on)
    mu, apart = (x[on.parent] for x in over_children(V, R, on))
    scale = root(mu * (1 - mu)) if std == "bernoulli" else apart
    differ = (apart > 0) & (scale > 0)
    A = jnp.where(differ, (V - mu) / jnp.where(differ, scale + eps, 1), 0)
    return edges(A, on, group, kept=differ if drop else None)
