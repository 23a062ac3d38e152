"""Where a token stands: its position, who sees whom, how far a layer looks back, and the rotation that tells heads about it."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

FAR = 2**30  # the window of a layer that sees everything


def causal(valid: Bool[Array, "*B T"]) -> Bool[Array, "*B T T"]:
    """A token sees the valid ones up to itself."""
    T = valid.shape[-1]
    return jnp.tril(jnp.ones((T, T), bool)) & valid[..., None, :]


def before(valid: Bool[Array, "*B T"]) -> Int[Array, "*B T"]:
    """The position of a token: how many valid ones come before it."""
    return jnp.cumsum(valid, -1, dtype=jnp.int32) - valid


def windows(cfg) -> Int[Array, "L"] | None:
    """How far back each layer sees; None where all see everything, so that such a policy compiles to a program without windows."""
    if not any(cfg.windows):
        return None
    return jnp.array(
        [cfg.windows[i % len(cfg.windows)] or FAR for i in range(cfg.layers)], jnp.int32
    )


def near(
    mask: Bool[Array, "..."],
    query: Int[Array, "*B S"],
    key: Int[Array, "*C T"],
    window: Int[Array, ""] | None,
) -> Bool[Array, "..."]:
    """Of the tokens that `mask` lets a query see, those fewer than `window` positions back."""
    return mask if window is None else mask & (query[..., :, None] - key[..., None, :] < window)


def angles(
    positions: Int[Array, "*B"], cfg
) -> Callable[[Int[Array, ""] | None], tuple[Array, Array]]:
    """window -> cos and sin of a layer: those with a window may turn at a theta of their own, which is never scaled (Gemma 3)."""
    wide = rope(positions, cfg)
    if not cfg.local_theta:
        return lambda window: wide
    local = rope(positions, dataclasses.replace(cfg, rope_theta=cfg.local_theta, rope_scaling=None))
    return lambda window: (
        wide
        if window is None
        else jax.tree.map(lambda a, b: jnp.where(window < FAR, a, b), local, wide)
    )


def at_length(cfg, length: int):
    """The config whose rope_scaling is that of rows of `length` tokens, where it depends on their length: dynamic and longrope.

    The length is that of the whole rows, padding included, a number known when the program is compiled: so all tokens of a row are turned
    alike, and the sampler computes what the full forward does. It is applied once; a config without such a scaling comes back as it is.
    """
    match cfg.rope_scaling:
        case ("dynamic", factor, original):
            grown = factor * max(length / original, 1) - (factor - 1)
            theta = cfg.rope_theta * grown ** (cfg.head_dim / (cfg.head_dim - 2))
            return dataclasses.replace(cfg, rope_theta=theta, rope_scaling=None)
        case ("longrope", original, scale, short, long):
            return dataclasses.replace(
                cfg, rope_scaling=("divided", scale, long if length > original else short)
            )
        case _:
            return cfg


def yarn_factor(factor: float, scale: float = 1.0) -> float:
    """YaRN's multiplier of cos and sin for a context that is `factor` times as long (its attention temperature)."""
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def _yarn(
    freq: Float[Array, "d"],
    cfg,
    factor: float,
    original: float,
    fast: float,
    slow: float,
    truncate: bool,
) -> Float[Array, "d"]:
    """YaRN frequencies: unscaled above `fast` turns in the original length, divided by `factor` below `slow`, interpolated between."""

    def dimension(turns: float) -> float:
        return (
            cfg.head_dim
            * math.log(original / (turns * 2 * math.pi))
            / (2 * math.log(cfg.rope_theta))
        )

    low, high = dimension(fast), dimension(slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, cfg.head_dim - 1)
    ramp = jnp.clip(
        (jnp.arange(freq.size, dtype=jnp.float32) - low) / (high - low if high != low else 0.001),
        0,
        1,
    )
    return freq / factor * ramp + freq * (1 - ramp)


def rope(positions: Int[Array, "*B"], cfg) -> tuple[Array, Array]:
    """cos and sin of position * theta^(-2i/h), `[*B, h/2]`, scaled according to cfg.rope_scaling."""
    freq = cfg.rope_theta ** (-jnp.arange(0, cfg.head_dim, 2, dtype=jnp.float32) / cfg.head_dim)
    scale = 1.0
    match cfg.rope_scaling:
        case None:
            pass
        case ("linear", factor):
            freq = freq / factor
        case ("llama3", factor, low, high, original):
            # Long waves are slowed by `factor`, short ones kept, those between interpolated (Llama 3.1).
            turns = original * freq / (2 * jnp.pi)
            keep = jnp.clip((turns - low) / (high - low), 0, 1)
            freq = freq * (keep + (1 - keep) / factor)
        case ("yarn", factor, original, scale, fast, slow, truncate):
            freq = _yarn(freq, cfg, factor, original, fast, slow, truncate)
        case ("divided", scale, divisors):
            freq = freq / jnp.array(divisors, jnp.float32)
        case ("dynamic" | "longrope", *_):
            raise ValueError(
                f"rope_scaling {cfg.rope_scaling[0]!r} depends on the length of the rows: pass positions.at_length(cfg, length)"
            )
        case other:
            raise ValueError(
                f"rope_scaling {other!r} is not known: use None, ('linear', factor), ('llama3', factor, low, high, original), "
                "('yarn', factor, original, attention_factor, beta_fast, beta_slow, truncate), ('dynamic', factor, original) or "
                "('longrope', original, attention_factor, short_factors, long_factors)"
            )
    angle = positions[..., None].astype(jnp.float32) * freq
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return (cos, sin) if scale == 1 else (cos * scale, sin * scale)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotate the pairs (x_i, x_{i+h/2}) of every head: the halves convention of Hugging Face."""
    a, b = jnp.split(x, 2, axis=-1)
    cos, sin = cos[..., None, :].astype(x.dtype), sin[..., None, :].astype(x.dtype)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
