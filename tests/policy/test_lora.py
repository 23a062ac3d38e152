"""LoRA adapters: without effect at first, equal to the merged policy, and trained alone."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import micro_experiment
import numpy as np
import pytest
from comparisons import assert_trees_equal
from paths import GOLDENS
from small_decoders import FULL, MOE, random_params

from jaxcredit import Rollout
from jaxcredit.parallel import mesh as meshes
from jaxcredit.policy import lora, sampler
from jaxcredit.policy import transformer as tf
from jaxcredit.policy.formats import pretrained
from jaxcredit.train import programs

LLAMA = GOLDENS / "llama"


# Every matrix with another rank.
EVERY = {name: rank for rank, name in enumerate((*lora.ATTENTION, *lora.MLP), 1)}


def adapted(base, specs, ranks=EVERY, *, zero=False):
    """Parameters with random adapters; with `zero`, B is zero as at the start of training."""
    rng = np.random.default_rng(1)

    def draw(p):
        return np.float32(0 if zero and p.init is jax.nn.initializers.zeros else 0.3) * rng.normal(
            size=p.shape
        ).astype(np.float32)

    return base | {"lora": jax.tree.map(draw, lora.specs(specs, ranks))}


def test_adapters_begin_as_nothing_and_end_as_the_merged_policy():
    base, specs = random_params(FULL), tf.specs(FULL)
    tokens = np.random.default_rng(0).integers(1, 23, (2, 7))
    f = jax.jit(
        lambda w: tf.logits(
            w, tokens, jnp.ones(tokens.shape, bool), dataclasses.replace(FULL, forbidden=())
        )
    )
    plain, none, whole = f(base), adapted(base, specs, zero=True), adapted(base, specs)
    np.testing.assert_array_equal(f(none), plain)
    merged = jax.jit(lora.merge)(whole)
    assert jax.tree.structure(merged) == jax.tree.structure(base)
    np.testing.assert_allclose(f(whole), f(merged), atol=1e-4)
    for name in EVERY:  # each adapter changes the logits
        assert (
            np.abs(f(base | {"lora": none["lora"] | {name: whole["lora"][name]}}) - plain).max()
            > 1e-2
        ), name


@pytest.mark.slow
def test_the_sampler_adds_them_too():
    whole = adapted(random_params(FULL), tf.specs(FULL))
    prompt = jnp.arange(1, 11, dtype=jnp.int32).reshape(2, 5)

    def draw(w):
        return sampler.sample(
            w,
            prompt,
            prompt > 0,
            jax.random.key(0),
            FULL,
            rows=2,
            max_new_tokens=6,
            temperature=0.0,
        )  # noqa: E731

    a, b, plain = draw(whole), draw(lora.merge(whole)), draw(lora.split(whole)[0])
    np.testing.assert_array_equal(a["tokens"], b["tokens"])
    assert not np.array_equal(a["tokens"], plain["tokens"])


def test_an_export_is_merged(tmp_path):
    cfg, base = pretrained.load(LLAMA)
    whole = adapted(base, tf.specs(cfg))
    pretrained.export(whole, cfg, tmp_path)
    again, weights = pretrained.load(tmp_path)
    assert again == cfg
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), weights, lora.merge(whole)
    )
    assert np.abs(weights["layers"]["wo"] - base["layers"]["wo"]).max() > 1e-2


def experiment(**changes):
    exp = dataclasses.replace(
        micro_experiment.experiment(), lora={"wq": 2, "wo": 2, "w_down": 3}, **changes
    )
    return dataclasses.replace(
        exp, policy=dataclasses.replace(exp.policy, param_dtype="bfloat16")
    ).check()


def trained(exp, steps=3):
    """Programs, parameters before and state after `steps` updates on random rollouts."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 6, (4, 4, 8)).astype(np.int32)
    tokens[:, :, :4] = tokens[:, :1, :4]
    mask = np.arange(8) >= np.full((4, 4, 1), 4)
    logp, segment = np.full(mask.shape, -1.6, np.float32), np.where(mask, 0, -1).astype(np.int32)
    one = np.ones((4, 4, 1), np.float32)
    fields = (tokens, mask, logp, segment, one, one > 0)
    rollout = Rollout(*map(jnp.asarray, fields), token_mask=jnp.ones(mask.shape, bool))
    weight = jnp.asarray(mask, jnp.float32)
    columns = {
        "advantage": jnp.asarray(rng.normal(size=mask.shape), jnp.float32),
        "weight": weight,
        "clip": weight,
    }
    made = programs.build(exp)
    rollout, columns = jax.device_put((rollout, columns), made.batch)
    state = made.init(jax.random.key(0))
    before = jax.tree.map(np.asarray, state.params)
    for _ in range(steps):
        state, metrics = made.update(state, rollout, columns)
        assert float(metrics["skipped"]) == 0
    return made, before, state


