"""Checkpoints: logits of the goldens, exact round trips, shards and shardings."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_files import FAMILIES, edit, tensors
from comparisons import assert_trees_equal
from paths import GOLDENS
from safetensors.numpy import load_file

from jaxcredit.parallel import mesh, params
from jaxcredit.policy import sampler, transformer
from jaxcredit.policy.formats import pretrained

# Config fields that change the logits of a family, with a wrong value for each.
FEATURES = {
    "llama": {"rope_scaling": None},
    "qwen2": {"rope_scaling": None, "qkv_bias": False},
    "qwen3": {"qk_norm": False, "rope_theta": 2e5},
    "mistral": {"windows": (8,)},
    "gemma2": {
        "windows": (),
        "score_cap": 0,
        "logit_cap": 0,
        "score_dim": 0,
        "norm_offset": 0,
        "act": "silu",
    },
    "gemma3": {"windows": (6, 0, 6), "local_theta": 0, "rope_scaling": None, "embed_scale": 1},
    "qwen3_moe": {"experts_per_token": 3},
}


def off(family, cfg, weights) -> float:
    """Largest difference to the logits of torch at valid tokens of ragged, left-padded rows."""
    golden = np.load(GOLDENS / family / "golden.npz")
    logits = jax.jit(transformer.logits, static_argnums=3)(
        weights, golden["ids"], golden["valid"], cfg
    )
    columns = golden["columns"]
    return float(
        np.abs(np.asarray(logits)[:, columns] - golden["logits"])[golden["valid"][:, columns]].max()
    )


ROPES = json.loads((GOLDENS / "rope.json").read_text())


def scaled(name, tmp_path):
    """Config and weights of qwen3/ with another RoPE scaling."""
    shutil.copytree(GOLDENS / "qwen3", tmp_path / "m")
    edit(tmp_path / "m", **{"rope_parameters": None} | ROPES[name])
    return pretrained.load(tmp_path / "m")


@pytest.mark.parametrize("name", ROPES)
def test_scaled_positions_are_those_of_transformers(name, tmp_path):
    """Logits on both sides of the original length, and a round trip of the config."""
    cfg, weights = scaled(name, tmp_path)
    golden = np.load(GOLDENS / "rope.npz")
    logits = np.asarray(
        jax.jit(transformer.logits, static_argnums=3)(weights, golden["ids"], golden["valid"], cfg)
    )
    columns = golden["columns"]
    theirs, seen = golden["logits"][list(ROPES).index(name)], golden["valid"][:, columns]
    assert np.abs(logits[:, columns] - theirs)[seen].max() < 1e-5
    pretrained.export(weights, cfg, tmp_path / "out", source=tmp_path / "m")
    assert pretrained.config(tmp_path / "out") == cfg
    from transformers import AutoConfig

    read = [AutoConfig.from_pretrained(tmp_path / f, local_files_only=True) for f in ("out", "m")]
    ours, theirs = (
        getattr(c, "rope_parameters", None) or c.rope_scaling for c in read
    )  # rope_scaling: transformers 4
    merged = {"type", "mscale", "mscale_all_dim"} | (
        {"factor"} if "longrope" in name else set()
    )  # in rope_type and attention_factor
    written = {key: x for key, x in theirs.items() if key not in merged}
    assert {key: x for key, x in ours.items() if key in written} == written


@pytest.mark.parametrize(
    "name, S",
    [("yarn", 12), ("dynamic beyond", 12), ("longrope beyond", 12), ("longrope beyond", 7)],
)
def test_sampling_beyond_the_original_length_is_the_full_forward(name, S, tmp_path):
    """Rows that cross the original 64 positions: log-probs of sampler, `logprob` and `logits` agree.

    With S = 7 sampler and `logprob` compute 64 tokens of a row of 65; the RoPE factors are those of
    65 tokens.
    """
    cfg, weights = scaled(name, tmp_path)
    golden = np.load(GOLDENS / "rope.npz")
    P = 58
    prompt, valid = golden["ids"][:, 40 : 40 + P], golden["valid"][:, 40 : 40 + P]
    out = sampler.sample(weights, prompt, valid, jax.random.key(0), cfg, rows=2, max_new_tokens=S)
    tokens = np.concatenate([np.broadcast_to(prompt[:, None], (2, 2, P)), out["tokens"]], 2)
    whole = np.concatenate(
        [np.broadcast_to(valid[:, None], (2, 2, P)), np.ones((2, 2, S), bool)], 2
    )
    packed = transformer.logprob(weights, jnp.asarray(tokens), jnp.asarray(whole), cfg, prompt=P)[
        "logp"
    ]
    np.testing.assert_allclose(out["logp"], packed, atol=2e-5)
    z = transformer.logits(
        weights, jnp.asarray(tokens.reshape(4, -1)), jnp.asarray(whole.reshape(4, -1)), cfg
    )
    plain = np.take_along_axis(
        np.asarray(jax.nn.log_softmax(z[:, P - 1 : -1])), tokens.reshape(4, -1)[:, P:, None], -1
    )[..., 0]
    np.testing.assert_allclose(np.asarray(packed).reshape(4, S), plain, atol=2e-5)


@pytest.mark.parametrize("attention", ["splash", "cudnn"])
def test_the_scale_of_scaled_positions_reaches_the_kernels(attention, tmp_path):
    cfg, weights = scaled("yarn with every key", tmp_path)
    golden = np.load(GOLDENS / "rope.npz")
    ids, valid = golden["ids"][:, :128], golden["valid"][:, :128]
    plain, kernel = (
        transformer.logits(weights, ids, valid, dataclasses.replace(cfg, attention=name))
        for name in ("plain", attention)
    )
    np.testing.assert_allclose(np.asarray(kernel)[valid], np.asarray(plain)[valid], atol=2e-5)


def fast(*families):
    return [
        family if family in families else pytest.param(family, marks=pytest.mark.slow)
        for family in FAMILIES
    ]


@pytest.mark.parametrize("family", fast("llama", "qwen2", "qwen3", "gemma3", "qwen3_moe"))
def test_logits_are_those_of_transformers(family):
    assert off(family, *pretrained.load(GOLDENS / family)) < 1e-5


@pytest.mark.parametrize("family", fast("gemma3"))
def test_greedy_answers_are_those_of_transformers(family):
    """24 tokens decoded after 80 ragged, left-padded ones, beyond every window."""
    cfg, weights = pretrained.load(GOLDENS / family)
    golden = np.load(GOLDENS / family / "golden.npz")
    out = sampler.sample(
        weights,
        golden["ids"],
        golden["valid"],
        jax.random.key(0),
        cfg,
        rows=1,
        max_new_tokens=golden["greedy"].shape[1],
        temperature=0.0,
    )
    np.testing.assert_array_equal(out["tokens"][:, 0], golden["greedy"])


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_golden_notices_what_is_wrong(family):
    cfg, weights = pretrained.load(GOLDENS / family)
    for field, wrong in FEATURES[family].items():
        assert off(family, dataclasses.replace(cfg, **{field: wrong}), weights) > 1e-3, (
            f"the golden would not notice a wrong {field}"
        )


def test_the_families_differ_in_what_is_tested():
    llama, qwen2, qwen3, mistral, gemma2, gemma3, moe = (
        pretrained.config(GOLDENS / family) for family in FAMILIES
    )
    assert (
        llama.rope_scaling == ("llama3", 8.0, 1.0, 4.0, 64.0)
        and not llama.tied
        and llama.heads == 2 * llama.kv_heads
    )
    assert (
        qwen2.qkv_bias
        and qwen2.rope_scaling == ("linear", 2.0)
        and (GOLDENS / "qwen2/model.safetensors.index.json").is_file()
    )
    assert qwen3.qk_norm and qwen3.tied and qwen3.head_dim != qwen3.width // qwen3.heads
    assert (
        mistral.windows == (7,)
        and gemma2.windows == (9, 0)
        and gemma3.windows == (6, 6, 0)
        and not llama.windows
    )
    assert (
        (gemma2.score_dim, gemma2.score_cap, gemma2.logit_cap) == (5, 1.5, 2.0)
        and gemma3.post_norm
        and not gemma2.qk_norm
    )
    assert (gemma3.rope_theta, gemma3.local_theta, gemma3.rope_scaling) == (
        1e6,
        1e4,
        ("linear", 2.0),
    )
    assert (moe.experts, moe.experts_per_token, moe.ffn) == (6, 2, 16)
    assert sum(f.stat().st_size for f in GOLDENS.rglob("*") if f.is_file()) < 1_000_000


@pytest.mark.parametrize("family", FAMILIES)
def test_an_export_is_the_same_checkpoint(family, tmp_path):
    cfg, weights = pretrained.load(GOLDENS / family)
    pretrained.export(weights, cfg, tmp_path, source=GOLDENS / family)
    assert_trees_equal(tensors(tmp_path), tensors(GOLDENS / family))
    again, loaded = pretrained.load(tmp_path)
    assert again == cfg
    assert_trees_equal(loaded, weights)
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert generation == json.loads((GOLDENS / family / "generation_config.json").read_text())


def test_an_export_is_cut_into_shards_below_the_limit(tmp_path):
    cfg, weights = pretrained.load(GOLDENS / "llama")
    pretrained.export(weights, cfg, tmp_path, shard_bytes=20_000)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) >= 4 and files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    assert all(sum(x.nbytes for x in load_file(f).values()) <= 20_000 for f in files)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * params.count(weights)
    assert index["weight_map"] == {name: f.name for f in files for name in load_file(f)}
    assert_trees_equal(pretrained.load(tmp_path)[1], weights)


def test_bfloat16_survives_the_round_trip(tmp_path):
    cfg, weights = pretrained.load(GOLDENS / "qwen3", param_dtype="bfloat16", dtype="bfloat16")
    full = pretrained.load(GOLDENS / "qwen3")[1]
    assert_trees_equal(weights, jax.tree.map(lambda x: x.astype(jnp.bfloat16), full))
    pretrained.export(weights, cfg, tmp_path)
    assert_trees_equal(
        pretrained.load(tmp_path, param_dtype="bfloat16", dtype="bfloat16")[1], weights
    )
    assert_trees_equal(
        pretrained.load(tmp_path)[1], jax.tree.map(lambda x: x.astype(jnp.float32), weights)
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_reads_the_exported_config(family, tmp_path):
    from transformers import AutoConfig

    cfg, weights = pretrained.load(GOLDENS / family)
    pretrained.export(weights, cfg, tmp_path)
    ours, theirs = (
        AutoConfig.from_pretrained(f, local_files_only=True) for f in (tmp_path, GOLDENS / family)
    )
    assert type(ours) is type(theirs)
    sizes = "vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads intermediate_size".split()
    for key in [*sizes, "rms_norm_eps", "tie_word_embeddings"]:
        assert getattr(ours, key) == getattr(theirs, key) or (
            cfg.experts and key == "intermediate_size"
        ), key  # no layer has one
    assert ours.rope_parameters == theirs.rope_parameters


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_computes_the_same_from_an_export(family, tmp_path):
    torch = pytest.importorskip(
        "torch",
        reason="torch is not installed: exported folders were NOT compared with transformers' model",
    )
    from transformers import AutoModelForCausalLM

    cfg, weights = pretrained.load(GOLDENS / family)
    pretrained.export(weights, cfg, tmp_path, shard_bytes=30_000)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager", dtype=torch.float32
    ).eval()
    ids = np.arange(3, 80)[None] % cfg.vocab
    with torch.no_grad():
        theirs = model(torch.tensor(ids)).logits.numpy()
    ours = transformer.logits(weights, jnp.asarray(ids), jnp.ones(ids.shape, bool), cfg)
    np.testing.assert_allclose(np.asarray(ours), theirs, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_a_sharding_tree_places_every_array(family, tmp_path):
    cfg = pretrained.config(GOLDENS / family)
    m = mesh.make(
        {"fsdp": 4, "tensor": 2} if family == "llama" else {"fsdp": 2, "tensor": 2, "expert": 2}
    )
    where = mesh.shardings(transformer.specs(cfg), mesh.fsdp_tensor, m)
    weights = pretrained.load(GOLDENS / family, shardings=where)[1]
    assert all(
        x.sharding == s
        for x, s in zip(jax.tree.leaves(weights), jax.tree.leaves(where), strict=True)
    )
    cut = weights["layers"]["wq" if family == "llama" else "w_gate"]
    assert cut.addressable_shards[0].data.size == cut.size // 8
    assert_trees_equal(weights, pretrained.load(GOLDENS / family)[1])
    pretrained.export(weights, cfg, tmp_path)
    assert_trees_equal(tensors(tmp_path), tensors(GOLDENS / family))


def test_the_host_holds_what_one_device_holds():
    """Every shard is read once, and moved to its device before the next one is read."""
    cfg = pretrained.config(GOLDENS / "qwen3_moe")
    have, read = tensors(GOLDENS / "qwen3_moe"), []

    class Slice:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, cut):
            read.append((self.name, x := have[self.name][cut]))
            return x

    where = mesh.shardings(
        transformer.specs(cfg), mesh.fsdp_tensor, mesh.make({"fsdp": 2, "tensor": 2, "expert": 2})
    )
    assert_trees_equal(
        pretrained.assemble(cfg, Slice, where), pretrained.load(GOLDENS / "qwen3_moe")[1]
    )
    for name, x in have.items():
        parts = [part.size for n, part in read if n == name]
        assert sum(parts) == x.size, name
        assert len(parts) == (1 if x.ndim == 1 else 2 if "mlp.gate." in name else 4), (
            name
        )  # norms lie everywhere
