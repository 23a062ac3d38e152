"""The decoder against a numpy loop over tokens, and packed groups against independent rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_decoders import (
    FULL,
    GEMMA,
    LLAMA,
    MOE,
    QWEN2,
    QWEN3,
    N,
    P,
    R,
    S,
    batch,
    flat,
    random_params,
)

from jaxcredit.parallel import params
from jaxcredit.policy import transformer as tf


def oracle(tree, ids, cfg):
    """Logits after every token of `ids`, one token and head at a time, in float64."""
    w = jax.tree.map(lambda x: np.asarray(x, np.float64), tree)

    def norm(x, g):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + cfg.norm_eps) * (cfg.norm_offset + g)  # noqa: E731

    cap = lambda x, c: c * np.tanh(x / c) if c else x  # noqa: E731
    gelu = lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2  # noqa: E731
    act = gelu if cfg.act == "gelu" else lambda x: x / (1 + np.exp(-x))
    half = cfg.head_dim // 2
    freq = np.array([cfg.rope_theta ** (-2 * i / cfg.head_dim) for i in range(half)])
    if cfg.rope_scaling and cfg.rope_scaling[0] == "linear":
        freq = freq / cfg.rope_scaling[1]
    if cfg.rope_scaling and cfg.rope_scaling[0] == "llama3":
        _, factor, low, high, original = cfg.rope_scaling
        for i, f in enumerate(freq):
            length = 2 * np.pi / f
            if length > original / low:
                freq[i] = f / factor
            elif length >= original / high:
                smooth = (original / length - low) / (high - low)
                freq[i] = (1 - smooth) * f / factor + smooth * f

    near = np.array([(cfg.local_theta or 1) ** (-2 * i / cfg.head_dim) for i in range(half)])

    def rotate(x, position, freq):
        z = (x[:half] + 1j * x[half:]) * np.exp(1j * position * freq)
        return np.concatenate([z.real, z.imag])

    def mlp(y, gate, up, down):
        return (act(y @ gate) * (y @ up)) @ down

    x = w["embed"][ids] * cfg.embed_scale
    for i in range(cfg.layers):
        p = {name: value[i] for name, value in w["layers"].items()}
        window = cfg.windows[i % len(cfg.windows)] if cfg.windows else 0
        turn = near if window and cfg.local_theta else freq
        y, mixed = norm(x, p["attn_norm"]), np.zeros((len(ids), cfg.heads, cfg.head_dim))
        for head in range(cfg.heads):
            group = head // (cfg.heads // cfg.kv_heads)
            q, k, v = y @ p["wq"][:, head], y @ p["wk"][:, group], y @ p["wv"][:, group]
            if cfg.qkv_bias:
                q, k, v = q + p["bq"][head], k + p["bk"][group], v + p["bv"][group]
            if cfg.qk_norm:
                q, k = norm(q, p["q_norm"]), norm(k, p["k_norm"])
            q, k = (np.array([rotate(z, t, turn) for t, z in enumerate(zs)]) for zs in (q, k))
            for t in range(len(ids)):
                seen = range(max(0, t + 1 - window) if window else 0, t + 1)
                e = np.exp(
                    cap(q[t] @ k[seen].T / np.sqrt(cfg.score_dim or cfg.head_dim), cfg.score_cap)
                )
                mixed[t, head] = (e / e.sum()) @ v[seen]
        y = sum(mixed[:, head] @ p["wo"][head] for head in range(cfg.heads))
        x = x + (norm(y, p["attn_post_norm"]) if cfg.post_norm else y)
        y = norm(x, p["mlp_norm"])
        if cfg.experts:
            parts = np.zeros_like(y)
            for t, z in enumerate(y):
                e = np.exp(z @ p["w_router"])
                best = np.argsort(-e)[: cfg.experts_per_token]
                parts[t] = sum(
                    e[j]
                    / e[best].sum()
                    * mlp(z, *(p[name][j] for name in ("w_gate", "w_up", "w_down")))
                    for j in best
                )
            y = parts
        else:
            y = mlp(y, p["w_gate"], p["w_up"], p["w_down"])
        x = x + (norm(y, p["mlp_post_norm"]) if cfg.post_norm else y)
    logits = cap(
        norm(x, w["final_norm"]) @ (w["embed"].T if cfg.tied else w["unembed"]), cfg.logit_cap
    )
    logits[:, list(cfg.forbidden)] = -np.inf
    return logits


def log_softmax(z):
    return (
        z
        - np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - z.max(-1, keepdims=True)
    )


@pytest.mark.parametrize(
    "cfg",
    [LLAMA, QWEN2, QWEN3, GEMMA, pytest.param(MOE, marks=pytest.mark.slow)],
    ids=["llama", "qwen2", "qwen3", "gemma", "moe"],
)
def test_the_oracle(cfg):
    """Logits of independent rows, and log-probs and entropies of packed groups, without padding."""
    tree, (tokens, valid) = random_params(cfg), batch()
    plain = np.asarray(
        jax.jit(tf.logits, static_argnums=3)(tree, flat(tokens), flat(valid), cfg)
    ).reshape(N, R, P + S, -1)
    packed = jax.jit(lambda w: tf.logprob(w, tokens, valid, cfg, prompt=P, temperature=0.7))(tree)
    for n, r in np.ndindex(N - 1, R):
        where = np.flatnonzero(valid[n, r])
        want = oracle(tree, tokens[n, r, where], cfg)
        np.testing.assert_allclose(plain[n, r, where], want, atol=1e-4)
        logp = log_softmax(want / 0.7)
        p = np.exp(logp)
        for j, t in enumerate(where[:-1]):
            c = where[j + 1]
            if c >= P and c == t + 1:  # the token after a hole does not count
                np.testing.assert_allclose(
                    packed["logp"][n, r, c - P], logp[j, tokens[n, r, c]], atol=1e-4
                )
                np.testing.assert_allclose(
                    packed["entropy"][n, r, c - P],
                    -np.sum(p[j][p[j] > 0] * logp[j][p[j] > 0]),
                    atol=1e-4,
                )


def plain_logprob(tree, tokens, valid, cfg):
    logp = jax.nn.log_softmax(tf.logits(tree, flat(tokens), flat(valid), cfg), -1)[:, P - 1 : -1]
    chosen = jnp.take_along_axis(logp, flat(tokens)[:, P:, None], -1)[..., 0].reshape(N, R, S)
    p = jnp.exp(logp)
    return chosen, -(p * jnp.where(p > 0, logp, 0)).sum(-1).reshape(N, R, S)


@pytest.mark.parametrize(
    "cfg",
    [FULL, *(pytest.param(c, marks=pytest.mark.slow) for c in (GEMMA, MOE))],
    ids=["full", "gemma", "moe"],
)
def test_packed_equals_unpacked(cfg):
    """Log-probs, entropies and gradients of packed groups equal those of independent rows.

    Packed groups compute logits in chunks and rematerialize layers.
    """
    tree, (tokens, valid) = random_params(cfg), batch(1)
    weight = jax.random.normal(jax.random.key(3), (2, N, R, S))
    mask = jnp.asarray(valid[:, :, P:])

    def value(logp, entropy):
        return jnp.where(mask, weight[0] * logp + weight[1] * entropy, 0).sum() / 10

    def packed(w):
        out = tf.logprob(w, jnp.asarray(tokens), jnp.asarray(valid), cfg, prompt=P)
        return value(out["logp"], out["entropy"]), (out["logp"], out["entropy"])

    def unpacked(w):
        out = plain_logprob(
            w, jnp.asarray(tokens), jnp.asarray(valid), dataclasses.replace(cfg, remat="none")
        )
        return value(*out), out

    (_, got), g = jax.jit(jax.value_and_grad(packed, has_aux=True))(tree)
    (_, want), h = jax.jit(jax.value_and_grad(unpacked, has_aux=True))(tree)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(np.where(mask, a, 0), np.where(mask, b, 0), atol=1e-5)
    for (path, a), b in zip(jax.tree.leaves_with_path(g), jax.tree.leaves(h), strict=True):
        assert np.abs(b).max() > 1e-4, path
        np.testing.assert_allclose(a, b, atol=1e-5, err_msg=str(path))


def test_the_logits_of_a_batch_never_exist_whole():
    """The compiled gradient needs less memory than half of all logits (vocabulary of 50,000)."""
    cfg = dataclasses.replace(LLAMA, vocab=50_000, layers=1, forbidden=(), vocab_chunk=16)
    tree = params.abstract(tf.specs(cfg))
    tokens, valid = (
        jax.ShapeDtypeStruct((1, 8, 68), jnp.int32),
        jax.ShapeDtypeStruct((1, 8, 68), bool),
    )

    def loss(w, tokens, valid):
        return tf.logprob(w, tokens, valid, cfg, prompt=4)["logp"].sum()

    temporaries = (
        jax.jit(jax.grad(loss))
        .lower(tree, tokens, valid)
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
    )
    assert temporaries < 512 * 50_000 * 4 / 2


def test_rows_do_not_see_each_other_nor_the_future():
    tree, (tokens, valid) = random_params(QWEN3), batch()
    f = jax.jit(lambda tokens: tf.logprob(tree, tokens, valid, QWEN3, prompt=P)["logp"])
    a = f(tokens)
    changed = tokens.copy()
    changed[0, 0, P + 3] = tokens[0, 0, P + 3] % 20 + 1
    b = f(changed)
    moved = np.argwhere(np.abs(a - b) > 1e-6)
    assert {tuple(m) for m in moved} == {(0, 0, 3), (0, 0, 4), (0, 0, 5)}


def test_padding_does_not_matter():
    """Tokens in invalid columns, and the number of columns on the left, change no log-prob."""
    tree, (tokens, valid) = random_params(QWEN2), batch()
    f = jax.jit(
        lambda t, v, prompt: tf.logprob(tree, t, v, QWEN2, prompt=prompt)["logp"], static_argnums=2
    )
    a = f(tokens, valid, P)
    wide = [
        np.concatenate([np.full((N, R, 3), fill), x], 2)
        for fill, x in ((9, np.where(valid, tokens, 3)), (False, valid))
    ]
    b = f(np.asarray(wide[0], np.int32), wide[1].astype(bool), P + 3)
    both = valid[:, :, P:] & valid[:, :, P - 1 : -1]
    np.testing.assert_allclose(np.where(both, a, 0), np.where(both, b, 0), atol=1e-5)


@pytest.mark.slow
def test_bfloat16_is_near_float32():
    tree, (tokens, valid) = random_params(LLAMA), batch()
    cfg = dataclasses.replace(LLAMA, layers=1, forbidden=(), vocab_chunk=100)
    tree["layers"] = jax.tree.map(lambda w: w[:1], tree["layers"])

    def f(w):
        return tf.logprob(w, tokens, valid, dataclasses.replace(cfg, dtype="bfloat16"), prompt=P)[
            "logp"
        ][0, 0].mean()  # noqa: E731

    a, g = jax.jit(jax.value_and_grad(f))(tree)
    # Two columns are padding.
    z = log_softmax(oracle(tree, tokens[0, 0, valid[0, 0]], cfg))[P - 3 : -1]
    b = np.take_along_axis(z, tokens[0, 0, P:, None], -1).mean()
    assert 1e-6 < abs(a - b) < 0.05
    assert all(
        x.dtype == jnp.float32 and np.isfinite(x).all() and np.any(x != 0)
        for x in jax.tree.leaves(g)
    )


def test_parameters_are_declared_once():
    for cfg in (LLAMA, QWEN2, QWEN3, FULL, GEMMA, MOE):
        tree = jax.eval_shape(
            lambda cfg=cfg: params.init(tf.specs(cfg), jax.random.key(0), "bfloat16")
        )
        assert tree == params.abstract(tf.specs(cfg), "bfloat16")
        assert params.count(tf.specs(cfg)) == sum(x.size for x in jax.tree.leaves(tree))
    layers = tf.specs(dataclasses.replace(LLAMA, width=64))["layers"]
    some = {name: layers[name] for name in ("attn_norm", "w_gate", "w_up", "w_down")}
    tree = jax.jit(lambda key: params.init(some, key))(jax.random.key(0))
    assert abs(float(tree["w_gate"].std()) - 1 / 8) < 1e-2 and np.all(
        tree["attn_norm"] == 1
    )  # 64^-1/2
    assert abs(float(tree["w_down"].std()) - 1 / 16) < 5e-3  # / sqrt(2 * 2 layers)
    assert not np.array_equal(tree["w_gate"], tree["w_up"])


def test_what_is_wrong_is_said():
    with pytest.raises(ValueError, match="one logical axis per dimension"):
        params.Param((2, 3), ("width",))
    with pytest.raises(ValueError, match="rope_scaling .*llama3.*yarn"):
        tf.rope(jnp.arange(3), dataclasses.replace(LLAMA, rope_scaling=("mrope", 4.0)))
    with pytest.raises(ValueError, match="experts_per_token = 3 of 2 experts"):
        dataclasses.replace(LLAMA, experts=2, experts_per_token=3)
    with pytest.raises(ValueError, match="act = 'swish9' is not in jax.nn"):
        dataclasses.replace(LLAMA, act="swish9")