@pytest.mark.slow
def test_only_adapters_move_and_only_they_have_moments():
    _, before, state = trained(experiment())
    frozen, moved = lora.split(jax.tree.map(np.asarray, state.params))
    assert_trees_equal(frozen, lora.split(before)[0])
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(frozen)) and all(
        x.dtype == np.float32 for x in jax.tree.leaves(moved)
    )
    for (path, a), b in zip(
        jax.tree.leaves_with_path(moved), jax.tree.leaves(lora.split(before)[1]), strict=True
    ):
        assert np.abs(a - b).max() > 1e-3, path
    moments = [x.shape for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert sorted(moments) == sorted(2 * [x.shape for x in jax.tree.leaves(moved)])


@pytest.mark.slow
def test_eight_devices_train_the_adapters_of_one():
    _, _, alone = trained(experiment())
    made, before, state = trained(experiment(mesh={"fsdp": 4, "tensor": 2}))
    meshes.assert_placed(state, jax.tree.map(lambda x: x.sharding, made.state))
    assert_trees_equal(lora.split(jax.tree.map(np.asarray, state.params))[0], lora.split(before)[0])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3),
        state.params["lora"],
        alone.params["lora"],
    )
    moment = state.opt_state[0].mu["lora"]["wq"]["a"]
    assert moment.sharding.shard_shape(moment.shape) == (1, 4, 2) and moment.shape == (1, 16, 2)


@pytest.mark.slow
def test_a_run_with_adapters(tmp_path):
    """A whole run: the reference policy stores adapters only, and the run is restored."""
    from jaxcredit.train.restore import restore_params
    from jaxcredit.train.run import run

    exp = dataclasses.replace(micro_experiment.experiment(steps=2, beta=0.1), lora=lora.table(2))
    last = run(exp, tmp_path / "r")
    assert last["step"] == 2 and last["skipped"] == 0 and last["kl"] >= 0
    made, weights, step = restore_params(exp, tmp_path / "r")
    first = programs.build(exp).init(jax.random.key(exp.seed))
    assert set(first.aux["reference"]) == {"lora"}
    assert_trees_equal(lora.split(weights)[0], lora.split(first.params)[0])
    assert step == 2 and np.abs(weights["lora"]["wq"]["b"]).max() > 0


def test_what_takes_no_adapter():
    assert lora.table(0) == {} and lora.table(4, ("wq",)) == {"wq": 4}
    for ranks, words in (
        ({"wz": 1}, "beside wz: the matrices .* are .*wq"),
        ({"attn_norm": 1}, "beside attn_norm"),
        ({"wq": 0}, "at least 1, got wq: 0"),
    ):
        with pytest.raises(ValueError, match=words):
            dataclasses.replace(micro_experiment.experiment(), lora=ranks).check()
    with pytest.raises(ValueError, match="beside w_gate, w_up, w_down"):
        lora.specs(tf.specs(MOE), lora.table(4))
    assert set(lora.specs(tf.specs(MOE), lora.table(4, lora.ATTENTION))) == {"wq", "wk", "wv", "wo"}


@pytest.mark.slow
def test_gradients_of_what_stays_are_never_computed():
    """No matmul of the gradient has the shape of an MLP matrix; without adapters some have."""
    base = random_params(FULL)
    trained = lora.split(adapted(base, tf.specs(FULL)))[1]
    # 36 tokens: a number that is no size of the policy.
    tokens = np.random.default_rng(0).integers(1, 7, (3, 2, 9)).astype(np.int32)

    def loss(own, frozen):
        out = tf.logprob({**frozen, **own}, tokens, np.ones(tokens.shape, bool), FULL, prompt=4)
        return out["logp"].sum()

    def matmuls(own, frozen):
        text = jax.jit(jax.grad(loss)).lower(own, frozen).compile().as_text()
        return set(re.findall(r"= f32\[([\d,]+)\]\S* dot\(", text))

    D, F = FULL.width, FULL.ffn
    shapes = {f"{D},{F}", f"{F},{D}", f"1,{D},{F}", f"1,{F},{D}"}
    assert shapes & matmuls(base, {})
    assert shapes & matmuls(trained, base) == set()
