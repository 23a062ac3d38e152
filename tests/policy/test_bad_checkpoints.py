"""Bad checkpoints: the error names the file, the key and the cause before any weight is read."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_files import Q, edit, resave, tensors
from comparisons import assert_trees_equal
from paths import GOLDENS
from safetensors.numpy import save_file
from tiny_checkpoint import tiny_tokenizer, write_tiny_checkpoint

from jaxcredit.policy import transformer
from jaxcredit.policy.formats import pretrained
from jaxcredit.policy.tokenizer import HF, Chars

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
