"""Branch points: the columns in which a row stops sharing its prefix with other rows of its group.

Statistics of prefixes change only at branch points, at most G - 1 of a row. They are arrays [S, R]
with S = G - 1, computed from the table of shared lengths in O(G^3) per group. Nothing of length T
is made before `piecewise_constant` writes the result.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class BranchPoints(NamedTuple):
    """Statistics of the other trajectories at each branch point of each row.

    At its s-th branch point a row's node holds other trajectories: `stay` continue with the row,
    `leave` do not. Classes are the children of the node that hold at least two of them, and one
    class of all that are alone in theirs. The row's own trajectory is never counted.

    Attributes:
        column: [S, R] first column in which they differ from the row; T or more if there is none.
        stay: [S, R] number of trajectories that stay.
        stay_sum: [S, R] sum of their x.
        leave: [S, R] number of trajectories that leave.
        leave_sum: [S, R] sum of their x.
        classes: [S, R] number of classes.
        between: [S, R] sum_c n_c (mean_c - mean)^2.
        within: [S, R] sum_c sum_{j in c} (x_j - mean_c)^2.
        inverse: [S, R] sum_c 1 / n_c.
        left: [S, R] mean number of columns that the others have after this one.
    """

    column: Int[Array, "S R"]
    stay: Float[Array, "S R"]
    stay_sum: Float[Array, "S R"]
    leave: Float[Array, "S R"]
    leave_sum: Float[Array, "S R"]
    classes: Float[Array, "S R"]
    between: Float[Array, "S R"]
    within: Float[Array, "S R"]
    inverse: Float[Array, "S R"]
    left: Float[Array, "S R"]


def branch_points(
    prefix: Int[Array, "R R"],
    row: Int[Array, "R"],
    end: Int[Array, "R"],
    x: Float[Array, "R G"],
    where: Bool[Array, "R G"],
) -> BranchPoints:
    """All branch points of all rows, in the order of their columns.

    A trajectory of several rows is represented by the row of it that agrees longest with this one.

    Args:
        prefix: [R, R] lengths from `common_prefix`.
        row: [R] trajectory of each row.
        end: [R] column after the last token of each row.
        x: [R, G] value of each trajectory relative to the row, such as its centered return.
        where: [R, G] other trajectories to count for each row.

    Returns:
        Arrays [S, R] with S = max(G - 1, 1).
    """
    R, G = x.shape
    rows = jnp.arange(R, dtype=prefix.dtype)
    member = row[:, None] == jnp.arange(G, dtype=row.dtype)
    # The row of each trajectory with the longest shared prefix, the first of equal ones.
    code = jnp.where(member, (prefix * R + (R - 1 - rows))[:, :, None], -1).max(1)
    shared, nearest = jnp.where(code >= 0, code // R, 0), jnp.where(code >= 0, R - 1 - code % R, 0)
    # [G, R]: sums over the other trajectories then run over whole registers.
    L, x, end, where = shared.T, jnp.where(where, x, 0).T, end[nearest].T, where.T

    # Trajectories that continue in the same child as g, at the node where g leaves the row.
    pairs = jnp.moveaxis(prefix[nearest[:, :, None], nearest[:, None, :]], 0, -1)
    with_g = where & where[:, None] & (pairs > L[:, None])
    size, total = with_g.sum(1).astype(x.dtype), jnp.where(with_g, x, 0).sum(1)
    many, alone = size > 1, size == 1
    one_over = jnp.where(many, 1 / jnp.maximum(size, 1), 0)

    def next_branch(last, _):
        column = jnp.min(jnp.where(where & (L > last), L, jnp.iinfo(L.dtype).max), 0)
        stays, leaves = where & (L > column), where & (L == column)
        n, m = stays.sum(0).astype(x.dtype), leaves.sum(0).astype(x.dtype)
        n_sum, m_sum = jnp.where(stays, x, 0).sum(0), jnp.where(leaves, x, 0).sum(0)
        single, big = leaves & alone, leaves & many
        singles = single.sum(0) + (n == 1)
        singles_sum = jnp.where(single, x, 0).sum(0) + jnp.where(n == 1, n_sum, 0)
        classes = jnp.where(big, one_over, 0).sum(0) + (n > 1) + (singles > 0)
        inverse = (
            jnp.where(big, one_over**2, 0).sum(0)
            + jnp.where(n > 1, _over(1, n), 0)
            + _over(1, singles)
        )
        square = (
            jnp.where(big, (total * one_over) ** 2, 0).sum(0)
            + jnp.where(n > 1, _over(n_sum**2, n), 0)
            + _over(singles_sum**2, singles)
        )
        all_square = jnp.where(stays | leaves, x * x, 0).sum(0)
        between = jnp.maximum(square - _over((n_sum + m_sum) ** 2, n + m), 0)
        left = _over(jnp.where(stays | leaves, end - column - 1, 0).sum(0).astype(x.dtype), n + m)
        within = jnp.maximum(all_square - square, 0)
        return column, BranchPoints(
            column, n, n_sum, m, m_sum, classes, between, within, inverse, left
        )

    return jax.lax.scan(next_branch, jnp.full(R, -1, L.dtype), None, length=max(G - 1, 1))[1]


def piecewise_constant(
    first: Float[Array, "R"],
    column: Int[Array, "S R"],
    at: Float[Array, "S R"],
    after: Float[Array, "S R"],
    columns: int,
) -> Float[Array, "R T"]:
    """Step function over the columns of each row.

    `first` before the first of the columns, at[s] in column[s], after[s] beyond it until the next.

    Args:
        first: [R] value before the first branch point.
        column: [S, R] columns, ascending along S.
        at: [S, R] value in each of these columns.
        after: [S, R] value behind it.
        columns: number of columns T.

    Returns:
        [R, T] values.

    >>> x = jnp.array([[1.0]])
    >>> piecewise_constant(jnp.array([0.0]), jnp.array([[1]]), 2 * x, x, 4).tolist()
    [[0.0, 2.0, 1.0, 1.0]]
    """
    position = jnp.arange(columns, dtype=column.dtype)
    out = jnp.broadcast_to(first[:, None], (*first.shape, columns))
    for s in range(column.shape[0]):  # XLA fuses the loop into one pass over the result
        branch = column[s][:, None]
        out = jnp.where(
            position == branch, at[s][:, None], jnp.where(position > branch, after[s][:, None], out)
        )
    return out


def _over(x, n):
    return jnp.where(n > 0, x / jnp.maximum(n, 1), 0)
