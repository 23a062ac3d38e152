"""Conversions between trajectories [G], segments [G, K] and tokens of rows [R, T] of one group.

`group` is a `jaxcredit.Rollout` of one prompt, or anything with the fields of `Group`. Rows of one
trajectory follow each other in the order of their index.
"""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxcredit.kernels.multistep import gae
from jaxcredit.kernels.sequences import first_value, is_last

BLOCK, LANES = 128, 8  # columns a step takes, and the width of a vector register


@runtime_checkable
class Group(Protocol):
    """Fields of one prompt's `jaxcredit.Rollout` that the kernels read."""

    @property
    def action_mask(self) -> Bool[Array, "R T"]:
        """Tokens that the policy sampled."""
        ...

    @property
    def segment(self) -> Int[Array, "R T"]:
        """Segment of each token, -1 outside any."""
        ...

    @property
    def segment_mask(self) -> Bool[Array, "G K"]:
        """Segments that took place."""
        ...

    @property
    def row(self) -> Int[Array, "R"] | None:
        """Trajectory of each row. None: row i is trajectory i."""
        ...


def to_tokens(x: Float[Array, "G"] | Float[Array, "G K"], group: Group) -> Float[Array, "R T"]:
    """Value of each token's trajectory or segment.

    Args:
        x: [G], values of trajectories, or [G, K], values of segments.
        group: rollout of one prompt.

    Returns:
        [R, T] values. With x [G, K], 0 on tokens outside any segment.
    """
    x = x[rows_of(group)]
    if x.ndim == 1:
        return jnp.broadcast_to(x[:, None], group.segment.shape)
    if x.shape[1] == 1:
        return jnp.where(group.segment == 0, x, 0)
    return jnp.where(
        group.segment >= 0, jnp.take_along_axis(x, jnp.maximum(group.segment, 0), 1), 0
    )


def segment_sum(x: Float[Array, "R T"], group: Group, *, mean: bool = False) -> Float[Array, "G K"]:
    """Sum or mean over the policy's tokens of each segment, across all rows of its trajectory.

    Args:
        x: [R, T] values of tokens.
        group: rollout of one prompt.
        mean: divide by the number of tokens.

    Returns:
        [G, K] sums, 0 where the policy sampled no token.
    """
    total = _over_tokens(jnp.add, group, x, 0)
    total = jax.ops.segment_sum(total, rows_of(group), group.segment_mask.shape[0])
    return total / jnp.maximum(segment_lengths(group), 1).astype(x.dtype) if mean else total


def segment_lengths(group: Group) -> Int[Array, "G K"]:
    """Number of tokens that the policy sampled in each segment.

    Args:
        group: rollout of one prompt.

    Returns:
        [G, K] counts.
    """
    count = _over_tokens(jnp.add, group, jnp.ones(group.action_mask.shape, jnp.int32), 0)
    return jax.ops.segment_sum(count, rows_of(group), group.segment_mask.shape[0])


def trajectory_lengths(group: Group) -> Int[Array, "G"]:
    """Number of tokens that the policy sampled in each trajectory, in segments and outside.

    Args:
        group: rollout of one prompt.

    Returns:
        [G] counts.
    """
    return jax.ops.segment_sum(
        group.action_mask.sum(-1, dtype=jnp.int32), rows_of(group), group.segment_mask.shape[0]
    )


def at_segment_end(x: Float[Array, "G K"], group: Group) -> Float[Array, "R T"]:
    """Values of segments on the last token that the policy sampled in each, 0 elsewhere.

    The value of a segment without such a token (a tool's verdict) is added to the last token that
    the policy sampled in any earlier segment of the same trajectory. It is dropped if there is
    none. Segments that did not take place count as 0.

    Args:
        x: [G, K] values of segments.
        group: rollout of one prompt.

    Returns:
        [R, T] values.
    """
    R, T = group.action_mask.shape
    G, K = x.shape
    column = _over_tokens(
        jnp.maximum, group, jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (R, T)), -1
    )
    position = jnp.where(column >= 0, jnp.arange(R, dtype=jnp.int32)[:, None] * T + column, -1)
    last = jax.ops.segment_max(position, rows_of(group), G)
    last = jnp.where(last >= 0, last, jax.lax.cummax(last, axis=1))
    last = jnp.where(last >= 0, last, R * T)
    x = jnp.where(group.segment_mask, x, 0)
    return (
        jnp.zeros(R * T, x.dtype).at[last.reshape(-1)].add(x.reshape(-1), mode="drop").reshape(R, T)
    )


