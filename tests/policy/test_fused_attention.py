"""Fused attention kernels on a CPU against a dense reference, and the choice of the kernel."""

import dataclasses
import re
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from missing_packages import NO_LIBTPU
from paths import HELPERS
from small_decoders import CAPPED, FULL, GEMMA, LLAMA, WINDOWED, P, R, S, batch, flat, random_params

from jaxcredit.parallel import mesh, params
from jaxcredit.policy import fused_attention as fused
from jaxcredit.policy import splash_attention as splash
from jaxcredit.policy import transformer as tf
from jaxcredit.policy.positions import NO_WINDOW

UNCAPPED = dataclasses.replace(GEMMA, score_cap=0.0)  # cuDNN has no soft cap


def packed_mask(valid, P, S, window):
    """Attention mask `[N, T, T]` of packed groups, by a loop over queries.

    A query attends to the last `window` valid tokens of the prompt and its row, up to itself.
    """
    T = valid.shape[1]
    row = np.array([-1] * P + [i // S for i in range(T - P)])
    out = np.zeros((len(valid), T, T), bool)
    for n, i in np.ndindex(len(valid), T):
        text = [j for j in range(i + 1) if row[j] in (-1, row[i]) and valid[n, j]]
        out[n, i, text[-window:] if valid[n, i] else text] = True
    return out


def dense(q, k, v, mask, cfg):
    """Reference: attention with all scores in memory."""
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], 2) for x in (k, v))
    z = jnp.einsum("nihd,njhd->nhij", q, k) / (cfg.score_dim or cfg.head_dim) ** 0.5
    z = cfg.score_cap * jnp.tanh(z / cfg.score_cap) if cfg.score_cap else z
    return jnp.einsum("nhij,njhd->nihd", jax.nn.softmax(jnp.where(mask[:, None], z, -1e30), -1), v)


def compare(cfg, valid, P, S, *windows, heads=4, kv_heads=2):
    """Assert that outputs and gradients of a kernel equal the reference at valid tokens."""
    (N, T), h, rng = valid.shape, cfg.head_dim, np.random.default_rng(0)
    q, k, v, w = (
        jnp.asarray(rng.normal(size=(N, T, n, h)), jnp.float32)
        for n in (heads, kv_heads, kv_heads, heads)
    )
    w = jnp.where(valid[..., None, None], w, 0)  # outputs at padding do not count

    def value_and_grad(attend):
        def f(q, k, v, *window):
            out = attend(q, k, v, *window)
            return (out * w).sum(), out

        return jax.jit(jax.value_and_grad(f, (0, 1, 2), has_aux=True))

    got = value_and_grad(fused.fused_kernel(cfg, jnp.asarray(valid), P, S))
    want = value_and_grad(lambda q, k, v, mask: dense(q, k, v, mask, cfg))
    for window in windows or (None,):
        (_, a), g = got(q, k, v, window and jnp.int32(window))
        (_, b), h = want(q, k, v, packed_mask(valid, P, S, window or T))
        np.testing.assert_allclose(a[valid], b[valid], atol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), g, h)


def packed():
    """Packed mask of valid tokens: padding on both sides, a hole, an empty row, an empty prompt."""
    _, valid = batch()
    return np.concatenate([valid[:, 0, :P], valid[:, :, P:].reshape(len(valid), -1)], 1)


@pytest.mark.parametrize("name, cfg", [("splash", CAPPED), ("cudnn", WINDOWED)])
def test_a_kernel_is_the_formula(name, cfg):
    compare(dataclasses.replace(cfg, attention=name), packed(), P, S, 3, NO_WINDOW)


