"""Where a token stands: its position, who sees whom, how far a layer looks back, and the rotation that tells heads about it."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

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
    return jnp.array([cfg.windows[i % len(cfg.windows)] or FAR for i in range(cfg.layers)], jnp.int32)


def near(mask: Bool[Array, "..."], query: Int[Array, "*B S"], key: Int[Array, "*C T"], window: Int[Array, ""] | None) -> Bool[Array, "..."]:
    """Of the tokens that `mask` lets a query see, those fewer than `window` positions back."""
    return mask if window is None else mask & (query[..., :, None] - key[..., None, :] < window)


def angles(positions: Int[Array, "*B"], cfg) -> Callable[[Int[Array, ""] | None], tuple[Array, Array]]:
    """window -> cos and sin of a layer: those with a window may turn at a theta of their own, which is never scaled (Gemma 3)."""
    wide = rope(positions, cfg)
    if not cfg.local_theta:
        return lambda window: wide
    local = rope(positions, dataclasses.replace(cfg, rope_theta=cfg.local_theta, rope_scaling=None))
    return lambda window: wide if window is None else jax.tree.map(lambda a, b: jnp.where(window < FAR, a, b), local, wide)


def rope(positions: Int[Array, "*B"], cfg) -> tuple[Array, Array]:
    """cos and sin of position * theta^(-2i/h), `[*B, h/2]`; scaled as Llama 3 does, or linearly, where the config says so."""
    freq = cfg.rope_theta ** (-jnp.arange(0, cfg.head_dim, 2, dtype=jnp.float32) / cfg.head_dim)
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
        case other:
            raise ValueError(
                f"rope_scaling {other!r} is not known: use None, ('linear', factor) or ('llama3', factor, low, high, original)"
            )
    angle = positions[..., None].astype(jnp.float32) * freq
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotate the pairs (x_i, x_{i+h/2}) of every head: the halves convention of Hugging Face."""
    a, b = jnp.split(x, 2, axis=-1)
    cos, sin = cos[..., None, :].astype(x.dtype), sin[..., None, :].astype(x.dtype)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
