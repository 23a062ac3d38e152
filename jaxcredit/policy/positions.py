"""Position ids, causal and sliding-window masks, and rotary position embeddings (RoPE, 2104.09864).

Letters in shapes: B any batch axes, T tokens of a row, S queries, L layers, h head size.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

NO_WINDOW = 2**30  # window of a layer with full attention: no row is longer


def causal_mask(valid: Bool[Array, "*B T"]) -> Bool[Array, "*B T T"]:
    """Causal attention mask: query i may attend to key j if j <= i and token j is valid.

    Args:
        valid: False at padding `[..., T]`.

    Returns:
        Mask `[..., T queries, T keys]`.
    """
    T = valid.shape[-1]
    return jnp.tril(jnp.ones((T, T), bool)) & valid[..., None, :]


def position_ids(valid: Bool[Array, "*B T"]) -> Int[Array, "*B T"]:
    """Position of each token in its row: the number of valid tokens before it.

    Args:
        valid: False at padding `[..., T]`.

    >>> position_ids(jnp.array([False, True, True, True])).tolist()
    [0, 0, 1, 2]
    """
    return jnp.cumsum(valid, -1, dtype=jnp.int32) - valid


def layer_windows(cfg) -> Int[Array, "L"] | None:
    """Attention window of each layer in tokens, `NO_WINDOW` for full attention.

    None if all layers have full attention, so that their program contains no window masks.
    """
    if not any(cfg.windows):
        return None
    return jnp.array(
        [cfg.windows[i % len(cfg.windows)] or NO_WINDOW for i in range(cfg.layers)], jnp.int32
    )


def sliding_window_mask(
    mask: Bool[Array, "..."],
    query: Int[Array, "*B S"],
    key: Int[Array, "*C T"],
    window: Int[Array, ""] | None,
) -> Bool[Array, "..."]:
    """Attention mask restricted to keys fewer than `window` positions before the query.

    Args:
        mask: attention mask `[..., S, T]`.
        query: positions of the queries `[..., S]`.
        key: positions of the keys `[..., T]`.
        window: window in tokens, the query's own included; None: `mask` unchanged.

    Returns:
        Mask of the broadcast shape `[..., S, T]`.
    """
    return mask if window is None else mask & (query[..., :, None] - key[..., None, :] < window)


def rope_by_window(
    positions: Int[Array, "*B"], cfg
) -> Callable[[Int[Array, ""] | None], tuple[Array, Array]]:
    """Rotary embedding as a function of a layer's window.

    With `cfg.local_theta` (Gemma 3), layers with a window use that base without scaling.

    Args:
        positions: position of each token `[...]`.
        cfg: the policy's Config.

    Returns:
        Function: window (an element of `layer_windows`, or None) -> cos and sin `[..., h / 2]`.
    """
    scaled = rope(positions, cfg)
    if not cfg.local_theta:
        return lambda window: scaled
    local = rope(positions, dataclasses.replace(cfg, rope_theta=cfg.local_theta, rope_scaling=None))
    return lambda window: (
        scaled
        if window is None
        else jax.tree.map(lambda a, b: jnp.where(window < NO_WINDOW, a, b), local, scaled)
    )


def resolve_rope_scaling(cfg, length: int):
    """Config with the RoPE scaling "dynamic" or "longrope" resolved for a row length.

    All tokens of a row are then rotated alike, in training as in decoding. Other scalings are
    returned as they are, and applying this function twice has no further effect.

    Args:
        cfg: the policy's Config.
        length: tokens of the whole rows, prompt and padding included.
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
    """YaRN's attention factor (2309.00071), by which cos and sin are multiplied.

    Args:
        factor: context length over the original context length.
        scale: coefficient of log(factor), config.json's mscale.
    """
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def _yarn(
    frequency: Float[Array, "d"],
    cfg,
    factor: float,
    original: float,
    fast: float,
    slow: float,
    truncate: bool,
) -> Float[Array, "d"]:
    """YaRN frequencies, interpolated between two bounds in turns over the original length.

    Frequencies above `fast` turns are unscaled, those below `slow` turns are divided by `factor`.
    """

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
        (jnp.arange(frequency.size, dtype=jnp.float32) - low)
        / (high - low if high != low else 0.001),
        0,
        1,
    )
    return frequency / factor * ramp + frequency * (1 - ramp)


def rope(positions: Int[Array, "*B"], cfg) -> tuple[Array, Array]:
    """Rotary position embedding: cos and sin of position * theta^(-2i / h), i = 0 .. h/2 - 1.

    The frequencies are scaled by `cfg.rope_scaling`.

    Args:
        positions: position of each token `[...]`.
        cfg: the policy's Config, with "dynamic" and "longrope" replaced by `resolve_rope_scaling`.

    Returns:
        cos and sin `[..., h / 2]`, float32.

    Raises:
        ValueError: the scaling is unknown, or depends on a row length.
    """
    frequency = cfg.rope_theta ** (
        -jnp.arange(0, cfg.head_dim, 2, dtype=jnp.float32) / cfg.head_dim
    )
    scale = 1.0
    match cfg.rope_scaling:
        case None:
            pass
        case ("linear", factor):
            frequency = frequency / factor
        case ("llama3", factor, low, high, original):
            # Llama 3.1: high frequencies unscaled, low ones divided by `factor`, interpolated
            # between.
            turns = original * frequency / (2 * jnp.pi)
            unscaled = jnp.clip((turns - low) / (high - low), 0, 1)
            frequency = frequency * (unscaled + (1 - unscaled) / factor)
        case ("yarn", factor, original, scale, fast, slow, truncate):
            frequency = _yarn(frequency, cfg, factor, original, fast, slow, truncate)
        case ("divided", scale, divisors):
            frequency = frequency / jnp.array(divisors, jnp.float32)
        case ("dynamic" | "longrope", *_):
            raise ValueError(
                f"rope_scaling {cfg.rope_scaling[0]!r} depends on the length of the rows: "
                "pass positions.resolve_rope_scaling(cfg, length)"
            )
        case other:
            raise ValueError(
                f"rope_scaling {other!r} is not known: use None, ('linear', factor), "
                "('llama3', factor, low, high, original), "
                "('yarn', factor, original, attention_factor, beta_fast, beta_slow, truncate), "
                "('dynamic', factor, original) or "
                "('longrope', original, attention_factor, short_factors, long_factors)"
            )
    angle = positions[..., None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return (cos, sin) if scale == 1 else (cos * scale, sin * scale)


@jax.named_scope("rope")
def apply_rope(x: Array, cos: Array, sin: Array) -> Array:
    """Rotate the pairs (x_i, x_{i + h/2}) of every head, the pairing of Hugging Face checkpoints.

    Args:
        x: queries or keys `[..., heads, h]`.
        cos, sin: rotary embedding `[..., h / 2]`, the same for all heads.

    Returns:
        Array of the shape and dtype of x.
    """
    a, b = jnp.split(x, 2, axis=-1)
    cos, sin = cos[..., None, :].astype(x.dtype), sin[..., None, :].astype(x.dtype)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
