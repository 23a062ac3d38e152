"""Baselines: statistics over the peers of each unit, and units relative to them.

A unit is one entry of an array; its peers are the units with an equal number in `by` (None: all
units). Axes are flattened, so units of one group are compared whatever their shape. `by=None` costs
one reduction. Otherwise the cost is one equality matrix and one product, meant for about a thousand
units; `center_by_role` sorts instead.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxcredit.kernels.masked import masked_mean, root
from jaxcredit.kernels.precision import floor_power_of_two, rounding_bound

# Differences up to it count as rounding: one number, or one for each unit.
Slack = Float[Array, "..."] | None


def mean_by(
    x: Float[Array, "*s"],
    by: Int[Array, "*s"] | None = None,
    where: Bool[Array, "*s"] | None = None,
    *,
    leave_one_out: bool = False,
) -> Float[Array, "*s"]:
    """Mean of each unit's peers, 0 off `where`.

        m_i = sum_{j in P(i)} x_j / |P(i)|

    Args:
        x: [...] values.
        by: [...] partition: units with equal numbers are peers. None: all are.
        where: [...] units that exist. None: all.
        leave_one_out: exclude the unit itself. A unit without other peers keeps its own value.

    Returns:
        [...] means.

    >>> mean_by(jnp.array([1.0, 3.0, 5.0]), jnp.array([0, 0, 1])).tolist()
    [2.0, 2.0, 5.0]
    """
    where = jnp.ones(x.shape, bool) if where is None else where
    return jnp.where(where, x - center(x, by, where, leave_one_out=leave_one_out), 0)


def center(
    x: Float[Array, "*s"],
    by: Int[Array, "*s"] | None = None,
    where: Bool[Array, "*s"] | None = None,
    *,
    leave_one_out: bool = False,
    slack: Slack = None,
) -> Float[Array, "*s"]:
    """Difference of each unit from the mean of its peers.

        x_i - m_i

    Exactly 0 for a unit without other peers, for peers that are equal, and off `where`. The
    leave-one-out difference is n / (n - 1) times the plain one.

    Args:
        x: [...] values.
        by: [...] partition: units with equal numbers are peers. None: all are.
        where: [...] units that exist. None: all.
        leave_one_out: exclude the unit itself from the mean.
        slack: differences up to it count as rounding, one number or one for each unit. Pass
            `rounding_bound` of the magnitudes from which each x was summed. None: the bound for
            |x|, which is too small for a sum of gains and losses that cancel.

    Returns:
        [...] centered values.

    >>> center(jnp.array([1.0, 0.0, 0.0, 1.0])).tolist()
    [0.5, -0.5, -0.5, 0.5]
    """
    centered, n, unit = _centered(x, by, where, slack)
    return (
        centered * unit * (n / jnp.maximum(n - 1, 1)).astype(x.dtype)
        if leave_one_out
        else centered * unit
    )


def std_by(
    x: Float[Array, "*s"],
    by: Int[Array, "*s"] | None = None,
    where: Bool[Array, "*s"] | None = None,
    *,
    ddof: int = 0,
    slack: Slack = None,
) -> Float[Array, "*s"]:
    """Standard deviation of each unit's peers, 0 off `where` and where the peers are equal.

        s_i^2 = sum_{j in P(i)} (x_j - m_i)^2 / (|P(i)| - ddof)

    Args:
        x: [...] values.
        by: [...] partition: units with equal numbers are peers. None: all are.
        where: [...] units that exist. None: all.
        ddof: degrees of freedom taken off the number of peers.
        slack: differences up to it count as rounding, as for `center`.

    Returns:
        [...] standard deviations.

    >>> std_by(jnp.array([1.0, 3.0, 5.0]), jnp.array([0, 0, 1])).tolist()
    [1.0, 1.0, 0.0]
    """
    centered, n, unit = _centered(x, by, where, slack)
    std = _std(centered, n, by, where, ddof) * unit
    return std if where is None else jnp.where(where, std, 0)


def standardize(
    x: Float[Array, "*s"],
    by: Int[Array, "*s"] | None = None,
    where: Bool[Array, "*s"] | None = None,
    *,
    ddof: int = 0,
    eps: float = 1e-6,
    slack: Slack = None,
) -> Float[Array, "*s"]:
    """Units relative to their peers in standard deviations, the advantage of GRPO.

        (x_i - m_i) / (s_i + eps)

    Exactly 0, value and gradient, where the peers are equal or there are none.

    Args:
        x: [...] values.
        by: [...] partition: units with equal numbers are peers. None: all are.
        where: [...] units that exist. None: all.
        ddof: degrees of freedom taken off the number of peers.
        eps: added to the deviation, outside the root.
        slack: differences up to it count as rounding, as for `center`.

    Returns:
        [...] standardized values.

    >>> standardize(jnp.array([1.0, 0.0, 0.0, 1.0]), eps=0.0).tolist()
    [1.0, -1.0, -1.0, 1.0]
    """
    centered, n, unit = _centered(x, by, where, slack)
    std = _std(centered, n, by, where, ddof) * unit
    return jnp.where(std > 0, centered * unit / jnp.where(std > 0, std + eps, 1), 0)


def _centered(x, by, where, slack):
    """Distance to the peers' mean in units of a power of two, the number of peers, and that unit.

    The distance to the largest peer is taken before averaging: equal values then differ by exactly
    0, and a common offset is gone before anything is summed. In units of about the peers' range no
    square overflows or vanishes.
    """
    real = jnp.ones(x.shape, bool) if where is None else where
    top, low = _largest(x, by, real), -_largest(-x, by, real)
    some = top > -jnp.inf
    top, low = jnp.where(some, top, 0), jnp.where(some, low, 0)
    if slack is None:
        slack = rounding_bound(jnp.maximum(jnp.abs(top), jnp.abs(low)))
    elif jnp.ndim(slack):
        slack = _largest(slack, by, real)
    unit = floor_power_of_two(top - low)
    far = jnp.where(real & (top - low > slack), (x - top) / unit, 0)
    n = jnp.maximum(_sum(jnp.where(real, 1, 0).astype(x.dtype), by, real), 1)
    return jnp.where(real, far - _sum(far, by, real) / n, 0), n, unit


def _std(centered, n, by, where, ddof):
    denominator = n - ddof
    return root(
        jnp.where(
            denominator > 0,
            _sum(centered * centered, by, where) / jnp.where(denominator > 0, denominator, 1),
            0,
        )
    )


def _largest(x, by, real):
    """Maximum over each unit's peers, -inf where there are none."""
    if by is None:
        return jnp.max(x, where=real, initial=-jnp.inf)
    return jnp.max(jnp.where(_same(by, real), x.reshape(-1), -jnp.inf), -1).reshape(x.shape)


