"""A baseline is a mean over peers. Most of the literature differs only in who the peers are: equal numbers in `by` belong together.

All axes are flattened: the units of one group are compared with each other whatever their shape. `by=None` makes everybody a peer and
costs one reduction; otherwise it is one equality matrix and one matmul, meant for at most about a thousand units.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxcredit.kernels.masked import root


def mean_by(
    x: Float[Array, "*s"], by: Int[Array, "*s"] | None = None, where: Bool[Array, "*s"] | None = None, *, leave_one_out: bool = False
) -> Float[Array, "*s"]:
    """The mean of each unit's peers: m_i = sum_{j in P(i)} x_j / |P(i)|, and 0 off `where`.

    With `leave_one_out` a unit is not its own peer; one without any peers then keeps its own value, so that nothing is left of it.
    """
    where = jnp.ones(x.shape, bool) if where is None else where
    return jnp.where(where, x - centre(x, by, where, leave_one_out=leave_one_out), 0)


def centre(
    x: Float[Array, "*s"], by: Int[Array, "*s"] | None = None, where: Bool[Array, "*s"] | None = None, *, leave_one_out: bool = False
) -> Float[Array, "*s"]:
    """x_i - m_i: exactly 0 for a unit alone and for equal peers of any value, and 0 off `where`. Leave-one-out is n/(n-1) times that."""
    far, n = _far(x, by, where)
    return far * (n / jnp.maximum(n - 1, 1)).astype(x.dtype) if leave_one_out else far


def std_by(
    x: Float[Array, "*s"], by: Int[Array, "*s"] | None = None, where: Bool[Array, "*s"] | None = None, *, ddof: int = 0
) -> Float[Array, "*s"]:
    """The standard deviation of each unit's peers, s_i^2 = sum_{j in P(i)} (x_j - m_i)^2 / (|P(i)| - ddof); 0 off `where` and where it is
    within the rounding of float32, 1e-6 of the mean: .1 + .2 + .3 and .3 + .2 + .1 are one return."""
    std = _std(x, *_far(x, by, where), by, where, ddof)
    return std if where is None else jnp.where(where, std, 0)


def standardise(
    x: Float[Array, "*s"],
    by: Int[Array, "*s"] | None = None,
    where: Bool[Array, "*s"] | None = None,
    *,
    ddof: int = 0,
    eps: float = 1e-6,
) -> Float[Array, "*s"]:
    """(x_i - m_i) / (s_i + eps), with eps outside the root; exactly 0, value and gradient, where the peers are equal, up to the rounding
    of the sums that they come from, or where there are none."""
    far, n = _far(x, by, where)
    std = _std(x, far, n, by, where, ddof)
    return jnp.where(std > 0, far / jnp.where(std > 0, std + eps, 1), 0)


def _far(x, by, where):
    """Each unit's distance to its peers' mean, and how many they are.

    The distance to one of the peers (the largest) is taken before averaging: equal values then differ by exactly 0 from each other,
    where seven times 0.7 over seven is not 0.7, and a common offset is gone before anything is summed.
    """
    real = jnp.ones(x.shape, bool) if where is None else where
    if by is None:
        peer = jnp.max(x, where=real, initial=-jnp.inf)
    else:
        peer = jnp.max(jnp.where(_same(by, real), x.reshape(-1), -jnp.inf), -1).reshape(x.shape)
    far = jnp.where(real, x - jnp.where(peer > -jnp.inf, peer, 0), 0)
    n = jnp.maximum(_sum(jnp.where(real, 1, 0).astype(x.dtype), by, real), 1)
    return jnp.where(real, far - _sum(far, by, real) / n, 0), n


def _std(x, far, n, by, where, ddof):
    left = n - ddof
    std = root(jnp.where(left > 0, _sum(far * far, by, where) / jnp.where(left > 0, left, 1), 0))
    rounding = 8 * min(jnp.finfo(x.dtype).eps, jnp.finfo(jnp.float32).eps)
    return jnp.where(std > rounding * jnp.abs(x - far), std, 0)


def _sum(x, by, where):
    """Sum over each unit's peers, of an x that is 0 off `where`."""
    if by is None:
        return jnp.broadcast_to(x.sum(), x.shape)
    real = jnp.ones(x.shape, bool) if where is None else where
    return jnp.matmul(_same(by, real).astype(x.dtype), x.reshape(-1), precision=jax.lax.Precision.HIGHEST).reshape(x.shape)


def _same(by, real):
    by, real = by.reshape(-1), real.reshape(-1)
    return (by[:, None] == by) & real[:, None] & real
