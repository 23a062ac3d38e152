"""The sampler against the trainer's log-probs, the forward pass, and expected distributions."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_decoders import FULL, GEMMA, LLAMA, MOE, random_params

from jaxcredit.policy import sampler
from jaxcredit.policy import transformer as tf

N, R, P, S = 3, 4, 5, 7
STOP = (3, 11)
FREE = dataclasses.replace(LLAMA, forbidden=())


def prompts(seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.integers(1, 23, (N, P)), jnp.int32), jnp.arange(P) >= jnp.array(
        [0, 2, 4]
    )[:, None]


def joined(out, prompt, valid):
    tokens = jnp.concatenate([jnp.broadcast_to(prompt[:, None], (N, R, P)), out["tokens"]], 2)
    return tokens, jnp.concatenate([jnp.broadcast_to(valid[:, None], (N, R, P)), out["mask"]], 2)


@pytest.mark.parametrize(
    "cfg",
    [LLAMA, FULL, *(pytest.param(c, marks=pytest.mark.slow) for c in (GEMMA, MOE))],
    ids=["llama", "full", "gemma", "moe"],
)
def test_the_sampler_agrees_with_the_trainer(cfg):
    """Log-probs before top-k and top-p, ragged prompts, grouped heads; stop tokens end rows."""
    tree, (prompt, valid) = random_params(cfg), prompts()
    out = sampler.sample(
        tree,
        prompt,
        valid,
        jax.random.key(0),
        cfg,
        rows=R,
        max_new_tokens=S,
        temperature=0.8,
        top_k=9,
        top_p=0.9,
        stop=STOP,
    )
    tokens, mask, done = (np.asarray(out[name]) for name in ("tokens", "mask", "done"))
    want = jax.jit(lambda *x: tf.logprob(tree, *x, cfg, prompt=P, temperature=0.8)["logp"])(
        *joined(out, prompt, valid)
    )
    np.testing.assert_allclose(out["logp"], np.where(mask, want, 0), atol=1e-4)
    assert tokens.dtype == np.int32 and len(np.unique(tokens.reshape(N * R, S), axis=0)) > R
    assert not np.isin(tokens[mask], cfg.forbidden).any() and 0 < done.sum() < N * R
    for n, r in np.ndindex(N, R):
        stops = np.flatnonzero(np.isin(tokens[n, r], STOP) & mask[n, r])
        length = stops[0] + 1 if len(stops) else S
        assert (
            done[n, r] == bool(len(stops))
            and mask[n, r].sum() == mask[n, r, :length].sum() == length
        )
        assert np.all(tokens[n, r, length:] == 0)


@pytest.mark.parametrize(
    "cfg",
    [FULL, *(pytest.param(c, marks=pytest.mark.slow) for c in (GEMMA, MOE))],
    ids=["full", "gemma", "moe"],
)
def test_unrolled_layers_sample_the_same_as_scanned_layers(cfg, monkeypatch):
    tree, (prompt, valid) = random_params(cfg), prompts(2)
    draw = functools.partial(
        sampler.sample.__wrapped__, cfg=cfg, rows=R, max_new_tokens=S, stop=STOP
    )
    unrolled = jax.jit(draw)(tree, prompt, valid, jax.random.key(1))
    monkeypatch.setattr(sampler, "UNROLL_MAX_LAYERS", 0)
    # A new function object, so that jit traces again.
    scanned = jax.jit(functools.partial(draw))(tree, prompt, valid, jax.random.key(1))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), unrolled, scanned)


def test_greedy_is_the_argmax_of_the_plain_forward():
    tree, (prompt, valid) = random_params(FULL), prompts(1)
    out = sampler.sample(
        tree, prompt, valid, jax.random.key(0), FULL, rows=R, max_new_tokens=S, temperature=0.0
    )
    tokens, mask = (x.reshape(N * R, -1) for x in joined(out, prompt, valid))
    assert mask[:, P:].all() and not out["done"].any()
    z = jax.jit(tf.logits, static_argnums=3)(tree, tokens, mask, FULL)[:, P - 1 : -1]
    np.testing.assert_array_equal(tokens[:, P:], z.argmax(-1))
    np.testing.assert_allclose(
        out["logp"].reshape(N * R, S), jax.nn.log_softmax(z, -1).max(-1), atol=1e-4
    )


def test_a_key_is_a_sample_and_a_shape_is_one_program():
    """Equal keys give equal samples, other keys others, without a new compilation."""
    tree, (prompt, valid) = random_params(FREE), prompts()

    def draw(seed):
        return sampler.sample(
            tree, prompt, valid, jax.random.key(seed), FREE, rows=R, max_new_tokens=S, stop=(1,)
        )  # noqa: E731

    a = draw(0)
    size = sampler.sample._cache_size()
    b, c = draw(0), draw(1)
    assert sampler.sample._cache_size() == size
    assert jax.tree.all(jax.tree.map(jnp.array_equal, a, b)) and not jnp.array_equal(
        a["tokens"], c["tokens"]
    )


def test_it_ends_when_all_are_done():
    """If every token is a stop token, rows have one token; a prompt of padding has none."""
    tree, (prompt, valid) = random_params(FREE), prompts()
    out = sampler.sample(
        tree,
        prompt,
        valid.at[1].set(False),
        jax.random.key(0),
        FREE,
        rows=R,
        max_new_tokens=S,
        stop=tuple(range(23)),
    )
    np.testing.assert_array_equal(
        out["mask"].sum(-1), np.array([1, 0, 1])[:, None] * np.ones((1, R), int)
    )
    np.testing.assert_array_equal(out["done"], [[True] * R, [False] * R, [True] * R])
    assert not out["tokens"][1].any() and np.isfinite(out["logp"]).all()


def allowed(p, top_k, top_p):
    """Token ids that top-k and then top-p keep, by sorting."""
    order = np.argsort(-p)[: top_k or len(p)]
    q = p[order] / p[order].sum()
    return set(order[: int(np.searchsorted(np.cumsum(q), top_p)) + 1] if top_p < 1 else order)


def test_top_k_and_top_p_keep_what_they_should():
    z = np.random.default_rng(0).normal(size=(50, 23)).astype(np.float32) * 2
    z[:, 7] = -np.inf
    p = np.exp(z.astype(np.float64))
    for top_k, top_p in [(1, 1.0), (4, 1.0), (23, 1.0), (0, 0.1), (0, 0.6), (6, 0.7)]:
        kept = np.asarray(sampler.filter_logits(jnp.asarray(z), top_k, top_p))
        for row in range(len(z)):
            assert set(np.flatnonzero(np.isfinite(kept[row]))) == allowed(
                p[row] / p[row].sum(), top_k, top_p
            ) - {7}
            np.testing.assert_array_equal(
                kept[row][np.isfinite(kept[row])], z[row][np.isfinite(kept[row])]
            )


def test_the_distribution():
    """4096 samples of a first token: none outside the nucleus, and a chi-square test within it."""
    tree, (prompt, valid) = random_params(LLAMA), prompts()
    n = 4096
    out = sampler.sample(
        tree,
        prompt[:1],
        valid[:1],
        jax.random.key(5),
        LLAMA,
        rows=n,
        max_new_tokens=1,
        temperature=2.5,
        top_k=12,
        top_p=0.9,
    )
    z = np.asarray(tf.logits(tree, prompt[:1], valid[:1], LLAMA)[0, -1], np.float64) / 2.5
    p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    support = allowed(p, 12, 0.9)
    drawn = np.bincount(np.asarray(out["tokens"]).ravel(), minlength=23)
    expected = np.array([n * p[i] if i in support else 0 for i in range(23)]) / sum(
        p[i] for i in support
    )
    assert drawn[expected == 0].sum() == 0 and 3 <= len(support) < 12
    some = expected > 5
    chi = ((drawn - expected)[some] ** 2 / expected[some]).sum()
    assert chi < some.sum() + 5 * np.sqrt(2 * some.sum())


@pytest.mark.slow
def test_sharding_the_prompts_changes_nothing():
    from jaxcredit.parallel import mesh

    tree = random_params(FREE)
    prompt, valid = (jnp.concatenate([x, x[:1]]) for x in prompts())
    devices = mesh.make({"fsdp": 4})
    where = mesh.batch_sharding(4, mesh.fsdp, devices)

    def call(prompt, valid):
        return sampler.sample(
            tree, prompt, valid, jax.random.key(2), FREE, rows=R, max_new_tokens=S
        )  # noqa: E731

    a, b = call(prompt, valid), call(jax.device_put(prompt, where), jax.device_put(valid, where))
    np.testing.assert_array_equal(a["tokens"], b["tokens"])
    np.testing.assert_allclose(a["logp"], b["logp"], atol=1e-5)
    assert not np.array_equal(a["tokens"][0], a["tokens"][3])  # equal prompts, different samples
