"""Common prefixes of a group's rows, and the value of a prefix: the mean reward of the trajectories that begin with it.

A value changes only where a row leaves another trajectory, at most G - 1 columns a row. So everything but the first function works
on the [R, G] table of shared lengths: no array as long as the rows is made until the few differences are written into one.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

BLOCK, LANES = (
    128,
    8,
)  # columns compared at once (their keys are the only long temporary), and the width of a vector register


def common_prefix(tokens: Int[Array, "R T"], valid: Bool[Array, "R T"]) -> Int[Array, "R R"]:
    """Columns before the first in which two rows differ.  L_ij = min {t : y_it != y_jt}, T for rows that never do.

    Columns that are valid in neither row agree (left padding, the tail of identical rows); valid in one only, they differ.
    Token ids are not negative. No branch depends on data, so vmap adds no work and sharded prompts need no collective.
    """
    R, T = tokens.shape
    short = ((0, 0), (0, max(0, BLOCK - T)))
    tokens, valid = jnp.pad(tokens, short), jnp.pad(valid, short)
    last = tokens.shape[1] - BLOCK
    lane = jnp.arange(LANES, dtype=jnp.int32)

    def step(k, prefix):
        start = jnp.minimum(
            k * BLOCK, last
        )  # the last block may overlap the one before: a minimum does not mind
        y, real = (jax.lax.dynamic_slice_in_dim(x, start, BLOCK, axis=1) for x in (tokens, valid))
        key = jnp.where(real, y.astype(jnp.int32), -1)
        # Elementwise minima of register-wide slices, and one reduction at the end: a CPU does not vectorise a reduction of all.
        first = jnp.full((R, R, LANES), T, jnp.int32)
        for s in range(0, BLOCK, LANES):
            y = key[:, s : s + LANES]
            first = jnp.minimum(first, jnp.where(y[:, None] != y[None], start + s + lane, T))
        return jnp.minimum(prefix, first.min(-1))

    return jax.lax.fori_loop(0, -(-T // BLOCK), step, jnp.full((R, R), T, jnp.int32))


def common_prefix_by_trajectory(
    prefix: Int[Array, "R R"], row: Int[Array, "R"], trajectories: int
) -> Int[Array, "R G"]:
    """How far a row agrees with any row of a trajectory: a trajectory of several rows counts once.  L_ig = max {L_ij : row_j = g}"""
    member = row[:, None] == jnp.arange(trajectories, dtype=row.dtype)
    return jnp.where(member, prefix[:, :, None], 0).max(1)


def prefix_value_changes(
    shared: Int[Array, "R G"],
    row: Int[Array, "R"],
    reward: Float[Array, "G"],
    *,
    where: Bool[Array, "G"],
) -> tuple[Float[Array, "R G"], Int[Array, "R G"]]:
    """The sparse differences of a row's prefix value.  d_ig = V(i, t+1) - V(i, t) and |M(i, t+1)| at t = shared_ig

    M(i, t) = {g : shared_ig >= t}, the trajectories that begin with the row's first t columns, and V is the mean of their rewards
    (arXiv 2509.18314). Of the trajectories left in the same column the first carries the difference; identical ones carry none.
    Rewards are taken relative to the row's own, so equal rewards of any value give exactly 0.
    """
    relative = _relative(reward, row, where)
    index = jnp.arange(reward.shape[0])

    def visit(sums, other):
        depth, gain, h = other
        beyond, here = depth[:, None] > shared, depth[:, None] == shared
        n_after, after, n_left, left, repeated = sums
        after, left = (
            after + jnp.where(beyond, gain[:, None], 0),
            left + jnp.where(here, gain[:, None], 0),
        )
        return (n_after + beyond, after, n_left + here, left, repeated | (here & (h < index))), None

    # One trajectory after the other in the registers: a reduction of [R, G, G] is not vectorised on a CPU.
    none, nothing = jnp.zeros(shared.shape, jnp.int32), jnp.zeros(shared.shape, reward.dtype)
    others = (jnp.where(where, shared, -1).T, relative.T, index)
    (n_after, after, n_left, left, repeated), _ = jax.lax.scan(
        visit, (none, nothing, none, nothing, none > 0), others, unroll=16
    )
    mean_after, mean_before = (
        after / jnp.maximum(n_after, 1),
        (after + left) / jnp.maximum(n_after + n_left, 1),
    )
    return jnp.where(where & ~repeated & (n_after > 0), mean_after - mean_before, 0), n_after


def scatter_changes(
    base: Float[Array, "R"], shared: Int[Array, "R G"], change: Float[Array, "R G"], columns: int
) -> Float[Array, "R T"]:
    """`base` in every column, plus the changes in theirs.  A_it = base_i + sum_g change_ig [shared_ig = t]"""
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
    """Mean reward of the trajectories that share the first t columns.  V(i, t) = mean {R_g : shared_ig >= t}, V(i, 0) = mean R

    `row` says whose trajectory a row is (None: row i is trajectory i). A prefix that no real trajectory has keeps the row's own reward.
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
    """[R, G]: each trajectory's reward less the row's own; 0 for those that did not take place."""
    reward = jnp.where(where, reward, 0)
    return jnp.where(where, reward - reward[row][:, None], 0)
