"""Mean, variance and standard deviation of the entries that a mask selects.

Variances take two passes, so a large common offset costs no precision in float32.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxcredit.kernels.precision import floor_power_of_two


def masked_mean(
    x: Float[Array, "*a"], where: Bool[Array, "*a"] | None = None, axis=None, keepdims: bool = False
) -> Float[Array, "*b"]:
    """Mean of the selected entries, 0 where none is selected.

        sum_{where} x / #where

    Exact where all selected entries are equal: differences to the largest entry are averaged.

    Args:
        x: array of any shape.
        where: mask that broadcasts to x. None: all entries.
        axis: axis or axes to reduce. None: all.
        keepdims: keep reduced axes with length 1.

    Returns:
        x with `axis` reduced.

    >>> float(masked_mean(jnp.array([1.0, 2.0, 9.0]), jnp.array([True, True, False])))
    1.5
    """
    where = jnp.ones(x.shape, bool) if where is None else where
    largest = jnp.max(x, axis, keepdims=True, where=where, initial=-jnp.inf)
    largest = jnp.where(jnp.isfinite(largest), largest, 0)
    n = where.sum(axis, keepdims=True)
    mean = jnp.where(
        n > 0,
        largest + jnp.where(where, x - largest, 0).sum(axis, keepdims=True) / jnp.maximum(n, 1),
        0,
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
    """Variance of the selected entries, 0 where the denominator is not positive.

        sum_{where} (x - mean)^2 / (#where - ddof)

    Args:
        x: array of any shape.
        where: mask that broadcasts to x. None: all entries.
        axis: axis or axes to reduce. None: all.
        keepdims: keep reduced axes with length 1.
        ddof: degrees of freedom taken off the number of entries: 0 population, 1 sample variance.

    Returns:
        x with `axis` reduced.

    >>> float(masked_var(jnp.array([1.0, 3.0, 9.0]), jnp.array([True, True, False]), ddof=1))
    2.0
    """
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
    """Standard deviation of the selected entries: the square root of `masked_var`.

    Its gradient is 0, not infinite, where all entries are equal.

    Args:
        x: array of any shape.
        where: mask that broadcasts to x. None: all entries.
        axis: axis or axes to reduce. None: all.
        keepdims: keep reduced axes with length 1.
        ddof: degrees of freedom taken off the number of entries.

    Returns:
        x with `axis` reduced.
    """
    var, unit = _var_in_units(x, where, axis, ddof)
    std = root(var) * unit
    return std if keepdims else std.squeeze(axis)


def root(x: Float[Array, "*a"]) -> Float[Array, "*a"]:
    """Square root of x >= 0 whose gradient at 0 is 0.

    The true gradient there is infinite and would turn a product with 0 into NaN.
    """
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1)), 0)


def _var_in_units(x, where, axis, ddof):
    """Variance of x / unit, and the unit: a power of two near the largest distance to the mean.

    In that unit squares do not overflow.
    """
    where = jnp.ones(x.shape, bool) if where is None else where
    centered = jnp.where(where, x - masked_mean(x, where, axis, keepdims=True), 0)
    unit = floor_power_of_two(jnp.abs(centered).max(axis, keepdims=True, initial=0))
    n = where.sum(axis, keepdims=True) - ddof
    return jnp.where(
        n > 0, ((centered / unit) ** 2).sum(axis, keepdims=True) / jnp.maximum(n, 1), 0
    ), unit
