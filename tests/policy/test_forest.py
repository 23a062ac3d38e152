"""Packed forests of rows: log-probabilities, entropies and gradients are those of the plain path."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_decoders import random_params

from jaxcredit.policy import forest, presets, transformer

CONFIGS = {"plain": {}, "kv heads": {"kv_heads": 1}, "windows": {"windows": (5, 0)}}
P = 4  # prompt columns


def random_forest(seed, N=3, R=7, S=12, vocabulary=5):
    """Rows that share prefixes of many lengths: equal rows, rows that are prefixes of others, ragged ends, left padding."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 1 + vocabulary, (N, R, P + S))
    tokens[:, :, :P] = tokens[:, :1, :P]
    for n in range(N):
        for r in range(1, R):
            source, kept = rng.integers(0, r), rng.integers(P, P + S + 1)
            tokens[n, r, :kept] = tokens[n, source, :kept]
    start = rng.integers(0, P, (N, 1, 1))
    end = rng.integers(P, P + S + 1, (N, R, 1))
    end[:, 1] = end[:, 0]
    column = np.arange(P + S)
    return tokens, (column >= start) & (column < end)


def both(name, tokens, valid, block, blocks=None):
    """Value and gradient of a loss by the plain path and by the packed one."""
    cfg = dataclasses.replace(
        presets.micro(16, width=16, layers=2, heads=2), vocab_chunk=8, **CONFIGS[name]
    )
    params = random_params(cfg)
    blocks = int(forest.needed_blocks(tokens, valid, block).sum()) if blocks is None else blocks
    tokens, valid = jnp.asarray(tokens), jnp.asarray(valid)
    weight = jax.random.normal(jax.random.key(1), (*tokens.shape[:2], tokens.shape[2] - P))

    def loss(compute):
        def value(params):
            out = compute(params)
            inside = valid[:, :, P:]
            return sum(jnp.where(inside, x * weight, 0).sum() for x in out.values()), out

        return jax.jit(jax.value_and_grad(value, has_aux=True))(params)

    plain = loss(lambda p: transformer.logprob(p, tokens, valid, cfg, prompt=P, temperature=1.3))
    packed = loss(
        lambda p: forest.logprob(
            p, tokens, valid, cfg, prompt=P, temperature=1.3, block=block, blocks=blocks
        )
    )
    return plain, packed, np.asarray(valid[:, :, P:])


@pytest.mark.parametrize(
    ("name", "seed", "block"),
    [
        ("windows", 0, 4),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("plain", 1, 3), ("kv heads", 2, 32))
        ),
    ],
)
def test_a_forest_is_the_plain_path(name, seed, block):
    tokens, valid = random_forest(seed)
    ((value, out), gradient), ((value2, out2), gradient2), inside = both(name, tokens, valid, block)
    assert abs(value - value2) < 1e-4
    for key in ("logp", "entropy"):
        np.testing.assert_allclose(
            np.asarray(out[key])[inside], np.asarray(out2[key])[inside], atol=1e-5
        )
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(gradient2), strict=True):
        assert jnp.abs(a - b).max() <= 1e-5 * jnp.maximum(jnp.abs(a).max(), 1)


def test_spare_blocks_change_nothing_and_too_few_are_no_numbers():
    tokens, valid = random_forest(3)
    need = int(forest.needed_blocks(tokens, valid, 4).sum())
    (exact, _), (spare, _) = (both("plain", tokens, valid, 4, n)[1] for n in (need, need + 9))
    np.testing.assert_allclose(exact[1]["logp"], spare[1]["logp"], atol=1e-6)
    (_, out), _ = both("plain", tokens, valid, 4, need - 1)[1]
    assert jnp.isnan(out["logp"]).all()


@pytest.mark.parametrize("seed", range(5))
def test_every_distinct_prefix_has_one_place(seed):
    """With blocks of one token the packed tokens are the nodes of the prefix tree."""
    tokens, valid = random_forest(seed)
    nodes = [
        {tuple(row[m][: k + 1]) for row, m in zip(group, mask, strict=True) for k in range(m.sum())}
        for group, mask in zip(tokens, valid, strict=True)
    ]
    need = forest.needed_blocks(tokens, valid, 1)
    np.testing.assert_array_equal(need, [len(x) for x in nodes])
    plan = forest.plan_packing(
        jnp.asarray(tokens), jnp.asarray(valid), block=1, blocks=int(need.sum())
    )
    assert int(plan.used) == need.sum()
    np.testing.assert_array_equal(np.asarray(plan.token)[plan.index][valid], tokens[valid])
    for n in range(len(tokens)):
        assert len(set(np.asarray(plan.index)[n][valid[n]].tolist())) == len(nodes[n])
