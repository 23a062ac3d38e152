"""What follows a decision. All of it runs over the last axis; `where` marks the real entries, and a hole is passed through unchanged."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from jaxcredit.kernels.precision import rounding_bound

BLOCK = 64  # columns turned at once: whole cache lines of each row
ROWS = 128  # rows in a tile: with rows a power of two apart, no more of them stay in a cache


def returns_to_go(
    x: Num[Array, "*b T"],
    gamma: float | int | Float[Array, "..."] = 1.0,
    where: Bool[Array, "*b T"] | None = None,
) -> Num[Array, "*b T"]:
    """G_t = x_t + gamma_t G_{t+1}. A hole adds nothing and discounts nothing: it shows the number of what comes after it.

    Integers stay integers: with gamma=0 every hole shows the label that follows it, exact for any int32.
    """
    step = jnp.broadcast_to(jnp.asarray(gamma, x.dtype), x.shape)
    if where is not None:
        x, step = jnp.where(where, x, 0), jnp.where(where, step, 1)

    def back(after, now):
        G = now[0] + now[1] * after
        return G, G

    return _backwards(back, jnp.zeros(x.shape[:-1], x.dtype), (x, step))


def returns_with_rounding(
    reward: Float[Array, "*b T"],
    gamma: float | int | Float[Array, "..."] = 1.0,
    where: Bool[Array, "*b T"] | None = None,
) -> tuple[Float[Array, "*b T"], Float[Array, "*b T"]]:
    """`returns_to_go` of rewards, and a bound on its rounding, which is measured by the same sum of their magnitudes."""
    size = returns_to_go(jnp.abs(reward), jnp.abs(jnp.asarray(gamma, reward.dtype)), where)
    return returns_to_go(reward, gamma, where), rounding_bound(size, reward.shape[-1])


def min_to_go(
    x: Float[Array, "*b T"], where: Bool[Array, "*b T"] | None = None
) -> Float[Array, "*b T"]:
    """m_t = min(x_t, m_{t+1}): the minimum of what follows, this entry included; 0 where nothing real follows."""
    x = x if where is None else jnp.where(where, x, jnp.inf)
    least = jax.lax.cummin(x, axis=x.ndim - 1, reverse=True)
    return least if where is None else jnp.where(jnp.isfinite(least), least, 0)


def next_value(
    x: Float[Array, "*b T"], where: Bool[Array, "*b T"] | None = None
) -> Float[Array, "*b T"]:
    """f_t = x at the next real position after t; 0 after the last."""
    T = x.shape[-1]
    where = jnp.ones(x.shape, bool) if where is None else where
    here = jnp.where(where, jnp.arange(T), T)
    after = jax.lax.cummin(here, axis=x.ndim - 1, reverse=True)[..., 1:]
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
    """Generalised advantage estimation (arXiv 1506.02438), with a discount and a lambda that may differ by step.

        A_t = delta_t + gamma_t lambda_t A_{t+1},   delta_t = r_t + gamma_t V_{t+1} - V_t,   V = A = 0 after the last

    A hole carries V_{t+1} and A_{t+1} through unchanged, and what was earned in it is dropped.
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

    A plain loop over time is what is fastest on a CPU, but it wants time before the rows, and turning whole arrays takes longer than the
    loop itself: so a block of columns is turned at a time, of many rows tile by tile.
    """
    *lead, T = shape = now[0].shape
    rows = math.prod(lead)
    tiled = rows > 0 and rows % ROWS == 0
    fold = (rows // ROWS, ROWS) if tiled else lead
    after, now = jax.tree.map(lambda x: x.reshape(*fold, *x.shape[len(lead) :]), (after, now))

    def block(first, width, after):
        time = -2 if tiled else 0
        turned = jax.tree.map(
            lambda x: jnp.moveaxis(jax.lax.dynamic_slice_in_dim(x, first, width, -1), -1, time), now
        )
        after, answer = (_scan if tiled else partial(jax.lax.scan, reverse=True))(
            back, after, turned
        )
        return after, jnp.moveaxis(answer, time, -1)

    def step(i, state):
        after, answers = state
        first = T - BLOCK * (i + 1)
        after, answer = block(first, BLOCK, after)
        return after, jax.lax.dynamic_update_slice_in_dim(answers, answer, first, -1)

    if T <= BLOCK:
        return block(0, T, after)[1].reshape(shape)
    after, answers = jax.lax.fori_loop(0, T // BLOCK, step, (after, jnp.zeros_like(now[0])))
    rest = T % BLOCK  # the first columns come last
    return (answers if rest == 0 else answers.at[..., :rest].set(block(0, rest, after)[1])).reshape(
        shape
    )


def _scan(back, after, now):
    """`lax.scan` in reverse over the last axis but one, which stays where it is."""

    def step(i, state):
        after, answers = state
        t = T - 1 - i
        after, answer = back(
            after,
            jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, t, -2, keepdims=False), now),
        )
        return after, jax.lax.dynamic_update_index_in_dim(answers, answer, t, answers.ndim - 2)

    T = now[0].shape[-2]
    return jax.lax.fori_loop(0, T, step, (after, jnp.zeros_like(now[0])))
