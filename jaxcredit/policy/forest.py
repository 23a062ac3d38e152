"""Log-probabilities of rows that share prefixes; every distinct prefix token is computed once.

The rows of a group form a forest. In lexicographic order each row shares its longest prefix with
the row before it, and adds one run of tokens behind that prefix. Runs are cut into blocks of equal
size. The blocks of all groups are packed behind each other, and each block attends to the path of
its row.

Letters in shapes: N groups, R rows, T columns, B blocks of b tokens, M = B b packed tokens, D model
width, K key and value heads, h head size.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxcredit.kernels import common_prefix
from jaxcredit.policy import transformer as tf
from jaxcredit.policy.attention import attend, by_head
from jaxcredit.policy.positions import resolve_rope_scaling, sliding_window_mask

CHUNK = 16  # blocks whose attention is computed at once


class Plan(NamedTuple):
    """Places of the tokens of N groups among the packed tokens.

    The position of a token is the number of valid tokens before it in its row.
    """

    token: Int[Array, "M"]  # 0 on spare places
    position: Int[Array, "M"]  # position in every row that passes through the token
    parent: Int[Array, "M"]  # place of the token before; its own place where there is none
    path: Int[Array, "B T"]  # place of each position of the row that owns the block
    length: Int[Array, "B"]  # valid tokens of that row; 0 for spare blocks
    index: Int[Array, "N R T"]  # place of each column; 0 on padding
    used: Int[Array, ""]  # blocks that the groups need


def _sorted(tokens: Int[Array, "R T"]) -> tuple[Int[Array, "R"], Int[Array, "R"]]:
    """Lexicographic order of the rows, and the common prefix of each with the row before it."""
    R, T = tokens.shape
    shared = common_prefix(tokens, tokens >= 0)
    at = jnp.minimum(shared, T - 1)
    mine = jnp.take_along_axis(tokens, at, 1)  # [i, j]: token of row i where it leaves row j
    row = jnp.arange(R)
    less = (mine < mine.T) | ((shared == T) & (row[:, None] < row))
    order = jnp.argsort(less.sum(0))
    before = shared[order, jnp.roll(order, 1)]
    return order, before.at[0].set(0)


def aligned(
    tokens: Int[Array, "*N R T"], valid: Bool[Array, "*N R T"]
) -> tuple[Int[Array, "*N R T"], Int[Array, "*N R"], Int[Array, "*N R"]]:
    """Rows without left padding, -1 behind their end; their first valid column and their length.

    Args:
        tokens: token ids.
        valid: False on padding; contiguous in each row.
    """
    T = tokens.shape[-1]
    start, length = jnp.argmax(valid, -1), valid.sum(-1, dtype=jnp.int32)
    column = jnp.minimum(start[..., None] + jnp.arange(T), T - 1)
    moved = jnp.take_along_axis(tokens, column, -1)
    return jnp.where(jnp.arange(T) < length[..., None], moved, -1), start, length


def plan_packing(
    tokens: Int[Array, "N R T"], valid: Bool[Array, "N R T"], *, block: int, blocks: int
) -> Plan:
    """Pack the rows of N groups.

    Args:
        tokens: token ids.
        valid: True on tokens, False on padding; contiguous in each row.
        block: tokens per block.
        blocks: number of blocks in all, at least the sum of `needed_blocks`. The work of a forward
            pass is proportional to it.
    """
    N, R, T = tokens.shape
    rows, start, length = aligned(tokens, valid)
    order, shared = jax.vmap(_sorted)(rows)
    rows = jnp.take_along_axis(rows, order[..., None], 1)
    ends = jnp.take_along_axis(length, order, 1)
    run = jnp.maximum(ends - shared, 0)  # tokens that a row adds
    count = -(-run // block)
    stop = jnp.cumsum(count.reshape(-1)).reshape(N, R)
    first = (stop - count) * block  # place of the run's first token
    position = jnp.arange(T)
    # The row that computes each position: the last one up to here that begins its run before it.
    owner = jax.lax.cummax(
        jnp.where(shared[..., None] <= position, jnp.arange(R)[:, None], 0), axis=1
    )

    def of_owner(x):
        return jnp.take_along_axis(x, owner.reshape(N, -1), 1).reshape(N, R, T)

    place = of_owner(first) + position - of_owner(shared)  # of each position of each sorted row
    inside = position < ends[..., None]
    place = jnp.where(inside, place, 0)

    # Blocks: the row that owns each, and its first position.
    row = jnp.searchsorted(stop.reshape(-1), jnp.arange(blocks), side="right", method="compare_all")
    row = jnp.minimum(row, N * R - 1)
    used = stop[-1, -1]
    begin = shared.reshape(-1)[row] + jnp.arange(blocks) * block - first.reshape(-1)[row]
    at = begin[:, None] + jnp.arange(block)
    end = jnp.where(jnp.arange(blocks) < used, ends.reshape(-1)[row], 0)
    real = at < end[:, None]
    path = place.reshape(N * R, T)[row]
    column = jnp.clip(at, 0, T - 1)
    token = jnp.where(real, jnp.take_along_axis(rows.reshape(N * R, T)[row], column, 1), 0)
    parent = jnp.take_along_axis(path, jnp.maximum(column - 1, 0), 1)

    # Back to the columns and the order of the caller.
    back = jnp.argsort(order, -1)
    index = jnp.take_along_axis(place, back[..., None], 1)
    column = jnp.clip(position - start[..., None], 0, T - 1)
    index = jnp.where(valid, jnp.take_along_axis(index, column, -1), 0)
    return Plan(
        token.reshape(-1),
        jnp.where(real, at, 0).reshape(-1),
        parent.reshape(-1),
        path,
        end,
        index,
        used,
    )


def needed_blocks(tokens: np.ndarray, valid: np.ndarray, block: int) -> np.ndarray:
    """Blocks that each group needs, on the host.

    Args:
        tokens: [N, R, T] token ids.
        valid: [N, R, T] True on tokens.
        block: tokens per block.

    Returns:
        [N] int.
    """
    out = []
    for group, mask in zip(np.asarray(tokens), np.asarray(valid), strict=True):
        rows = sorted(row[m].tolist() for row, m in zip(group, mask, strict=True))
        before = [[], *rows[:-1]]
        shared = [_shared(a, b) for a, b in zip(before, rows, strict=True)]
        out.append(sum(-(-(len(row) - s) // block) for row, s in zip(rows, shared, strict=True)))
    return np.array(out)


def _shared(a: list[int], b: list[int]) -> int:
    for k, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return k
    return min(len(a), len(b))


def hidden(params, packed: Plan, cfg) -> Array:
    """Hidden states of the packed tokens, after the final norm.

    Args:
        params: parameters of the policy.
        packed: plan of `plan_packing`.
        cfg: the policy's Config.

    Returns:
        [M, D].
    """
    B, T = packed.path.shape
    b = packed.token.size // B
    at = packed.position.reshape(B, b)
    keys_at = jnp.arange(T)
    # A query sees the positions of its path up to its own.
    visible = (keys_at <= at[..., None]) & (keys_at < packed.length[:, None, None])

    def attention(q, k, v, window):
        K, h = k.shape[-2:]
        k, v = k.reshape(-1, K, h), v.reshape(-1, K, h)

        @functools.partial(jax.checkpoint, policy=None)
        def some(xs):
            q, path, mask, at = xs
            mask = mask[:, None, None, None]
            mask = sliding_window_mask(
                mask, at[:, None, None, None], keys_at[None, None, None, None], window
            )
            return attend(
                q[:, None], (*by_head(k[path][:, None], v[path][:, None]), mask), cfg=cfg
            )[:, 0]

        n = -(-B // CHUNK)
        pad = n * CHUNK - B
        xs = (q.reshape(B, b, *q.shape[-2:]), packed.path, visible, at)
        xs = jax.tree.map(
            lambda x: jnp.pad(x, [(0, pad)] + [(0, 0)] * (x.ndim - 1)).reshape(
                n, CHUNK, *x.shape[1:]
            ),
            xs,
        )
        out = jax.lax.map(some, xs)
        return out.reshape(n * CHUNK, b, *out.shape[3:])[:B].reshape(q.shape), None

    x, _ = tf.forward_layers(
        tf.cast(params, cfg), packed.token[None], packed.position[None], attention, cfg
    )
    return x[0]


def logprob(
    params,
    tokens: Int[Array, "N R T"],
    valid: Bool[Array, "N R T"],
    cfg,
    *,
    prompt: int,
    block: int,
    blocks: int,
    temperature: float = 1.0,
):
    """Log-probability and entropy of response tokens, as `transformer.logprob` has them.

    Args:
        params: parameters of the policy.
        tokens: [N, R, T] token ids.
        valid: [N, R, T] False on padding; contiguous in each row.
        cfg: the policy's Config.
        prompt: number of columns without results, at the beginning of every row.
        block: tokens per block.
        blocks: number of blocks, at least the sum of `needed_blocks`.
        temperature: divisor of the logits.

    Returns:
        `logp` and `entropy` [N, R, T - prompt], in nats; 0 on padding. NaN if there are too few
        blocks.
    """
    T = tokens.shape[-1]
    cfg = resolve_rope_scaling(cfg, T)
    packed = plan_packing(tokens, valid, block=block, blocks=blocks)
    h = hidden(params, packed, cfg)
    out = (
        jnp.zeros_like(packed.token, bool).at[packed.index[:, :, prompt:]].max(valid[:, :, prompt:])
    )
    head = tf.cast({name: params[name] for name in tf.specs(cfg) if name != "layers"}, cfg)
    # Places whose log-probability is asked for come first: chunks of others are skipped.
    order = jnp.argsort(~out)
    total = out.sum()
    M = packed.token.size
    size = min(M, len(tokens) * cfg.vocab_chunk)
    n = -(-M // size)

    def chunk(h, target):
        return tf.token_logp_and_entropy(head, h, target, cfg, temperature)

    def some(xs):
        k, place = xs
        nothing = jnp.zeros(size), jnp.zeros(size)

        def work():
            return jax.checkpoint(chunk)(h[packed.parent[place]], packed.token[place])

        return jax.lax.cond(k * size < total, work, lambda: nothing)

    places = jnp.pad(order, (0, n * size - M)).reshape(n, size)
    logp, entropy = jax.lax.map(some, (jnp.arange(n), places))
    back = jnp.argsort(order)

    def columns(x):
        x = x.reshape(-1)[:M][back][packed.index[:, :, prompt:]]
        x = jnp.where(valid[:, :, prompt:], x, 0)
        return jnp.where(packed.used <= blocks, x, jnp.nan)

    return {"logp": columns(logp), "entropy": columns(entropy)}
