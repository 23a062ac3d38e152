"""config.json of Hugging Face to the fields of a `Config` and back. What this policy cannot compute is refused by name."""

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
# What transformers takes for keys that are absent.
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
LAYERS = 4096  # upper bound, against damaged files


def parse(
    c: dict[str, Any], path: Path, held: Mapping[str, tuple[int, str]] | None = None
) -> dict[str, Any]:
    """The fields of Config; `path` is named in errors. Of a Gemma 3 that also sees, the text model.

    `held`: the sizes that the weights have (hf_names.sizes). One that config.json contradicts is refused before it can be multiplied out.
    """
    keys = Keys(c, path, held)
    kind = keys.text("model_type", None)
    if kind == "gemma3" and (text := keys.mapping("text_config")):
        keys, kind = Keys(text.values, path, held, text.inside), "gemma3_text"
    if kind not in ARCHITECTURES:
        known = ", ".join(keys.texts("architectures", None) or ["no architecture"])
        what = f"model_type {shown(kind)} ({shown(known)[1:-1]})"
        raise ValueError(
            f"{path}: {what} is not supported. This policy is a decoder of {', '.join(ARCHITECTURES)}: choose such a model"
        )
    gemma, moe = kind.startswith("gemma"), kind == "qwen3_moe"
    keys = Keys(
        ABSENT.get(kind, {})
        | {key: x for key, x in keys.values.items() if x is not None or key in NULL},
        path,
        held,
        keys.inside,
    )
    must = (
        PLAIN
        | ({"norm_topk_prob": True} if moe else {})
        | ({"attn_logit_softcapping": None} if kind == "gemma3_text" else {})
    )
    for key, plain in must.items():
        value = keys.values.get(key)
        value = (False if key == "norm_topk_prob" else plain) if value is None else value
        if value != plain or type(value) is not type(plain):
            raise ValueError(
                f"{path}: {keys.inside}{key} = {shown(value)} is not supported, only {plain!r}"
            )
    if gemma and "hidden_activation" in keys.values:
        act = keys.text("hidden_activation", "gelu_pytorch_tanh", ACTS)
    else:
        act = keys.text("hidden_act", "silu", ACTS)
    vocab, width = keys.size("vocab_size"), keys.size("hidden_size")
    layers, heads = keys.size("num_hidden_layers", most=LAYERS), keys.size("num_attention_heads")
    kv_heads = keys.size("num_key_value_heads", heads)
    head_dim = keys.size("head_dim", None) or _even_share(keys, width, heads)
    if head_dim % 2:
        raise keys.wrong("head_dim", "an even number: rope turns pairs")
    for key, n in (("num_attention_heads", heads), ("num_key_value_heads", kv_heads)):
        rows = f"rows of {key}"
        if rows in keys.held and n * head_dim != keys.held[rows][0]:
            count, source = keys.held[rows]
            raise ValueError(
                f"{path}: {keys.inside}{key} = {n} heads of {head_dim} are {n * head_dim} rows, the weights hold {count} ({source}): "
                "config and weights do not belong together"
            )
    if heads % kv_heads:
        raise keys.wrong("num_key_value_heads", f"a divisor of num_attention_heads = {heads}")
    turn = hf_rope.parse(keys, head_dim)
    fields = dict(
        vocab=vocab,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=keys.size("moe_intermediate_size" if moe else "intermediate_size"),
        rope_theta=turn["rope_theta"],
        rope_scaling=turn["rope_scaling"],
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
            local_theta=turn["local_theta"],
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


def _even_share(keys: Keys, width: int, heads: int) -> int:
    """Default width of a head: hidden_size / num_attention_heads."""
    if width % heads:
        raise keys.wrong(
            "num_attention_heads", f"a divisor of hidden_size = {width}, or head_dim beside it"
        )
    return width // heads


def _windows(keys: Keys, kind: str, layers: int) -> tuple[int, ...]:
    """The shortest cycle of windows, 0 where a layer sees everything; () where all do."""
    size = keys.size("sliding_window", None)
    types = keys.texts("layer_types", None, layers, (SLIDING, FULL))
    every = keys.size("_sliding_window_pattern", None) or keys.size("sliding_window_pattern", None)
    behind = keys.size("max_window_layers", 28, least=0)
    if kind.startswith("qwen") and not keys.flag("use_sliding_window", False):
        size = None
    if kind == "mistral":
        types = [SLIDING] * layers
    elif not types and every:
        types = [SLIDING if (i + 1) % every else FULL for i in range(layers)]
    elif not types:
        types = [FULL if kind == "llama" or i < behind else SLIDING for i in range(layers)]
    found = [size or 0 if t == SLIDING else 0 for t in types]
    if not any(found):
        return ()
    return next(
        tuple(found[:n])
        for n in range(1, layers + 1)
        if all(w == found[i % n] for i, w in enumerate(found))
    )


def describe(cfg: Config, dtype: str, carried: dict | None = None) -> dict:
    """config.json of a Config; raises where no architecture of Hugging Face computes this."""
    windows = _each(cfg)
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
    older = {
        "rope_theta": cfg.rope_theta,
        "rope_scaling": rope if cfg.rope_scaling else None,
    }  # transformers before version 5
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
        "hidden_act": next((theirs for theirs, ours in ACTS.items() if ours == cfg.act), cfg.act),
        "attention_bias": False,
        "rope_parameters": rope,
        "max_position_embeddings": most,
        "dtype": dtype,
        "torch_dtype": dtype,
        **older,
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
        near = {"rope_type": "default", "rope_theta": cfg.local_theta or cfg.rope_theta}
        out |= {
            "rope_parameters": {FULL: rope, SLIDING: near},
            "rope_local_base_freq": near["rope_theta"],
        }
    _exact(cfg, out)
    return out


def _exact(cfg: Config, out: dict) -> None:
    """Raise unless config.json says all that the Config computes."""
    # How, not what, a policy computes.
    run = {
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
    shape = {f.name for f in dataclasses.fields(Config)} - run
    told = Config(**parse(out, Path("config.json")))
    same = {"score_dim": cfg.head_dim, "local_theta": cfg.rope_theta}  # what 0 stands for
    lost = [
        n
        for n in sorted(shape - {"windows"})
        if (getattr(told, n) or same.get(n)) != (getattr(cfg, n) or same.get(n))
    ]
    lost += ["windows"] * (_each(told) != _each(cfg))
    if lost:
        raise ValueError(
            f"no Hugging Face architecture is a {out['model_type']} with {', '.join(f'{n}={getattr(cfg, n)}' for n in lost)}: "
            "such a policy cannot be exported"
        )


def _each(cfg: Config) -> list[int]:
    """The window of every layer."""
    cycle = cfg.windows or (0,)
    return [cycle[i % len(cycle)] for i in range(cfg.layers)]
