"""Where a text is cut: between tokens that were certain and tokens that were not."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def cut_points(
    logp: Float[Array, "*b T"], mask: Bool[Array, "*b T"], *, rho: float = 0.9, interval: int = 5, most: int | None = None
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
