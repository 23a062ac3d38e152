"""One decoder, whatever its Config makes of it, as pure functions over a tree of arrays.

A group's prompt is computed once: `hidden` packs the R rows of a group behind their common prompt, `[N, P + R S]` tokens through the
matmuls, and lets each row attend to the prompt and to itself. Letters: N prompts, R rows, P prompt tokens, S response tokens, D width,
H heads, K kv heads, G = H / K, h head size, V vocabulary.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxcredit.parallel.chunks import join_strided, split_strided
from jaxcredit.policy.attention import by_head, cap, mix
from jaxcredit.policy.config import Config, specs
from jaxcredit.policy.experts import routed
from jaxcredit.policy.fused_attention import fused
from jaxcredit.policy.positions import (
    angles,
    at_length,
    before,
    causal,
    near,
    rope,
    rotate,
    windows,
)

__all__ = ["Config", "before", "causal", "hidden", "logits", "logprob", "rope", "specs"]


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """x / sqrt(mean x^2 + eps) * w, in float32."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + eps)
    return (y * weight).astype(x.dtype)


def norm(x: Array, weight: Array, cfg: Config) -> Array:
    """rms_norm by `norm_offset + weight`."""
    return rms_norm(
        x, weight.astype(jnp.float32) + cfg.norm_offset if cfg.norm_offset else weight, cfg.norm_eps
    )


@jax.custom_vjp
def linear(x: Array, w: Array) -> Array:
    """x w. The weight gradient x^T g transposes the narrower of its two operands.

    Left to itself, XLA on a CPU transposes the MLP's [tokens, F] with the nonlinearity fused into it: a third of the training step.
    """
    return x @ w


def _linear_backward(kept, g):
    x, w = kept
    tokens = tuple(range(x.ndim - 1))  # not made one axis: on a mesh each is cut in its own way
    narrow, wide = (x, g) if x.shape[-1] <= g.shape[-1] else (g, x)
    dw = jax.lax.dot_general(narrow, wide, ((tokens, tokens), ((), ())))
    return g @ w.T, dw if narrow is x else dw.T


linear.defvjp(lambda x, w: (x @ w, (x, w)), _linear_backward)


def inputs(name: str) -> int:
    """How many leading axes of a layer's matrix are its input: of the output projection the heads."""
    return 2 if name == "wo" else 1


def project(x: Array, w: PyTree, name: str) -> Array:
    """x w[name], `[..., D]` to `[..., H, h]` and back; and (x a) b of the adapter of that name, if the layer has one (policy.lora)."""
    n = inputs(name)
    lead, out = x.shape[: x.ndim - n], w[name].shape[n:]
    flat = math.prod(w[name].shape[:n])
    x = x.reshape(*lead, flat)
    y = linear(x, w[name].reshape(flat, -1))
    if adapter := w.get("lora", {}).get(name):
        y = y + linear(
            linear(x, adapter["a"].reshape(flat, -1)), adapter["b"].reshape(-1, y.shape[-1])
        )
    return y.reshape(*lead, *out)


def block(x, w, cos, sin, attend, cfg):
    """One layer on `x[..., D]`. `attend(q, k, v) -> (mixed values, what to keep)` is all that differs between training and decoding."""
    by_tokens = functools.partial(chunked, axis=x.ndim - 2, w=w, cfg=cfg)
    mixed, kept = attend(*by_tokens(look, x, cos, sin))
    x = x + by_tokens(answer, mixed)
    return x + by_tokens(feed, x, keep=kept_by(cfg)), kept


