"""Common prefixes of a group's rows, and the mean rewards of the trajectories that begin with them.

A value changes only where a row leaves another trajectory, at most G - 1 columns of a row. So all
functions but the first work on the [R, G] table of shared lengths, and nothing of length T is made
until the few changes are scattered into one array.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

BLOCK = 128  # columns compared at once; their keys are the only long temporary
LANES = 8  # width of a vector register


def common_prefix(tokens: Int[Array, "R T"], valid: Bool[Array, "R T"]) -> Int[Array, "R R"]:
    """Number of columns before the first in which two rows differ.

        L_ij = min {t : y_it != y_jt},   T for rows that never differ

    y_it is the token of row i at column t. Columns that are valid in neither row are equal (left
    padding, the tail of identical rows). A column that is valid in one row only differs. No branch
    depends on data, so `vmap` adds no work and sharded prompts need no collective.

    Args:
        tokens: [R, T] token ids, >= 0.
        valid: [R, T] tokens that are not padding.

    Returns:
        [R, R] lengths, 0 to T.

    >>> common_prefix(jnp.array([[5, 1, 2], [5, 1, 3]]), jnp.ones((2, 3), bool)).tolist()
    [[3, 2], [2, 3]]
    """
    R, T = tokens.shape
    short = ((0, 0), (0, max(0, BLOCK - T)))
    tokens, valid = jnp.pad(tokens, short), jnp.pad(valid, short)
    last = tokens.shape[1] - BLOCK
    lane = jnp.arange(LANES, dtype=jnp.int32)

    def step(k, prefix):
        # The last block may overlap the one before it: a minimum may count columns twice.
        start = jnp.minimum(k * BLOCK, last)
        y, real = (jax.lax.dynamic_slice_in_dim(x, start, BLOCK, axis=1) for x in (tokens, valid))
        key = jnp.where(real, y.astype(jnp.int32), -1)
        # Elementwise minima of register-wide slices, reduced once at the end: a CPU does not
        # vectorize one reduction of everything.
        first = jnp.full((R, R, LANES), T, jnp.int32)
        for s in range(0, BLOCK, LANES):
            y = key[:, s : s + LANES]
            first = jnp.minimum(first, jnp.where(y[:, None] != y[None], start + s + lane, T))
        return jnp.minimum(prefix, first.min(-1))

    return jax.lax.fori_loop(0, -(-T // BLOCK), step, jnp.full((R, R), T, jnp.int32))


def common_prefix_by_trajectory(
    prefix: Int[Array, "R R"], row: Int[Array, "R"], trajectories: int
) -> Int[Array, "R G"]:
    """Longest prefix that a row shares with any row of a trajectory.

        L_ig = max {L_ij : row_j = g}

    Args:
        prefix: [R, R] lengths from `common_prefix`.
        row: [R] trajectory of each row.
        trajectories: number of trajectories G.

    Returns:
        [R, G] lengths; 0 for a trajectory without rows.
    """
    member = row[:, None] == jnp.arange(trajectories, dtype=row.dtype)
    return jnp.where(member, prefix[:, :, None], 0).max(1)


def prefix_value_changes(
    shared: Int[Array, "R G"],
    row: Int[Array, "R"],
    reward: Float[Array, "G"],
    *,
    where: Bool[Array, "G"],
) -> tuple[Float[Array, "R G"], Int[Array, "R G"]]:
    """Changes of a row's prefix value, one for each trajectory that the row leaves.

        d_ig = V(i, t+1) - V(i, t)   at t = shared_ig
        V(i, t) = mean {R_g : g in M(i, t)},   M(i, t) = {g : where_g and shared_ig >= t}

    M(i, t) are the trajectories that begin with the row's first t columns. d is 0 for trajectories
    that did not take place, for all but the first of several trajectories left in one column, and
    where M(i, t+1) is empty, as in rows of padding. Rewards are taken relative to the row's own, so
    equal rewards give exactly 0. Source: arXiv 2509.18314.

    Args:
        shared: [R, G] lengths from `common_prefix_by_trajectory`.
        row: [R] trajectory of each row.
        reward: [G] return of each trajectory.
        where: [G] trajectories that took place.

    Returns:
        [R, G] changes d.
        [R, G] number of trajectories in M(i, t+1).
    """
    relative = _relative(reward, row, where)
    index = jnp.arange(reward.shape[0])

    def visit(sums, other):
        depth, gain, member = other
        deeper, at_depth = depth[:, None] > shared, depth[:, None] == shared
        n_after, after, n_leaving, leaving, repeated = sums
        after, leaving = (
            after + jnp.where(deeper, gain[:, None], 0),
            leaving + jnp.where(at_depth, gain[:, None], 0),
        )
        return (
            n_after + deeper,
            after,
            n_leaving + at_depth,
            leaving,
            repeated | (at_depth & (member < index)),
        ), None

    # A scan over trajectories: a CPU does not vectorize a reduction of [R, G, G].
    none, nothing = jnp.zeros(shared.shape, jnp.int32), jnp.zeros(shared.shape, reward.dtype)
    others = (jnp.where(where, shared, -1).T, relative.T, index)
    (n_after, after, n_leaving, leaving, repeated), _ = jax.lax.scan(
        visit, (none, nothing, none, nothing, none > 0), others, unroll=16
    )
    mean_after, mean_before = (
        after / jnp.maximum(n_after, 1),
        (after + leaving) / jnp.maximum(n_after + n_leaving, 1),
    )
    return jnp.where(where & ~repeated & (n_after > 0), mean_after - mean_before, 0), n_after


def scatter_changes(
    base: Float[Array, "R"], shared: Int[Array, "R G"], change: Float[Array, "R G"], columns: int
) -> Float[Array, "R T"]:
    """Base value in every column, plus each change in its column.

        A_it = base_i + sum_g change_ig [shared_ig = t]

    Args:
        base: [R] value of each row.
        shared: [R, G] column of each change; columns >= `columns` are dropped.
        change: [R, G] changes, such as those of `prefix_value_changes`.
        columns: number of columns T.

    Returns:
        [R, T] values.

    >>> scatter_changes(jnp.array([1.0]), jnp.array([[1, 2]]), jnp.array([[0.5, 0.25]]), 3).tolist()
    [[1.0, 1.5, 1.25]]
    """
    rows = jnp.arange(shared.shape[0])[:, None]
    return (
        jnp.broadcast_to(base[:, None], (base.shape[0], columns))
        .at[rows, shared]
        .add(change, mode="drop")
    )


def prefix_value(
    tokens: Int[Array, "R T"],
    valid: Bool[Array, "R T"],
    reward: Float[Array, "G"],
    *,
    where: Bool[Array, "G"],
    row: Int[Array, "R"] | None = None,
) -> Float[Array, "R T+1"]:
    """Mean reward of the trajectories that share the first t columns of a row.

        V(i, t) = mean {R_g : shared_ig >= t},   V(i, 0) = mean R

    Args:
        tokens: [R, T] token ids, >= 0.
        valid: [R, T] tokens that are not padding.
        reward: [G] return of each trajectory.
        where: [G] trajectories that took place.
        row: [R] trajectory of each row. None: row i is trajectory i.

    Returns:
        [R, T+1] values; 0 in rows of padding, whose prefixes no existing trajectory has.
    """
    R, T = tokens.shape
    row = jnp.arange(R) if row is None else row
    shared = common_prefix_by_trajectory(common_prefix(tokens, valid), row, reward.shape[0])
    members = where & (shared[:, None, :] >= jnp.arange(T + 1)[:, None])
    mean = jnp.where(members, _relative(reward, row, where)[:, None], 0).sum(-1) / jnp.maximum(
        members.sum(-1), 1
    )
    return jnp.where(where, reward, 0)[row][:, None] + mean


def _relative(reward, row, where):
    """Reward of each trajectory minus the row's own, [R, G]; 0 for those that are padding."""
    reward = jnp.where(where, reward, 0)
    return jnp.where(where, reward - reward[row][:, None], 0)
