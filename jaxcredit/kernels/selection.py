"""Selection of the largest entries of many rows without sorting, and of segments and votes."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def kth_largest(
    x: Float[Array, "*b T"], k: Int[Array, "*b"], where: Bool[Array, "*b T"] | None = None
) -> Float[Array, "*b"]:
    """k-th largest selected entry of each row, exactly; infinity where k < 1.

    The value is found bit by bit, as the largest number that at least k entries reach. This needs
    no temporary of the size of x, and a row sharded over devices exchanges counts only.

    Args:
        x: [..., T] floats.
        k: [...] rank, at most the number of selected entries.
        where: [..., T] entries to read. None: all.

    Returns:
        [...] values.

    >>> float(kth_largest(jnp.array([3.0, 1.0, 2.0]), jnp.int32(2)))
    2.0
    """
    uint = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    top = jnp.asarray(1, uint) << (8 * uint.itemsize - 1)
    bits = jax.lax.bitcast_convert_type(x + 0, uint)  # -0 becomes 0
    key = jnp.where(bits >= top, ~bits, bits | top)  # in the order of the numbers
    where = jnp.ones(x.shape, bool) if where is None else where

    def step(i, prefix):
        higher = prefix | (top >> i.astype(uint))
        return jnp.where((where & (key >= higher[..., None])).sum(-1) >= k, higher, prefix)

    prefix = jax.lax.fori_loop(0, 8 * uint.itemsize, step, jnp.zeros(x.shape[:-1], uint))
    value = jax.lax.bitcast_convert_type(jnp.where(prefix >= top, prefix & ~top, ~prefix), x.dtype)
    return jnp.where(k >= 1, value, jnp.inf)


def top_share(
    x: Float[Array, "*b T"],
    share: float | Float[Array, ""],
    where: Bool[Array, "*b T"] | None = None,
) -> Bool[Array, "*b T"]:
    """Mask of the largest entries of each row, a given share of them.

    Selects the ceil(share n) largest of the n entries under `where`, at least one. Entries equal to
    the least selected one are selected too.

    Args:
        x: [..., T] floats.
        share: share of the entries, in (0, 1].
        where: [..., T] entries to read. None: all.

    Returns:
        [..., T] mask.

    >>> top_share(jnp.array([3.0, 1.0, 2.0, 0.0]), 0.5).tolist()
    [True, False, True, False]
    """
    where = jnp.ones(x.shape, bool) if where is None else where
    n = where.sum(-1)
    # The ceiling, except that 0.2 * 15 is 3 whatever its rounding.
    k = jnp.minimum(n, jnp.maximum(1, jnp.floor(share * n + 0.9999).astype(n.dtype)))
    return where & (x >= kth_largest(x, k, where)[..., None])


def split_at_uncertainty(
    logp: Float[Array, "*b T"],
    mask: Bool[Array, "*b T"],
    *,
    rho: float = 0.9,
    interval: int = 5,
    most: int | None = None,
) -> Int[Array, "*b T"]:
    """Segments of a row that hold equal numbers of uncertain tokens and begin with one.

        segment_t = ceil(u_t / interval) - 1,   u_t = number of tokens up to t with p < rho

    Tokens before the first uncertain one belong to no segment (-1), as do tokens that the policy
    did not sample. The last segment may hold fewer uncertain tokens. Source: SPO, arXiv 2505.23564,
    and its released code.

    Args:
        logp: [..., T] log-probability of each token.
        mask: [..., T] tokens that the policy sampled.
        rho: probability below which a token is uncertain, in (0, 1).
        interval: uncertain tokens of a segment, >= 1.
        most: largest number of segments; the last one takes the rest. None: no limit.

    Returns:
        [..., T] segment of each token, -1 outside any.

    >>> p = jnp.array([0.99, 0.5, 0.99, 0.5])
    >>> split_at_uncertainty(jnp.log(p), jnp.ones(4, bool), interval=1).tolist()
    [-1, 0, 0, 1]
    """
    uncertain = mask & (logp < jnp.log(rho))
    segment = (jnp.cumsum(uncertain, -1, dtype=jnp.int32) - 1) // interval
    segment = segment if most is None else jnp.minimum(segment, most - 1)
    return jnp.where(mask, segment, -1)


def vote(marks: Bool[Array, "C *s"], share: float | Float[Array, ""] = 0.5) -> Bool[Array, "*s"]:
    """Decision of several judges by a quorum.

        1[sum_c marks_c >= max(1, share C)]

    Args:
        marks: [C, ...] marks of C judges.
        share: quorum. 1: all judges, 0.5: half of them, 0: any one.

    Returns:
        [...] decisions.

    >>> vote(jnp.array([[True, True], [True, False], [False, False]])).tolist()
    [True, False]
    """
    return marks.sum(0) >= jnp.maximum(1, share * marks.shape[0])
