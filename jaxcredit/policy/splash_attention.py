"""Splash attention, the Pallas kernel of TPUs: blocks of scores that nobody may see are never computed, none ever leaves the chip.

A group lies packed, its prompt and then its rows, and the mask says it all: a row sees the prompt and itself. So the prompt's keys are
neither copied nor read twice by a kernel, and their gradient is summed inside it. Letters as in policy.transformer, T = P + R S tokens.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array, Bool, Float, Int

BLOCK = 512  # most queries, and most keys, that meet at once
LANES = 128  # a block is a multiple of it


@dataclasses.dataclass(frozen=True)
class Packed(masks.Mask):
    """Token i sees j <= i of the prompt and of its own row, fewer than `window` tokens back. Made a block at a time: whole it is T^2."""

    T: int
    P: int
    S: int
    window: int

    @property
    def shape(self):
        return self.T, self.T

    def __getitem__(self, where):
        q, k = (np.arange(self.T)[part] for part in where)
        mine = np.where(q < self.P, 0, q - self._place(q))[:, None]  # where the row begins
        seen = (k <= q[:, None]) & ((k < self.P) | (k >= mine))
        return seen & (self._depth(q)[:, None] - self._depth(k) < self.window)

    def _place(self, i):  # in its row
        return (i - self.P) % self.S if self.S else i - self.P

    def _depth(self, i):  # in the prompt and a row, as one text
        return np.where(i < self.P, i, self.P + self._place(i))


@functools.lru_cache(maxsize=64)
def kernel(
    heads: int, mask: Packed, block: int, cap: float, interpret: bool
) -> Callable[..., Array]:
    """`(q [H, T, h], k and v [K, T, h], segment ids) -> [H, T, h]`. The fused backward is left: it writes a dq for every block of keys."""
    sizes = kernels.BlockSizes(
        **dict.fromkeys(
            ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq"),
            block,
        )
    )
    with (
        jax.ensure_compile_time_eval()
    ):  # what is kept for the next call must not belong to this one's trace
        made = kernels.make_splash_mha_single_device(
            masks.MultiHeadMask((mask,) * heads),
            block_sizes=sizes,
            attn_logits_soft_cap=cap or None,
            interpret=interpret,
        )
        return jax.tree.map(np.asarray, made)


def splash(
    q: Float[Array, "N T H h"],
    k: Float[Array, "N T K h"],
    v: Float[Array, "N T K h"],
    valid: Bool[Array, "N T"],
    order: Int[Array, "N T"],
    *,
    P: int,
    S: int,
    window: int,
    cfg,
    interpret: bool,
) -> Float[Array, "N T H h"]:
    """Each token's mixture of the values that it sees. Padding sees padding: softmax over nothing would not be a number.

    `order` brings the valid tokens together, those of a prompt to its end and those of a row to its beginning: behind it a window, which
    counts tokens, is as wide as its columns are many.
    """
    T, near = q.shape[1], window < q.shape[1]
    if near:
        q, k, v, valid = (_taken(x, order) for x in (q, k, v, valid))
    n = -(-T // BLOCK)
    block = -(-T // (n * LANES)) * LANES
    fill = n * block - T
    q, k, v = (
        jnp.pad(jnp.swapaxes(x, 1, 2), ((0, 0), (0, 0), (0, fill), (0, 0)))
        for x in (q * (cfg.score_dim or cfg.head_dim) ** -0.5, k, v)
    )
    ids = jnp.pad(valid.astype(jnp.int32), ((0, 0), (0, fill)))
    run = kernel(q.shape[1], Packed(T + fill, P, S, window), block, cfg.score_cap, interpret)
    out = jnp.swapaxes(jax.vmap(run)(q, k, v, kernels.SegmentIds(ids, ids)), 1, 2)[:, :T]
    return _taken(out, jnp.argsort(order, -1)) if near else out


def _taken(x: Array, order: Int[Array, "N T"]) -> Array:
    return jnp.take_along_axis(x, order.reshape(*order.shape, *(1,) * (x.ndim - 2)), 1)
