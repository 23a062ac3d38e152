"""Untrusted checkpoints: metadata that contradict the tensors, and damaged files."""

import json
import shutil
import struct
import subprocess
import sys

import gguf as gguf_package
import jax
import ml_dtypes
import numpy as np
import pytest
from checkpoint_files import Q, edit, resave, write_gguf
from paths import GOLDENS, HELPERS
from safetensors.numpy import load_file, save_file

from jaxcredit.parallel import mesh
from jaxcredit.policy import transformer
from jaxcredit.policy.formats import gguf, pretrained

SIZES = "num_hidden_layers num_attention_heads num_key_value_heads hidden_size intermediate_size vocab_size head_dim".split()


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(GOLDENS / "qwen3", tmp_path / "m")


@pytest.mark.parametrize("key", SIZES)
def test_a_size_that_the_weights_do_not_hold_names_key_and_value_and_weights(
    key, folder, monkeypatch
):
    """The refusal is immediate: nothing of the claimed size is allocated."""
    monkeypatch.setattr(pretrained, "assemble", lambda *_: pytest.fail("weights were read"))
    monkeypatch.setattr(pretrained, "expected", lambda *_: pytest.fail("names were written out"))
    for value in (10**9, 10**30, 0, -2, 1.5, "4", True, [4], {}):
        edit(folder, **{key: value})
        with pytest.raises(ValueError) as error:
            pretrained.load(folder)
        assert f"{folder / 'config.json'}: {key} = {str(value)[:4]}" in str(error.value).replace(
            "'4'", "4"
        )
        if type(value) is int and value > 0:
            assert "he weights hold" in str(error.value)


@pytest.mark.parametrize("value", [10**9, 3000])
def test_a_config_without_weights_is_bounded_too(value, folder):
    """A window pattern over an impossible number of layers is not expanded."""
    (folder / "model.safetensors").unlink()
    edit(
        folder,
        num_hidden_layers=value,
        use_sliding_window=True,
        sliding_window=4,
        max_window_layers=value,
        layer_types=None,
    )
    if value == 3000:
        assert pretrained.config(folder).layers == value
    else:
        with pytest.raises(
            ValueError,
            match="config.json: num_hidden_layers = 1000000000, expected a whole number from 1 to 4096",
        ):
            pretrained.config(folder)


def test_json_of_other_shapes_and_encodings(folder):
    whole = (folder / "config.json").read_text()
    for text in ("[]", "null", "3", "[" * 100_000, '{"model_type": ' + "9" * 5000 + "}"):
        (folder / "config.json").write_text(text)
        with pytest.raises(ValueError, match="config.json"):
            pretrained.config(folder)
    (folder / "config.json").write_text(whole, encoding="utf-8-sig")
    assert pretrained.config(folder) == pretrained.config(GOLDENS / "qwen3")


@pytest.mark.parametrize(
    "name",
    [
        "../other.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "..",
        "a\\b.safetensors",
        3,
        None,
        ["x"],
    ],
)
def test_a_shard_outside_the_folder_is_refused(name, tmp_path):
    shutil.copytree(GOLDENS / "qwen2", folder := tmp_path / "m")
    shutil.copy(folder / "model-00001-of-00003.safetensors", tmp_path / "other.safetensors")
    index = folder / "model.safetensors.index.json"
    where = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": where | {Q: name}}))
    with pytest.raises(
        ValueError,
        match=f"{Q} is in .*, expected the name of a .safetensors file in the same folder",
    ) as error:
        pretrained.load(folder)
    assert str(index) in str(error.value)


