"""Names of the decoder's blocks (jax.named_scope) in the metadata of compiled programs."""

import re

import jax
import jax.numpy as jnp
import pytest
from small_decoders import LLAMA, MOE, random_params

from jaxcredit.policy import sampler, transformer

BLOCKS = {"embed", "layer_norm", "qkv", "rope", "attention", "attention_output", "logits"}
TOKENS = jnp.ones((2, 4), jnp.int32)


def scopes(lowered) -> set[str]:
    """Components of the op_name paths in the metadata of a compiled program."""
    paths = re.findall(r'op_name="([^"]*)"', lowered.compile().as_text())
    return {name for path in paths for name in path.split("/")}


@pytest.mark.parametrize("cfg, mlp", [(LLAMA, "mlp"), (MOE, "experts")], ids=["dense", "experts"])
def test_every_block_of_the_forward_pass_has_a_name(cfg, mlp):
    lowered = jax.jit(transformer.logits, static_argnums=3).lower(
        random_params(cfg), TOKENS, TOKENS > 0, cfg
    )
    names = scopes(lowered)
    assert BLOCKS | {mlp} <= names and ("mlp" in names) != ("experts" in names)


def test_the_phases_of_the_sampler_have_names():
    lowered = sampler.sample.lower(
        random_params(LLAMA), TOKENS, TOKENS > 0, jax.random.key(0), LLAMA, rows=2, max_new_tokens=3
    )
    assert BLOCKS | {"mlp", "prefill", "decode_step", "sample_token"} <= scopes(lowered)


def test_the_backward_pass_has_the_names_too():
    def loss(weights):
        rows = TOKENS[:, None]
        return transformer.logprob(weights, rows, rows > 0, LLAMA, prompt=2)["logp"].sum()

    paths = re.findall(
        r'op_name="([^"]*transpose[^"]*)"',
        jax.jit(jax.grad(loss)).lower(random_params(LLAMA)).compile().as_text(),
    )
    assert {"qkv", "attention", "mlp"} <= {name for path in paths for name in path.split("/")}
