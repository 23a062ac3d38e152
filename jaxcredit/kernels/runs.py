"""Runs along the last axis: the last real entry, what was seen last, and neighbours with equal numbers (macro actions, thoughts)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from jaxcredit.kernels.returns import to_go


def final(where: Bool[Array, "*b K"]) -> Bool[Array, "*b K"]:
    """True at the last real entry alone."""
    place = jnp.arange(where.shape[-1])
    return where & (place == jnp.where(where, place, -1).max(-1, keepdims=True, initial=-1))


def at_first(x: Float[Array, "*b K"], where: Bool[Array, "*b K"]) -> Float[Array, "*b"]:
    """x at the first real entry; 0 where there is none."""
    place = jnp.argmax(where, -1, keepdims=True)
    return jnp.where(where.any(-1), jnp.take_along_axis(x, place, -1)[..., 0], 0)


def carried(x: Num[Array, "*b K"], where: Bool[Array, "*b K"]) -> Num[Array, "*b K"]:
    """f_k = x at the last real position up to k; 0 before the first. What was last seen is still so."""
    here = jax.lax.cummax(jnp.where(where, jnp.arange(x.shape[-1]), -1), axis=x.ndim - 1)
    return jnp.where(here >= 0, jnp.take_along_axis(x, jnp.maximum(here, 0), -1), 0)


def run_ends(number: Int[Array, "*b T"], where: Bool[Array, "*b T"]) -> Bool[Array, "*b T"]:
    """True at the last real entry of each run of equal numbers. A hole does not cut a run."""
    next_number = jnp.concatenate([to_go(number, 0, where=where)[..., 1:], jnp.zeros_like(number[..., :1])], -1)
    return (where & (next_number != number)) | final(where)


def run_begins(number: Int[Array, "*b T"], where: Bool[Array, "*b T"]) -> Bool[Array, "*b T"]:
    """True at the first real entry of each run of equal numbers."""
    return jnp.flip(run_ends(jnp.flip(number, -1), jnp.flip(where, -1)), -1)


def run_sums(x: Float[Array, "*b T"], begins: Bool[Array, "*b T"], where: Bool[Array, "*b T"]) -> Float[Array, "*b T"]:
    """s_t = x_t + s_{t-1}, from 0 where a run begins: at its end this is the run's total. A hole shows the sum so far."""
    step = jnp.where(begins, 0, 1).astype(x.dtype)
    return jnp.flip(to_go(jnp.flip(x, -1), jnp.flip(step, -1), where=jnp.flip(where, -1)), -1)