def test_a_mask_is_who_sees_whom():
    """Also blocks of it, tokens beyond the last, and rows that begin inside a block."""
    mask = splash.PackedMask(64, 5, 6, 4)
    whole = mask[:, :]
    np.testing.assert_array_equal(whole[:23, :23], packed_mask(np.ones((1, 23), bool), 5, 6, 4)[0])
    assert np.array_equal(mask[8:16, 16:24], whole[8:16, 16:24]) and whole.any(1).all()
    np.testing.assert_array_equal(
        splash.PackedMask(20, 9, 0, NO_WINDOW)[:, :], np.tril(np.ones((20, 20), bool))
    )


@pytest.mark.parametrize(
    "name, prompts, kv_heads",
    [
        ("splash", 2, 1),
        *(
            pytest.param(*x, marks=pytest.mark.slow)
            for x in (("splash", 2, 2), ("splash", 3, 4), ("cudnn", 2, 1))
        ),
    ],
)
def test_devices_take_their_prompts_and_heads(monkeypatch, name, prompts, kv_heads):
    """One kv head over two devices is copied; three prompts over two devices are computed by both.

    There are many blocks, some of them fully masked. Rows and the prompt end inside blocks.
    """
    monkeypatch.setattr(splash, "BLOCK", 128)
    valid = np.ones((prompts, 60 + 6 * 65), bool)
    valid[0, :7] = valid[-1, 300:305] = False
    place = mesh.Layout(
        mesh.make({"fsdp": 2, "tensor": 2}), tuple(sorted(mesh.fsdp_tensor.items()))
    )
    compare(
        dataclasses.replace(LLAMA, attention=name, layout=place), valid, 60, 65, kv_heads=kv_heads
    )


@pytest.mark.parametrize(
    "name, cfg",
    [
        pytest.param(name, cfg, marks=pytest.mark.slow)
        for name, cfg in (("splash", FULL), ("splash", GEMMA), ("cudnn", UNCAPPED))
    ],
    ids=["splash", "windows", "cudnn"],
)
def test_a_policy_is_the_same_with_a_kernel(name, cfg):
    """Logits, log-probs, entropies and gradients: grouped heads, ragged rows, windows, soft cap."""
    tree, (tokens, valid) = random_params(cfg), batch(1)
    # Tokens after padding do not count.
    counted = jnp.asarray(valid[:, :, P:] & valid[:, :, P - 1 : -1])
    weight = jax.random.normal(jax.random.key(3), (2, *counted.shape))

    def grad(w, cfg):
        def loss(w):
            out = tf.logprob(w, tokens, valid, cfg, prompt=P)
            value = [
                jnp.where(counted, a * b, 0).sum()
                for a, b in zip(weight, (out["logp"], out["entropy"]), strict=True)
            ]
            return sum(value), out | {"logits": tf.logits(w, flat(tokens), flat(valid), cfg)}

        return jax.grad(loss, has_aux=True)(w)

    grad = jax.jit(grad, static_argnums=1)
    g, got = grad(tree, dataclasses.replace(cfg, attention=name))
    h, want = grad(tree, dataclasses.replace(cfg, attention="plain"))
    for key in ("logp", "entropy"):
        np.testing.assert_allclose(
            np.where(counted, got[key], 0), np.where(counted, want[key], 0), atol=1e-5
        )
    np.testing.assert_allclose(got["logits"][flat(valid)], want["logits"][flat(valid)], atol=1e-4)
    for (path, a), b in zip(jax.tree.leaves_with_path(g), jax.tree.leaves(h), strict=True):
        assert np.abs(b).max() > 1e-4, path
        np.testing.assert_allclose(a, b, atol=1e-4, err_msg=str(path))


def test_nothing_behind_the_end_of_a_row_is_used(monkeypatch):
    """cuDNN leaves outputs and gradients after the end of a row undefined. Here they are NaN."""
    real = jax.nn.dot_product_attention

    def spoil(x, length):
        return jnp.where((jnp.arange(x.shape[1]) >= length[:, None])[..., None, None], jnp.nan, x)

    spoilt = jax.custom_vjp(lambda x, length: x)  # its gradient
    spoilt.defvjp(lambda x, length: (x, length), lambda length, g: (spoil(g, length), None))

    def leaky(*x, query_seq_lengths, **how):
        x = (spoilt(a, query_seq_lengths) for a in x)
        return spoil(real(*x, query_seq_lengths=query_seq_lengths, **how), query_seq_lengths)

    monkeypatch.setattr(jax.nn, "dot_product_attention", leaky)
    compare(dataclasses.replace(WINDOWED, attention="cudnn"), packed(), P, S, 3)


