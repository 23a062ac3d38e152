"""Eight devices give one device's numbers, and moments lie as their parameters do."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from test_transformer import FULL, make

from jaxcredit import mesh, params
from jaxcredit.policy import transformer as tf

CFG = dataclasses.replace(FULL, vocab=24, heads=4, kv_heads=2)
N, R, P, S = 8, 2, 4, 5


def test_the_table():
    devices = mesh.make({"fsdp": 4, "tensor": 2})
    where = mesh.shardings(tf.specs(CFG), mesh.fsdp_tensor, devices)
    assert where["layers"]["wq"].spec == PartitionSpec(None, "fsdp", "tensor", None)
    assert where["embed"].spec == PartitionSpec("tensor", "fsdp")
    assert mesh.shardings(tf.specs(CFG), mesh.single, devices)["embed"].is_fully_replicated
    assert mesh.shardings(tf.specs(CFG), mesh.fsdp, devices)["layers"]["w_down"].spec == PartitionSpec(None, None, "fsdp")
    odd = mesh.shardings(tf.specs(dataclasses.replace(CFG, kv_heads=1, vocab=23)), mesh.fsdp_tensor, devices)
    assert odd["layers"]["wk"].spec == PartitionSpec(None, "fsdp", None, None) and odd["embed"].spec == PartitionSpec(None, "fsdp")
    assert mesh.batch(8, mesh.fsdp, devices).spec == PartitionSpec("fsdp") and mesh.batch(6, mesh.fsdp, devices).is_fully_replicated
    assert mesh.make({"fsdp": -1, "tensor": 2}).shape == {"fsdp": 4, "tensor": 2}
    with pytest.raises(ValueError, match="needs 64 devices"):
        mesh.make({"fsdp": 64})


def test_each_process_feeds_what_its_devices_hold(monkeypatch):
    mesh.assert_fed(mesh.batch(8, mesh.fsdp, mesh.make({"fsdp": 4, "tensor": 2})), 8)
    monkeypatch.setattr(jax, "process_count", lambda: 2)  # all devices are this process's, so it holds the other's prompts too
    with pytest.raises(ValueError, match=r"feeds 4 of 8 prompts.*hold \[\(0, 2\), .*first in the mesh"):
        mesh.assert_fed(mesh.batch(8, mesh.fsdp, mesh.make({"fsdp": 4, "tensor": 2})), 8)


def test_eight_devices_are_one():
    """FSDP x tensor, 4 x 2: loss, gradients and an AdamW step; moments where their parameters are, said and checked."""
    rng, tree = np.random.default_rng(0), jax.tree.map(jnp.asarray, make(CFG))
    tokens = rng.integers(1, 24, (N, R, P + S)).astype(np.int32)
    tokens[tokens == 7] = 8
    tokens[:, :, :P] = tokens[:, :1, :P]
    valid = np.ones((N, R, P + S), bool)
    valid[::3, :, :2] = False
    weight = rng.normal(size=(N, R, S)).astype(np.float32)
    optimizer = optax.adamw(1e-2)

    def gradient(w, tokens, valid, weight):
        return jax.value_and_grad(lambda w: (weight * tf.logprob(w, tokens, valid, CFG, prompt=P)["logp"]).mean())(w)

    def step(state, *batch):
        loss, g = gradient(state["params"], *batch)
        updates, opt = optimizer.update(g, state["opt"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), "opt": opt}, loss, g

    def start(w):
        return {"params": w, "opt": optimizer.init(w)}

    _, want, grad = jax.jit(step)(start(tree), tokens, valid, weight)

    devices, specs = mesh.make({"fsdp": 4, "tensor": 2}), tf.specs(CFG)
    where = mesh.shardings(specs, mesh.fsdp_tensor, devices)
    places = mesh.state_shardings(jax.eval_shape(start, tree), params.abstract(specs), where, devices)
    moments = places["opt"][0]
    assert moments.mu == moments.nu == places["params"] == where and moments.count.is_fully_replicated
    state = jax.jit(start, out_shardings=places)(jax.device_put(tree, where))
    mesh.assert_placed(state, places)
    adam, *rest = state["opt"]
    astray = adam._replace(mu=jax.device_put(adam.mu, jax.sharding.NamedSharding(devices, PartitionSpec())))
    with pytest.raises(AssertionError, match=r"mu.*out_shardings"):
        mesh.assert_placed(state | {"opt": (astray, *rest)}, places)
    batch = jax.device_put((tokens, valid, weight), mesh.batch(N, mesh.fsdp, devices))
    # Without out_shardings the step itself would move what it likes: XLA spread the moments of the norms.
    state, loss, g = jax.jit(step, out_shardings=(places, None, where))(state, *batch)
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), g, grad)
    mesh.assert_placed(state, places)
