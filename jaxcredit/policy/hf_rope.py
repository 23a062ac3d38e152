"""Rotary positions of config.json, in the spelling of transformers 5 (rope_parameters) and 4 (rope_scaling, rope_theta)."""

import math
from typing import Any

from jaxcredit.policy.hf_keys import Keys
from jaxcredit.policy.positions import yarn_factor

LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
YARN = ("factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "truncate")
LONGROPE = ("original_max_position_embeddings", "attention_factor", "short_factor", "long_factor")
TYPES = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
SLIDING, FULL = "sliding_attention", "full_attention"


def parse(keys: Keys, head_dim: int) -> dict[str, Any]:
    """rope_theta, rope_scaling and local_theta of a Config; local_theta is 0 where the file has none."""
    whole, older = keys.mapping("rope_parameters"), keys.mapping("rope_scaling")
    rope, near = older or whole or Keys({}, keys.path), None  # transformers too prefers the older key
    if whole and (FULL in whole.values or SLIDING in whole.values):
        rope, near = whole.mapping(FULL) or Keys({}, keys.path), whole.mapping(SLIDING)
    for part in (keys, rope, *([near] if near else [])):
        if part.number("partial_rotary_factor", 1.0) != 1:
            raise ValueError(
                f"{keys.path}: {part.inside}partial_rotary_factor = {part.values['partial_rotary_factor']} is not supported: "
                "rope turns all of a head here, so it must be 1 or absent"
            )
    if near:
        near.text("rope_type", near.text("type", "default"), ("default",))
    local = near.number("rope_theta", 1e4, above=1) if near else keys.number("rope_local_base_freq", 0.0, above=1)
    theta = rope.number("rope_theta", None, above=1) or keys.number("rope_theta", 1e4, above=1)
    return {"rope_theta": theta, "local_theta": local, "rope_scaling": _scaling(rope, keys, head_dim)}


def _scaling(rope: Keys, keys: Keys, head_dim: int) -> tuple | None:
    """Config.rope_scaling."""
    # "type" is the older spelling of "rope_type".
    name = rope.text("rope_type", None, TYPES) or rope.text("type", "default", TYPES)
    if name == "default":
        return None
    if name == "linear":
        return "linear", rope.number("factor")
    if name == "dynamic":
        if head_dim <= 2:
            raise rope.wrong("rope_type", f"another scaling: dynamic needs heads wider than 2, these have {head_dim}")
        return "dynamic", rope.number("factor"), float(keys.size("max_position_embeddings"))
    limit = keys.size("original_max_position_embeddings", None)
    limit = limit or rope.size("original_max_position_embeddings", None) or keys.size("max_position_embeddings")
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
        return "longrope", float(limit), scale, rope.numbers("short_factor", head_dim // 2), rope.numbers("long_factor", head_dim // 2)
    m, every = (rope.number(key, 0.0, zero=True) for key in ("mscale", "mscale_all_dim"))
    if scale is None:
        scale = yarn_factor(factor, m) / yarn_factor(factor, every) if m and every else yarn_factor(factor)
    fast, slow = (rope.number(key, 0.0, zero=True) or default for key, default in (("beta_fast", 32.0), ("beta_slow", 1.0)))
    return "yarn", factor, float(limit), scale, fast, slow, rope.flag("truncate", True)


def describe(theta: float, scaling: tuple | None) -> dict[str, Any]:
    """rope_parameters of config.json."""
    name, *rest = scaling or ("default",)
    names = {"linear": ("factor",), "dynamic": ("factor",), "llama3": LLAMA3, "yarn": YARN, "longrope": LONGROPE}
    rope = {"rope_type": name, "rope_theta": theta} | dict(zip(names.get(name, ()), rest, strict=False))
    if "original_max_position_embeddings" in rope:
        rope["original_max_position_embeddings"] = int(rope["original_max_position_embeddings"])
    return rope | {key: list(x) for key, x in rope.items() if isinstance(x, tuple)}
