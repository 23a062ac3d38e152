"""Attention over keys in several parts, some of them shared by the rows of a group. Letters as in policy.transformer, C keys."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxcredit.parallel.chunks import join_strided, split_strided

MASKED = -1e30  # finite: a query that may attend to nothing (padding) gets a mean instead of a NaN


def by_head(k: Array, v: Array) -> tuple[Array, Array]:
    """`[N, R, C, K, h]` to keys `[N, K, R, h, C]` and values `[N, K, R, C, h]`: as the matmuls read them, a cache is never transposed."""
    return jnp.transpose(k, (0, 3, 1, 4, 2)), jnp.transpose(v, (0, 3, 1, 2, 4))


def mix(q: Array, *parts: tuple[Array, Array, Array], cfg) -> Array:
    """softmax(q k / sqrt h) v, one softmax over the keys of all parts, which are never copied together; scores may be capped.

    They exist for `query_chunk` tokens at a time, and are computed again in the backward pass.

    q `[N, R, S, H, h]`. A part is k `[N, K, R, h, C]`, v `[N, K, R, C, h]` and who sees whom, `[N, 1, R, 1, S, C]` (an axis may be 1);
    one that all rows share has no R.
    """
    S, n = q.shape[2], -(-q.shape[2] // cfg.query_chunk)
    if n == 1:
        return _mix(q, parts, cfg)
    each = [mask.ndim > 1 and mask.shape[-2] == S for _, _, mask in parts]

    @jax.checkpoint
    def chunk(xs):
        q, masks = xs[0], iter(xs[1])
        return _mix(
            q,
            [
                (k, v, next(masks) if own else mask)
                for (k, v, mask), own in zip(parts, each, strict=True)
            ],
            cfg,
        )

    masks = [
        split_strided(mask, n, mask.ndim - 2)
        for (_, _, mask), own in zip(parts, each, strict=True)
        if own
    ]
    return join_strided(jax.lax.map(chunk, (split_strided(q, n, 2), masks)), S, 2)


def _mix(q: Array, parts, cfg) -> Array:
    N, R, S, H, h = q.shape
    K = parts[0][0].shape[1]
    q = (
        jnp.transpose(q.reshape(N, R, S, K, -1, h), (0, 3, 1, 4, 2, 5))
        * (cfg.score_dim or h) ** -0.5
    )

    def times(x, y):  # the axes of x that y lacks are further rows of the matmul
        return (x.reshape(*y.shape[:-2], -1, y.shape[-2]) @ y).reshape(*x.shape[:-1], -1)

    scores = [
        jnp.where(mask, cap(times(q, k).astype(jnp.float32), cfg.score_cap), MASKED)
        for k, _, mask in parts
    ]
    top = jax.lax.stop_gradient(
        functools.reduce(jnp.maximum, (z.max(-1, keepdims=True) for z in scores))
    )
    e = [jnp.exp(z - top) for z in scores]
    mixed = sum(times(w.astype(v.dtype), v) for w, (_, v, _) in zip(e, parts, strict=True)) / sum(
        w.sum(-1, keepdims=True) for w in e
    )
    return jnp.transpose(jnp.asarray(mixed, q.dtype), (0, 2, 4, 1, 3, 5)).reshape(N, R, S, H, h)


def cap(x: Array, most: float) -> Array:
    """most * tanh(x / most): nearly x where that is small, and never more than `most`; 0: x."""
    return most * jnp.tanh(x / most) if most else x
