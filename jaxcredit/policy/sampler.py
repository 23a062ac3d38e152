"""Sampling: the prompt once, then one token of every row at a time, until all rows are done. One program, no host round trip."""

import dataclasses
import functools
import operator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from jaxcredit.policy import transformer as tf
from jaxcredit.policy.positions import angles, at_length, near, windows

FEW = 8  # layers, on one device: written out they copy less for each token; more take long to compile, and their weights room once more


def prefill(params: PyTree, prompt: Int[Array, "N P"], valid: Bool[Array, "N P"], cfg: tf.Config):
    """The hidden state `[N, D]` behind each prompt, and its keys `[L, N, K, h, P]` and values `[L, N, K, P, h]`."""
    h, cache = tf.alone(params, prompt, valid, cfg, lambda k, v: (k[:, :, 0], v[:, :, 0]))
    return h[:, -1], cache


def keep(z: Array, top_k: int, top_p: float) -> Array:
    """Logits with -inf below the k-th largest, and below the smallest set of the likeliest tokens that holds `top_p` of the probability."""
    if top_k:
        z = jnp.where(z >= jax.lax.top_k(z, top_k)[0][..., -1:], z, -jnp.inf)
    if top_p < 1:
        ordered = jnp.flip(jnp.sort(z, -1), -1)
        p = jax.nn.softmax(ordered, -1)
        inside = jnp.cumsum(p, -1) - p < top_p  # the first token is always in
        z = jnp.where(z >= jnp.where(inside, ordered, jnp.inf).min(-1, keepdims=True), z, -jnp.inf)
    return z


@functools.partial(
    jax.jit,
    static_argnames=("cfg", "rows", "max_new_tokens", "temperature", "top_k", "top_p", "stop"),
)
def sample(
    params: PyTree,
    prompt: Int[Array, "N P"],
    prompt_valid: Bool[Array, "N P"],
    key: Array,
    cfg: tf.Config,
    *,
    rows: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop: tuple[int, ...] = (),
) -> dict[str, Array]:
    """Continue each prompt in `rows` ways by up to `max_new_tokens` tokens: `tokens logp mask` `[N, R, S]` and `done` `[N, R]`, a stop token came.

    `logp` is log softmax(logits / temperature) of the chosen token, before top-k and top-p; at temperature 0, the greedy choice, it is that
    of temperature 1. Prompts are left-padded; a prompt without a single valid token is padding, and nothing is sampled for it.
    """
    N, P = prompt.shape
    cfg = at_length(cfg, P + max_new_tokens)
    R, S, L, K, h = rows, max_new_tokens, cfg.layers, cfg.kv_heads, cfg.head_dim
    params = tf.cast(params, cfg)
    lengths = prompt_valid.sum(-1, dtype=jnp.int32)[:, None]
    seen, prompt_at = (
        prompt_valid[:, None, None, None, None],
        tf.before(prompt_valid)[:, None, None, None],
    )

    def choose(hidden, t):
        z = tf.unembed(params, hidden, cfg) / (temperature or 1.0)
        if temperature == 0:
            token = z.argmax(-1)
        else:
            token = jax.random.categorical(jax.random.fold_in(key, t), keep(z, top_k, top_p))
        logp = jnp.take_along_axis(jax.nn.log_softmax(z, -1), token[..., None], -1)[..., 0]
        return token.astype(jnp.int32), logp

    def write(out, t, token, logp):
        """Column t: rows that are still alive get the token; a stop token ends its row."""
        alive = out["alive"]
        columns = {
            "tokens": jnp.where(alive, token, 0),
            "logp": jnp.where(alive, logp, 0),
            "mask": alive,
        }
        written = {name: out[name].at[:, :, t].set(x) for name, x in columns.items()}
        ended = (
            alive & jnp.isin(token, jnp.array(stop, jnp.int32)) if stop else jnp.zeros_like(alive)
        )
        return written | {"alive": alive & ~ended, "done": out["done"] | ended}

    last, prompt_kv = prefill(params, prompt, prompt_valid, cfg)
    few, each = L <= FEW and cfg.place is None, (tf.layers(params), *prompt_kv, windows(cfg))
    cfg = dataclasses.replace(
        cfg, place=None
    )  # a token a row is less than the weights: these stay where they lie
    empty = jnp.zeros((N, R, S))
    alive = jnp.broadcast_to(prompt_valid.any(-1)[:, None], (N, R))
    out = {
        "tokens": empty.astype(jnp.int32),
        "logp": empty,
        "mask": empty.astype(bool),
        "alive": alive,
        "done": jnp.zeros((N, R), bool),
    }
    out = write(out, 0, *choose(jnp.broadcast_to(last[:, None], (N, R, cfg.width)), 0))
    lead = () if few else (L,)
    cache = (
        jnp.zeros((*lead, N, K, R, h, S), cfg.dtype),
        jnp.zeros((*lead, N, K, R, S, h), cfg.dtype),
    )
    # Written out, each layer's weights are cut out once, not for every token, and its cache is read where it lies.
    parts = [((), *jax.tree.map(operator.itemgetter(i), each)) for i in range(L if few else 0)]

    def more(carry):
        t, out, _ = carry
        return (t < S) & out["alive"].any()

    def step(carry):
        """Feed column t-1, choose column t."""
        t, out, caches = carry
        token = jax.lax.dynamic_slice_in_dim(out["tokens"], t - 1, 1, axis=2)
        turn = angles(jnp.broadcast_to((lengths + t - 1)[..., None], (N, R, 1)), cfg)

        def layer(carry, xs):
            """`at`: which of the stacked caches, () where this layer has its own."""
            x, cache = carry
            at, w, kp, vp, window = xs

            def attend(q, k, v):
                k, v = (x[(None,) * len(at)] for x in tf.by_head(k, v))
                keys = jax.lax.dynamic_update_slice(cache[0], k, (*at, 0, 0, 0, 0, t - 1))
                values = jax.lax.dynamic_update_slice(cache[1], v, (*at, 0, 0, 0, t - 1, 0))
                common = (
                    kp,
                    vp,
                    near(seen, (lengths + t - 1)[:, None, None, None], prompt_at, window),
                )
                own = near(jnp.arange(S) < t, (t - 1)[None], jnp.arange(S), window)
                return tf.mix(q, common, (keys[at], values[at], own), cfg=cfg), (keys, values)

            return tf.block(x, w, *turn(window), attend, cfg), None

        x = tf.embed(params, token, cfg)
        if few:
            for i, part in enumerate(parts):
                (x, caches[i]), _ = layer((x, caches[i]), part)
        else:
            (x, caches), _ = jax.lax.scan(layer, (x, caches), ((jnp.arange(L),), *each))
        x = tf.norm(x[:, :, 0], params["final_norm"], cfg)
        return t + 1, write(out, t, *choose(x, t)), caches

    _, out, _ = jax.lax.while_loop(more, step, (1, out, [cache] * L if few else cache))
    return {name: out[name] for name in ("tokens", "logp", "mask", "done")}
