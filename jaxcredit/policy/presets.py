"""Configs of published models, and `micro`, a small decoder for tests and the quickstart.

A preset is a function that returns a `Config`; keywords replace fields:
`qwen3_0p6b(dtype="bfloat16", param_dtype="bfloat16")`. Presets serve planning, counting and
training from random weights. `pretrained.load` and `gguf.load` read the config from the checkpoint
itself. `jaxcredit models` lists all presets.
"""

import dataclasses
from typing import Any

from jaxcredit.policy.config import Config


def micro(vocab: int, *, width: int = 64, layers: int = 2, heads: int = 4, **fields: Any) -> Config:
    """Config of a small decoder, by default of about 0.1 million parameters besides the vocabulary.

    Token 0, the padding, is never sampled.

    Args:
        vocab: number of token ids.
        width: model width, a multiple of `heads`.
        layers: number of layers.
        heads: query heads, which are also the key and value heads.
        fields: further fields of Config.

    Raises:
        ValueError: width / heads is not an even whole number.
    """
    if width % heads or width // heads % 2:
        raise ValueError(
            f"width {width} over {heads} heads leaves no even head size, which rotary positions "
            "need: change width or heads"
        )
    shape: dict[str, Any] = dict(
        kv_heads=heads, head_dim=width // heads, ffn=4 * width, forbidden=(0,)
    )
    return Config(vocab=vocab, width=width, layers=layers, heads=heads, **(shape | fields))


@dataclasses.dataclass(frozen=True)
class Preset:
    """A published model: a function from keyword fields to its Config.

    Args:
        hub: id of its checkpoint on the Hugging Face hub.
        fields: fields of Config. Those given in a call take precedence.
    """

    hub: str
    fields: dict[str, Any]

    def __call__(self, **fields: Any) -> Config:
        return Config(**(self.fields | fields))


def published(hub: str, family: dict[str, Any], **fields: Any) -> Preset:
    """Preset of a published model.

    Args:
        hub: id of its checkpoint on the Hugging Face hub.
        family: fields of Config that its family shares.
        fields: fields of its own, which take precedence.
    """
    return Preset(hub, family | fields)


def _gemma3(width: int, window: int, **fields: Any) -> dict[str, Any]:
    """Fields of the Gemma 3 family: five layers with a window in tokens, then one without."""
    family = dict(
        vocab=262208,
        windows=(window,) * 5 + (0,),
        rope_theta=1e6,
        local_theta=1e4,
        rope_scaling=("linear", 8.0),
        score_dim=256,
        norm_offset=1.0,
        post_norm=True,
        qk_norm=True,
        act="gelu",
        embed_scale=float(width**0.5),
    )
    return family | fields


SMOLLM2 = dict(vocab=49152, rope_theta=1e5, norm_eps=1e-5)
LLAMA3 = dict(
    vocab=128256,
    rope_theta=5e5,
    norm_eps=1e-5,
    rope_scaling=("llama3", 8.0, 1.0, 4.0, 8192.0),
    tied=False,
)
LLAMA3_SMALL = LLAMA3 | dict(rope_scaling=("llama3", 32.0, 1.0, 4.0, 8192.0), tied=True)
MISTRAL = dict(vocab=32768, rope_theta=1e6, norm_eps=1e-5, tied=False)
QWEN2_5 = dict(vocab=151936, rope_theta=1e6, qkv_bias=True)
QWEN2_5_LARGE = QWEN2_5 | dict(vocab=152064, tied=False)
QWEN3 = dict(vocab=151936, rope_theta=1e6, qk_norm=True)
QWEN3_LARGE = QWEN3 | dict(tied=False)
QWEN3_MOE = QWEN3_LARGE | dict(experts=128, experts_per_token=8)

# fmt: off
smollm2_135m = published(
    "HuggingFaceTB/SmolLM2-135M", SMOLLM2,
    layers=30, width=576, heads=9, kv_heads=3, head_dim=64, ffn=1536,
)
smollm2_360m = published(
    "HuggingFaceTB/SmolLM2-360M", SMOLLM2,
    layers=32, width=960, heads=15, kv_heads=5, head_dim=64, ffn=2560,
)
smollm2_1p7b = published(
    "HuggingFaceTB/SmolLM2-1.7B", SMOLLM2,
    layers=24, width=2048, heads=32, kv_heads=32, head_dim=64, ffn=8192,
    rope_theta=1.3e5,
)

llama3_2_1b = published(
    "meta-llama/Llama-3.2-1B", LLAMA3_SMALL,
    layers=16, width=2048, heads=32, kv_heads=8, head_dim=64, ffn=8192,
)
llama3_2_3b = published(
    "meta-llama/Llama-3.2-3B", LLAMA3_SMALL,
    layers=28, width=3072, heads=24, kv_heads=8, head_dim=128, ffn=8192,
)
llama3_1_8b = published(
    "meta-llama/Llama-3.1-8B", LLAMA3,
    layers=32, width=4096, heads=32, kv_heads=8, head_dim=128, ffn=14336,
)
llama3_3_70b = published(
    "meta-llama/Llama-3.3-70B-Instruct", LLAMA3,
    layers=80, width=8192, heads=64, kv_heads=8, head_dim=128, ffn=28672,
)

