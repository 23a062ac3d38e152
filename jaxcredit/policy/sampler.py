"""Sampling: prefill of the prompts, then decoding of one token per row and step, as one program.

Letters in shapes: N prompts, R rows per prompt, P prompt tokens, S new tokens, D model width, L
layers, K key and value heads, h head size, V vocabulary.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxcredit.policy.attention import attend, by_head
from jaxcredit.policy.config import Config
from jaxcredit.policy.positions import (
    layer_windows,
    position_ids,
    resolve_rope_scaling,
    rope_by_window,
    sliding_window_mask,
)
from jaxcredit.policy.transformer import (
    block,
    cast,
    embed,
    forward,
    layer_params,
    norm,
    unembed,
)

# Models of at most this many layers are unrolled on one device: decoding is faster. Deeper models
# are scanned, because unrolling compiles slowly and copies the weights.
UNROLL_MAX_LAYERS = 8


@jax.named_scope("prefill")
def prefill(
    params: PyTree, prompt: Int[Array, "N P"], valid: Bool[Array, "N P"], cfg: Config
) -> tuple[Float[Array, "N D"], tuple[Array, Array]]:
    """Hidden state of the last column, after the final norm, and KV cache of each prompt.

    Args:
        params: parameters in the dtype of the computation.
        prompt: token ids `[N, P]`, left-padded.
        valid: False at padding `[N, P]`.
        cfg: the policy's Config.

    Returns:
        Hidden state `[N, D]`, undefined for a prompt without valid tokens; keys `[L, N, K, h, P]`
        and values `[L, N, K, P, h]`.
    """
    h, cache = forward(params, prompt, valid, cfg, lambda k, v: (k[:, :, 0], v[:, :, 0]))
    return h[:, -1], cache


def filter_logits(
    logits: Float[Array, "*B V"], top_k: int = 0, top_p: float = 1.0
) -> Float[Array, "*B V"]:
    """Top-k and nucleus (top-p, 1904.09751) filtering: logits of excluded tokens become -inf.

    Args:
        logits: `[..., V]`.
        top_k: keep the k largest logits, and those equal to the k-th; 0: all.
        top_p: then keep the smallest set of likeliest tokens whose probability, renormalized after
            top-k, is at least top_p, in (0, 1], and those equal to the last; 1: all.

    >>> filter_logits(jnp.array([1.0, 3.0, 2.0]), top_k=2).tolist()
    [-inf, 3.0, 2.0]
    """
    if top_k:
        kth = jax.lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits >= kth, logits, -jnp.inf)
    if top_p < 1:
        ordered = jnp.flip(jnp.sort(logits, -1), -1)
        p = jax.nn.softmax(ordered, -1)
        inside = jnp.cumsum(p, -1) - p < top_p  # the likeliest token is always inside
        least = jnp.where(inside, ordered, jnp.inf).min(-1, keepdims=True)
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    return logits


@jax.named_scope("sample_token")
def choose_token(
    logits: Float[Array, "*B V"],
    draw: Callable[[Array], Array],
    *,
    temperature: float,
    top_k: int,
    top_p: float,
) -> tuple[Int[Array, "*B"], Float[Array, "*B"]]:
    """Next token of each row, and its log-probability before top-k and top-p.

    Args:
        logits: logits of the policy.
        draw: function from filtered logits to tokens, such as a categorical sample.
        temperature: divisor of the logits; 0: the likeliest token, with its log-probability at 1.
        top_k: see `filter_logits`.
        top_p: see `filter_logits`.
    """
    z = logits / (temperature or 1.0)
    token = z.argmax(-1) if temperature == 0 else draw(filter_logits(z, top_k, top_p))
    logp = jnp.take_along_axis(jax.nn.log_softmax(z, -1), token[..., None], -1)[..., 0]
    return token.astype(jnp.int32), logp


def empty_columns(active: Bool[Array, "N R"], columns: int) -> dict[str, Array]:
    """Columns to be written by `write_column`, for rows that are active at the beginning."""
    empty = jnp.zeros((*active.shape, columns))
    return {
        "tokens": empty.astype(jnp.int32),
        "logp": empty,
        "mask": empty.astype(bool),
        "active": active,
        "done": jnp.zeros(active.shape, bool),
    }


def write_column(
    out: dict[str, Array],
    t: Int[Array, ""] | int,
    token: Int[Array, "N R"],
    logp: Float[Array, "N R"],
    stop: tuple[int, ...],
) -> dict[str, Array]:
    """Write a token of each active row into column t. A stop token ends its row."""
    active = out["active"]
    columns = {
        "tokens": jnp.where(active, token, 0),
        "logp": jnp.where(active, logp, 0),
        "mask": active,
    }
    written = {name: out[name].at[:, :, t].set(x) for name, x in columns.items()}
    ended = active & jnp.isin(token, jnp.array(stop, jnp.int32)) if stop else jnp.zeros_like(active)
    return written | {"active": active & ~ended, "done": out["done"] | ended}


@functools.partial(
    jax.jit,
    static_argnames=("cfg", "rows", "max_new_tokens", "temperature", "top_k", "top_p", "stop"),
)
def sample(
    params: PyTree,
    prompt: Int[Array, "N P"],
    prompt_valid: Bool[Array, "N P"],
    key: Array,
    cfg: Config,
    *,
    rows: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop: tuple[int, ...] = (),
) -> dict[str, Array]:
    """Sample `rows` continuations of each prompt. The loop ends early when all rows have ended.

    `cfg` and the keyword arguments are static: every new value compiles a program.

    Args:
        params: parameters of the policy.
        prompt: token ids `[N, P]`, left-padded.
        prompt_valid: False at padding `[N, P]`. A prompt without a valid token gets no
            continuation.
        key: PRNG key; the same key gives the same sample.
        cfg: the policy's Config.
        rows: rows R per prompt.
        max_new_tokens: columns S of the continuations, at least 1.
        temperature: divisor of the logits; 0: greedy decoding.
        top_k: sample from the k likeliest tokens; 0: all.
        top_p: sample from the smallest set of likeliest tokens with this probability, in (0, 1].
        stop: token ids that end a row; the stop token belongs to it.

    Returns:
        `tokens`, `logp` and `mask` `[N, R, S]`, and `done` `[N, R]`. `mask` is True on sampled
        tokens, the stop token included; `tokens` and `logp` are 0 elsewhere. `done` is True where
        the row ended with a stop token. `logp` is in nats, of softmax(logits / temperature)
        before top-k and top-p. In greedy decoding it is that of temperature 1.
    """
    N, P = prompt.shape
    cfg = resolve_rope_scaling(cfg, P + max_new_tokens)
    R, S, L, K, h = rows, max_new_tokens, cfg.layers, cfg.kv_heads, cfg.head_dim
    params = cast(params, cfg)
    lengths = prompt_valid.sum(-1, dtype=jnp.int32)[:, None]
    # The shapes of masks, [N, 1, R, 1, queries, keys], and of positions in them (attention.attend).
    prompt_mask = prompt_valid[:, None, None, None, None]
    prompt_positions = position_ids(prompt_valid)[:, None, None, None]

    def choose(hidden, t):
        """Token of column t and its log-probability, from hidden states `[N, R, D]`."""

        def draw(logits):
            return jax.random.categorical(jax.random.fold_in(key, t), logits)

        logits = unembed(params, hidden, cfg)
        return choose_token(logits, draw, temperature=temperature, top_k=top_k, top_p=top_p)

    last, prompt_cache = prefill(params, prompt, prompt_valid, cfg)
    stacked = (layer_params(params), *prompt_cache, layer_windows(cfg))  # [L, ...]
    unroll = L <= UNROLL_MAX_LAYERS and cfg.layout is None
    # Decoding moves activations, which are smaller than the weights: no all-gather, no constraints.
    cfg = dataclasses.replace(cfg, layout=None)

    def attend_cached(q, keys, values, prompt_keys, prompt_values, window, t):
        """Attention of column t - 1 in one layer: over the prompt and the columns before t."""
        in_prompt = sliding_window_mask(
            prompt_mask, (lengths + t - 1)[:, None, None, None], prompt_positions, window
        )
        in_row = sliding_window_mask(jnp.arange(S) < t, (t - 1)[None], jnp.arange(S), window)
        parts = (prompt_keys, prompt_values, in_prompt), (keys, values, in_row)
        return attend(q, *parts, cfg=cfg)

    def unrolled_layers(x, rotation, t, caches):
        """All layers, unrolled. `caches` is a list with the keys and values of each layer."""

        def layer(x, cache, w, prompt_keys, prompt_values, window):
            def attention(q, k, v):
                k, v = by_head(k, v)
                keys = jax.lax.dynamic_update_slice(cache[0], k, (0, 0, 0, 0, t - 1))
                values = jax.lax.dynamic_update_slice(cache[1], v, (0, 0, 0, t - 1, 0))
                out = attend_cached(q, keys, values, prompt_keys, prompt_values, window, t)
                return out, (keys, values)

            cos, sin = rotation(window)
            return block(x, w, cos, sin, attention, cfg)

        updated = []
        for cache, inputs in zip(caches, unstacked, strict=True):
            x, cache = layer(x, cache, *inputs)
            updated.append(cache)
        return x, updated

    def scanned_layers(x, rotation, t, caches):
        """A scan over the layers. `caches` is the keys and values of all layers, stacked."""

        def layer(carry, inputs):
            x, cache = carry
            i, w, prompt_keys, prompt_values, window = inputs

            def attention(q, k, v):
                k, v = by_head(k, v)
                keys = jax.lax.dynamic_update_slice(cache[0], k[None], (i, 0, 0, 0, 0, t - 1))
                values = jax.lax.dynamic_update_slice(cache[1], v[None], (i, 0, 0, 0, t - 1, 0))
                out = attend_cached(q, keys[i], values[i], prompt_keys, prompt_values, window, t)
                return out, (keys, values)

            cos, sin = rotation(window)
            return block(x, w, cos, sin, attention, cfg), None

        (x, caches), _ = jax.lax.scan(layer, (x, caches), (jnp.arange(L), *stacked))
        return x, caches

    def empty_cache(*lead):
        return (
            jnp.zeros((*lead, N, K, R, h, S), cfg.dtype),
            jnp.zeros((*lead, N, K, R, S, h), cfg.dtype),
        )

    if unroll:
        # The weights of a layer are sliced here, before the loop, not for every token.
        unstacked = [jax.tree.map(operator.itemgetter(i), stacked) for i in range(L)]
        decode_layers, caches = unrolled_layers, [empty_cache()] * L
    else:
        decode_layers, caches = scanned_layers, empty_cache(L)

    active = jnp.broadcast_to(prompt_valid.any(-1)[:, None], (N, R))
    first = choose(jnp.broadcast_to(last[:, None], (N, R, cfg.width)), 0)
    out = write_column(empty_columns(active, S), 0, *first, stop)

    def unfinished(carry):
        t, out, _ = carry
        return (t < S) & out["active"].any()

    @jax.named_scope("decode_step")
    def step(carry):
        """Process column t - 1 and choose column t."""
        t, out, caches = carry
        token = jax.lax.dynamic_slice_in_dim(out["tokens"], t - 1, 1, axis=2)
        positions = jnp.broadcast_to((lengths + t - 1)[..., None], (N, R, 1))
        rotation = rope_by_window(positions, cfg)
        x, caches = decode_layers(embed(params, token, cfg), rotation, t, caches)
        x = norm(x[:, :, 0], params["final_norm"], cfg)
        return t + 1, write_column(out, t, *choose(x, t), stop), caches

    _, out, _ = jax.lax.while_loop(unfinished, step, (1, out, caches))
    return {name: out[name] for name in ("tokens", "logp", "mask", "done")}
