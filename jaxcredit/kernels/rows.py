"""Trajectories whose tokens lie in several rows: where a row ends, the next of its trajectory goes on."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxcredit.kernels.resolution import after_row
from jaxcredit.kernels.returns import gae
from jaxcredit.kernels.runs import at_first, final


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
    bootstrap = after_row(at_first(value, where), jnp.where(where.any(-1), 0, 1).astype(value.dtype), group)
    earned = reward + jnp.where(final(where), gamma * bootstrap[:, None], 0)
    A = gae(earned, value, gamma=gamma, lam=lam, where=where)
    step = jnp.where(where, jnp.asarray(gamma * lam, value.dtype), 1)
    keep = jax.lax.cumprod(step, axis=1, reverse=True)
    return A + keep * after_row(A[:, 0], keep[:, 0], group)[:, None]


def place(group) -> Int[Array, "R T"]:
    """How many tokens the policy chose in the trajectory up to this one, itself included, over all of its rows."""
    own = group.mask.sum(-1, dtype=jnp.int32)
    row = jnp.arange(own.shape[0]) if group.row is None else group.row
    earlier = (row[:, None] == row) & (jnp.arange(row.shape[0])[:, None] > jnp.arange(row.shape[0]))
    return jnp.where(earlier, own, 0).sum(-1)[:, None] + jnp.cumsum(group.mask, -1, dtype=jnp.int32)
