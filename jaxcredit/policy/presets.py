"""The shapes of published models, and `micro` for everything that should take seconds. Each, called, is a `Config`.

Keywords replace fields: `qwen3_0p6b(dtype="bfloat16", param_dtype="bfloat16")`. Weights come from `pretrained.load` or `gguf.load`, which
read the shape from the checkpoint; a preset is for planning, counting and starting from nothing. `jaxcredit models` prints them all.
"""

import dataclasses
from typing import Any

from jaxcredit.policy.config import Config


def micro(vocab: int, *, width: int = 64, layers: int = 2, heads: int = 4, **fields: Any) -> Config:
    """A decoder of about 0.1 million parameters (vocabulary aside); token 0, the padding, can never be chosen."""
    if width % heads or width // heads % 2:
        raise ValueError(
            f"width {width} over {heads} heads leaves no even head size, which rotary positions need: change width or heads"
        )
    shape: dict[str, Any] = dict(
        kv_heads=heads, head_dim=width // heads, ffn=4 * width, forbidden=(0,)
    )
    return Config(vocab=vocab, width=width, layers=layers, heads=heads, **(shape | fields))


@dataclasses.dataclass(frozen=True)
class Preset:
    """A published shape: where its weights are, and the fields of its Config."""

    hub: str
    fields: dict[str, Any]

    def __call__(self, **fields: Any) -> Config:
        return Config(**(self.fields | fields))


def published(hub: str, family: dict[str, Any], size: str, **fields: Any) -> Preset:
    """`size` is layers x width, heads / kv heads x head size, width of the MLP: "28 x 1024, 16/8 x 128, 3072"."""
    body, heads, ffn = size.split(", ")
    layers, width = body.split(" x ")
    heads, head_dim = heads.split(" x ")
    heads, kv_heads = heads.split("/")
    shape = dict(
        layers=layers, width=width, heads=heads, kv_heads=kv_heads, head_dim=head_dim, ffn=ffn
    )
    return Preset(hub, family | {name: int(n) for name, n in shape.items()} | fields)


def _gemma3(width: int, window: int, **fields: Any) -> dict[str, Any]:
    shape = dict(
        vocab=262208,
        windows=(window,) * 5 + (0,),
        rope_theta=1e6,
        local_theta=1e4,
        rope_scaling=("linear", 8.0),
        score_dim=256,
    )
    return (
        shape
        | dict(
            norm_offset=1.0, post_norm=True, qk_norm=True, act="gelu", embed_scale=float(width**0.5)
        )
        | fields
    )


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

smollm2_135m = published("HuggingFaceTB/SmolLM2-135M", SMOLLM2, "30 x 576, 9/3 x 64, 1536")
smollm2_360m = published("HuggingFaceTB/SmolLM2-360M", SMOLLM2, "32 x 960, 15/5 x 64, 2560")
smollm2_1p7b = published(
    "HuggingFaceTB/SmolLM2-1.7B", SMOLLM2, "24 x 2048, 32/32 x 64, 8192", rope_theta=1.3e5
)

llama3_2_1b = published("meta-llama/Llama-3.2-1B", LLAMA3_SMALL, "16 x 2048, 32/8 x 64, 8192")
llama3_2_3b = published("meta-llama/Llama-3.2-3B", LLAMA3_SMALL, "28 x 3072, 24/8 x 128, 8192")
llama3_1_8b = published("meta-llama/Llama-3.1-8B", LLAMA3, "32 x 4096, 32/8 x 128, 14336")
llama3_3_70b = published(
    "meta-llama/Llama-3.3-70B-Instruct", LLAMA3, "80 x 8192, 64/8 x 128, 28672"
)

mistral_7b = published("mistralai/Mistral-7B-v0.3", MISTRAL, "32 x 4096, 32/8 x 128, 14336")
mistral_7b_v0_1 = published(
    "mistralai/Mistral-7B-v0.1",
    MISTRAL | dict(vocab=32000, rope_theta=1e4),
    "32 x 4096, 32/8 x 128, 14336",
    windows=(4096,),
)

qwen2_5_0p5b = published("Qwen/Qwen2.5-0.5B", QWEN2_5, "24 x 896, 14/2 x 64, 4864")
qwen2_5_1p5b = published("Qwen/Qwen2.5-1.5B", QWEN2_5, "28 x 1536, 12/2 x 128, 8960")
qwen2_5_3b = published("Qwen/Qwen2.5-3B", QWEN2_5, "36 x 2048, 16/2 x 128, 11008")
qwen2_5_7b = published("Qwen/Qwen2.5-7B", QWEN2_5_LARGE, "28 x 3584, 28/4 x 128, 18944")
qwen2_5_14b = published("Qwen/Qwen2.5-14B", QWEN2_5_LARGE, "48 x 5120, 40/8 x 128, 13824")
qwen2_5_32b = published("Qwen/Qwen2.5-32B", QWEN2_5_LARGE, "64 x 5120, 40/8 x 128, 27648")
qwen2_5_72b = published("Qwen/Qwen2.5-72B", QWEN2_5_LARGE, "80 x 8192, 64/8 x 128, 29568")

qwen3_0p6b = published("Qwen/Qwen3-0.6B", QWEN3, "28 x 1024, 16/8 x 128, 3072")
qwen3_1p7b = published("Qwen/Qwen3-1.7B", QWEN3, "28 x 2048, 16/8 x 128, 6144")
qwen3_4b = published("Qwen/Qwen3-4B", QWEN3, "36 x 2560, 32/8 x 128, 9728")
qwen3_8b = published("Qwen/Qwen3-8B", QWEN3_LARGE, "36 x 4096, 32/8 x 128, 12288")
qwen3_14b = published("Qwen/Qwen3-14B", QWEN3_LARGE, "40 x 5120, 40/8 x 128, 17408")
qwen3_32b = published("Qwen/Qwen3-32B", QWEN3_LARGE, "64 x 5120, 64/8 x 128, 25600")
qwen3_30b_a3b = published("Qwen/Qwen3-30B-A3B", QWEN3_MOE, "48 x 2048, 32/4 x 128, 768")
qwen3_235b_a22b = published("Qwen/Qwen3-235B-A22B", QWEN3_MOE, "94 x 4096, 64/4 x 128, 1536")

# Of those that also see, the text model.
gemma3_270m = published(
    "google/gemma-3-270m",
    _gemma3(640, 512),
    "18 x 640, 4/1 x 256, 2048",
    vocab=262144,
    rope_scaling=None,
)
gemma3_1b = published(
    "google/gemma-3-1b-pt",
    _gemma3(1152, 512),
    "26 x 1152, 4/1 x 256, 6912",
    vocab=262144,
    rope_scaling=None,
)
gemma3_4b = published("google/gemma-3-4b-pt", _gemma3(2560, 1024), "34 x 2560, 8/4 x 256, 10240")
gemma3_12b = published("google/gemma-3-12b-pt", _gemma3(3840, 1024), "48 x 3840, 16/8 x 256, 15360")
gemma3_27b = published(
    "google/gemma-3-27b-pt", _gemma3(5376, 1024, score_dim=168), "62 x 5376, 32/16 x 128, 21504"
)

ALL: dict[str, Preset] = {
    name: value for name, value in list(vars().items()) if isinstance(value, Preset)
}
