"""The largest entries of many rows at once, without sorting them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def kth_largest(
    x: Float[Array, "*b T"], k: Int[Array, "*b"], where: Bool[Array, "*b T"] | None = None
) -> Float[Array, "*b"]:
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


def top_share(
    x: Float[Array, "*b T"],
    share: float | Float[Array, ""],
    where: Bool[Array, "*b T"] | None = None,
) -> Bool[Array, "*b T"]:
    """The ceil(share n) largest of each row's n real entries, at least one; entries equal to the last of them come along."""
    where = jnp.ones(x.shape, bool) if where is None else where
    n = where.sum(-1)
    k = jnp.minimum(
        n, jnp.maximum(1, jnp.floor(share * n + 0.9999).astype(n.dtype))
    )  # 0.2 * 15 is 3, and not one more for rounding
    return where & (x >= kth_largest(x, k, where)[..., None])


def split_at_uncertainty(
    logp: Float[Array, "*b T"],
    mask: Bool[Array, "*b T"],
    *,
    rho: float = 0.9,
    interval: int = 5,
    most: int | None = None,
) -> Int[Array, "*b T"]:
    """Segments that hold `interval` uncertain tokens each, p_t < rho, and begin with one.  segment_t = ceil(u_t / interval) - 1

    u_t counts the policy's uncertain tokens up to t. What comes before the first belongs to no segment (-1), as what the policy did
    not choose; the last may hold fewer, or all the rest with `most` segments. A value before the segment is a value at the cut.
    SPO, arXiv 2505.23564, and its released code.
    """
    uncertain = mask & (logp < jnp.log(rho))
    segment = (jnp.cumsum(uncertain, -1, dtype=jnp.int32) - 1) // interval
    segment = segment if most is None else jnp.minimum(segment, most - 1)
    return jnp.where(mask, segment, -1)


def vote(marks: Bool[Array, "C *s"], share: float | Float[Array, ""] = 0.5) -> Bool[Array, "*s"]:
    """1[sum_c marks_c >= max(1, share C)]: share=1 is the intersection of the judges, 0.5 their majority (a tie counts), 0 the union."""
    return marks.sum(0) >= jnp.maximum(1, share * marks.shape[0])