def chain_rows(
    x: Float[Array, "R T"], decay: float | int | Float[Array, "..."], group
) -> Float[Array, "R T"]:
    """Returns to go of single rows, continued through the later rows of their trajectory.

        x'_t = x_t + decay^n x'_first(next row)

    n is the number of policy tokens from t on, t included, to the end of the row.

    Args:
        x: [R, T] returns that stop at the end of each row. A token that the policy did not sample
            has the return of the next sampled token of the row.
        decay: discount for each token of the policy, or one for each row as [R, 1].
        group: rollout of one prompt.

    Returns:
        [R, T] returns.
    """
    keep = jax.lax.cumprod(
        jnp.where(group.action_mask, jnp.asarray(decay, x.dtype), 1), axis=1, reverse=True
    )
    return x + keep * _after_row(x[:, 0], keep[:, 0], group)[:, None]


def _after_row(
    first: Float[Array, "R"], keep: Float[Array, "R"], group: Group
) -> Float[Array, "R"]:
    """Return after each row: F_r = S_next(r), S_r = first_r + keep_r F_r; 0 after the last row."""

    def back(after, now):
        g, f, k = now
        return after.at[g].set(f + k * after[g]), after[g]

    none = jnp.zeros(group.segment_mask.shape[0], first.dtype)
    return jax.lax.scan(back, none, (rows_of(group), first, keep), reverse=True)[1]


def rows_of(group: Group) -> Int[Array, "R"]:
    """Trajectory of each row; 0 to R - 1 if `group.row` is None."""
    return jnp.arange(group.action_mask.shape[0]) if group.row is None else group.row


def _over_tokens(combine, group: Group, x, empty) -> Array:
    """Reduction of x over the policy's tokens of each row and segment: [R, K].

    Register-wide slices are combined elementwise and reduced once at the end. A CPU does not
    vectorize a masked reduction of [R, K, T].
    """
    R, T = group.action_mask.shape
    block = min(BLOCK, -(-T // LANES) * LANES)
    padding = ((0, 0), (0, -T % block))
    segment = jnp.pad(jnp.where(group.action_mask, group.segment, -1), padding, constant_values=-1)
    x, number = (
        jnp.pad(x, padding),
        jnp.arange(group.segment_mask.shape[1], dtype=segment.dtype)[:, None],
    )

    def step(i, total):
        where, values = (
            jax.lax.dynamic_slice_in_dim(y, i * block, block, axis=1)[:, None] for y in (segment, x)
        )
        for s in range(0, block, LANES):
            total = combine(
                total,
                jnp.where(where[..., s : s + LANES] == number, values[..., s : s + LANES], empty),
            )
        return total

    lanes = jax.lax.fori_loop(
        0, (T + padding[1][1]) // block, step, jnp.full((R, number.shape[0], LANES), empty, x.dtype)
    )
    return combine.reduce(lanes, axis=-1)


def gae_over_rows(
    reward: Float[Array, "R T"],
    value: Float[Array, "R T"],
    group: Group,
    *,
    gamma: float | int | Float[Array, "..."] = 1.0,
    lam: float | int | Float[Array, "..."] = 1.0,
    where: Bool[Array, "R T"],
) -> Float[Array, "R T"]:
    """Generalized advantage estimation over trajectories of several rows.

    V and A at the end of a row are those of the first decision in the next row of the trajectory, 0
    after its last row. See `gae`.

    Args:
        reward: [R, T] reward of each token.
        value: [R, T] value before each token.
        group: rollout of one prompt.
        gamma: discount factor, a number or [R, T].
        lam: lambda, a number or [R, T].
        where: [R, T] tokens that are decisions. Reward and value of other tokens are ignored; their
            advantage is that of the next decision.

    Returns:
        [R, T] advantages.
    """
    bootstrap = _after_row(
        first_value(value, where), jnp.where(where.any(-1), 0, 1).astype(value.dtype), group
    )
    earned = reward + jnp.where(is_last(where), gamma * bootstrap[:, None], 0)
    A = gae(earned, value, gamma=gamma, lam=lam, where=where)
    step = jnp.where(where, jnp.asarray(gamma * lam, value.dtype), 1)
    keep = jax.lax.cumprod(step, axis=1, reverse=True)
    return A + keep * _after_row(A[:, 0], keep[:, 0], group)[:, None]


def token_positions(group: Group) -> Int[Array, "R T"]:
    """Number of tokens that the policy sampled up to each token, across the rows of its trajectory.

    Args:
        group: rollout of one prompt.

    Returns:
        [R, T] counts, the token itself included.
    """
    own = group.action_mask.sum(-1, dtype=jnp.int32)
    row = rows_of(group)
    earlier = (row[:, None] == row) & (jnp.arange(row.shape[0])[:, None] > jnp.arange(row.shape[0]))
    return jnp.where(earlier, own, 0).sum(-1)[:, None] + jnp.cumsum(
        group.action_mask, -1, dtype=jnp.int32
    )
