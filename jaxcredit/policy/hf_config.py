"""config.json of Hugging Face to the fields of a `Config` and back. What this policy cannot compute is refused by name."""

import dataclasses
from pathlib import Path
from typing import Any

from jaxcredit.policy.config import Config

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
    "gemma2": {**GEMMA, "vocab_size": 256000, "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0, "sliding_window_pattern": 2},
    "gemma3_text": {**GEMMA, "vocab_size": 262208, "rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window_pattern": 6},
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
LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
SLIDING, FULL = "sliding_attention", "full_attention"


def parse(c: dict[str, Any], path: Path) -> dict[str, Any]:
    """The fields of Config; `path` is named in errors. Of a Gemma 3 that also sees, the text model."""
    if c.get("model_type") == "gemma3" and "text_config" in c:
        c = {**c["text_config"], "model_type": "gemma3_text"}
    kind = c.get("model_type")

    def refuse(what: str):
        return ValueError(f"{path}: {what} is not supported. This policy is a decoder of {', '.join(ARCHITECTURES)}: choose such a model")

    if kind not in ARCHITECTURES:
        raise refuse(f"model_type {kind!r} ({', '.join(c.get('architectures') or ['no architecture'])})")
    gemma, moe = kind.startswith("gemma"), kind == "qwen3_moe"
    c = ABSENT.get(kind, {}) | c
    if gemma and "hidden_activation" in c:
        c["hidden_act"] = c["hidden_activation"] or "gelu_pytorch_tanh"
    must = PLAIN | ({"norm_topk_prob": True} if moe else {}) | ({"attn_logit_softcapping": None} if kind == "gemma3_text" else {})
    for key, plain in must.items():
        if c.get(key, False if key == "norm_topk_prob" else plain) not in (plain, None):
            raise refuse(f"{key} = {c.get(key)!r}")
    act = c.get("hidden_act", "silu")
    if act not in ACTS:
        raise refuse(f"hidden_act = {act!r}")
    rope = c.get("rope_parameters") or c.get("rope_scaling") or {}
    local = rope.get(SLIDING, {"rope_theta": c.get("rope_local_base_freq", 0)})
    rope = rope.get(FULL, rope)
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    scaling = {"default": lambda: None, "linear": lambda: ("linear", float(rope["factor"]))}
    scaling["llama3"] = lambda: ("llama3", *(float(rope[key]) for key in LLAMA3))
    if (
        rope_type not in scaling
        or local.get("rope_type", "default") != "default"
        or c.get("partial_rotary_factor", rope.get("partial_rotary_factor", 1)) != 1
    ):
        raise refuse(f"rope {rope}")
    try:
        heads = c["num_attention_heads"]
        fields = dict(
            vocab=c["vocab_size"],
            width=c["hidden_size"],
            layers=c["num_hidden_layers"],
            heads=heads,
            kv_heads=c.get("num_key_value_heads") or heads,
            head_dim=c.get("head_dim") or c["hidden_size"] // heads,
            ffn=c["moe_intermediate_size" if moe else "intermediate_size"],
            rope_theta=float(rope.get("rope_theta") or c.get("rope_theta") or 1e4),
            rope_scaling=scaling[rope_type](),
            norm_eps=c.get("rms_norm_eps", 1e-6),
            qk_norm=kind in ("qwen3", "qwen3_moe", "gemma3_text"),
            qkv_bias=kind == "qwen2",
            tied=c.get("tie_word_embeddings", False),
            windows=_windows(c, kind),
            act=ACTS[act],
        )
        if gemma:
            fields |= dict(
                local_theta=float(local["rope_theta"]),
                score_dim=c["query_pre_attn_scalar"],
                score_cap=float(c.get("attn_logit_softcapping") or 0),
                logit_cap=float(c.get("final_logit_softcapping") or 0),
                norm_offset=1.0,
                post_norm=True,
                embed_scale=float(c["hidden_size"] ** 0.5),
            )
        if moe:
            fields |= dict(experts=c.get("num_experts") or c["num_local_experts"], experts_per_token=c["num_experts_per_tok"])
    except KeyError as error:
        raise ValueError(f"{path} lacks {error}: it is not the config.json of a {kind} checkpoint; download it again") from error
    return fields


def _windows(c: dict[str, Any], kind: str) -> tuple[int, ...]:
    """The shortest cycle of windows, 0 where a layer sees everything; () where all do."""
    layers, size = c["num_hidden_layers"], c.get("sliding_window")
    types, every = c.get("layer_types"), c.get("_sliding_window_pattern") or c.get("sliding_window_pattern")
    if kind.startswith("qwen") and not c.get("use_sliding_window"):
        size = None
    if kind == "mistral":
        types = [SLIDING] * layers
    elif not types and every:
        types = [SLIDING if (i + 1) % every else FULL for i in range(layers)]
    elif not types:
        types = [FULL if kind == "llama" or i < c.get("max_window_layers", 28) else SLIDING for i in range(layers)]
    found = [size or 0 if t == SLIDING else 0 for t in types]
    if not any(found):
        return ()
    return next(tuple(found[:n]) for n in range(1, layers + 1) if all(w == found[i % n] for i, w in enumerate(found)))


def describe(cfg: Config, dtype: str, carried: dict | None = None) -> dict:
    """config.json of a Config; raises where no architecture of Hugging Face computes this."""
    windows = _each(cfg)
    kind = "qwen3" if cfg.qk_norm else "qwen2" if cfg.qkv_bias else "mistral" if any(windows) else "llama"
    if cfg.post_norm:
        kind = "gemma3_text" if cfg.qk_norm else "gemma2"
    elif cfg.experts:
        kind = "qwen3_moe"
    elif kind == "llama" and (carried or {}).get("model_type") == "mistral":
        kind = "mistral"
    name, *rest = cfg.rope_scaling or ("default",)
    rope = {"rope_type": name, "rope_theta": cfg.rope_theta} | dict(zip(LLAMA3, rest, strict=False))
    if name == "llama3":
        rope["original_max_position_embeddings"] = int(rope["original_max_position_embeddings"])
    older = {"rope_theta": cfg.rope_theta, "rope_scaling": None if name == "default" else rope}  # transformers before version 5
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
        "max_position_embeddings": (carried or {}).get("max_position_embeddings", 32768),
        "dtype": dtype,
        "torch_dtype": dtype,
        **older,
    }
    if any(windows) or kind == "mistral":
        out |= {"sliding_window": max(windows) or None}
    if any(windows) and kind != "mistral":
        out |= {"use_sliding_window": True, "layer_types": [SLIDING if w else FULL for w in windows]}
    if cfg.experts:
        experts = dict.fromkeys(("num_experts", "num_local_experts"), cfg.experts) | {"num_experts_per_tok": cfg.experts_per_token}
        out |= experts | {"moe_intermediate_size": cfg.ffn, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []}
    if cfg.post_norm:
        caps = {"attn_logit_softcapping": cfg.score_cap or None, "final_logit_softcapping": cfg.logit_cap or None}
        out |= caps | {"hidden_activation": out["hidden_act"], "query_pre_attn_scalar": cfg.score_dim or cfg.head_dim}
    if kind == "gemma3_text":
        near = {"rope_type": "default", "rope_theta": cfg.local_theta or cfg.rope_theta}
        out |= {"rope_parameters": {FULL: rope, SLIDING: near}, "rope_local_base_freq": near["rope_theta"]}
    _exact(cfg, out)
    return out


def _exact(cfg: Config, out: dict) -> None:
    """Raise unless config.json says all that the Config computes."""
    # How, not what, a policy computes.
    run = {"dtype", "param_dtype", "remat", "forbidden", "vocab_chunk", "token_chunk", "query_chunk", "attention", "place"}
    shape = {f.name for f in dataclasses.fields(Config)} - run
    told = Config(**parse(out, Path("config.json")))
    same = {"score_dim": cfg.head_dim, "local_theta": cfg.rope_theta}  # what 0 stands for
    lost = [n for n in sorted(shape - {"windows"}) if (getattr(told, n) or same.get(n)) != (getattr(cfg, n) or same.get(n))]
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