def device(platform, version="", **facts):
    return SimpleNamespace(
        platform=platform, client=SimpleNamespace(platform_version=version), **facts
    )


TPU, CPU, ROCM = device("tpu"), device("cpu"), device("gpu", "PJRT C API\nrocm 60000")
H100, A100 = (device("gpu", "PJRT C API\ncuda 12090", compute_capability=n) for n in ("9.0", "8.0"))
REAL = dataclasses.replace(LLAMA, head_dim=128, dtype="bfloat16")
WIDE = dataclasses.replace(REAL, head_dim=256)


@pytest.mark.parametrize(
    "on, cfg, name, why",
    [
        (CPU, REAL, "plain", ""),
        (ROCM, REAL, "plain", ""),
        (TPU, CAPPED, "splash", ""),
        (TPU, dataclasses.replace(REAL, attention="plain"), "plain", ""),
        (CPU, dataclasses.replace(LLAMA, attention="splash"), "splash", ""),
        (H100, REAL, "cudnn", ""),
        (H100, WIDE, "cudnn", ""),
        (A100, WIDE, "plain", "heads of at most 128"),
        (H100, LLAMA, "plain", "does not support float32"),
        (H100, dataclasses.replace(REAL, score_cap=2.0), "plain", "no soft cap"),
    ],
)
def test_who_gets_which(monkeypatch, on, cfg, name, why):
    monkeypatch.setattr(mesh, "available", lambda: [on])
    got, reason = fused.choose_attention(cfg)
    assert got == name and (why in reason if why else not reason)
    if why:
        with pytest.raises(ValueError, match=f"attention = 'cudnn' .*{why}.*use 'auto' or 'plain'"):
            fused.choose_attention(dataclasses.replace(cfg, attention="cudnn"))


def test_a_mesh_that_cuts_the_tokens_is_left_to_plain():
    for rules, name in ((mesh.fsdp_context, "plain"), (mesh.fsdp_tensor, "splash")):
        where = SimpleNamespace(devices=np.array([TPU]), shape={"fsdp": 2, "context": 2})
        got, why = fused.choose_attention(
            dataclasses.replace(
                REAL, layout=SimpleNamespace(mesh=where, rules=tuple(rules.items()))
            )
        )
        assert got == name and ("this mesh shards" in why) == (name == "plain")
    with pytest.raises(ValueError, match="attention = 'flash' is not known: use 'auto'"):
        dataclasses.replace(LLAMA, attention="flash")


def test_cudnn_is_asked_for_causal_texts_by_their_lengths(monkeypatch):
    """Arguments of the call on a GPU: implementation, shapes, lengths of the rows, windows."""
    calls, real = [], jax.nn.dot_product_attention

    def record(*x, **how):
        calls.append({"shapes": [a.shape for a in x]} | how)
        return real(*x, **how | {"implementation": "xla"})

    monkeypatch.setattr(jax.nn, "dot_product_attention", record)
    monkeypatch.setattr(mesh, "available", lambda: [H100])
    cfg, valid = dataclasses.replace(WINDOWED, dtype="bfloat16"), packed()
    q, k = (jax.ShapeDtypeStruct((len(valid), P + R * S, n, 8), jnp.bfloat16) for n in (4, 2))
    out = jax.eval_shape(fused.fused_kernel(cfg, jnp.asarray(valid), P, S), q, k, k, jnp.int32(3))
    assert out.shape == q.shape and len(calls) == 2
    for how, window in zip(calls, ((2, 0), None), strict=True):
        assert (
            how["implementation"] == "cudnn"
            and how["is_causal"]
            and how["scale"] == 5**-0.5
            and how["local_window_size"] == window
        )
        even = (P + S + 1) // 2 * 2
        assert how["shapes"] == [(9, even, 4, 8), (9, even, 2, 8), (9, even, 2, 8)]
        assert how["query_seq_lengths"] is how["key_value_seq_lengths"]