@pytest.mark.parametrize("dtype", [np.int32, np.bool_, np.uint8, np.int64, ml_dtypes.float8_e4m3fn])
def test_weights_of_other_dtypes_are_named(dtype, folder):
    resave(folder, lambda t: t.update({Q: t[Q].astype(dtype)}))
    with pytest.raises(
        ValueError,
        match=rf"model.safetensors: {Q} has dtype \w+ \(1 such tensors\), weights are read from F64, F32",
    ):
        pretrained.load(folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_named(dtype, value, folder):
    """A single NaN or infinity is refused; the largest finite number is not."""
    kind = np.dtype(getattr(ml_dtypes, dtype, None) or dtype)

    def spoil(t, x):
        for name in t:
            t[name] = t[name].astype(kind)
        t[Q][3, 5] = x

    resave(folder, lambda t: spoil(t, ml_dtypes.finfo(kind).max))
    pretrained.load(folder, param_dtype=dtype)
    resave(folder, lambda t: spoil(t, value))
    with pytest.raises(
        ValueError,
        match=f"model.safetensors: {Q} holds 1 numbers of {64 * 32} that are NaN or infinite as {dtype}",
    ):
        pretrained.load(folder, param_dtype=dtype)


def test_weights_beyond_the_range_of_their_new_dtype_are_named(folder):
    resave(folder, lambda t: t.update({Q: np.full_like(t[Q], 1e6)}))
    pretrained.load(folder)
    with pytest.raises(
        ValueError, match=f"{Q} holds 2048 numbers of 2048 that are NaN or infinite as float16"
    ):
        pretrained.load(folder, param_dtype="float16")


def test_a_nan_in_any_shard_is_named(folder):
    cfg = pretrained.config(folder)
    where = mesh.shardings(
        transformer.specs(cfg), mesh.fsdp_tensor, mesh.make({"fsdp": 4, "tensor": 2})
    )

    def spoil(t):
        t[Q][-1, -1] = np.nan

    resave(folder, spoil)
    with pytest.raises(ValueError, match=f"model.safetensors: {Q} holds 1 numbers"):
        pretrained.load(folder, shardings=where)


def test_a_tensor_in_two_files_is_that_of_the_index(tmp_path):
    shutil.copytree(GOLDENS / "qwen2", folder := tmp_path / "m")
    where = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    other = next(file for file in sorted(set(where.values()), reverse=True) if file != where[Q])
    save_file(load_file(folder / other) | {Q: np.zeros((32, 32), np.float32)}, folder / other)
    weights, whole = pretrained.load(folder)[1], pretrained.load(GOLDENS / "qwen2")[1]
    jax.tree.map(np.testing.assert_array_equal, weights, whole)


# GGUF


def number(key: str, kind: str, value: int) -> bytes:
    """Bytes of a key and value of GGUF metadata."""
    return (
        struct.pack("<Q", len(key))
        + key.encode()
        + struct.pack("<I" + kind, gguf.SCALARS.index(kind), value)
    )


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("block_count", 10**6, "llama.block_count = 1000000, expected .*weights hold 2 "),
        ("block_count", 3, "llama.block_count = 3, expected .*weights hold 2 "),
        ("block_count", 0, "llama.block_count = 0, expected a whole number from 1"),
        (
            "attention.head_count",
            0,
            "llama.attention.head_count = 0, expected a whole number from 1",
        ),
        ("attention.head_count", 10**9, "head_count = 1000000000"),
        ("attention.head_count_kv", 0, "llama.attention.head_count_kv = 0, expected"),
        (
            "attention.head_count_kv",
            4,
            "head_count_kv = 4 heads of 8 are 32 rows, the weights hold 16",
        ),
        ("embedding_length", 64, "llama.embedding_length = 64, expected .*weights hold 32"),
        ("feed_forward_length", 10**9, "llama.feed_forward_length = 1000000000, .*weights hold 48"),
    ],
)
def test_gguf_metadata_are_held_against_the_tensors(key, value, words, tmp_path, monkeypatch):
    write_gguf(path := tmp_path / "m.gguf")
    cfg, data = pretrained.config(GOLDENS / "llama"), path.read_bytes()
    had = {"block_count": cfg.layers, "embedding_length": cfg.width, "feed_forward_length": cfg.ffn}
    had |= {"attention.head_count": cfg.heads, "attention.head_count_kv": cfg.kv_heads}
    path.write_bytes(
        data.replace(number("llama." + key, "I", had[key]), number("llama." + key, "I", value))
    )
    monkeypatch.setattr(pretrained, "assemble", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(ValueError, match=words) as error:
        gguf.load(path)
    assert str(path) in str(error.value)


def aligned(data: bytes, align: int) -> bytes:
    """The GGUF file with general.alignment added to its metadata."""
    tensors, pairs = struct.unpack_from("<QQ", data, 8)
    return (
        data[:8]
        + struct.pack("<QQ", tensors, pairs + 1)
        + number("general.alignment", "I", align)
        + data[24:]
    )


@pytest.mark.parametrize("align", [0, 3, 2**31])
def test_gguf_alignment_is_a_power_of_two(align, tmp_path):
    write_gguf(path := tmp_path / "m.gguf")
    path.write_bytes(aligned(path.read_bytes(), align))
    with pytest.raises(ValueError, match=f"general.alignment = {align}, expected a power of 2"):
        gguf.load(path)


def moved(data: bytes, name: str, *, offset: int | None = None, kind: int | None = None) -> bytes:
    """The GGUF file with another offset or block format of one tensor."""
    at = data.index(struct.pack("<Q", len(name)) + name.encode()) + 8 + len(name)
    at += 4 + 8 * struct.unpack_from("<I", data, at)[0]
    was = struct.unpack_from("<IQ", data, at)
    return (
        data[:at]
        + struct.pack("<IQ", was[0] if kind is None else kind, was[1] if offset is None else offset)
        + data[at + 12 :]
    )


@pytest.mark.parametrize(
    "change, words",
    [
        ({"offset": 0}, "begins at byte .*, before the end of"),
        ({"offset": 33}, "not at a multiple of general.alignment 32"),
        ({"offset": 2**40}, "is truncated: .* ends at byte .*, the file at"),
        ({"offset": 2**63 + 32}, "is truncated: .* ends at byte .*, the file at"),
        (
            {"kind": 26},
            "blk.1.attn_q.weight is in block format 26, which the package gguf does not read as a "
            "weight",
        ),
        ({"kind": 999}, "is in block format 999"),
        (
            {"kind": int(gguf_package.GGMLQuantizationType.Q4_K)},
            "rows of 32 numbers, not a multiple of its block of 256",
        ),
    ],
)
def test_gguf_tensors_lie_where_they_can(change, words, tmp_path):
    write_gguf(path := tmp_path / "m.gguf")
    path.write_bytes(moved(path.read_bytes(), "blk.1.attn_q.weight", **change))
    with pytest.raises(ValueError, match=words) as error:
        gguf.load(path)
    assert str(path) in str(error.value)


def test_gguf_weights_that_are_no_numbers_are_named(tmp_path):
    write_gguf(path := tmp_path / "m.gguf")
    shape, _, start = gguf.header(path).tensors["blk.1.attn_q.weight"]
    data = bytearray(path.read_bytes())
    data[start : start + 4] = struct.pack("<f", np.nan)
    path.write_bytes(data)
    with pytest.raises(
        ValueError,
        match=rf"m.gguf, blk.1.attn_q.weight: .* holds 1 numbers of {shape[0] * shape[1]} that are NaN",
    ):
        gguf.load(path)


def hostile(seed: int, most: int) -> dict[str, int]:
    """tests/helpers/fuzz_checkpoints.py with bounded memory: counts of files loaded and refused."""
    command = [
        sys.executable,
        str(HELPERS / "fuzz_checkpoints.py"),
        str(seed),
        str(most),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HELPERS)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    count = json.loads(lines[-1])
    assert not count["wrong"], "\n".join(lines[:10])
    return count


def test_hostile_files_load_or_are_refused_by_name():
    count = hostile(seed=0, most=40)
    assert count["loaded"] > 100 and count["refused"] > 300


@pytest.mark.slow
def test_thousands_of_hostile_files_load_or_are_refused_by_name():
    count = hostile(seed=1, most=2000)
    assert count["loaded"] + count["refused"] > 20_000
