import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.credit.trees.tree import NEEDS, edge_columns, group_tree, uncertain_tokens
from jaxcredit.kernels import backup_rounding, child_mean, child_statistics
from jaxcredit.rollout import Rollout, outcome


@per_group(
    needs=NEEDS,
    paper="2505.23564",
    fidelity="code",
    granularity="segment",
    family="trees",
    cost="a tree of segments, 6 children a node",
    reduces_to="dr_grpo if only the root has several children; malt with prob_mask=None and "
    "drop=False",
)
def spo_tree(
    group: Rollout,
    *,
    normalize: bool = False,
    prob_mask: float | None = 0.9,
    drop: bool = True,
    eps: float = 1e-6,
):
    """Value of a segment's node less its parent's; a node's value is the mean of its children's.

        A_n = V_n - V_parent                                       (normalize=False)
        A_n = (V_n - V_parent) / (std {V_c : c sibling} + eps)     (normalize=True)
        V_n = mean {V_c : c a child of n},   V = R at a leaf

    The siblings include n itself, as the mean V_parent does. R is the sum of a trajectory's
    rewards.

    Signals: node [N, G, K] (int, the node in which each segment ends) and node_parent [N, M] (int,
    the parent of each node, -1 for the root, which is node 0).

    Args:
        normalize: bool. False: the released code's "rloo". True: its "grpo".
        prob_mask: float in (0, 1], or None. Tokens that were sampled with this probability or a
            higher one leave the loss; 0.9 in the released code. None: all tokens stay.
        drop: bool. True: segments with advantage 0 leave the loss.
        eps: float >= 0, added to the standard deviation; 1e-8 in the released code.

    Returns:
        Dict of `advantage` and `weight`, each [N, R, T]. The advantage is the same for all tokens
        of a segment. In a segment that n trajectories share every token has weight 1 / n, so that
        the segment counts once in the loss. A token that leaves the loss has weight 0.

    Departs from released code: no whitening over the batch, and no prover term (which is off there
    by default).

    Source: Segment Policy Optimization (SPO-tree), arXiv 2505.23564, and its released code.
    """
    tree, R = group_tree(group), outcome(group)
    V = child_mean(R, tree)
    A = V - V[tree.parent]
    A = jnp.where(jnp.abs(A) > backup_rounding(R, tree), A, 0)
    if normalize:
        std = child_statistics(V, R, tree)[1][tree.parent]
        A = jnp.where(std > 0, A / jnp.where(std > 0, std + eps, 1), 0)
    columns = edge_columns(A, tree, group, trained=(A != 0) if drop else None)
    weight = jnp.where(uncertain_tokens(group, prob_mask), columns["weight"], 0)
    return columns | {"weight": weight}