def chunked(
    f: Callable,
    *xs: Array,
    axis: int,
    w: PyTree,
    cfg: Config,
    keep=jax.checkpoint_policies.dots_saveable,
):
    """f(*xs, w, cfg), all of it at once, or for `token_chunk` tokens of each prompt at a time: then a device gathers no more of them."""
    S = xs[0].shape[axis]
    n = -(-S // cfg.token_chunk)
    if n == 1:
        return f(*xs, w, cfg)
    part = jax.checkpoint(lambda xs, w: f(*xs, w, cfg), policy=keep)
    out = jax.lax.map(lambda xs: part(xs, w), split_strided(xs, n, axis))
    return jax.tree.map(lambda y: join_strided(y, S, axis), out)


def look(x, cos, sin, w, cfg):
    """What a layer asks, and what it says of itself: queries, keys and values."""
    y = laid(norm(x, w["attn_norm"], cfg), cfg, "query", None)
    q = laid(project(y, w, "wq"), cfg, "query", "heads", None)
    k, v = (laid(project(y, w, name), cfg, None, "kv_heads", None) for name in ("wk", "wv"))
    if cfg.qkv_bias:
        q, k, v = q + w["bq"], k + w["bk"], v + w["bv"]
    if cfg.qk_norm:
        q, k = norm(q, w["q_norm"], cfg), norm(k, w["k_norm"], cfg)
    return rotate(q, cos, sin), rotate(k, cos, sin), v


def answer(mixed, w, cfg):
    """What attention adds to a token."""
    y = laid(project(laid(mixed, cfg, "query", "heads", None), w, "wo"), cfg, "length", None)
    return norm(y, w["attn_post_norm"], cfg) if cfg.post_norm else y


def feed(x, w, cfg):
    """What the MLP, or the experts, add: act(x gate) * (x up) down."""
    y, act = laid(norm(x, w["mlp_norm"], cfg), cfg, "query", None), getattr(jax.nn, cfg.act)
    if cfg.experts:
        y = routed(y, w, act, cfg.experts_per_token, cfg.place)
    else:
        gate, up = (laid(project(y, w, name), cfg, "query", "ffn") for name in ("w_gate", "w_up"))
        y = project(act(gate) * up, w, "w_down")
    y = laid(y, cfg, "length", None)
    return norm(y, w["mlp_post_norm"], cfg) if cfg.post_norm else y


def kept_by(cfg: Config):
    """What the backward of a layer finds, and need not compute again."""
    return None if cfg.remat == "full" else jax.checkpoint_policies.dots_saveable


def gathered(w: Array, axes: tuple[str | None, ...], cfg: Config) -> Array:
    """A weight that is cut along the width, made whole once a pass; its gradient is cut again as soon as it is there."""
    return (
        w
        if cfg.place is None
        else cfg.place(cfg.place(w, *axes), *(None if axis == "width" else axis for axis in axes))
    )


def laid(x: Array, cfg: Config, *last: str | None) -> Array:
    """x cut over the mesh: its first axis is the batch, its last ones have these logical names."""
    return (
        x
        if cfg.place is None
        else cfg.place(x, "batch", *(None,) * (x.ndim - 1 - len(last)), *last)
    )


def cast(params: PyTree, cfg: Config) -> PyTree:
    """The parameters in the dtype of the computation."""
    return jax.tree.map(lambda w: jnp.asarray(w, cfg.dtype), params)


def layers(params: PyTree) -> PyTree:
    """What the scan over the layers runs over: their parameters, and their adapters beside them."""
    return params["layers"] | {"lora": params["lora"]} if "lora" in params else params["layers"]


def embed(params: PyTree, tokens: Int[Array, "*B"], cfg: Config) -> Array:
    """The rows of the embedding, scaled where the config says so."""
    x = params["embed"][tokens]
    if (
        cfg.place is not None
    ):  # every device looks up its share of the width for all tokens, and then they change hands
        x = laid(cfg.place(x, *(None,) * tokens.ndim, "width"), cfg, "length", None)
    return x if cfg.embed_scale == 1 else x * jnp.asarray(cfg.embed_scale, x.dtype)


def run(params, tokens: Int[Array, "*B"], positions: Int[Array, "*B"], attend, cfg: Config):
    """Embed, all layers under one scan, final norm: the hidden states, and what `attend(q, k, v, window)` kept, stacked over layers."""
    turn, axes = angles(positions, cfg), specs(cfg)["layers"]

    def layer(x, xs):
        w, window = xs
        w = w | {
            name: gathered(x, axes[name].axes[1:], cfg) for name, x in w.items() if name in axes
        }
        return block(x, w, *turn(window), functools.partial(attend, window=window), cfg)

    layer = jax.checkpoint(
        layer, policy=kept_by(cfg), prevent_cse=False
    )  # under a scan nothing can be shared by mistake
    x, kept = jax.lax.scan(layer, embed(params, tokens, cfg), (layers(params), windows(cfg)))
    return norm(x, params["final_norm"], cfg), kept


def unembed(params: PyTree, h: Array, cfg: Config) -> Float[Array, "*B V"]:
    """Logits in float32; ids the policy can never choose get -inf."""
    w = params["embed"].T if cfg.tied else params["unembed"]
    logits = cap(jnp.matmul(h, w, preferred_element_type=jnp.float32), cfg.logit_cap)
    if cfg.forbidden:
        logits = logits.at[..., jnp.array(cfg.forbidden)].set(-jnp.inf)
    return logits


def logits(
    params: PyTree, tokens: Int[Array, "B T"], valid: Bool[Array, "B T"], cfg: Config
) -> Float[Array, "B T V"]:
    """The plain forward: every row for itself, all logits at once."""
    h, _ = alone(cast(params, cfg), tokens, valid, cfg, lambda k, v: None)
    return unembed(cast(params, cfg), h, cfg)


def alone(params, tokens: Int[Array, "B T"], valid: Bool[Array, "B T"], cfg: Config, keep):
    """The hidden states `[B, T, D]` of rows that are nobody's continuation, and `keep(k, v)` of each layer's keys and values by head."""
    cfg = at_length(cfg, tokens.shape[1])
    at = before(valid)
    mask, at, kernel = (
        causal(valid)[:, None, None, None],
        at[:, None],
        fused(cfg, valid, valid.shape[-1]),
    )

    def attend(q, k, v, window):
        if kernel:
            return kernel(q[:, 0], k[:, 0], v[:, 0], window)[:, None], keep(*by_head(k, v))
        k, v = by_head(k, v)
        seen = near(mask, at[:, None, None], at[:, None, None], window)
        return mix(q, (k, v, seen), cfg=cfg), keep(k, v)

    h, kept = run(params, tokens[:, None], at, attend, cfg)
    return h[:, 0], kept


def hidden(
    params,
    prompt: Int[Array, "N P"],
    prompt_valid,
    rows: Int[Array, "N R S"],
    rows_valid,
    cfg: Config,
) -> tuple[Array, Array]:
    """The hidden states `[N, P, D]` of each prompt and `[N, R, S, D]` of the rows that continue it; the prompt is computed once."""
    (N, P), (_, R, S) = prompt.shape, rows.shape
    cfg = at_length(cfg, P + S)
    lengths = prompt_valid.sum(-1, dtype=jnp.int32)[:, None, None]
    at, rows_at = before(prompt_valid), lengths + before(rows_valid)
    own, rows_own = causal(prompt_valid)[:, None, None, None], causal(rows_valid)[:, None, :, None]
    seen = prompt_valid[:, None, None, None, None]
    here, there = at[:, None, None, None], rows_at[:, None, :, None]  # as the masks have it

    def pack(a, b):
        return jnp.concatenate([a, b.reshape(N, R * S, *b.shape[3:])], 1)

    def unpack(x):
        return x[:, :P], x[:, P:].reshape(N, R, S, *x.shape[2:])

    kernel = fused(cfg, pack(prompt_valid, rows_valid), P, S)

    def attend(q, k, v, window):
        if kernel:
            return kernel(q, k, v, window), None
        (qp, qr), (kp, kr), (vp, vr) = unpack(q), unpack(k), unpack(v)
        kp, vp = by_head(kp[:, None], vp[:, None])
        prompt = mix(qp[:, None], (kp, vp, near(own, here, here, window)), cfg=cfg)[:, 0]
        common = kp[:, :, 0], vp[:, :, 0], near(seen, there, here, window)
        return pack(
            prompt,
            mix(qr, common, (*by_head(kr, vr), near(rows_own, there, there, window)), cfg=cfg),
        ), None

    x, _ = run(cast(params, cfg), pack(prompt, rows), pack(at, rows_at), attend, cfg)
    return unpack(x)


def logprob(
    params,
    tokens: Int[Array, "N R T"],
    valid: Bool[Array, "N R T"],
    cfg: Config,
    *,
    prompt: int,
    temperature: float = 1.0,
):
    """`logp` and `entropy` `[N, R, T - prompt]` of softmax(logits / temperature) at columns prompt..T-1.

    The first `prompt` columns are the same in all rows of a group: they are computed once. Logits exist for a chunk of tokens at a time.
    `valid` has no holes behind its left padding, which `Rollout.check` makes sure of: positions are counted from the first valid column.
    """
    N, R, T = tokens.shape
    cfg = at_length(cfg, T)
    end = (
        T if cfg.place else T - 1
    )  # the last token's own hidden state is not needed, but on a mesh lengths should be round
    first, rest = hidden(
        params,
        tokens[:, 0, :prompt],
        valid[:, 0, :prompt],
        tokens[:, :, prompt:end],
        valid[:, :, prompt:end],
        cfg,
    )
    rest = rest[:, :, : T - prompt - 1]
    h = jnp.concatenate(
        [jnp.broadcast_to(first[:, None, -1:], (N, R, 1, cfg.width)), rest], 2
    ).reshape(N, -1, cfg.width)
    target = tokens[:, :, prompt:].reshape(N, -1)
    params = cast({name: params[name] for name in specs(cfg) if name != "layers"}, cfg)
    if cfg.place:  # gathered once, not for every chunk; behind the barrier, whose gradient is one, theirs are cut before the layers' begin
        h, params = jax.lax.optimization_barrier((h, params))
        for name, p in specs(cfg).items():
            if name in params:
                params[name] = gathered(params[name], p.axes, cfg)

    def chunk(h, target):
        z = laid(unembed(params, laid(h, cfg, None, None), cfg), cfg, None, "vocab") / temperature
        logp = jax.nn.log_softmax(z, -1)
        p = jnp.exp(logp)
        chosen = jnp.where(target[..., None] == jnp.arange(cfg.vocab), logp, 0).sum(-1)
        return chosen, -(p * jnp.where(p > 0, logp, 0)).sum(
            -1
        )  # 0 * -inf would be a NaN, in the gradient too

    M = h.shape[1]
    n = -(-M // cfg.vocab_chunk)
    out = jax.lax.map(
        lambda x: jax.checkpoint(chunk)(*x),
        (split_strided(laid(h, cfg, "length", None), n, 1), split_strided(target, n, 1)),
    )
    logp, entropy = (join_strided(x, M, 1).reshape(N, R, T - prompt) for x in out)
    return {"logp": logp, "entropy": entropy}
