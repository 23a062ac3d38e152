"""Decoder-only transformer (Llama, Qwen, Mistral, Gemma) as pure functions over a tree of arrays.

The R rows of a group share a prompt, which `hidden` and `logprob` compute once: prompt and rows are
packed into `[N, P + R S]` tokens for the matmuls, and each row attends to the prompt and to itself.

Letters in shapes: N prompts, R rows per prompt, P prompt tokens, S response tokens, T tokens of a
row, D model width, H query heads, K key and value heads, h head size, F hidden units, V vocabulary,
L layers.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxcredit.parallel.chunks import join_strided, split_strided
from jaxcredit.policy.attention import attend, by_head, softcap
from jaxcredit.policy.config import Config, specs
from jaxcredit.policy.experts import mixture_of_experts
from jaxcredit.policy.fused_attention import fused_kernel
from jaxcredit.policy.positions import (
    apply_rope,
    causal_mask,
    layer_windows,
    position_ids,
    resolve_rope_scaling,
    rope,
    rope_by_window,
    sliding_window_mask,
)

__all__ = ["Config", "causal_mask", "hidden", "logits", "logprob", "position_ids", "rope", "specs"]


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """Root mean square layer norm x / sqrt(mean(x^2) + eps) * weight (1910.07467), in float32.

    Args:
        x: activations `[..., D]`.
        weight: scale `[D]`.
        eps: added to the mean square.

    Returns:
        Array of the shape and dtype of x.
    """
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + eps)
    return (y * weight).astype(x.dtype)


@jax.named_scope("layer_norm")
def norm(x: Array, weight: Array, cfg: Config) -> Array:
    """`rms_norm` with the scale `cfg.norm_offset + weight`.

    Args:
        x: activations `[..., D]`, or heads `[..., h]`.
        weight: `[D]` or `[h]`.
        cfg: the policy's Config.
    """
    return rms_norm(
        x, weight.astype(jnp.float32) + cfg.norm_offset if cfg.norm_offset else weight, cfg.norm_eps
    )


@jax.custom_vjp
def linear(x: Array, w: Array) -> Array:
    """x w, with a weight gradient that transposes the narrower of its two operands.

    XLA on CPUs would transpose the MLP's hidden activations `[tokens, F]`, with the nonlinearity
    fused into the transposition.

    Args:
        x: activations `[..., a]`.
        w: matrix `[a, b]`.

    Returns:
        Activations `[..., b]`.
    """
    return x @ w


def _linear_backward(residuals, g):
    x, w = residuals
    tokens = tuple(range(x.ndim - 1))  # not reshaped to one axis: each may be sharded differently
    narrow, wide = (x, g) if x.shape[-1] <= g.shape[-1] else (g, x)
    dw = jax.lax.dot_general(narrow, wide, ((tokens, tokens), ((), ())))
    return g @ w.T, dw if narrow is x else dw.T


linear.defvjp(lambda x, w: (x @ w, (x, w)), _linear_backward)


def input_axes(name: str) -> int:
    """Number of leading input axes of a layer's matrix: 2 for "wo" `[H, h, D]`, else 1."""
    return 2 if name == "wo" else 1


def project(x: Array, w: PyTree, name: str) -> Array:
    """x w[name], plus (x a) b if the layer has a LoRA adapter of that name (policy.lora).

    Args:
        x: activations `[..., D]`, or `[..., H, h]` for "wo".
        w: parameters of the layer.
        name: matrix in w.

    Returns:
        Activations `[..., H, h]`, `[..., K, h]`, `[..., F]` or `[..., D]`, as the matrix has them.
    """
    n = input_axes(name)
    lead, out = x.shape[: x.ndim - n], w[name].shape[n:]
    flat = math.prod(w[name].shape[:n])
    x = x.reshape(*lead, flat)
    y = linear(x, w[name].reshape(flat, -1))
    if adapter := w.get("lora", {}).get(name):
        y = y + linear(
            linear(x, adapter["a"].reshape(flat, -1)), adapter["b"].reshape(-1, y.shape[-1])
        )
    return y.reshape(*lead, *out)


