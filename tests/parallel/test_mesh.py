"""Sharding rules, and training steps on eight devices against one device."""

import dataclasses
import doctest
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from small_decoders import FULL, random_params

from jaxcredit.parallel import mesh, params
from jaxcredit.policy import transformer as tf

CFG = dataclasses.replace(FULL, vocab=24, heads=4, kv_heads=2)
N, R, P, S = 8, 2, 4, 5


def test_the_table():
    devices = mesh.make({"fsdp": 4, "tensor": 2})
    where = mesh.shardings(tf.specs(CFG), mesh.fsdp_tensor, devices)
    assert where["layers"]["wq"].spec == PartitionSpec(None, "fsdp", "tensor", None)
    assert where["embed"].spec == PartitionSpec("tensor", "fsdp")
    assert mesh.shardings(tf.specs(CFG), mesh.single, devices)["embed"].is_fully_replicated
    assert mesh.shardings(tf.specs(CFG), mesh.fsdp, devices)["layers"][
        "w_down"
    ].spec == PartitionSpec(None, None, "fsdp")
    odd = mesh.shardings(
        tf.specs(dataclasses.replace(CFG, kv_heads=1, vocab=23)), mesh.fsdp_tensor, devices
    )
    assert odd["layers"]["wk"].spec == PartitionSpec(None, "fsdp", None, None) and odd[
        "embed"
    ].spec == PartitionSpec(None, "fsdp")
    assert (
        mesh.batch_sharding(8, mesh.fsdp, devices).spec == PartitionSpec("fsdp")
        and mesh.batch_sharding(6, mesh.fsdp, devices).is_fully_replicated
    )
    assert mesh.make({"fsdp": -1, "tensor": 2}).shape == {"fsdp": 4, "tensor": 2}
    slices = mesh.make({"data": 2, "fsdp": 2, "tensor": 2})
    assert (
        mesh.batch_sharding(8, mesh.fsdp, slices).spec == PartitionSpec(("data", "fsdp"))
        and mesh.shard_count("batch", mesh.fsdp, slices.shape) == 4
    )
    assert mesh.shardings(tf.specs(CFG), mesh.fsdp_tensor, slices)["embed"].spec == PartitionSpec(
        "tensor", "fsdp"
    )
    with pytest.raises(ValueError, match="needs 64 devices"):
        mesh.make({"fsdp": 64})


def test_each_process_feeds_what_its_devices_hold(monkeypatch):
    mesh.assert_local_batch(
        mesh.batch_sharding(8, mesh.fsdp, mesh.make({"fsdp": 4, "tensor": 2})), 8
    )
    # All devices belong to this process, so it holds the prompts of both.
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(
        ValueError, match=r"feeds 4 of 8 prompts.*hold \[\(0, 2\), .*first in the mesh"
    ):
        mesh.assert_local_batch(
            mesh.batch_sharding(8, mesh.fsdp, mesh.make({"fsdp": 4, "tensor": 2})), 8
        )


LAYOUTS = {  # by the axes of the mesh
    "fsdp-tensor": ({"fsdp": 4, "tensor": 2}, mesh.fsdp_tensor),
    "slices": ({"data": 2, "fsdp": 2, "tensor": 2}, mesh.fsdp_tensor),
    "context": ({"fsdp": 2, "context": 4}, mesh.fsdp_context),
}


@pytest.mark.parametrize(
    "layout", [pytest.param(x, marks=pytest.mark.slow if i else ()) for i, x in enumerate(LAYOUTS)]
)
def test_eight_devices_are_one(layout):
    """Loss, gradients and an AdamW step with attention and MLP in chunks; shardings of moments.

    In the layout "context" a device holds a quarter of the tokens of each layer.
    """
    shape, rules = LAYOUTS[layout]
    rng, tree = np.random.default_rng(0), jax.tree.map(jnp.asarray, random_params(CFG))
    tokens = rng.integers(1, 24, (N, R, P + S)).astype(np.int32)
    tokens[tokens == 7] = 8
    tokens[:, :, :P] = tokens[:, :1, :P]
    valid = np.ones((N, R, P + S), bool)
    valid[::3, :, :2] = False
    weight = rng.normal(size=(N, R, S)).astype(np.float32)
    optimizer = optax.adamw(1e-2)

    def step(state, tokens, valid, weight, cfg=CFG):
        def loss(w):
            return (weight * tf.logprob(w, tokens, valid, cfg, prompt=P)["logp"]).mean()

        loss, g = jax.value_and_grad(loss)(state["params"])
        updates, opt = optimizer.update(g, state["opt"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), "opt": opt}, loss, g

    def start(w):
        return {"params": w, "opt": optimizer.init(w)}

    _, want, grad = jax.jit(step)(start(tree), tokens, valid, weight)

    devices, specs = mesh.make(shape), tf.specs(CFG)
    shardings = mesh.shardings(specs, rules, devices)
    places = mesh.state_shardings(
        jax.eval_shape(start, tree), params.abstract(specs), shardings, devices
    )
    moments = places["opt"][0]
    assert (
        moments.mu == moments.nu == places["params"] == shardings
        and moments.count.is_fully_replicated
    )
    state = jax.jit(start, out_shardings=places)(jax.device_put(tree, shardings))
    mesh.assert_placed(state, places)
    adam, *rest = state["opt"]
    misplaced = adam._replace(
        mu=jax.device_put(adam.mu, jax.sharding.NamedSharding(devices, PartitionSpec()))
    )
    with pytest.raises(AssertionError, match=r"mu.*out_shardings"):
        mesh.assert_placed(state | {"opt": (misplaced, *rest)}, places)
    batch = jax.device_put((tokens, valid, weight), mesh.batch_sharding(N, rules, devices))
    cut = dataclasses.replace(
        CFG, layout=mesh.Layout(devices, tuple(sorted(rules.items()))), query_chunk=2, token_chunk=5
    )
    # Without out_shardings XLA would choose shardings: it spread the moments of the norms.
    state, loss, g = jax.jit(
        functools.partial(step, cfg=cut), out_shardings=(places, None, shardings)
    )(state, *batch)
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), g, grad)
    mesh.assert_placed(state, places)


def test_doctests():
    assert doctest.testmod(mesh).attempted == 3 and not doctest.testmod(mesh).failed
