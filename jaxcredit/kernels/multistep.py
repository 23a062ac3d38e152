"""Sums and estimates over the future: returns, generalized advantages, minima and next values.

All functions run over the last axis. `where` masks entries; a masked entry is a hole through which
the carried value passes unchanged.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from jaxcredit.kernels.precision import rounding_bound

BLOCK = 64  # columns transposed at once: whole cache lines of each row
ROWS = 128  # rows of a tile: more rows at distances of a power of two do not fit in a cache


def returns_to_go(
    x: Num[Array, "*b T"],
    gamma: float | int | Float[Array, "..."] = 1.0,
    where: Bool[Array, "*b T"] | None = None,
) -> Num[Array, "*b T"]:
    """Discounted sum of an entry and all later ones.

        G_t = x_t + gamma_t G_{t+1}

    A hole adds nothing and discounts nothing: its result is that of the next entry. The result has
    the dtype of x. Gamma is cast to it, so integer x takes integer gamma. With gamma = 0 every hole
    takes the value of the entry that follows it, exactly.

    Args:
        x: [..., T] rewards.
        gamma: discount factor in [0, 1], or one for each entry, broadcastable to x.
        where: [..., T] False at holes. None: no holes.

    Returns:
        [..., T] returns.

    >>> returns_to_go(jnp.array([1.0, 0.0, 2.0]), 0.5).tolist()
    [1.5, 1.0, 2.0]
    """
    discount = jnp.broadcast_to(jnp.asarray(gamma, x.dtype), x.shape)
    if where is not None:
        x, discount = jnp.where(where, x, 0), jnp.where(where, discount, 1)

    def back(after, now):
        G = now[0] + now[1] * after
        return G, G

    return _backwards(back, jnp.zeros(x.shape[:-1], x.dtype), (x, discount))


def returns_with_rounding(
    reward: Float[Array, "*b T"],
    gamma: float | int | Float[Array, "..."] = 1.0,
    where: Bool[Array, "*b T"] | None = None,
) -> tuple[Float[Array, "*b T"], Float[Array, "*b T"]]:
    """Returns to go of rewards, and a bound on their rounding error.

    Args:
        reward: [..., T] rewards.
        gamma: discount factor, as for `returns_to_go`.
        where: [..., T] False at holes. None: no holes.

    Returns:
        [..., T] `returns_to_go(reward, gamma, where)`.
        [..., T] bound on its rounding error: `rounding_bound` of the discounted sum of |reward|.
    """
    size = returns_to_go(jnp.abs(reward), jnp.abs(jnp.asarray(gamma, reward.dtype)), where)
    return returns_to_go(reward, gamma, where), rounding_bound(size, reward.shape[-1])


def min_to_go(
    x: Float[Array, "*b T"], where: Bool[Array, "*b T"] | None = None
) -> Float[Array, "*b T"]:
    """Minimum of an entry and all later ones, 0 where `where` selects none of these.

        m_t = min(x_t, m_{t+1})

    Args:
        x: [..., T] values.
        where: [..., T] entries to read. None: all.

    Returns:
        [..., T] minima.

    >>> min_to_go(jnp.array([1.0, 0.0, 2.0])).tolist()
    [0.0, 0.0, 2.0]
    """
    x = x if where is None else jnp.where(where, x, jnp.inf)
    least = jax.lax.cummin(x, axis=x.ndim - 1, reverse=True)
    return least if where is None else jnp.where(jnp.isfinite(least), least, 0)


def next_value(
    x: Float[Array, "*b T"], where: Bool[Array, "*b T"] | None = None
) -> Float[Array, "*b T"]:
    """Value of the next selected entry after each position, 0 after the last.

    Args:
        x: [..., T] values.
        where: [..., T] entries to read. None: all.

    Returns:
        [..., T] values.

    >>> next_value(jnp.array([1.0, 5.0, 2.0]), jnp.array([True, False, True])).tolist()
    [2.0, 2.0, 0.0]
    """
    T = x.shape[-1]
    where = jnp.ones(x.shape, bool) if where is None else where
    index = jnp.where(where, jnp.arange(T), T)
    after = jax.lax.cummin(index, axis=x.ndim - 1, reverse=True)[..., 1:]
    after = jnp.concatenate([after, jnp.full((*x.shape[:-1], 1), T, after.dtype)], -1)
    return jnp.where(after < T, jnp.take_along_axis(x, jnp.minimum(after, T - 1), -1), 0)


def gae(
    reward: Float[Array, "*b T"],
    value: Float[Array, "*b T"],
    *,
    gamma: float | int | Float[Array, "..."] = 1.0,
    lam: float | int | Float[Array, "..."] = 1.0,
    where: Bool[Array, "*b T"] | None = None,
) -> Float[Array, "*b T"]:
    """Generalized advantage estimation, with a discount and a lambda that may differ by step.

        A_t = delta_t + gamma_t lambda_t A_{t+1},   delta_t = r_t + gamma_t V_{t+1} - V_t

    V and A are 0 after the last entry. A hole passes V_{t+1} and A_{t+1} on unchanged, and its
    reward is dropped. Source: Schulman et al. 2015, arXiv 1506.02438.

    Args:
        reward: [..., T] reward of each step.
        value: [..., T] value of the state before each step.
        gamma: discount factor in [0, 1], or one for each step.
        lam: lambda in [0, 1], or one for each step. 1: return minus value, 0: one-step TD error.
        where: [..., T] False at holes. None: no holes.

    Returns:
        [..., T] advantages.

    >>> gae(jnp.array([0.0, 1.0]), jnp.array([0.5, 0.25]), gamma=1.0, lam=1.0).tolist()
    [0.5, 0.75]
    """
    each = {"gamma": gamma, "lam": lam}
    moving = {k: jnp.broadcast_to(v, reward.shape) for k, v in each.items() if jnp.ndim(v)}
    fixed = {k: v for k, v in each.items() if not jnp.ndim(v)}

    def back(after, now):
        r, V, real, knobs = now
        knobs = {**fixed, **knobs}
        step = knobs["gamma"]
        A = (r + step * after[0] - V) + step * knobs["lam"] * after[1]
        V, A = (
            (V, A) if real is None else (jnp.where(real, V, after[0]), jnp.where(real, A, after[1]))
        )
        return (V.astype(value.dtype), A.astype(value.dtype)), A.astype(value.dtype)

    none = jnp.zeros(value.shape[:-1], value.dtype)
    return _backwards(back, (none, none), (reward, value, where, moving))


def _backwards(back, after, now):
    """`lax.scan` in reverse over the last axis of every array in `now`.

    On a CPU a plain loop over time is fastest, but it needs time as the leading axis, and
    transposing whole arrays takes longer than the loop. So one block of columns is transposed at a
    time, tile by tile if there are many rows.
    """
    *lead, T = shape = now[0].shape
    rows = math.prod(lead)
    tiled = rows > 0 and rows % ROWS == 0
    fold = (rows // ROWS, ROWS) if tiled else lead
    after, now = jax.tree.map(lambda x: x.reshape(*fold, *x.shape[len(lead) :]), (after, now))

    def block(first, width, after):
        time = -2 if tiled else 0
        transposed = jax.tree.map(
            lambda x: jnp.moveaxis(jax.lax.dynamic_slice_in_dim(x, first, width, -1), -1, time), now
        )
        after, out = (_scan if tiled else partial(jax.lax.scan, reverse=True))(
            back, after, transposed
        )
        return after, jnp.moveaxis(out, time, -1)

    def step(i, state):
        after, outs = state
        first = T - BLOCK * (i + 1)
        after, out = block(first, BLOCK, after)
        return after, jax.lax.dynamic_update_slice_in_dim(outs, out, first, -1)

    if T <= BLOCK:
        return block(0, T, after)[1].reshape(shape)
    after, outs = jax.lax.fori_loop(0, T // BLOCK, step, (after, jnp.zeros_like(now[0])))
    rest = T % BLOCK  # columns of the last, shorter block: the first of the row
    return (outs if rest == 0 else outs.at[..., :rest].set(block(0, rest, after)[1])).reshape(shape)


def _scan(back, after, now):
    """`lax.scan` in reverse over the last axis but one, which stays in its place."""

    def step(i, state):
        after, outs = state
        t = T - 1 - i
        after, out = back(
            after,
            jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, t, -2, keepdims=False), now),
        )
        return after, jax.lax.dynamic_update_index_in_dim(outs, out, t, outs.ndim - 2)

    T = now[0].shape[-2]
    return jax.lax.fori_loop(0, T, step, (after, jnp.zeros_like(now[0])))
