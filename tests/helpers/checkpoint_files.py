"""Changes of Hugging Face folders, and a GGUF file made from a golden checkpoint."""

import json
from pathlib import Path

import gguf as gguf_package
import numpy as np
from paths import GOLDENS
from safetensors.numpy import load_file, save_file
from tiny_checkpoint import tiny_tokenizer

from jaxcredit.policy.formats import pretrained

FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "qwen3_moe"]
Q = "model.layers.1.self_attn.q_proj.weight"


def tensors(folder) -> dict[str, np.ndarray]:
    """All tensors of a folder's .safetensors files by name."""
    return {
        name: x
        for file in sorted(Path(folder).glob("*.safetensors"))
        for name, x in load_file(file).items()
    }


def edit(folder, **changes):
    """Set keys of a folder's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def resave(folder, change):
    """Rewrite model.safetensors after `change` has modified the dict of its tensors."""
    arrays = load_file(folder / "model.safetensors")
    change(arrays)
    save_file(arrays, folder / "model.safetensors")


def permute(w, heads):
    """Rows of a query or key projection in the order of llama.cpp, which interleaves the halves of
    each head.
    """
    return w.reshape(heads, 2, w.shape[0] // heads // 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def write_gguf(path, *, kind=None, arch="llama", leave_out=(), pre="smollm"):
    """Write the llama golden as a GGUF file, with the tiny tokenizer at the start of its
    vocabulary.
    """
    cfg, arrays = pretrained.config(GOLDENS / "llama"), tensors(GOLDENS / "llama")
    w = gguf_package.GGUFWriter(path, arch)
    w.add_block_count(cfg.layers)
    w.add_embedding_length(cfg.width)
    w.add_feed_forward_length(cfg.ffn)
    w.add_head_count(cfg.heads)
    w.add_head_count_kv(cfg.kv_heads)
    w.add_rope_freq_base(cfg.rope_theta)
    w.add_layer_norm_rms_eps(cfg.norm_eps)
    tok = tiny_tokenizer().tokenizer
    model = json.loads(tok.backend_tokenizer.to_str())["model"]
    names = sorted(model["vocab"], key=model["vocab"].get)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre(pre)
    w.add_token_list(names)
    w.add_token_types([3 if name.startswith("<|") else 1 for name in names])
    w.add_token_merges([" ".join(pair) for pair in model["merges"]])
    w.add_eos_token_id(tok.eos_token_id)
    w.add_pad_token_id(tok.pad_token_id)
    w.add_chat_template(tok.chat_template)
    table = gguf_package.get_tensor_name_map(gguf_package.MODEL_ARCH.LLAMA, cfg.layers)
    for name, x in arrays.items():
        new = table.get_name(name, try_suffixes=(".weight",))
        x = (
            permute(x, cfg.heads)
            if "q_proj" in name
            else permute(x, cfg.kv_heads)
            if "k_proj" in name
            else x
        )
        if name not in leave_out and (kind is None or x.ndim == 1 or x.shape[-1] % 32):
            w.add_tensor(new, x)
        elif name not in leave_out:
            w.add_tensor(new, gguf_package.quants.quantize(x, kind), raw_dtype=kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
