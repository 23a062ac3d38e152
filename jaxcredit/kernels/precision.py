"""Rounding errors of float sums, from the magnitudes of their terms (the sum may cancel to 0)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def rounding_bound(size: Float[Array, "*s"], terms: int | Array = 1) -> Float[Array, "*s"]:
    """Bound on the difference between float sums of the same numbers in different orders.

        4 (1 + sqrt(terms)) eps size,   eps that of float32 or of a coarser dtype

    The bound is rigorous up to 24 terms. Beyond them it is many standard deviations of the rounding
    error, which grows as a random walk.

    Args:
        size: [...] sum of the magnitudes of the terms, >= 0.
        terms: number of terms.

    Returns:
        [...] bound, >= 0.

    >>> float(rounding_bound(jnp.float32(8.0))) == 64 * float(jnp.finfo(jnp.float32).eps)
    True
    """
    eps = min(jnp.finfo(size.dtype).eps, jnp.finfo(jnp.float32).eps)
    return 4 * eps * (1 + jnp.sqrt(jnp.asarray(terms, size.dtype))) * size


def merge_equal(
    x: Float[Array, "*b G"], slack: Float[Array, "*b G"], where: Bool[Array, "*b G"]
) -> Float[Array, "*b G"]:
    """Values with those set equal that differ by no more than rounding, so that == and > are exact.

    Each x_i becomes 0 if |x_i| <= slack_i, else the x_j of least slack with
    |x_i - x_j| <= max(slack_i, slack_j). All pairs along the last axis are compared.

    Args:
        x: [..., G] values.
        slack: [..., G] bound on the rounding error of each value, >= 0.
        where: [..., G] entries to compare. The others are returned unchanged and replace no value.

    Returns:
        [..., G] merged values.

    >>> x, slack = jnp.array([1.0, 1.25, 3.0]), jnp.array([0.25, 0.5, 0.5])
    >>> merge_equal(x, slack, jnp.ones(3, bool)).tolist()
    [1.0, 1.0, 3.0]
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

    Division by a power of two is exact. Divided by that of their scale, numbers of any magnitude
    have squares in the range of float32.

    Args:
        x: [...] floats.

    Returns:
        [...] powers of two.

    >>> floor_power_of_two(jnp.array([5.0, -0.3, 0.0])).tolist()
    [4.0, 0.25, 1.0]
    """
    finfo, uint = jnp.finfo(x.dtype), jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    exponent = ((1 << finfo.nexp) - 1) << finfo.nmant
    power = jax.lax.bitcast_convert_type(
        jax.lax.bitcast_convert_type(x, uint) & jnp.asarray(exponent, uint), x.dtype
    )
    return jnp.where((power > 0) & jnp.isfinite(power), power, 1)
