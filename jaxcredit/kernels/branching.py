"""Where a row leaves others of its group, one parting after the other, and what those others were like there.

Prefix statistics change only at partings, at most G - 1 a row. So they are arrays [S, R] with S = G - 1, made of the table of shared
lengths in O(G^3) a group; nothing as long as the rows is made before `piecewise_constant` writes the answer.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class BranchPoints(NamedTuple):
    """The node before a row's s-th parting, seen without the row's own trajectory: `stay` go on with the row, `leave` do not.

    Classes are the children of the node that hold at least two others, and one class of all that are alone in theirs.
    """

    column: Int[
        Array, "S R"
    ]  # the first column in which they differ; T or more where the row parts from nobody else
    stay: Float[Array, "S R"]  # how many stay
    stay_sum: Float[Array, "S R"]
    leave: Float[Array, "S R"]
    leave_sum: Float[Array, "S R"]
    classes: Float[Array, "S R"]
    between: Float[Array, "S R"]  # sum_c n_c (mean_c - mean)^2
    within: Float[Array, "S R"]  # sum_c sum_{j in c} (x_j - mean_c)^2
    inverse: Float[Array, "S R"]  # sum_c 1 / n_c
    left: Float[Array, "S R"]  # mean columns that the others have after this one


def branch_points(
    prefix: Int[Array, "R R"],
    row: Int[Array, "R"],
    end: Int[Array, "R"],
    x: Float[Array, "R G"],
    where: Bool[Array, "R G"],
) -> BranchPoints:
    """Every parting of every row, in the order of columns. `x` [R, G] is what the others earned, as the row sees it; `where` the others.

    A trajectory of several rows is seen in that row of it which agrees with this one longest.
    """
    R, G = x.shape
    rows = jnp.arange(R, dtype=prefix.dtype)
    member = row[:, None] == jnp.arange(G, dtype=row.dtype)
    code = jnp.where(member, (prefix * R + (R - 1 - rows))[:, :, None], -1).max(
        1
    )  # the longest, then the first
    shared, seen = jnp.where(code >= 0, code // R, 0), jnp.where(code >= 0, R - 1 - code % R, 0)
    L, x, end, where = (
        shared.T,
        jnp.where(where, x, 0).T,
        end[seen].T,
        where.T,
    )  # [G, R]: sums over the others run over whole registers

    # Who went on in g's child where g left the row.
    pairs = jnp.moveaxis(prefix[seen[:, :, None], seen[:, None, :]], 0, -1)
    with_g = where & where[:, None] & (pairs > L[:, None])
    size, total = with_g.sum(1).astype(x.dtype), jnp.where(with_g, x, 0).sum(1)
    many, alone = size > 1, size == 1
    one_over = jnp.where(many, 1 / jnp.maximum(size, 1), 0)

    def parting(last, _):
        column = jnp.min(jnp.where(where & (L > last), L, jnp.iinfo(L.dtype).max), 0)
        stays, leaves = where & (L > column), where & (L == column)
        n, m = stays.sum(0).astype(x.dtype), leaves.sum(0).astype(x.dtype)
        n_sum, m_sum = jnp.where(stays, x, 0).sum(0), jnp.where(leaves, x, 0).sum(0)
        single, big = leaves & alone, leaves & many
        ones = single.sum(0) + (n == 1)
        ones_sum = jnp.where(single, x, 0).sum(0) + jnp.where(n == 1, n_sum, 0)
        classes = jnp.where(big, one_over, 0).sum(0) + (n > 1) + (ones > 0)
        inverse = (
            jnp.where(big, one_over**2, 0).sum(0)
            + jnp.where(n > 1, _over(1, n), 0)
            + _over(1, ones)
        )
        square = (
            jnp.where(big, (total * one_over) ** 2, 0).sum(0)
            + jnp.where(n > 1, _over(n_sum**2, n), 0)
            + _over(ones_sum**2, ones)
        )
        all_square = jnp.where(stays | leaves, x * x, 0).sum(0)
        between = jnp.maximum(square - _over((n_sum + m_sum) ** 2, n + m), 0)
        left = _over(jnp.where(stays | leaves, end - column - 1, 0).sum(0).astype(x.dtype), n + m)
        within = jnp.maximum(all_square - square, 0)
        return column, BranchPoints(
            column, n, n_sum, m, m_sum, classes, between, within, inverse, left
        )

    return jax.lax.scan(parting, jnp.full(R, -1, L.dtype), None, length=max(G - 1, 1))[1]


def piecewise_constant(
    first: Float[Array, "R"],
    column: Int[Array, "S R"],
    at: Float[Array, "S R"],
    after: Float[Array, "S R"],
    columns: int,
) -> Float[Array, "R T"]:
    """`first` until the first of the columns, `at` in each of them, `after` beyond it until the next.  Columns ascend along S."""
    place = jnp.arange(columns, dtype=column.dtype)
    answer = jnp.broadcast_to(first[:, None], (*first.shape, columns))
    for s in range(column.shape[0]):  # fused into one pass over the answer
        edge = column[s][:, None]
        answer = jnp.where(
            place == edge, at[s][:, None], jnp.where(place > edge, after[s][:, None], answer)
        )
    return answer


def _over(x, n):
    return jnp.where(n > 0, x / jnp.maximum(n, 1), 0)
