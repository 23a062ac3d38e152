"""Conversion of Hugging Face's config.json to the fields of a `Config` and back.

A key or value that the decoder does not support raises a ValueError that names it.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxcredit.policy.config import Config
from jaxcredit.policy.formats import hf_rope
from jaxcredit.policy.formats.hf_keys import Keys, shown
from jaxcredit.policy.formats.hf_rope import FULL, SLIDING

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
GEMMA = {
    "hidden_act": "gelu_pytorch_tanh",
    "head_dim": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}
# Defaults of transformers for absent keys, by model_type.
ABSENT = {
    "mistral": {"sliding_window": 4096},
    "qwen3": {"head_dim": 128},
    "gemma2": {
        **GEMMA,
        "vocab_size": 256000,
        "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
        "sliding_window_pattern": 2,
    },
    "gemma3_text": {
        **GEMMA,
        "vocab_size": 262208,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "sliding_window_pattern": 6,
    },
}
PLAIN = {  # keys that must have this value, or be absent
    "attention_bias": False,
    "mlp_bias": False,
    "quantization_config": None,
    "use_bidirectional_attention": False,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
ACTS = {"silu": "silu", "gelu_pytorch_tanh": "gelu"}
# Keys in which null differs from absence.
NULL = (
    "sliding_window",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "head_dim",
    "hidden_activation",
)
LAYERS = 4096  # upper bound of num_hidden_layers, against damaged files


def parse(
    c: dict[str, Any], path: Path, held: Mapping[str, tuple[int, str]] | None = None
) -> dict[str, Any]:
    """Fields of Config from config.json; of a multimodal Gemma 3, those of the text model.

    Args:
        c: content of config.json.
        path: its path, for error messages.
        held: sizes of the weights, from `hf_names.sizes`, with which config.json must agree.

    Raises:
        ValueError: a value is missing, out of range, not supported, or contradicts the weights.
    """
    keys = Keys(c, path, held)
    kind = keys.text("model_type", None)
    if kind == "gemma3" and (text := keys.mapping("text_config")):
        keys, kind = Keys(text.values, path, held, text.inside), "gemma3_text"
    if kind not in ARCHITECTURES:
        known = ", ".join(keys.texts("architectures", None) or ["no architecture"])
        what = f"model_type {shown(kind)} ({shown(known)[1:-1]})"
        raise ValueError(
            f"{path}: {what} is not supported. This policy is a decoder of "
            f"{', '.join(ARCHITECTURES)}: choose such a model"
        )
    gemma, moe = kind.startswith("gemma"), kind == "qwen3_moe"
    keys = Keys(
        ABSENT.get(kind, {})
        | {key: x for key, x in keys.values.items() if x is not None or key in NULL},
        path,
        held,
        keys.inside,
    )
    _check_fixed(keys, kind)
    if gemma and "hidden_activation" in keys.values:
        act = keys.text("hidden_activation", "gelu_pytorch_tanh", ACTS)
    else:
        act = keys.text("hidden_act", "silu", ACTS)
    vocab, width = keys.size("vocab_size"), keys.size("hidden_size")
    layers = keys.size("num_hidden_layers", most=LAYERS)
    heads = _heads(keys, width)
    rope = hf_rope.parse(keys, heads["head_dim"])
    fields = dict(
        vocab=vocab,
        width=width,
        layers=layers,
        **heads,
        ffn=keys.size("moe_intermediate_size" if moe else "intermediate_size"),
        rope_theta=rope["rope_theta"],
        rope_scaling=rope["rope_scaling"],
        norm_eps=keys.number("rms_norm_eps", 1e-6),
        qk_norm=kind in ("qwen3", "qwen3_moe", "gemma3_text"),
        qkv_bias=kind == "qwen2",
        tied=keys.flag("tie_word_embeddings", False),
        windows=_windows(keys, kind, layers),
        act=ACTS[act],
    )
    if gemma:
        scale = keys.number("query_pre_attn_scalar")
        fields |= dict(
            local_theta=rope["local_theta"],
            score_dim=int(scale) if scale == int(scale) else scale,
            score_cap=keys.number("attn_logit_softcapping", 0.0, zero=True),
            logit_cap=keys.number("final_logit_softcapping", 0.0, zero=True),
            norm_offset=1.0,
            post_norm=True,
            embed_scale=float(width**0.5),
        )
    if moe:
        experts = keys.size("num_experts", None) or keys.size("num_local_experts")
        fields |= dict(
            experts=experts, experts_per_token=keys.size("num_experts_per_tok", most=experts)
        )
    return fields


def _check_fixed(keys: Keys, kind: str) -> None:
    """Raise for a key with a value that the decoder does not support."""
    fixed = (
        PLAIN
        | ({"norm_topk_prob": True} if kind == "qwen3_moe" else {})
        | ({"attn_logit_softcapping": None} if kind == "gemma3_text" else {})
    )
    for key, supported in fixed.items():
        value = keys.values.get(key)
        value = (False if key == "norm_topk_prob" else supported) if value is None else value
        if value != supported or type(value) is not type(supported):
            raise ValueError(
                f"{keys.path}: {keys.inside}{key} = {shown(value)} is not supported, "
                f"only {supported!r}"
            )


def _heads(keys: Keys, width: int) -> dict[str, int]:
    """The fields heads, kv_heads and head_dim, checked against each other and the weights."""
    heads = keys.size("num_attention_heads")
    kv_heads = keys.size("num_key_value_heads", heads)
    head_dim = keys.size("head_dim", None) or _default_head_dim(keys, width, heads)
    if head_dim % 2:
        raise keys.wrong("head_dim", "an even number: rope turns pairs")
    for key, n in (("num_attention_heads", heads), ("num_key_value_heads", kv_heads)):
        rows = f"rows of {key}"
        if rows in keys.held and n * head_dim != keys.held[rows][0]:
            count, source = keys.held[rows]
            raise ValueError(
                f"{keys.path}: {keys.inside}{key} = {n} heads of {head_dim} are {n * head_dim} "
                "rows, "
                f"the weights hold {count} ({source}): config and weights do not belong together"
            )
    if heads % kv_heads:
        raise keys.wrong("num_key_value_heads", f"a divisor of num_attention_heads = {heads}")
    return {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}


def _default_head_dim(keys: Keys, width: int, heads: int) -> int:
    """Size of a head if head_dim is absent: hidden_size / num_attention_heads."""
    if width % heads:
        raise keys.wrong(
            "num_attention_heads", f"a divisor of hidden_size = {width}, or head_dim beside it"
        )
    return width // heads


def _windows(keys: Keys, kind: str, layers: int) -> tuple[int, ...]:
    """Config.windows: the shortest cycle of windows in tokens, () if all are 0 (full attention)."""
    size = keys.size("sliding_window", None)
    types = keys.texts("layer_types", None, layers, (SLIDING, FULL))
    every = keys.size("_sliding_window_pattern", None) or keys.size("sliding_window_pattern", None)
    full_layers = keys.size("max_window_layers", 28, least=0)
    if kind.startswith("qwen") and not keys.flag("use_sliding_window", False):
        size = None
    if kind == "mistral":
        types = [SLIDING] * layers
    elif not types and every:
        types = [SLIDING if (i + 1) % every else FULL for i in range(layers)]
    elif not types:
        types = [FULL if kind == "llama" or i < full_layers else SLIDING for i in range(layers)]
    windows = [size or 0 if t == SLIDING else 0 for t in types]
    if not any(windows):
        return ()
    return next(
        tuple(windows[:n])
        for n in range(1, layers + 1)
        if all(w == windows[i % n] for i, w in enumerate(windows))
    )


def describe(cfg: Config, dtype: str, carried: dict | None = None) -> dict:
    """Content of config.json for a Config.

    Args:
        cfg: the policy's Config.
        dtype: name of the dtype of the weights.
        carried: config.json of the checkpoint that the policy was loaded from.

    Raises:
        ValueError: no Hugging Face architecture computes this Config.
    """
    windows = _windows_by_layer(cfg)
    kind = (
        "qwen3"
        if cfg.qk_norm
        else "qwen2"
        if cfg.qkv_bias
        else "mistral"
        if any(windows)
        else "llama"
    )
    if cfg.post_norm:
        kind = "gemma3_text" if cfg.qk_norm else "gemma2"
    elif cfg.experts:
        kind = "qwen3_moe"
    elif kind == "llama" and (carried or {}).get("model_type") == "mistral":
        kind = "mistral"
    rope = hf_rope.describe(cfg.rope_theta, cfg.rope_scaling)
    transformers_4 = {
        "rope_theta": cfg.rope_theta,
        "rope_scaling": rope if cfg.rope_scaling else None,
    }
    most = (carried or {}).get("max_position_embeddings", 32768)
    if cfg.rope_scaling and cfg.rope_scaling[0] == "dynamic":
        most = int(cfg.rope_scaling[2])
    out = {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        "vocab_size": cfg.vocab,
        "hidden_size": cfg.width,
        "num_hidden_layers": cfg.layers,
        "num_attention_heads": cfg.heads,
        "num_key_value_heads": cfg.kv_heads,
        "head_dim": cfg.head_dim,
        "intermediate_size": cfg.ffn,
        "rms_norm_eps": cfg.norm_eps,
        "tie_word_embeddings": cfg.tied,
        "hidden_act": next((name for name, act in ACTS.items() if act == cfg.act), cfg.act),
        "attention_bias": False,
        "rope_parameters": rope,
        "max_position_embeddings": most,
        "dtype": dtype,
        "torch_dtype": dtype,
        **transformers_4,
    }
    if any(windows) or kind == "mistral":
        out |= {"sliding_window": max(windows) or None}
    if any(windows) and kind != "mistral":
        out |= {
            "use_sliding_window": True,
            "layer_types": [SLIDING if w else FULL for w in windows],
        }
    if cfg.experts:
        experts = dict.fromkeys(("num_experts", "num_local_experts"), cfg.experts) | {
            "num_experts_per_tok": cfg.experts_per_token
        }
        out |= experts | {
            "moe_intermediate_size": cfg.ffn,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
    if cfg.post_norm:
        caps = {
            "attn_logit_softcapping": cfg.score_cap or None,
            "final_logit_softcapping": cfg.logit_cap or None,
        }
        out |= caps | {
            "hidden_activation": out["hidden_act"],
            "query_pre_attn_scalar": cfg.score_dim or cfg.head_dim,
        }
    if kind == "gemma3_text":
        local = {"rope_type": "default", "rope_theta": cfg.local_theta or cfg.rope_theta}
        out |= {
            "rope_parameters": {FULL: rope, SLIDING: local},
            "rope_local_base_freq": local["rope_theta"],
        }
    _exact(cfg, out)
    return out


def _exact(cfg: Config, out: dict) -> None:
    """Raise unless reading config.json gives the same Config."""
    # Fields that do not change the function that a policy computes.
    execution = {
        "dtype",
        "param_dtype",
        "remat",
        "forbidden",
        "vocab_chunk",
        "token_chunk",
        "query_chunk",
        "attention",
        "layout",
    }
    shape = {f.name for f in dataclasses.fields(Config)} - execution
    read = Config(**parse(out, Path("config.json")))
    defaults = {"score_dim": cfg.head_dim, "local_theta": cfg.rope_theta}  # meaning of 0
    lost = [
        n
        for n in sorted(shape - {"windows"})
        if (getattr(read, n) or defaults.get(n)) != (getattr(cfg, n) or defaults.get(n))
    ]
    lost += ["windows"] * (_windows_by_layer(read) != _windows_by_layer(cfg))
    if lost:
        raise ValueError(
            f"no Hugging Face architecture is a {out['model_type']} with "
            f"{', '.join(f'{n}={getattr(cfg, n)}' for n in lost)}: "
            "such a policy cannot be exported"
        )


def _windows_by_layer(cfg: Config) -> list[int]:
    """Window of every layer in tokens, 0 for full attention."""
    cycle = cfg.windows or (0,)
    return [cycle[i % len(cycle)] for i in range(cfg.layers)]
