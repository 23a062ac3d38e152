import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.credit.trees.tree import NEEDS, edges, tree, unsure
from jaxcredit.kernels import backup_rounding, child_mean, over_children
from jaxcredit.rollout import Rollout, outcome


@per_group(
    needs=NEEDS,
    paper="2505.23564",
    fidelity="code",
    granularity="segment",
    family="trees",
    cost="a tree of segments, 6 children a node",
    reduces_to="dr_grpo where branches part at the root alone; malt with prob_mask=None and drop=False",
)
def spo_tree(
    group: Rollout,
    *,
    normalize: bool = False,
    prob_mask: float | None = 0.9,
    drop: bool = True,
    eps: float = 1e-6,
):
    """A segment's value against its siblings', values being means of children.

        A_n = V_n - V_parent,   V_n = mean_children V, the outcome at a leaf         (normalize=False)
        A_n = (V_n - V_parent) / (std_children(parent) + eps)                        (normalize=True)

    Segment Policy Optimization, arXiv 2505.23564, as released, where normalize=False is called rloo and normalize=True grpo: the
    parent's mean includes the child. Signals: node, node_parent.
    Every edge counts once (`weight`); tokens with p_t >= prob_mask and, with `drop`, edges with A = 0 leave the loss. Departs from
    the code: eps 1e-8 there; whitening over the batch and its prover term (off by default there) are not here.
    """
    on = tree(group)
    R = outcome(group)
    V = child_mean(R, on)
    A = V - V[on.parent]
    A = jnp.where(jnp.abs(A) > backup_rounding(R, on), A, 0)
    if normalize:
        std = over_children(V, R, on)[1][on.parent]
        A = jnp.where(std > 0, A / jnp.where(std > 0, std + eps, 1), 0)
    columns = edges(A, on, group, kept=(A != 0) if drop else None)
    return columns | {"weight": jnp.where(unsure(group, prob_mask), columns["weight"], 0)}
