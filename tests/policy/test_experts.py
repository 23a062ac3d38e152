"""Mixture of experts on eight devices, sharded by experts, hidden units and prompts, and on one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_decoders import GEMMA, MOE, random_params

from jaxcredit.parallel import mesh
from jaxcredit.policy import transformer as tf
from jaxcredit.policy.experts import mixture_of_experts

N, T, D, F, E, K = 4, 7, 8, 10, 6, 3  # no shard has the size of a whole dimension


def weights(rng):
    shapes = {"w_router": (D, E), "w_gate": (E, D, F), "w_up": (E, D, F), "w_down": (E, F, D)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def pull(layout):
    def loss(y, w, by):
        out = mixture_of_experts(y, w, jax.nn.silu, K, layout)
        return (out * by).sum(), out

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


@pytest.mark.parametrize(
    "shape",
    [
        {"fsdp": 2, "expert": 2, "tensor": 2},
        pytest.param({"data": 4, "expert": 2}, marks=pytest.mark.slow),
    ],
)
def test_many_devices_are_one(shape):
    rng = np.random.default_rng(0)
    y, by, w = (
        rng.normal(size=(N, T, D)).astype(np.float32),
        rng.normal(size=(N, T, D)).astype(np.float32),
        weights(rng),
    )
    (_, want), wanted = pull(None)(y, w, by)
    devices = mesh.make(shape)
    layout = mesh.Layout(devices, tuple(mesh.fsdp_tensor.items()))
    sharded = jax.device_put(y, mesh.batch_sharding(N, mesh.fsdp_tensor, devices))
    (_, got), gradient = pull(layout)(sharded, w, by)
    np.testing.assert_allclose(got, want, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), gradient, wanted)
    assert all(np.abs(x).max() > 0.1 for x in jax.tree.leaves(gradient))
    text = pull(layout).lower(sharded, w, by).compile().as_text()
    # No device holds all tokens.
    assert f"f32[{N * T},{D}]" not in text and f"f32[{N * T * K},{D}]" not in text


@pytest.mark.slow
def test_a_token_takes_its_likeliest_experts():
    """A single expert equals the MLP, and the weights of an unused expert have no effect."""
    rng = np.random.default_rng(1)
    y, w = rng.normal(size=(2, 3, D)).astype(np.float32), weights(rng)
    alone = {"w_router": w["w_router"][:, :1]} | {
        name: w[name][:1] for name in ("w_gate", "w_up", "w_down")
    }
    mlp = (jax.nn.silu(y @ w["w_gate"][0]) * (y @ w["w_up"][0])) @ w["w_down"][0]
    np.testing.assert_allclose(mixture_of_experts(y, alone, jax.nn.silu, 1), mlp, atol=1e-4)
    y = np.abs(y)
    shy = w | {"w_router": np.where(np.arange(E) == 3, -9, np.abs(w["w_router"]))}
    out = mixture_of_experts(y, shy, jax.nn.silu, K)
    shy["w_up"] = np.where(np.arange(E)[:, None, None] == 3, 1e6, w["w_up"]).astype(np.float32)
    np.testing.assert_array_equal(mixture_of_experts(y, shy, jax.nn.silu, K), out)


@pytest.mark.slow
@pytest.mark.parametrize("cfg", [MOE, GEMMA], ids=["moe", "gemma"])
def test_the_whole_policy_on_eight_devices(cfg):
    """Log-probs and gradients with sharded activations: experts, windows, soft caps, norms."""
    tree = random_params(cfg)
    tokens = np.random.default_rng(0).integers(1, 7, (4, 2, 9)).astype(np.int32)
    tokens[:, :, :4] = tokens[:, :1, :4]

    def pull(cfg):
        def loss(w, tokens):
            out = tf.logprob(w, tokens, jnp.ones(tokens.shape, bool), cfg, prompt=4)
            return out["logp"].sum(), out["logp"]

        return jax.jit(jax.value_and_grad(loss, has_aux=True))

    (_, want), wanted = pull(cfg)(tree, tokens)
    devices = mesh.make({"fsdp": 2, "tensor": 2, "expert": 2})
    layout = mesh.Layout(devices, tuple(sorted(mesh.fsdp_tensor.items())))
    sharded = jax.device_put(tree, mesh.shardings(tf.specs(cfg), mesh.fsdp_tensor, devices))
    cut = jax.device_put(tokens, mesh.batch_sharding(4, mesh.fsdp_tensor, devices))
    (_, got), gradient = pull(dataclasses.replace(cfg, layout=layout))(sharded, cut)
    np.testing.assert_allclose(got, want, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), gradient, wanted)
