"""The largest entries of many rows at once, without sorting them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def kth_largest(x: Float[Array, "*b T"], k: Int[Array, "*b"], where: Bool[Array, "*b T"] | None = None) -> Float[Array, "*b"]:
    """The k-th largest real entry of each row (last axis), exactly; infinity where k < 1. There must be k real entries.

    Found bit by bit: the largest number that at least k entries reach. So many passes over the data are cheaper than a sort on every
    kind of device, nothing of the size of x is made, and a row that is spread over devices moves only counts.
    """
    word = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    top = jnp.asarray(1, word) << (8 * word.itemsize - 1)
    bits = jax.lax.bitcast_convert_type(x + 0, word)  # -0 becomes 0
    key = jnp.where(bits >= top, ~bits, bits | top)  # in the order of the numbers
    where = jnp.ones(x.shape, bool) if where is None else where

    def step(i, found):
        higher = found | (top >> i.astype(word))
        return jnp.where((where & (key >= higher[..., None])).sum(-1) >= k, higher, found)

    found = jax.lax.fori_loop(0, 8 * word.itemsize, step, jnp.zeros(x.shape[:-1], word))
    value = jax.lax.bitcast_convert_type(jnp.where(found >= top, found & ~top, ~found), x.dtype)
    return jnp.where(k >= 1, value, jnp.inf)


def top_share(x: Float[Array, "*b T"], share: float | Float[Array, ""], where: Bool[Array, "*b T"] | None = None) -> Bool[Array, "*b T"]:
    """The ceil(share n) largest of each row's n real entries, at least one; entries equal to the last of them come along."""
    where = jnp.ones(x.shape, bool) if where is None else where
    n = where.sum(-1)
    k = jnp.minimum(n, jnp.maximum(1, jnp.floor(share * n + 0.9999).astype(n.dtype)))  # 0.2 * 15 is 3, and not one more for rounding
    return where & (x >= kth_largest(x, k, where)[..., None])