@pytest.mark.parametrize("windows", [(), (3, 0)])
@pytest.mark.parametrize("S", [6, 7])
def test_jax_takes_what_cudnn_is_asked_for(monkeypatch, windows, S):
    """A forward and a training pass are lowered for CUDA, without a GPU, by JAX's own checks."""
    module = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(module, "check_cudnn_version", lambda: 91500)
    for name in ("check_compute_capability", "is_cuda_compute_capability_equal"):
        monkeypatch.setattr(module, name, lambda wanted: wanted == "9.0", raising=False)
    monkeypatch.setattr(mesh, "available", lambda: [H100])
    cfg = dataclasses.replace(LLAMA, head_dim=16, dtype="bfloat16", windows=windows)
    assert fused.choose_attention(cfg) == ("cudnn", "")
    tree, valid = (
        jax.eval_shape(lambda: params.init(tf.specs(cfg), jax.random.key(0))),
        jnp.ones((2, 3, 8 + S), bool),
    )

    def loss(weights, tokens):
        return tf.logprob(weights, tokens, valid, cfg, prompt=8)["logp"].sum()

    tokens = jax.ShapeDtypeStruct(valid.shape, jnp.int32)
    for f, calls in ((loss, {"Softmax"}), (jax.grad(loss), {"Softmax", "SoftmaxBackward"})):
        text = jax.jit(f).trace(tree, tokens).lower(lowering_platforms=("cuda",)).as_text()
        assert set(re.findall(r"__cudnn\$fmha(\w+)", text)) == calls and "PADDING_CAUSAL" in text


COMPILE = """
import dataclasses, sys
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
sys.path.insert(0, sys.argv[1])
from small_decoders import CAPPED
from jaxcredit.parallel import mesh
from jaxcredit.train.planning import topology
from jaxcredit.policy import fused_attention as fused

devices = mesh.make({"fsdp": 2, "tensor": 2}, topology.tpu_topology("v5e:2x2").devices)
place = mesh.Layout(devices, tuple(sorted(mesh.fsdp_tensor.items())))
for head_dim, dtype in ((8, "float32"), (64, "bfloat16"), (96, "bfloat16"), (256, "bfloat16")):
    cfg = dataclasses.replace(CAPPED, layout=place, head_dim=head_dim)
    f = lambda q, k, v, valid, window: fused.fused_kernel(cfg, valid, 60, 500)(q, k, v, window).astype(jnp.float32).sum()
    at = lambda t, *shape: jax.ShapeDtypeStruct(shape, t, sharding=NamedSharding(devices, PartitionSpec(*["fsdp"] * bool(shape))))
    x = [at(dtype, 2, 1060, heads, head_dim) for heads in (4, 1, 1)] + [at(bool, 2, 1060), at(jnp.int32)]
    text = jax.jit(jax.grad(f, (0, 1, 2))).lower(*x).compile().as_text()
    print(head_dim, [name for name in ("splash_mha_fwd", "splash_mha_dq", "splash_mha_dkv") if name in text])
"""


@pytest.mark.slow
def test_the_compiler_of_tpus_takes_splash():
    """Forward and backward on a mesh: several head sizes, two windows, a soft cap, one kv head."""
    pytest.importorskip("libtpu", reason=NO_LIBTPU)
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, str(HELPERS)],
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert done.stdout.count("['splash_mha_fwd', 'splash_mha_dq', 'splash_mha_dkv']") == 4, (
        done.stdout + done.stderr
    )
