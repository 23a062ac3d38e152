"""Statistics of the entries that are really there. Variances take two passes, so an offset of 1e4 costs a float32 nothing."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxcredit.kernels.precision import floor_power_of_two


def masked_mean(
    x: Float[Array, "*a"], where: Bool[Array, "*a"] | None = None, axis=None, keepdims: bool = False
) -> Float[Array, "*b"]:
    """sum_{where} x / #where, and 0 where nothing is real. Exact when all entries are equal: their distance to a peer is averaged."""
    where = jnp.ones(x.shape, bool) if where is None else where
    peer = jnp.max(x, axis, keepdims=True, where=where, initial=-jnp.inf)
    peer = jnp.where(jnp.isfinite(peer), peer, 0)
    n = where.sum(axis, keepdims=True)
    mean = jnp.where(
        n > 0, peer + jnp.where(where, x - peer, 0).sum(axis, keepdims=True) / jnp.maximum(n, 1), 0
    )
    return mean if keepdims else mean.squeeze(axis)


def masked_var(
    x: Float[Array, "*a"],
    where: Bool[Array, "*a"] | None = None,
    axis=None,
    keepdims: bool = False,
    *,
    ddof: int = 0,
) -> Float[Array, "*b"]:
    """sum_{where} (x - mean)^2 / (#where - ddof), and 0 where the denominator is not positive."""
    var, unit = _var_in_units(x, where, axis, ddof)
    var = var * unit * unit
    return var if keepdims else var.squeeze(axis)


def masked_std(
    x: Float[Array, "*a"],
    where: Bool[Array, "*a"] | None = None,
    axis=None,
    keepdims: bool = False,
    *,
    ddof: int = 0,
) -> Float[Array, "*b"]:
    """The root of `masked_var`, whose gradient is 0 (and not infinite) where all entries are equal."""
    var, unit = _var_in_units(x, where, axis, ddof)
    std = root(var) * unit
    return std if keepdims else std.squeeze(axis)


def root(x: Float[Array, "*a"]) -> Float[Array, "*a"]:
    """sqrt(x) for x >= 0 with the gradient 0 at 0, where the true one is infinite and would make 0 * inf = NaN of a harmless product."""
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1)), 0)


def _var_in_units(x, where, axis, ddof):
    """The variance of x / unit and the unit, a power of two near the largest distance to the mean: squares do not overflow."""
    where = jnp.ones(x.shape, bool) if where is None else where
    far = jnp.where(where, x - masked_mean(x, where, axis, keepdims=True), 0)
    unit = floor_power_of_two(jnp.abs(far).max(axis, keepdims=True, initial=0))
    n = where.sum(axis, keepdims=True) - ddof
    return jnp.where(
        n > 0, ((far / unit) ** 2).sum(axis, keepdims=True) / jnp.maximum(n, 1), 0
    ), unit
