"""Moving between trajectories [G], segments [G, K] and the tokens of the rows [R, T].

A `group` is anything with the fields of one prompt's Rollout: `row` [R] (None: row i is trajectory i), `segment` and `mask` [R, T],
`real` [G, K]. Rows of one trajectory follow each other in the order of their index.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxcredit.kernels.multistep import gae
from jaxcredit.kernels.sequences import first_value, is_last

BLOCK, LANES = 128, 8  # columns a step takes, and the width of a vector register


def to_tokens(x: Float[Array, "G"] | Float[Array, "G K"], group) -> Float[Array, "R T"]:
    """Every token gets its trajectory's number, or its segment's; 0 on tokens outside any segment."""
    x = x[_row(group)]
    if x.ndim == 1:
        return jnp.broadcast_to(x[:, None], group.segment.shape)
    if x.shape[1] == 1:
        return jnp.where(group.segment == 0, x, 0)
    return jnp.where(
        group.segment >= 0, jnp.take_along_axis(x, jnp.maximum(group.segment, 0), 1), 0
    )


def segment_sum(x: Float[Array, "R T"], group, *, mean: bool = False) -> Float[Array, "G K"]:
    """The sum (or mean) of the policy's tokens of each segment, over all rows of its trajectory; 0 where there are none."""
    total = _over_tokens(jnp.add, group, x, 0)
    total = jax.ops.segment_sum(total, _row(group), group.segment_mask.shape[0])
    return total / jnp.maximum(segment_lengths(group), 1).astype(x.dtype) if mean else total


def segment_lengths(group) -> Int[Array, "G K"]:
    """How many tokens the policy chose in each segment."""
    count = _over_tokens(jnp.add, group, jnp.ones(group.action_mask.shape, jnp.int32), 0)
    return jax.ops.segment_sum(count, _row(group), group.segment_mask.shape[0])


def trajectory_lengths(group) -> Int[Array, "G"]:
    """How many tokens the policy chose in each trajectory, inside segments and outside."""
    return jax.ops.segment_sum(
        group.action_mask.sum(-1, dtype=jnp.int32), _row(group), group.segment_mask.shape[0]
    )


def at_segment_end(x: Float[Array, "G K"], group) -> Float[Array, "R T"]:
    """The segment's number on the last token that the policy chose in it (across its rows), 0 elsewhere.

    A segment without tokens of the policy (a tool's verdict) adds its number to the last token that the policy chose in the segments
    before it. Where there is no such token either, the number is left out: nothing that the policy did came before it.
    """
    R, T = group.action_mask.shape
    G, K = x.shape
    column = _over_tokens(
        jnp.maximum, group, jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (R, T)), -1
    )
    place = jnp.where(column >= 0, jnp.arange(R, dtype=jnp.int32)[:, None] * T + column, -1)
    last = jax.ops.segment_max(place, _row(group), G)
    last = jnp.where(last >= 0, last, jax.lax.cummax(last, axis=1))
    last = jnp.where(last >= 0, last, R * T)
    x = jnp.where(group.segment_mask, x, 0)
    return (
        jnp.zeros(R * T, x.dtype).at[last.reshape(-1)].add(x.reshape(-1), mode="drop").reshape(R, T)
    )


def chain_rows(
    x: Float[Array, "R T"], decay: float | int | Float[Array, "..."], group
) -> Float[Array, "R T"]:
    """Carry a to-go that stops at the end of each row on through the later rows of its trajectory.

        x'_t = x_t + decay^(policy tokens from t to the end of the row) x'_first(next row)

    `x` must pass through holes, so that column 0 shows the number of a row's first token. `decay` may differ by row, as [R, 1].
    """
    keep = jax.lax.cumprod(
        jnp.where(group.action_mask, jnp.asarray(decay, x.dtype), 1), axis=1, reverse=True
    )
    return x + keep * _after_row(x[:, 0], keep[:, 0], group)[:, None]


def _after_row(first: Float[Array, "R"], keep: Float[Array, "R"], group) -> Float[Array, "R"]:
    """F_r = S_next(r), S_r = first_r + keep_r F_r, over the rows of each trajectory; 0 after its last row."""

    def back(after, now):
        g, f, k = now
        return after.at[g].set(f + k * after[g]), after[g]

    none = jnp.zeros(group.segment_mask.shape[0], first.dtype)
    return jax.lax.scan(back, none, (_row(group), first, keep), reverse=True)[1]


def _row(group):
    return jnp.arange(group.action_mask.shape[0]) if group.row is None else group.row


def _over_tokens(combine, group, x, empty) -> Array:
    """Combine x over the policy's tokens of each row and segment: [R, K].

    Register-wide slices are combined elementwise, and reduced once at the end: on a CPU much faster than a masked reduction of
    [R, K, T], which is not vectorised.
    """
    R, T = group.action_mask.shape
    block = min(BLOCK, -(-T // LANES) * LANES)
    short = ((0, 0), (0, -T % block))
    segment = jnp.pad(jnp.where(group.action_mask, group.segment, -1), short, constant_values=-1)
    x, number = (
        jnp.pad(x, short),
        jnp.arange(group.segment_mask.shape[1], dtype=segment.dtype)[:, None],
    )

    def step(i, so_far):
        where, what = (
            jax.lax.dynamic_slice_in_dim(y, i * block, block, axis=1)[:, None] for y in (segment, x)
        )
        for s in range(0, block, LANES):
            so_far = combine(
                so_far,
                jnp.where(where[..., s : s + LANES] == number, what[..., s : s + LANES], empty),
            )
        return so_far

    lanes = jax.lax.fori_loop(
        0, (T + short[1][1]) // block, step, jnp.full((R, number.shape[0], LANES), empty, x.dtype)
    )
    return combine.reduce(lanes, axis=-1)


def gae_over_rows(
    reward: Float[Array, "R T"],
    value: Float[Array, "R T"],
    group,
    *,
    gamma: float | int | Float[Array, "..."] = 1.0,
    lam: float | int | Float[Array, "..."] = 1.0,
    where: Bool[Array, "R T"],
) -> Float[Array, "R T"]:
    """`gae` over whole trajectories: V and A at the end of a row are those of the next row's first real token, 0 after the last row.

    `where` says which tokens are decisions; the others show what follows them. `gamma` and `lam` may differ by token.
    """
    bootstrap = _after_row(
        first_value(value, where), jnp.where(where.any(-1), 0, 1).astype(value.dtype), group
    )
    earned = reward + jnp.where(is_last(where), gamma * bootstrap[:, None], 0)
    A = gae(earned, value, gamma=gamma, lam=lam, where=where)
    step = jnp.where(where, jnp.asarray(gamma * lam, value.dtype), 1)
    keep = jax.lax.cumprod(step, axis=1, reverse=True)
    return A + keep * _after_row(A[:, 0], keep[:, 0], group)[:, None]


def token_positions(group) -> Int[Array, "R T"]:
    """How many tokens the policy chose in the trajectory up to this one, itself included, over all of its rows."""
    own = group.action_mask.sum(-1, dtype=jnp.int32)
    row = jnp.arange(own.shape[0]) if group.row is None else group.row
    earlier = (row[:, None] == row) & (jnp.arange(row.shape[0])[:, None] > jnp.arange(row.shape[0]))
    return jnp.where(earlier, own, 0).sum(-1)[:, None] + jnp.cumsum(
        group.action_mask, -1, dtype=jnp.int32
    )