def block(
    x: Array, w: PyTree, cos: Array, sin: Array, attention: Callable, cfg: Config
) -> tuple[Array, PyTree]:
    """One decoder layer: attention and MLP, each added to the residual stream.

    Args:
        x: residual stream `[..., T, D]`.
        w: parameters of the layer.
        cos, sin: rotary embedding `[..., T, h / 2]`.
        attention: (q `[..., T, H, h]`, k and v `[..., T, K, h]`) -> (output `[..., T, H, h]`,
            cache). Training and decoding differ in this function alone.
        cfg: the policy's Config.

    Returns:
        Residual stream `[..., T, D]` and the cache that `attention` returned.
    """
    by_chunks = functools.partial(map_token_chunks, axis=x.ndim - 2, w=w, cfg=cfg)
    attended, cache = attention(*by_chunks(qkv_projection, x, cos, sin))
    x = x + by_chunks(attention_output, attended)
    return x + by_chunks(mlp, x, policy=checkpoint_policy(cfg)), cache


def map_token_chunks(
    f: Callable,
    *xs: Array,
    axis: int,
    w: PyTree,
    cfg: Config,
    policy=jax.checkpoint_policies.dots_saveable,
):
    """f(*xs, w, cfg), for at most `cfg.token_chunk` tokens of each prompt at a time.

    Chunks bound the activations that a device all-gathers at once. Each chunk is recomputed in the
    backward pass.

    Args:
        f: (*xs, w, cfg) -> array or tuple of arrays with the same token axis.
        xs: activations.
        axis: token axis of all xs, counted from the front.
        w: parameters of the layer.
        cfg: the policy's Config.
        policy: checkpoint policy of a chunk.
    """
    S = xs[0].shape[axis]
    n = -(-S // cfg.token_chunk)
    if n == 1:
        return f(*xs, w, cfg)
    chunk = jax.checkpoint(lambda xs, w: f(*xs, w, cfg), policy=policy)
    out = jax.lax.map(lambda xs: chunk(xs, w), split_strided(xs, n, axis))
    return jax.tree.map(lambda y: join_strided(y, S, axis), out)


@jax.named_scope("qkv")
def qkv_projection(x: Array, cos: Array, sin: Array, w: PyTree, cfg: Config):
    """Query, key and value projections of the normalized input, with RoPE on queries and keys.

    Args:
        x: residual stream `[..., T, D]`.
        cos, sin: rotary embedding `[..., T, h / 2]`.
        w: parameters of the layer.
        cfg: the policy's Config.

    Returns:
        Queries `[..., T, H, h]`, keys and values `[..., T, K, h]`.
    """
    y = constrain(norm(x, w["attn_norm"], cfg), cfg, "query", None)
    q = constrain(project(y, w, "wq"), cfg, "query", "heads", None)
    k, v = (constrain(project(y, w, name), cfg, None, "kv_heads", None) for name in ("wk", "wv"))
    if cfg.qkv_bias:
        q, k, v = q + w["bq"], k + w["bk"], v + w["bv"]
    if cfg.qk_norm:
        q, k = norm(q, w["q_norm"], cfg), norm(k, w["k_norm"], cfg)
    return apply_rope(q, cos, sin), apply_rope(k, cos, sin), v


@jax.named_scope("attention_output")
def attention_output(attended: Array, w: PyTree, cfg: Config) -> Array:
    """Output projection of attention.

    Args:
        attended: attention output `[..., T, H, h]`.
        w: parameters of the layer.
        cfg: the policy's Config.

    Returns:
        Update `[..., T, D]` of the residual stream.
    """
    y = project(constrain(attended, cfg, "query", "heads", None), w, "wo")
    y = constrain(y, cfg, "length", None)
    return norm(y, w["attn_post_norm"], cfg) if cfg.post_norm else y


def mlp(x: Array, w: PyTree, cfg: Config) -> Array:
    """Gated MLP (2002.05202) of the normalized input: act(x w_gate) * (x w_up) w_down.

    With `cfg.experts` it is a mixture of such MLPs.

    Args:
        x: residual stream `[..., T, D]`.
        w: parameters of the layer.
        cfg: the policy's Config.

    Returns:
        Update `[..., T, D]` of the residual stream.
    """
    act = getattr(jax.nn, cfg.act)
    with jax.named_scope("experts" if cfg.experts else "mlp"):
        y = constrain(norm(x, w["mlp_norm"], cfg), cfg, "query", None)
        if cfg.experts:
            y = mixture_of_experts(y, w, act, cfg.experts_per_token, cfg.layout)
        else:
            gate, up = (
                constrain(project(y, w, name), cfg, "query", "ffn") for name in ("w_gate", "w_up")
            )
            y = project(act(gate) * up, w, "w_down")
        y = constrain(y, cfg, "length", None)
        return norm(y, w["mlp_post_norm"], cfg) if cfg.post_norm else y


def checkpoint_policy(cfg: Config):
    """Checkpoint policy of a layer: activations saved for its backward pass; None: its input."""
    return None if cfg.remat == "full" else jax.checkpoint_policies.dots_saveable


def all_gather_weight(w: Array, axes: tuple[str | None, ...], cfg: Config) -> Array:
    """All-gather a weight along the model width (FSDP); its gradient is reduce-scattered.

    Args:
        w: weight, sharded by the rules of `cfg.layout`.
        axes: logical axis of each dimension.
        cfg: the policy's Config; without a layout the weight is returned as it is.
    """
    if cfg.layout is None:
        return w
    sharded = cfg.layout(w, *axes)
    return cfg.layout(sharded, *(None if axis == "width" else axis for axis in axes))


def constrain(x: Array, cfg: Config, *last: str | None) -> Array:
    """Sharding constraint: first dimension by "batch", last dimensions by the logical axes `last`.

    Dimensions between are replicated. Without `cfg.layout` x is returned as it is.

    Args:
        x: activations `[N, ...]`.
        cfg: the policy's Config.
        last: logical axes of the last dimensions; None: replicated.
    """
    if cfg.layout is None:
        return x
    return cfg.layout(x, "batch", *(None,) * (x.ndim - 1 - len(last)), *last)


def cast(params: PyTree, cfg: Config) -> PyTree:
    """Parameters in the dtype of the computation, `cfg.dtype`."""
    return jax.tree.map(lambda w: jnp.asarray(w, cfg.dtype), params)


def layer_params(params: PyTree) -> PyTree:
    """Parameters `[L, ...]` of all layers; LoRA adapters, if any, under "lora"."""
    return params["layers"] | {"lora": params["lora"]} if "lora" in params else params["layers"]


@jax.named_scope("embed")
def embed(params: PyTree, tokens: Int[Array, "*B"], cfg: Config) -> Array:
    """Token embeddings times `cfg.embed_scale`.

    Args:
        params: parameters in the dtype of the computation.
        tokens: token ids `[...]`.
        cfg: the policy's Config.

    Returns:
        Embeddings `[..., D]`.
    """
    x = params["embed"][tokens]
    if cfg.layout is not None:
        # The lookup is sharded by width: every device embeds all tokens. Then they are sharded by
        # token.
        x = constrain(cfg.layout(x, *(None,) * tokens.ndim, "width"), cfg, "length", None)
    return x if cfg.embed_scale == 1 else x * jnp.asarray(cfg.embed_scale, x.dtype)


def forward_layers(
    params: PyTree,
    tokens: Int[Array, "*B T"],
    positions: Int[Array, "*B T"],
    attention: Callable,
    cfg: Config,
) -> tuple[Array, PyTree]:
    """Embedding, a scan over all layers, and the final norm.

    Args:
        params: parameters in the dtype of the computation.
        tokens: token ids `[..., T]`.
        positions: position ids `[..., T]`.
        attention: as for `block`, with the layer's window as the keyword `window`.
        cfg: the policy's Config.

    Returns:
        Hidden states `[..., T, D]`, and the caches that `attention` returned, stacked over layers.
    """
    rotation, axes = rope_by_window(positions, cfg), specs(cfg)["layers"]

    def layer(x, xs):
        w, window = xs
        w = w | {
            name: all_gather_weight(x, axes[name].axes[1:], cfg)
            for name, x in w.items()
            if name in axes
        }
        cos, sin = rotation(window)
        return block(x, w, cos, sin, functools.partial(attention, window=window), cfg)

    # Inside a scan the backward pass shares no subexpression with the forward pass.
    layer = jax.checkpoint(layer, policy=checkpoint_policy(cfg), prevent_cse=False)
    x, caches = jax.lax.scan(
        layer, embed(params, tokens, cfg), (layer_params(params), layer_windows(cfg))
    )
    return norm(x, params["final_norm"], cfg), caches


@jax.named_scope("logits")
def unembed(params: PyTree, h: Array, cfg: Config) -> Float[Array, "*B V"]:
    """Logits of hidden states; ids in `cfg.forbidden` get -inf.

    Args:
        params: parameters in the dtype of the computation.
        h: hidden states after the final norm `[..., D]`.
        cfg: the policy's Config.

    Returns:
        Logits `[..., V]`, float32.
    """
    w = params["embed"].T if cfg.tied else params["unembed"]
    logits = softcap(jnp.matmul(h, w, preferred_element_type=jnp.float32), cfg.logit_cap)
    if cfg.forbidden:
        logits = logits.at[..., jnp.array(cfg.forbidden)].set(-jnp.inf)
    return logits


def logits(
    params: PyTree, tokens: Int[Array, "B T"], valid: Bool[Array, "B T"], cfg: Config
) -> Float[Array, "B T V"]:
    """Next-token logits of independent rows, all of them at once.

    `logprob` needs far less memory for training.

    Args:
        params: parameters of the policy.
        tokens: token ids `[B, T]`.
        valid: False at padding `[B, T]`.
        cfg: the policy's Config.

    Returns:
        Logits `[B, T, V]`, float32: at column t of the token in column t + 1.
    """
    params = cast(params, cfg)
    h, _ = forward(params, tokens, valid, cfg, lambda k, v: None)
    return unembed(params, h, cfg)


def forward(
    params: PyTree,
    tokens: Int[Array, "B T"],
    valid: Bool[Array, "B T"],
    cfg: Config,
    cache: Callable[[Array, Array], PyTree],
) -> tuple[Array, PyTree]:
    """Hidden states of independent rows (no shared prompt).

    Args:
        params: parameters in the dtype of the computation.
        tokens: token ids `[B, T]`.
        valid: False at padding `[B, T]`.
        cfg: the policy's Config.
        cache: (keys `[B, K, 1, h, T]`, values `[B, K, 1, T, h]`) of a layer -> tree to return.

    Returns:
        Hidden states `[B, T, D]`, and the results of `cache` stacked over layers.
    """
    cfg = resolve_rope_scaling(cfg, tokens.shape[1])
    positions = position_ids(valid)[:, None]  # [B, 1, T]: one row per prompt
    mask = causal_mask(valid)[:, None, None, None]  # [B, 1, 1, 1, T, T]
    mask_positions = positions[:, None, None]  # [B, 1, 1, 1, T]
    kernel = fused_kernel(cfg, valid, valid.shape[-1])

    def attention(q, k, v, window):
        if kernel:
            with jax.named_scope("attention"):
                attended = kernel(q[:, 0], k[:, 0], v[:, 0], window)[:, None]
            return attended, cache(*by_head(k, v))
        k, v = by_head(k, v)
        visible = sliding_window_mask(mask, mask_positions, mask_positions, window)
        return attend(q, (k, v, visible), cfg=cfg), cache(k, v)

    h, caches = forward_layers(params, tokens[:, None], positions, attention, cfg)
    return h[:, 0], caches


def hidden(
    params: PyTree,
    prompt: Int[Array, "N P"],
    prompt_valid: Bool[Array, "N P"],
    rows: Int[Array, "N R S"],
    rows_valid: Bool[Array, "N R S"],
    cfg: Config,
) -> tuple[Array, Array]:
    """Hidden states of groups of rows, each group's prompt computed once.

    Args:
        params: parameters of the policy.
        prompt: token ids of the prompts `[N, P]`, left-padded.
        prompt_valid: False at padding `[N, P]`.
        rows: token ids that continue the prompts `[N, R, S]`.
        rows_valid: False at padding `[N, R, S]`.
        cfg: the policy's Config.

    Returns:
        Hidden states of the prompts `[N, P, D]` and of the rows `[N, R, S, D]`.
    """
    (N, P), (_, R, S) = prompt.shape, rows.shape
    cfg = resolve_rope_scaling(cfg, P + S)
    lengths = prompt_valid.sum(-1, dtype=jnp.int32)[:, None, None]
    prompt_positions, row_positions = position_ids(prompt_valid), lengths + position_ids(rows_valid)
    # Masks [N, 1, R, 1, S queries, C keys] and positions [N, 1, R, 1, S or C], see
    # attention.attend.
    prompt_to_prompt = causal_mask(prompt_valid)[:, None, None, None]
    row_to_prompt = prompt_valid[:, None, None, None, None]
    row_to_row = causal_mask(rows_valid)[:, None, :, None]
    prompt_at = prompt_positions[:, None, None, None]
    row_at = row_positions[:, None, :, None]

    def pack(a, b):  # [N, P, ...] and [N, R, S, ...] to [N, P + R S, ...]
        return jnp.concatenate([a, b.reshape(N, R * S, *b.shape[3:])], 1)

    def unpack(x):
        return x[:, :P], x[:, P:].reshape(N, R, S, *x.shape[2:])

    kernel = fused_kernel(cfg, pack(prompt_valid, rows_valid), P, S)

    def attention(q, k, v, window):
        if kernel:
            with jax.named_scope("attention"):
                return kernel(q, k, v, window), None
        (qp, qr), (kp, kr), (vp, vr) = unpack(q), unpack(k), unpack(v)
        kp, vp = by_head(kp[:, None], vp[:, None])
        mask = sliding_window_mask(prompt_to_prompt, prompt_at, prompt_at, window)
        of_prompt = attend(qp[:, None], (kp, vp, mask), cfg=cfg)[:, 0]
        prompt_part = (
            kp[:, :, 0],
            vp[:, :, 0],
            sliding_window_mask(row_to_prompt, row_at, prompt_at, window),
        )
        row_part = (
            *by_head(kr, vr),
            sliding_window_mask(row_to_row, row_at, row_at, window),
        )
        return pack(of_prompt, attend(qr, prompt_part, row_part, cfg=cfg)), None

    x, _ = forward_layers(
        cast(params, cfg),
        pack(prompt, rows),
        pack(prompt_positions, row_positions),
        attention,
        cfg,
    )
    return unpack(x)


def token_logp_and_entropy(
    params: PyTree, h: Array, target: Int[Array, "*B T"], cfg: Config, temperature: float
) -> tuple[Float[Array, "*B T"], Float[Array, "*B T"]]:
    """Log-probability of given tokens, and entropy, of softmax(logits / temperature).

    Args:
        params: unembedding parameters in the dtype of the computation.
        h: hidden states `[..., T, D]` before the tokens.
        target: token ids `[..., T]`.
        cfg: the policy's Config.
        temperature: divisor of the logits, above 0.
    """
    z = unembed(params, constrain(h, cfg, None, None), cfg)
    z = constrain(z, cfg, None, "vocab") / temperature
    logp = jax.nn.log_softmax(z, -1)
    p = jnp.exp(logp)
    chosen = jnp.where(target[..., None] == jnp.arange(cfg.vocab), logp, 0).sum(-1)
    # 0 * -inf would be a NaN, in the gradient too.
    return chosen, -(p * jnp.where(p > 0, logp, 0)).sum(-1)


def logprob(
    params: PyTree,
    tokens: Int[Array, "N R T"],
    valid: Bool[Array, "N R T"],
    cfg: Config,
    *,
    prompt: int,
    temperature: float = 1.0,
) -> dict[str, Array]:
    """Log-probability of each response token, and entropy of the policy before it.

    The prompt of a group is computed once. Logits exist for `cfg.vocab_chunk` tokens of each prompt
    at a time.

    Args:
        params: parameters of the policy.
        tokens: token ids `[N, R, T]`. The first `prompt` columns are equal in all rows of a group.
        valid: False at padding `[N, R, T]`. Padding is on the left of the prompt and on the right
            of the response, without holes between (see `Rollout.check`), because positions count
            valid tokens.
        cfg: the policy's Config.
        prompt: number of prompt columns P, at least 1.
        temperature: divisor of the logits, above 0.

    Returns:
        `logp` and `entropy` in nats, `[N, R, T - P]`, of softmax(logits / temperature).
    """
    N, R, T = tokens.shape
    cfg = resolve_rope_scaling(cfg, T)
    # The hidden state of the last token is not needed; a sharded axis keeps its even length.
    end = T if cfg.layout else T - 1
    prompt_hidden, row_hidden = hidden(
        params,
        tokens[:, 0, :prompt],
        valid[:, 0, :prompt],
        tokens[:, :, prompt:end],
        valid[:, :, prompt:end],
        cfg,
    )
    row_hidden = row_hidden[:, :, : T - prompt - 1]
    h = jnp.concatenate(
        [jnp.broadcast_to(prompt_hidden[:, None, -1:], (N, R, 1, cfg.width)), row_hidden], 2
    ).reshape(N, -1, cfg.width)
    target = tokens[:, :, prompt:].reshape(N, -1)
    params = cast({name: params[name] for name in specs(cfg) if name != "layers"}, cfg)
    if cfg.layout:
        # All-gather the unembedding once, not in every chunk. The barrier orders the backward pass:
        # the gradient of the unembedding is reduce-scattered before the backward pass of the
        # layers.
        h, params = jax.lax.optimization_barrier((h, params))
        for name, p in specs(cfg).items():
            if name in params:
                params[name] = all_gather_weight(params[name], p.axes, cfg)

    def chunk(h, target):
        return token_logp_and_entropy(params, h, target, cfg, temperature)

    M = h.shape[1]
    n = -(-M // cfg.vocab_chunk)
    chunks = split_strided((constrain(h, cfg, "length", None), target), n, 1)
    out = jax.lax.map(lambda x: jax.checkpoint(chunk)(*x), chunks)
    logp, entropy = (join_strided(x, M, 1).reshape(N, R, T - prompt) for x in out)
    return {"logp": logp, "entropy": entropy}