def _sum(x, by, where):
    """Sum over each unit's peers, of an x that is 0 off `where`."""
    if by is None:
        return jnp.broadcast_to(x.sum(), x.shape)
    real = jnp.ones(x.shape, bool) if where is None else where
    return jnp.matmul(
        _same(by, real).astype(x.dtype), x.reshape(-1), precision=jax.lax.Precision.HIGHEST
    ).reshape(x.shape)


def _same(by, real):
    by, real = by.reshape(-1), real.reshape(-1)
    return (by[:, None] == by) & real[:, None] & real


def variance_parts(
    x: Float[Array, "*s"], by: Int[Array, "*s"], where: Bool[Array, "*s"] | None = None
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Variance of a group, its part within strata and its part between them.

        Var_G - Var_S = 1/n sum_k n_k (mean_k - mean)^2 >= 0

    Var_G is the variance around the group's mean, Var_S that around the mean of each unit's stratum
    k. Source: arXiv 2510.06214.

    Args:
        x: [...] values.
        by: [...] stratum of each unit.
        where: [...] units that exist. None: all.

    Returns:
        Var_G, Var_S, and their difference, computed from the means.

    >>> [float(v) for v in variance_parts(jnp.array([0.0, 2.0, 4.0, 6.0]), jnp.array([0, 0, 1, 1]))]
    [5.0, 1.0, 4.0]
    """
    whole, within = center(x, where=where), center(x, by, where)
    whole, within, between = (masked_mean(y * y, where) for y in (whole, within, whole - within))
    return whole, within, jnp.asarray(between)
