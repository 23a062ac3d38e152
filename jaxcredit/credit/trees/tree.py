"""What estimators on trees share: the group's tree, and a number a node as columns for the tokens of its edge."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxcredit.kernels import Tree, edge_to_tokens, tree_of
from jaxcredit.rollout import Rollout

NEEDS = ("node", "node_parent")


def tree(group: Rollout) -> Tree:
    return tree_of(group["node"], group["node_parent"], group.segment_mask)


def edges(
    x: Float[Array, "M"], on: Tree, group: Rollout, *, kept: Bool[Array, "M"] | None = None
) -> dict[str, Array]:
    """The advantage of each edge on its tokens, weighted so that each edge counts once; edges that are not kept leave the loss."""
    advantage, weight = edge_to_tokens(x, on, group, kept=kept)
    return {"advantage": advantage, "weight": weight}


def unsure(group: Rollout, prob_mask: float | None) -> Bool[Array, "*N R T"]:
    """Tokens whose probability was below `prob_mask`; all for None."""
    return (
        jnp.ones(group.action_mask.shape, bool)
        if prob_mask is None
        else group.logp < jnp.log(prob_mask)
    )