mistral_7b = published(
    "mistralai/Mistral-7B-v0.3", MISTRAL,
    layers=32, width=4096, heads=32, kv_heads=8, head_dim=128, ffn=14336,
)
mistral_7b_v0_1 = published(
    "mistralai/Mistral-7B-v0.1", MISTRAL | dict(vocab=32000, rope_theta=1e4),
    layers=32, width=4096, heads=32, kv_heads=8, head_dim=128, ffn=14336,
    windows=(4096,),
)

qwen2_5_0p5b = published(
    "Qwen/Qwen2.5-0.5B", QWEN2_5,
    layers=24, width=896, heads=14, kv_heads=2, head_dim=64, ffn=4864,
)
qwen2_5_1p5b = published(
    "Qwen/Qwen2.5-1.5B", QWEN2_5,
    layers=28, width=1536, heads=12, kv_heads=2, head_dim=128, ffn=8960,
)
qwen2_5_3b = published(
    "Qwen/Qwen2.5-3B", QWEN2_5,
    layers=36, width=2048, heads=16, kv_heads=2, head_dim=128, ffn=11008,
)
qwen2_5_7b = published(
    "Qwen/Qwen2.5-7B", QWEN2_5_LARGE,
    layers=28, width=3584, heads=28, kv_heads=4, head_dim=128, ffn=18944,
)
qwen2_5_14b = published(
    "Qwen/Qwen2.5-14B", QWEN2_5_LARGE,
    layers=48, width=5120, heads=40, kv_heads=8, head_dim=128, ffn=13824,
)
qwen2_5_32b = published(
    "Qwen/Qwen2.5-32B", QWEN2_5_LARGE,
    layers=64, width=5120, heads=40, kv_heads=8, head_dim=128, ffn=27648,
)
qwen2_5_72b = published(
    "Qwen/Qwen2.5-72B", QWEN2_5_LARGE,
    layers=80, width=8192, heads=64, kv_heads=8, head_dim=128, ffn=29568,
)

qwen3_0p6b = published(
    "Qwen/Qwen3-0.6B", QWEN3,
    layers=28, width=1024, heads=16, kv_heads=8, head_dim=128, ffn=3072,
)
qwen3_1p7b = published(
    "Qwen/Qwen3-1.7B", QWEN3,
    layers=28, width=2048, heads=16, kv_heads=8, head_dim=128, ffn=6144,
)
qwen3_4b = published(
    "Qwen/Qwen3-4B", QWEN3,
    layers=36, width=2560, heads=32, kv_heads=8, head_dim=128, ffn=9728,
)
qwen3_8b = published(
    "Qwen/Qwen3-8B", QWEN3_LARGE,
    layers=36, width=4096, heads=32, kv_heads=8, head_dim=128, ffn=12288,
)
qwen3_14b = published(
    "Qwen/Qwen3-14B", QWEN3_LARGE,
    layers=40, width=5120, heads=40, kv_heads=8, head_dim=128, ffn=17408,
)
qwen3_32b = published(
    "Qwen/Qwen3-32B", QWEN3_LARGE,
    layers=64, width=5120, heads=64, kv_heads=8, head_dim=128, ffn=25600,
)
qwen3_30b_a3b = published(
    "Qwen/Qwen3-30B-A3B", QWEN3_MOE,
    layers=48, width=2048, heads=32, kv_heads=4, head_dim=128, ffn=768,
)
qwen3_235b_a22b = published(
    "Qwen/Qwen3-235B-A22B", QWEN3_MOE,
    layers=94, width=4096, heads=64, kv_heads=4, head_dim=128, ffn=1536,
)

# Of multimodal models, the text model.
gemma3_270m = published(
    "google/gemma-3-270m", _gemma3(640, 512),
    layers=18, width=640, heads=4, kv_heads=1, head_dim=256, ffn=2048,
    vocab=262144, rope_scaling=None,
)
gemma3_1b = published(
    "google/gemma-3-1b-pt", _gemma3(1152, 512),
    layers=26, width=1152, heads=4, kv_heads=1, head_dim=256, ffn=6912,
    vocab=262144, rope_scaling=None,
)
gemma3_4b = published(
    "google/gemma-3-4b-pt", _gemma3(2560, 1024),
    layers=34, width=2560, heads=8, kv_heads=4, head_dim=256, ffn=10240,
)
gemma3_12b = published(
    "google/gemma-3-12b-pt", _gemma3(3840, 1024),
    layers=48, width=3840, heads=16, kv_heads=8, head_dim=256, ffn=15360,
)
gemma3_27b = published(
    "google/gemma-3-27b-pt", _gemma3(5376, 1024, score_dim=168),
    layers=62, width=5376, heads=32, kv_heads=16, head_dim=128, ffn=21504,
)
# fmt: on

ALL: dict[str, Preset] = {
    name: value for name, value in list(vars().items()) if isinstance(value, Preset)
}
