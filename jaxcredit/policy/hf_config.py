"""config.json of Hugging Face to the fields of a `Config` and back. What this policy cannot compute is refused by name."""

from pathlib import Path
from typing import Any

from jaxcredit.policy.transformer import Config

ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def parse(c: dict[str, Any], path: Path) -> dict[str, Any]:
    """The fields of Config; `path` is named in errors."""
    kind = c.get("model_type")

    def refuse(what: str):
        return ValueError(
            f"{path}: {what} is not supported. This policy is the plain decoder of {', '.join(ARCHITECTURES)}: choose such a model"
        )

    if kind not in ARCHITECTURES:
        raise refuse(f"model_type {kind!r} ({', '.join(c.get('architectures') or ['no architecture'])})")
    window = c.get("sliding_window", 4096) if kind == "mistral" else c.get("use_sliding_window")  # what transformers takes for absent
    if window or "sliding_attention" in (c.get("layer_types") or ()):
        raise refuse("sliding window attention")
    for key, plain in {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "quantization_config": None}.items():
        if c.get(key, plain) != plain:
            raise refuse(f"{key} = {c[key]!r}")
    rope = c.get("rope_parameters") or c.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    scaling = {"default": lambda: None, "linear": lambda: ("linear", float(rope["factor"]))}
    scaling["llama3"] = lambda: ("llama3", *(float(rope[key]) for key in LLAMA3))
    if rope_type not in scaling or c.get("partial_rotary_factor", rope.get("partial_rotary_factor", 1)) != 1:
        raise refuse(f"rope {rope}")
    try:
        heads = c["num_attention_heads"]
        fields = dict(
            vocab=c["vocab_size"],
            width=c["hidden_size"],
            layers=c["num_hidden_layers"],
            heads=heads,
            kv_heads=c.get("num_key_value_heads") or heads,
            head_dim=c.get("head_dim", 128 if kind == "qwen3" else None) or c["hidden_size"] // heads,
            ffn=c["intermediate_size"],
            rope_theta=float(rope.get("rope_theta") or c.get("rope_theta") or 1e4),
            rope_scaling=scaling[rope_type](),
            norm_eps=c.get("rms_norm_eps", 1e-6),
            qk_norm=kind == "qwen3",
            qkv_bias=kind == "qwen2",
            tied=c.get("tie_word_embeddings", False),
        )
    except KeyError as error:
        raise ValueError(f"{path} lacks {error}: it is not the config.json of a {kind} checkpoint; download it again") from error
    return fields


def describe(cfg: Config, dtype: str, carried: dict | None = None) -> dict:
    """config.json of a Config: Qwen3 where queries are normalised, Qwen2 where they have a bias, else Llama."""
    if cfg.qk_norm and cfg.qkv_bias:
        raise ValueError("no Hugging Face architecture has both qk_norm and q, k, v biases alone: such a policy cannot be exported")
    kind = "qwen3" if cfg.qk_norm else "qwen2" if cfg.qkv_bias else "llama"
    kind = "mistral" if (carried or {}).get("model_type") == "mistral" else kind
    name, *rest = cfg.rope_scaling or ("default",)
    rope = {"rope_type": name, "rope_theta": cfg.rope_theta} | dict(zip(LLAMA3, rest, strict=False))
    if name == "llama3":
        rope["original_max_position_embeddings"] = int(rope["original_max_position_embeddings"])
    older = {"rope_theta": cfg.rope_theta, "rope_scaling": None if name == "default" else rope}  # transformers before version 5
    return {
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
        "hidden_act": "silu",
        "attention_bias": False,
        "rope_parameters": rope,
        "max_position_embeddings": (carried or {}).get("max_position_embeddings", 32768),
        "dtype": dtype,
        "torch_dtype": dtype,
        **older,
        **({"sliding_window": None} if kind == "mistral" else {}),
    }
