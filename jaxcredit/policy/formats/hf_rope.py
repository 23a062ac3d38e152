"""Rotary position embeddings (RoPE) in config.json.

Transformers 5 writes the key rope_parameters, transformers 4 the keys rope_scaling and rope_theta.
"""

import math
from typing import Any

from jaxcredit.policy.formats.hf_keys import Keys
from jaxcredit.policy.positions import yarn_factor

LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
YARN = (
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "truncate",
)
LONGROPE = ("original_max_position_embeddings", "attention_factor", "short_factor", "long_factor")
TYPES = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
SLIDING, FULL = "sliding_attention", "full_attention"


def parse(keys: Keys, head_dim: int) -> dict[str, Any]:
    """RoPE fields of a Config: rope_theta, rope_scaling and local_theta.

    local_theta is 0 if the model has no separate base for layers with a window.

    Raises:
        ValueError: a scaling that is not supported, or a value out of range.
    """
    whole, older = keys.mapping("rope_parameters"), keys.mapping("rope_scaling")
    # The older key takes precedence, as in transformers.
    rope, sliding = older or whole or Keys({}, keys.path), None
    if whole and (FULL in whole.values or SLIDING in whole.values):
        rope, sliding = whole.mapping(FULL) or Keys({}, keys.path), whole.mapping(SLIDING)
    for part in (keys, rope, *([sliding] if sliding else [])):
        if part.number("partial_rotary_factor", 1.0) != 1:
            raise ValueError(
                f"{keys.path}: {part.inside}partial_rotary_factor = "
                f"{part.values['partial_rotary_factor']} is not supported: "
                "only RoPE over the whole head is, so it must be 1 or absent"
            )
    if sliding:
        sliding.text("rope_type", sliding.text("type", "default"), ("default",))
    local = (
        sliding.number("rope_theta", 1e4, above=1)
        if sliding
        else keys.number("rope_local_base_freq", 0.0, above=1)
    )
    theta = rope.number("rope_theta", None, above=1) or keys.number("rope_theta", 1e4, above=1)
    return {
        "rope_theta": theta,
        "local_theta": local,
        "rope_scaling": _scaling(rope, keys, head_dim),
    }


def _scaling(rope: Keys, keys: Keys, head_dim: int) -> tuple | None:
    """Config.rope_scaling: (type, parameters...), or None without scaling."""
    # "type" is the older spelling of "rope_type".
    name = rope.text("rope_type", None, TYPES) or rope.text("type", "default", TYPES)
    if name == "default":
        return None
    if name == "linear":
        return "linear", rope.number("factor")
    if name == "dynamic":
        if head_dim <= 2:
            raise rope.wrong(
                "rope_type",
                f"another scaling: dynamic needs heads wider than 2, these have {head_dim}",
            )
        return "dynamic", rope.number("factor"), float(keys.size("max_position_embeddings"))
    limit = keys.size("original_max_position_embeddings", None)
    limit = (
        limit
        or rope.size("original_max_position_embeddings", None)
        or keys.size("max_position_embeddings")
    )
    if name == "llama3":
        low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
        if low == high:
            raise rope.wrong("high_freq_factor", "a number other than low_freq_factor")
        return "llama3", rope.number("factor"), low, high, float(limit)
    factor = rope.number("factor", None) or keys.size("max_position_embeddings") / limit
    scale = rope.number("attention_factor", None)
    if name == "longrope":
        if scale is None:
            if limit < 2:
                raise rope.wrong("original_max_position_embeddings", "2 or more")
            scale = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(limit))
        return (
            "longrope",
            float(limit),
            scale,
            rope.numbers("short_factor", head_dim // 2),
            rope.numbers("long_factor", head_dim // 2),
        )
    mscale, mscale_all = (rope.number(key, 0.0, zero=True) for key in ("mscale", "mscale_all_dim"))
    if scale is None:
        scale = (
            yarn_factor(factor, mscale) / yarn_factor(factor, mscale_all)
            if mscale and mscale_all
            else yarn_factor(factor)
        )
    fast, slow = (
        rope.number(key, 0.0, zero=True) or default
        for key, default in (("beta_fast", 32.0), ("beta_slow", 1.0))
    )
    return "yarn", factor, float(limit), scale, fast, slow, rope.flag("truncate", True)


def describe(theta: float, scaling: tuple | None) -> dict[str, Any]:
    """The field rope_parameters of config.json for a Config's rope_theta and rope_scaling."""
    name, *rest = scaling or ("default",)
    names = {
        "linear": ("factor",),
        "dynamic": ("factor",),
        "llama3": LLAMA3,
        "yarn": YARN,
        "longrope": LONGROPE,
    }
    rope = {"rope_type": name, "rope_theta": theta} | dict(
        zip(names.get(name, ()), rest, strict=False)
    )
    if "original_max_position_embeddings" in rope:
        rope["original_max_position_embeddings"] = int(rope["original_max_position_embeddings"])
    return rope | {key: list(x) for key, x in rope.items() if isinstance(x, tuple)}
