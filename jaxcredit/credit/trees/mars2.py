import jax
import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.credit.trees.tree import NEEDS, edges, tree
from jaxcredit.kernels import Tree, from_parent, rounding, segment_to_node, standardize
from jaxcredit.rollout import Rollout


@per_group(
    needs=NEEDS,
    fidelity="code",
    granularity="segment",
    family="trees",
    cost="a search tree of 8 answers, each refining its parent's",
    reduces_to="grpo on nodes with gamma=0",
)
def mars2(
    group: Rollout,
    *,
    gamma: float = 0.5,
    lam: float = 0.5,
    in_place: bool = True,
    ddof: int = 0,
    eps: float = 1e-6,
):
    """A node's reward, more of it where it beats its parent and siblings, against all nodes of the tree.

        r'_n = r_n + gamma (r_n - b_n),   b_n = (1 - lam) r'_parent + lam mean_{siblings but n} r
        A_n = (r'_n - mean r') / (std r' + eps)   over the nodes

    MARS^2 as released (MARTI, ab_mcts_processor; no paper's formula is known). The parent's reward there has been shaped already, an
    effect of shaping in place: in_place=False takes r_parent. Under the root the siblings alone are the baseline, without siblings
    the parent alone, with neither r' = r. Signals: node, node_parent; a segment's reward is its node's, paths that share one agree
    (their mean is taken). Every edge counts once (`weight`). Departs from the code: ddof=1, eps=1e-9 there.
    """
    on = tree(group)
    r, used = node_reward(group, on)
    shaped = shape(r, on, used, gamma=gamma, lam=lam, in_place=in_place)
    size = (1 + 2 * abs(gamma)) * jnp.max(jnp.abs(r), where=used, initial=0)
    return edges(
        standardize(
            shaped,
            where=used,
            ddof=ddof,
            eps=eps,
            slack=rounding(size, group.segment_mask.shape[0]),
        ),
        on,
        group,
    )


def node_reward(group: Rollout, on: Tree):
    """Each node's reward less the greatest of the tree (shaping carries an offset through), and which nodes there are."""
    M = on.paths.shape[0]
    used = (on.paths > 0) & (jnp.arange(M) > 0)
    top = jnp.max(group.reward, where=group.segment_mask, initial=-jnp.inf)
    far = jnp.where(group.segment_mask, group.reward - jnp.where(jnp.isfinite(top), top, 0), 0)
    return segment_to_node(far, on.node, M) / jnp.maximum(on.paths, 1), used


def shape(r, on: Tree, used, *, gamma: float = 0.5, lam: float = 0.5, in_place: bool = True):
    """r' of each node: what its parent passes on is linear, so shaping in place is one recurrence down the tree."""
    M = r.shape[0]
    ids = jnp.where(used, on.parent, M)
    count, total = jax.ops.segment_sum(
        jnp.stack([used.astype(r.dtype), jnp.where(used, r, 0)], -1), ids, M
    )[on.parent].T
    siblings, child = count > 1, used & (on.parent > 0)
    beside = jnp.where(siblings, (total - r) / jnp.maximum(count - 1, 1), 0)
    of_parent = jnp.where(child, jnp.where(siblings, 1 - lam, 1), 0)
    of_siblings = jnp.where(used & siblings, jnp.where(child, lam, 1), 0)
    own = r + gamma * ((of_parent + of_siblings) * r - of_siblings * beside)
    if not in_place:
        return own - gamma * of_parent * r[on.parent]
    return from_parent(own, on.parent, -gamma * of_parent, depth=on.node.shape[1])
