"""The shapes of published models, and `micro` for everything that should take seconds. Each is a function to a `Config`.

Keywords replace fields: `qwen3_0p6b(dtype="bfloat16", param_dtype="bfloat16")`. Weights come from `pretrained.load` or `gguf.load`, which
read the shape from the checkpoint; a preset is for planning, counting and starting from nothing.
"""

from typing import Any

from jaxcredit.policy.transformer import Config


def micro(vocab: int, *, width: int = 64, layers: int = 2, heads: int = 4, **fields: Any) -> Config:
    """A decoder of about 0.1 million parameters (vocabulary aside); token 0, the padding, can never be chosen."""
    if width % heads or width // heads % 2:
        raise ValueError(f"width {width} over {heads} heads leaves no even head size, which rotary positions need: change width or heads")
    shape = dict(kv_heads=heads, head_dim=width // heads, ffn=4 * width, forbidden=(0,))
    return Config(vocab=vocab, width=width, layers=layers, heads=heads, **(shape | fields))


def smollm2_135m(**fields: Any) -> Config:
    """SmolLM2-135M (Hugging Face, 2025): 134.5 million."""
    shape = dict(vocab=49152, width=576, layers=30, heads=9, kv_heads=3, head_dim=64, ffn=1536, rope_theta=1e5, norm_eps=1e-5)
    return Config(**(shape | fields))


def llama3_2_1b(**fields: Any) -> Config:
    """Llama-3.2-1B (Meta, 2024): 1.24 billion."""
    shape = dict(vocab=128256, width=2048, layers=16, heads=32, kv_heads=8, head_dim=64, ffn=8192, rope_theta=5e5, norm_eps=1e-5)
    return Config(**(shape | dict(rope_scaling=("llama3", 32.0, 1.0, 4.0, 8192.0)) | fields))


def qwen2_5_0p5b(**fields: Any) -> Config:
    """Qwen2.5-0.5B (Alibaba, 2024): 0.49 billion."""
    shape = dict(vocab=151936, width=896, layers=24, heads=14, kv_heads=2, head_dim=64, ffn=4864, rope_theta=1e6, qkv_bias=True)
    return Config(**(shape | fields))


def qwen3_0p6b(**fields: Any) -> Config:
    """Qwen3-0.6B (arXiv 2505.09388, table 1): 0.6 billion."""
    return _qwen3(**(dict(width=1024, layers=28, heads=16, ffn=3072) | fields))


def qwen3_1p7b(**fields: Any) -> Config:
    """Qwen3-1.7B: 1.7 billion."""
    return _qwen3(**(dict(width=2048, layers=28, heads=16, ffn=6144) | fields))


def qwen3_4b(**fields: Any) -> Config:
    """Qwen3-4B: 4.0 billion."""
    return _qwen3(**(dict(width=2560, layers=36, heads=32, ffn=9728) | fields))


def qwen3_8b(**fields: Any) -> Config:
    """Qwen3-8B: 8.2 billion, untied."""
    return _qwen3(**(dict(width=4096, layers=36, heads=32, ffn=12288, tied=False) | fields))


def qwen3_32b(**fields: Any) -> Config:
    """Qwen3-32B: 32.8 billion, untied."""
    return _qwen3(**(dict(width=5120, layers=64, heads=64, ffn=25600, tied=False) | fields))


def _qwen3(**fields: Any) -> Config:
    return Config(**(dict(vocab=151936, kv_heads=8, head_dim=128, rope_theta=1e6, qk_norm=True) | fields))
