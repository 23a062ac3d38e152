"""Attention over keys in several parts, some of which all rows of a group share.

Letters in shapes: N prompts, R rows per prompt, S queries, C keys, H query heads, K key and value
heads, G = H / K query heads per key head, h head size.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxcredit.parallel.chunks import join_strided, split_strided

MASKED = -1e30  # finite: a query that attends to no key (padding) gets a mean instead of a NaN


def by_head(k: Array, v: Array) -> tuple[Array, Array]:
    """Keys and values with the axes in the order of the attention matmuls.

    A KV cache in this order is never transposed.

    Args:
        k, v: keys and values `[N, R, C, K, h]`.

    Returns:
        Keys `[N, K, R, h, C]` and values `[N, K, R, C, h]`.
    """
    return jnp.transpose(k, (0, 3, 1, 4, 2)), jnp.transpose(v, (0, 3, 1, 2, 4))


def attend(q: Array, *parts: tuple[Array, Array, Array], cfg) -> Array:
    """Grouped-query attention softmax(q k / sqrt(h)) v, one softmax over the keys of all parts.

    The parts are not concatenated. Scores exist for `cfg.query_chunk` queries of each row at a time
    and are recomputed in the backward pass. `cfg.score_cap` caps them.

    Args:
        q: queries `[N, R, S, H, h]`.
        parts: keys `[N, K, R, h, C]`, values `[N, K, R, C, h]` and mask `[N, 1, R, 1, S, C]`. An
            axis of the mask may be 1. Keys and values that all rows share have no axis R.
        cfg: the policy's Config.

    Returns:
        Attention output `[N, R, S, H, h]`.
    """
    S, n = q.shape[2], -(-q.shape[2] // cfg.query_chunk)
    if n == 1:
        return _attend(q, parts, cfg)
    by_query = [mask.ndim > 1 and mask.shape[-2] == S for _, _, mask in parts]

    @jax.checkpoint
    def chunk(xs):
        q, masks = xs[0], iter(xs[1])
        return _attend(
            q,
            [
                (k, v, next(masks) if chunked else mask)
                for (k, v, mask), chunked in zip(parts, by_query, strict=True)
            ],
            cfg,
        )

    masks = [
        split_strided(mask, n, mask.ndim - 2)
        for (_, _, mask), chunked in zip(parts, by_query, strict=True)
        if chunked
    ]
    return join_strided(jax.lax.map(chunk, (split_strided(q, n, 2), masks)), S, 2)


@jax.named_scope("attention")
def _attend(q: Array, parts, cfg) -> Array:
    """`attend` for all queries at once."""
    N, R, S, H, h = q.shape
    K = parts[0][0].shape[1]
    q = (
        jnp.transpose(q.reshape(N, R, S, K, -1, h), (0, 3, 1, 4, 2, 5))  # [N, K, R, G, S, h]
        * (cfg.score_dim or h) ** -0.5
    )

    def matmul(x, y):  # y [N, K, ..., a, b]; axes of x that y lacks are further rows of the matmul
        return (x.reshape(*y.shape[:-2], -1, y.shape[-2]) @ y).reshape(*x.shape[:-1], -1)

    scores = [  # [N, K, R, G, S, C]
        jnp.where(mask, softcap(matmul(q, k).astype(jnp.float32), cfg.score_cap), MASKED)
        for k, _, mask in parts
    ]
    top = jax.lax.stop_gradient(
        functools.reduce(jnp.maximum, (z.max(-1, keepdims=True) for z in scores))
    )
    e = [jnp.exp(z - top) for z in scores]
    output = sum(
        matmul(weights.astype(v.dtype), v) for weights, (_, v, _) in zip(e, parts, strict=True)
    ) / sum(weights.sum(-1, keepdims=True) for weights in e)
    return jnp.transpose(jnp.asarray(output, q.dtype), (0, 2, 4, 1, 3, 5)).reshape(N, R, S, H, h)


def softcap(x: Array, cap: float) -> Array:
    """Soft cap cap * tanh(x / cap) of Gemma 2 (2408.00118).

    Args:
        x: scores or logits `[...]`.
        cap: bound of the absolute value; 0: x is returned unchanged.
    """
    return cap * jnp.tanh(x / cap) if cap else x
