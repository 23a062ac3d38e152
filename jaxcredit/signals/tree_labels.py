"""Labels from groups and trees of answers, for training value models, process models and judges.

All functions are for one group; use `jax.vmap` for several.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxcredit.kernels import ROOT, Tree, masked_mean, prefix_value, sum_up_tree


def ovm(
    correct: Float[Array, "G"], row: Int[Array, "R"], mask: Bool[Array, "R T"]
) -> Float[Array, "R T"]:
    """Outcome label of each token: the correctness of the whole answer.

    Args:
        correct: [G] 1 for right answers, 0 for wrong ones.
        row: [R] trajectory of each row.
        mask: [R, T] tokens to label.

    Returns:
        [R, T] labels, 0 off the mask.

    Source: OVM, arXiv 2311.09724.

    >>> mask = jnp.array([[True, True, False], [True, True, True]])
    >>> ovm(jnp.array([1.0, 0.0]), jnp.arange(2), mask).tolist()
    [[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """
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
    """Value label of each token: share of right answers among those with the same prefix.

    The prefix includes the token itself. The label is the group's mean of `ovm`'s labels over that
    prefix, so a model that minimizes the squared error has the same optimum and less noise.

    Args:
        tokens: [R, T] token ids.
        valid: [R, T] tokens that are not padding.
        mask: [R, T] tokens to label.
        correct: [G] 1 for right answers, 0 for wrong ones.
        where: [G] trajectories that exist.
        row: [R] trajectory of each row; None: row i is trajectory i.

    Returns:
        [R, T] labels in [0, 1], 0 off the mask.

    Source: TVM, arXiv 2407.12863.
    """
    return jnp.where(mask, prefix_value(tokens, valid, correct, where=where, row=row)[:, 1:], 0)


def grounded_prm(
    verdict: Float[Array, "*b K"],
    final: Float[Array, "*b"],
    *,
    where: Bool[Array, "*b K"],
    by_length: bool = True,
) -> Float[Array, "*b"]:
    """Score of a search-tree node from one simulation: its tool verdicts and its final result.

        u = 1/N sum_i v_i (N - i) / N + F / N,   i = 0 .. N - 1;   u = F for N = 0

    Args:
        verdict: [..., K] verdicts v, -1 or 1, of the N steps of the simulation, without the node's
            own verdict and the last one.
        final: [...] final result F, -1 or 1.
        where: [..., K] steps that exist.
        by_length: bool. True: F is divided by N, as in the released code, so that a long
            simulation weakens the outcome. False: F counts in full.

    Returns:
        [...] scores u.

    Source: GroundedPRM, arXiv 2510.14942, and its released code.

    >>> verdict = jnp.array([1.0, -1.0, 1.0])
    >>> round(float(grounded_prm(verdict, jnp.float32(1), where=jnp.ones(3, bool))), 4)
    0.5556
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
    """Values and visit counts of a search tree's nodes, backed up from the simulations.

    Args:
        score: [M] sum of the scores u of the simulations that began in each node.
        visits: [M] number of these simulations.
        parent: [M] parent of each node, -1 for none.
        decay: float in [0, 1]. An ancestor at distance d gets decay^d u; 0.9 in the released code.

    Returns:
        Values [M], the sums (not means) of what each node gets, and visit counts [M] of each
        node's subtree.

    Source: GroundedPRM, arXiv 2510.14942, and its released code.
    """
    values = sum_up_tree(score, parent, decay)
    return values, sum_up_tree(visits.astype(score.dtype), parent).astype(visits.dtype)


def malt_labels(value: Float[Array, "M"], *, theta: float = 0.5) -> Bool[Array, "M"]:
    """Binary label of each node of a tree: its value is above a threshold, V_n > theta.

    Args:
        value: [M] values of the nodes.
        theta: float, threshold; a value equal to it is negative.

    Returns:
        [M] labels.

    Source: MALT, arXiv 2412.01928.

    >>> malt_labels(jnp.array([0.2, 0.5, 0.8])).tolist()
    [False, False, True]
    """
    return value > theta


def sibling_pairs(label: Bool[Array, "M"], tree: Tree) -> Bool[Array, "M M"]:
    """Preference pairs: children of one parent with different labels.

    Args:
        label: [M] labels of the nodes.
        tree: `jaxcredit.kernels.Tree` of M nodes.

    Returns:
        [M, M] True at [good, bad] for nodes of one parent with label True and False.

    Source: MALT, arXiv 2412.01928.
    """
    exists = (tree.paths > 0) & (jnp.arange(label.shape[0]) != ROOT)
    return (tree.parent[:, None] == tree.parent) & (label & exists)[:, None] & (~label & exists)


def judge_total(
    parts: Float[Array, "*b P"], *, where: Bool[Array, "*b P"] | None = None, mean: bool = False
) -> Float[Array, "*b"]:
    """Sum or mean of a judge's marks of the parts of a step: thought, query and answer.

    Args:
        parts: [..., P] marks.
        where: [..., P] parts that exist and could be parsed; None: all. The others count 0 in the
            sum and do not count in the mean.
        mean: bool. True: the mean. False: the sum. The paper leaves it open.

    Returns:
        [...] total mark.

    Source: SLATE, arXiv 2602.23440.

    >>> float(judge_total(jnp.array([1.0, -1.0, 1.0])))
    1.0
    """
    return masked_mean(parts, where, -1) if mean else jnp.sum(parts, -1, where=where)
