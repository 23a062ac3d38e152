"""Splash attention, the Pallas kernel for TPUs.

Blocks of scores that are masked altogether are not computed, and no scores leave the chip. A group
is packed, first its prompt and then its rows. The mask lets a row attend to the prompt and to
itself. The prompt's keys are therefore read once per group, and their gradient is summed inside the
kernel. Letters in shapes as in policy.transformer, with T = P + R S packed tokens.
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

BLOCK = 512  # largest block of queries and of keys, in tokens
LANES = 128  # block sizes are multiples of the TPU's vector lanes


@dataclasses.dataclass(frozen=True)
class PackedMask(masks.Mask):
    """Causal mask of a packed group, computed block by block instead of stored as T x T.

    Token i attends to tokens j <= i of the prompt and of its own row, fewer than `window` tokens
    back.

    Args:
        T: packed tokens.
        P: prompt tokens.
        S: tokens of a row; 0: the prompt alone.
        window: attention window in tokens.
    """

    T: int
    P: int
    S: int
    window: int

    @property
    def shape(self):
        return self.T, self.T

    def __getitem__(self, index):
        q, k = (np.arange(self.T)[part] for part in index)
        row_start = np.where(q < self.P, 0, q - self._index_in_row(q))[:, None]
        visible = (k <= q[:, None]) & ((k < self.P) | (k >= row_start))
        return visible & (self._position(q)[:, None] - self._position(k) < self.window)

    def _index_in_row(self, i):
        return (i - self.P) % self.S if self.S else i - self.P

    def _position(self, i):
        """Position in the text of the prompt and one row."""
        return np.where(i < self.P, i, self.P + self._index_in_row(i))


@functools.lru_cache(maxsize=64)
def splash_kernel(
    heads: int, mask: PackedMask, block: int, cap: float, interpret: bool
) -> Callable[..., Array]:
    """Kernel of one group: (q `[H, T, h]`, k and v `[K, T, h]`, segment ids) -> `[H, T, h]`.

    The separate backward kernels for dq and dk, dv are used. The fused one stores a dq for every
    block of keys.

    Args:
        heads: query heads H.
        mask: which keys a query attends to.
        block: block size in tokens.
        cap: soft cap of scores; 0: none.
        interpret: run by the Pallas interpreter, for devices other than TPUs.
    """
    sizes = kernels.BlockSizes(
        **dict.fromkeys(
            ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq"),
            block,
        )
    )
    # The kernel is cached, so its arrays must not be tracers of the current trace.
    with jax.ensure_compile_time_eval():
        kernel = kernels.make_splash_mha_single_device(
            masks.MultiHeadMask((mask,) * heads),
            block_sizes=sizes,
            attn_logits_soft_cap=cap or None,
            interpret=interpret,
        )
        return jax.tree.map(np.asarray, kernel)


def splash_attention(
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
    """Attention of packed groups by the splash kernel.

    Padding attends to padding, because a softmax over no key would be NaN.

    Args:
        q: queries `[N, T, H, h]`.
        k, v: keys and values `[N, T, K, h]`.
        valid: False at padding `[N, T]`.
        order: permutation of the tokens `[N, T]`, used with a window only. It moves the valid
            tokens of a prompt to its end and those of a row to its start, so that columns count
            valid tokens.
        P: prompt tokens.
        S: tokens of a row; 0: the prompt alone.
        window: attention window in tokens.
        cfg: the policy's Config.
        interpret: run by the Pallas interpreter.

    Returns:
        Attention output `[N, T, H, h]`.
    """
    T, windowed = q.shape[1], window < q.shape[1]
    if windowed:
        q, k, v, valid = (_take_tokens(x, order) for x in (q, k, v, valid))
    n = -(-T // BLOCK)
    block = -(-T // (n * LANES)) * LANES
    padding = n * block - T
    q, k, v = (
        jnp.pad(jnp.swapaxes(x, 1, 2), ((0, 0), (0, 0), (0, padding), (0, 0)))
        for x in (q * (cfg.score_dim or cfg.head_dim) ** -0.5, k, v)
    )
    ids = jnp.pad(valid.astype(jnp.int32), ((0, 0), (0, padding)))
    mask = PackedMask(T + padding, P, S, window)
    kernel = splash_kernel(q.shape[1], mask, block, cfg.score_cap, interpret)
    out = jnp.swapaxes(jax.vmap(kernel)(q, k, v, kernels.SegmentIds(ids, ids)), 1, 2)[:, :T]
    return _take_tokens(out, jnp.argsort(order, -1)) if windowed else out


def _take_tokens(x: Array, order: Int[Array, "N T"]) -> Array:
    """x `[N, T, ...]` with its tokens in the given order."""
    return jnp.take_along_axis(x, order.reshape(*order.shape, *(1,) * (x.ndim - 2)), 1)
