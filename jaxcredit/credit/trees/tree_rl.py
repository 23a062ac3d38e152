from typing import Literal

import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.credit.trees.tree import NEEDS, edges, tree
from jaxcredit.kernels import center, path_mean
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
    """What a step is worth against the whole tree, and against its parent.

        A_n = [(V_n - V_root) + (V_n - V_parent)] / sqrt(leaves_n),   V_n = mean {R_i - mean_{j != i} R_j : path i passes n}

    TreeRL, arXiv 2506.11902. Signals: node, node_parent. weighting="code" is the released code, which divides each value by the root
    of its own leaves before the difference, A_n = 2 V'_n - V'_parent with V'_n = V_n / sqrt(leaves_n); "none" divides nothing.
    Every edge counts once (`weight`). Departs from the code: it trains on some of the leaves, this on all, and it may take a mean
    over all tokens off the values.
    """
    on = tree(group)
    V = path_mean(center(outcome(group), where=trajectory_mask(group), leave_one_out=True), on)
    V = V - V[0]  # 0 but for rounding
    leaves = jnp.maximum(on.paths, 1).astype(V.dtype)
    V = V / jnp.sqrt(leaves) if weighting == "code" else V
    A = V + (V - V[on.parent])
    return edges(A / jnp.sqrt(leaves) if weighting == "paper" else A, on, group)
