"""A baseline is a mean over peers. Most of the literature differs only in who the peers are: equal numbers in `by` belong together.

All axes are flattened: the units of one group are compared with each other whatever their shape. `by=None` makes everybody a peer and
costs one reduction; otherwise it is one equality matrix and one matmul, meant for at most about a thousand units.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxcredit.kernels.masked import masked_mean, root
from jaxcredit.kernels.precision import floor_power_of_two, rounding_bound

Slack = (
    Float[Array, "..."] | None
)  # differences up to it are rounding: one number, or one for each unit


def mean_by(
    x: Float[Array, "*s"],
    by: Int[Array, "*s"] | None = None,
    where: Bool[Array, "*s"] | None = None,
    *,
    leave_one_out: bool = False,
) -> Float[Array, "*s"]:
    """The mean of each unit's peers: m_i = sum_{j in P(i)} x_j / |P(i)|, and 0 off `where`.

    With `leave_one_out` a unit is not its own peer; one without any peers then keeps its own value, so that nothing is left of it.
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
    """x_i - m_i: exactly 0 for a unit alone and for equal peers of any value, and 0 off `where`. Leave-one-out is n/(n-1) times that.

    Peers are equal where they differ by no more than `return_rounding`, as in `standardize`.
    """
    far, n, unit = _far(x, by, where, slack)
    return far * unit * (n / jnp.maximum(n - 1, 1)).astype(x.dtype) if leave_one_out else far * unit


def std_by(
    x: Float[Array, "*s"],
    by: Int[Array, "*s"] | None = None,
    where: Bool[Array, "*s"] | None = None,
    *,
    ddof: int = 0,
    slack: Slack = None,
) -> Float[Array, "*s"]:
    """The standard deviation of each unit's peers, s_i^2 = sum_{j in P(i)} (x_j - m_i)^2 / (|P(i)| - ddof); 0 off `where`, and where the
    peers are equal up to `return_rounding`, as in `standardize`: .1 + .2 + .3 and .3 + .2 + .1 are one return."""
    far, n, unit = _far(x, by, where, slack)
    std = _std(far, n, by, where, ddof) * unit
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
    """(x_i - m_i) / (s_i + eps), with eps outside the root; exactly 0, value and gradient, where the peers are equal or there are none.

    Peers are equal where all of them lie within `return_rounding`, the largest of theirs: give `rounding` of the magnitudes that each x was added
    up from. None is that of |x| itself, which is too little for a sum of gains and losses that cancel.
    """
    far, n, unit = _far(x, by, where, slack)
    std = _std(far, n, by, where, ddof) * unit
    return jnp.where(std > 0, far * unit / jnp.where(std > 0, std + eps, 1), 0)


def _far(x, by, where, slack):
    """Each unit's distance to its peers' mean, how many they are, and the power of two that the distance is measured in.

    The distance to one of the peers (the largest) is taken before averaging: equal values then differ by exactly 0 from each other,
    where seven times 0.7 over seven is not 0.7, and a common offset is gone before anything is summed. In units of about the peers'
    range no square overflows or vanishes.
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


def _std(far, n, by, where, ddof):
    left = n - ddof
    return root(jnp.where(left > 0, _sum(far * far, by, where) / jnp.where(left > 0, left, 1), 0))


def _largest(x, by, real):
    """The maximum over each unit's peers; -inf where there are none."""
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
    """Var_G, Var_S and what lies between: Var_G - Var_S = 1/n sum_k n_k (mean_k - mean)^2 >= 0 (arXiv 2510.06214).

    Var_G is the variance of x - mean, Var_S that of x - mean_k, k the stratum of each. The third number is computed from the means.
    """
    whole, within = center(x, where=where), center(x, by, where)
    whole, within, between = (masked_mean(y * y, where) for y in (whole, within, whole - within))
    return whole, within, jnp.asarray(between)
