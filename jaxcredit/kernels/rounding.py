"""Rounding of sums, measured by the magnitudes that were added and never by the sum, which may cancel to 0."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def rounding(size: Float[Array, "*s"], terms: int | Array = 1) -> Float[Array, "*s"]:
    """A bound on the difference of two float sums of the same numbers in different orders.  4 (1 + sqrt terms) eps size

    `size` is the sum of the magnitudes that were added, `terms` how many they are. The bound is rigorous up to 24 terms; beyond them it is
    many standard deviations of the rounding, which grows as a random walk.
    """
    eps = min(jnp.finfo(size.dtype).eps, jnp.finfo(jnp.float32).eps)
    return 4 * eps * (1 + jnp.sqrt(jnp.asarray(terms, size.dtype))) * size


def merge_equal(x: Float[Array, "*b G"], slack: Float[Array, "*b G"], where: Bool[Array, "*b G"]) -> Float[Array, "*b G"]:
    """Numbers that differ by no more than their rounding, made equal: compare the results with == and >.

    Each x_i becomes 0 if |x_i| <= slack_i, else the most certain x_j (that of least slack) with |x_i - x_j| <= max(slack_i, slack_j).
    Compares all pairs along the last axis. Entries off `where` stay as they are and are nobody's partner.
    """
    near = where[..., None, :] & (jnp.abs(x[..., :, None] - x[..., None, :]) <= jnp.maximum(slack[..., :, None], slack[..., None, :]))
    least = jnp.where(near, slack[..., None, :], jnp.inf).min(-1, keepdims=True)
    partner = jnp.where(near & (slack[..., None, :] == least), x[..., None, :], -jnp.inf).max(-1)
    merged = jnp.where(partner == x, x, partner)  # a number that stays keeps its own gradient
    return jnp.where(where, jnp.where(jnp.abs(x) <= slack, 0, merged), x)


def binade(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """The largest power of two that is not above |x|, and 1 where |x| is 0 or too small for one. Its gradient is 0.

    Division by it is exact, so that squares can be taken of numbers near 1 whatever the unit of x: neither 1e20 nor 1e-25 has a square in
    float32, and ordinary numbers keep their bits.
    """
    info, word = jnp.finfo(x.dtype), jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    exponent = ((1 << info.nexp) - 1) << info.nmant
    power = jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(x, word) & jnp.asarray(exponent, word), x.dtype)
    return jnp.where((power > 0) & jnp.isfinite(power), power, 1)
