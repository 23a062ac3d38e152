"""Configs, random parameters and ragged token batches for tests of the decoder."""

import dataclasses

import jax
import numpy as np

from jaxcredit.policy import transformer as tf

LLAMA = tf.Config(
    vocab=23,
    width=16,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    ffn=24,
    remat="none",
    vocab_chunk=5,
    forbidden=(0, 7),
)
QWEN2 = dataclasses.replace(
    LLAMA,
    qkv_bias=True,
    tied=False,
    remat="full",
    forbidden=(),
    rope_scaling=("llama3", 8.0, 1.0, 4.0, 16),
)
QWEN3 = dataclasses.replace(
    LLAMA, qk_norm=True, kv_heads=4, rope_theta=1e6, forbidden=(), rope_scaling=("linear", 4.0)
)
FULL = dataclasses.replace(QWEN2, qk_norm=True, forbidden=(0, 7))
GEMMA = dataclasses.replace(
    LLAMA, windows=(3, 0), local_theta=50.0, rope_scaling=("linear", 4.0), score_dim=5,
    score_cap=1.5, logit_cap=2.0, norm_offset=1.0, post_norm=True, embed_scale=4.0, act="gelu",
    qk_norm=True,
)  # fmt: skip
MOE = dataclasses.replace(QWEN3, experts=5, experts_per_token=2, windows=(4,))
WINDOWED = dataclasses.replace(LLAMA, windows=(3, 0), score_dim=5)
CAPPED = dataclasses.replace(WINDOWED, score_cap=1.5)
N, R, P, S = 3, 3, 5, 6


def random_params(cfg, seed=0):
    """Random parameters. Norms and biases differ from their initial 1 and 0, so that leaving one
    out changes the result.
    """
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda p: (0.2 * rng.normal(size=p.shape) + (p.init is jax.nn.initializers.ones)).astype(
            np.float32
        ),
        tf.specs(cfg),
    )


def batch(seed=0):
    """Tokens and mask of three prompts with three rows each: left padding, a shorter row, a hole,
    an empty row, an empty prompt.
    """
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 23, (N, R, P + S)).astype(np.int32)
    tokens[tokens == 7] = 8  # a forbidden id
    tokens[:, :, :P] = tokens[:, :1, :P]
    valid = np.ones((N, R, P + S), bool)
    valid[0, :, :2] = False
    valid[0, 1, P + 4 :] = False
    valid[1, 0, P + 2] = False
    valid[1, 2, P:] = False
    valid[2] = False
    return tokens, valid


def flat(x):
    """[N, R, T] as [N R, T]."""
    return x.reshape(-1, x.shape[-1])
