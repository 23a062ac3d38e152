"""Labels read off trees of answers: what value and process models are taught, and what a judge's parts come to. One group; vmap outside."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxcredit.kernels import Tree, masked_mean, prefix_value, sum_up_tree


def ovm(
    correct: Float[Array, "G"], row: Int[Array, "R"], mask: Bool[Array, "R T"]
) -> Float[Array, "R T"]:
    """Every token of the answer is labelled with how the answer ended (OVM, arXiv 2311.09724). 0 off the mask."""
    return jnp.where(mask, correct[row][:, None], 0)


def tvm(
    tokens: Int[Array, "R T"],
    valid: Bool[Array, "R T"],
    mask: Bool[Array, "R T"],
    correct: Float[Array, "G"],
    *,
    where: Bool[Array, "G"],
    row: Int[Array, "R"] | None = None,
) -> Float[Array, "R T"]:
    """Each token's label is the share of correct answers among those that begin as this one does, the token included.

    TVM, arXiv 2407.12863: the mean over the group of what OVM would say, hence the same minimiser with less noise. 0 off the mask.
    """
    return jnp.where(mask, prefix_value(tokens, valid, correct, where=where, row=row)[:, 1:], 0)


def grounded_prm(
    verdict: Float[Array, "*b K"],
    final: Float[Array, "*b"],
    *,
    where: Bool[Array, "*b K"],
    by_length: bool = True,
) -> Float[Array, "*b"]:
    """What one simulation from a node says of it, tool verdicts v and the end F in {-1, 1}.

        u = 1/N sum_i v_i (N - i) / N + F / N,   i = 0..N-1;   u = F for N = 0

    GroundedPRM, arXiv 2510.14942, as released (the node's own verdict and the last one taken out), where a long simulation also weakens
    the outcome; `by_length=False` adds F whole.
    """
    N = where.sum(-1)
    weight = (N[..., None] - (jnp.cumsum(where, -1) - 1)) / jnp.maximum(N, 1)[..., None]
    steps = jnp.where(where, verdict * weight, 0).sum(-1) / jnp.maximum(N, 1)
    return steps + final / (jnp.maximum(N, 1) if by_length else 1)


def grounded_prm_values(
    score: Float[Array, "M"],
    visits: Int[Array, "M"],
    parent: Int[Array, "M"],
    *,
    decay: float = 0.9,
) -> tuple[Float[Array, "M"], Int[Array, "M"]]:
    """Values and visits of a search tree's nodes: an ancestor at distance d gets decay^d u. Values are sums there, not means."""
    return sum_up_tree(score, parent, decay), sum_up_tree(
        visits.astype(score.dtype), parent
    ).astype(visits.dtype)


def malt_labels(value: Float[Array, "M"], *, theta: float = 0.5) -> Bool[Array, "M"]:
    """y_n = [V_n > theta]: a value of theta is negative (MALT, arXiv 2412.01928)."""
    return value > theta


def sibling_pairs(label: Bool[Array, "M"], tree: Tree) -> Bool[Array, "M M"]:
    """[good, bad] pairs to prefer one over the other: children of one parent with different labels; none where all are alike."""
    used = (tree.paths > 0) & (jnp.arange(label.shape[0]) > 0)
    return (tree.parent[:, None] == tree.parent) & (label & used)[:, None] & (~label & used)


def judge_total(
    parts: Float[Array, "*b P"], *, where: Bool[Array, "*b P"] | None = None, mean: bool = False
) -> Float[Array, "*b"]:
    """A judge's marks of thought, query and answer as one verdict: their sum, or mean. Unread or absent parts count 0, or not at all.

    SLATE, arXiv 2602.23440, leaves open which; both are our reading.
    """
    return masked_mean(parts, where, -1) if mean else jnp.sum(parts, -1, where=where)
