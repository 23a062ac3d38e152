"""Rounding errors of float sums, relative to the magnitudes of the terms (the sum itself may cancel to 0)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def rounding_bound(size: Float[Array, "*s"], terms: int | Array = 1) -> Float[Array, "*s"]:
    """Bound on the difference between float sums of the same numbers in different orders.  4 (1 + sqrt terms) eps size

    The bound is rigorous up to 24 terms. Beyond them it is many standard deviations of the rounding error, which grows as a random walk.

    Args:
        size: [...] sum of the terms' magnitudes.
        terms: number of terms.
    """
    eps = min(jnp.finfo(size.dtype).eps, jnp.finfo(jnp.float32).eps)
    return 4 * eps * (1 + jnp.sqrt(jnp.asarray(terms, size.dtype))) * size


def merge_equal(
    x: Float[Array, "*b G"], slack: Float[Array, "*b G"], where: Bool[Array, "*b G"]
) -> Float[Array, "*b G"]:
    """Values with those that differ by no more than rounding set equal, so that == and > compare them exactly.

    Each x_i becomes 0 if |x_i| <= slack_i, else the x_j of least slack with |x_i - x_j| <= max(slack_i, slack_j). All pairs along the last
    axis are compared.

    Args:
        x: [..., G] values.
        slack: [..., G] bound on the rounding error of each value, >= 0.
        where: [..., G] entries to compare; the others are returned unchanged and no value is replaced by them.
    """
    near = where[..., None, :] & (
        jnp.abs(x[..., :, None] - x[..., None, :])
        <= jnp.maximum(slack[..., :, None], slack[..., None, :])
    )
    least = jnp.where(near, slack[..., None, :], jnp.inf).min(-1, keepdims=True)
    partner = jnp.where(near & (slack[..., None, :] == least), x[..., None, :], -jnp.inf).max(-1)
    merged = jnp.where(partner == x, x, partner)  # an unchanged number keeps its own gradient
    return jnp.where(where, jnp.where(jnp.abs(x) <= slack, 0, merged), x)


def floor_power_of_two(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Largest power of two <= |x|; 1 if |x| is 0, subnormal or not finite. Its gradient is 0.

    Division by it is exact. Dividing numbers by the binade of their scale keeps their squares in the range of float32, which the squares of
    1e20 and 1e-25 leave.
    """
    info, word = jnp.finfo(x.dtype), jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    exponent = ((1 << info.nexp) - 1) << info.nmant
    power = jax.lax.bitcast_convert_type(
        jax.lax.bitcast_convert_type(x, word) & jnp.asarray(exponent, word), x.dtype
    )
    return jnp.where((power > 0) & jnp.isfinite(power), power, 1)
