"""Statistics of attention maps, arXiv 2510.13554.

Entry [t, s] of a map is the weight of token s <= t in the attention of token t.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def waad(attention: Float[Array, "*b T T"], window: int = 10) -> Float[Array, "*b T"]:
    """Windowed average attention distance: how far back a token attends.

        WAAD_t = sum_{s <= t} a_ts min(t - s, window)

    Args:
        attention: [..., T, T] attention map.
        window: distance at which the average is cut off, >= 1.

    Returns:
        [..., T] distances in tokens.

    >>> waad(jnp.array([[1.0, 0.0], [0.5, 0.5]])).tolist()
    [0.0, 0.5]
    """
    return (attention * jnp.clip(_back(attention), 0, window)).sum(-1)


def fai(
    attention: Float[Array, "*b T T"],
    near: int = 10,
    far: int = 100,
    where: Bool[Array, "*b T"] | None = None,
) -> Float[Array, "*b T"]:
    """Future attention influence: mean attention of later tokens to each token.

        FAI_s = mean_t a_ts,   s + near <= t <= s + far

    Args:
        attention: [..., T, T] attention map.
        near: least distance of the later tokens.
        far: largest distance of the later tokens.
        where: [..., T] later tokens to average over. None: all.

    Returns:
        [..., T] influence, 0 where no later token is in range.
    """
    distance = _back(attention)
    in_range = jnp.broadcast_to((distance >= near) & (distance <= far), attention.shape)
    in_range = in_range if where is None else in_range & where[..., :, None]
    return jnp.where(in_range, attention, 0).sum(-2) / jnp.maximum(in_range.sum(-2), 1)


def mean_attention_distance(
    attention: Float[Array, "*b T T"], where: Bool[Array, "*b T"] | None = None
) -> Float[Array, "*b"]:
    """Mean distance over which a head attends.

        d = mean_t sum_{s <= t} a_ts (t - s)

    Args:
        attention: [..., T, T] attention map.
        where: [..., T] tokens t to average over. None: all.

    Returns:
        [...] distance in tokens.
    """
    distance = (attention * jnp.maximum(_back(attention), 0)).sum(-1)
    where = (
        jnp.ones(distance.shape, bool) if where is None else jnp.broadcast_to(where, distance.shape)
    )
    return jnp.where(where, distance, 0).sum(-1) / jnp.maximum(where.sum(-1), 1)


def local_and_global_maps(
    attention: Float[Array, "H T T"], share: float = 0.3, where: Bool[Array, "T"] | None = None
) -> tuple[Float[Array, "T T"], Float[Array, "T T"]]:
    """Mean attention map of the heads that attend least far, and of those that attend farthest.

    Args:
        attention: [H, T, T] attention map of each head.
        share: share of the heads in each mean, in (0, 1]; at least one head.
        where: [T] tokens to average distances over. None: all.

    Returns:
        [T, T] local map, [T, T] global map.
    """
    count = max(1, int(share * attention.shape[0] + 1e-9))
    order = jnp.argsort(mean_attention_distance(attention, where))
    return attention[order[:count]].mean(0), attention[order[-count:]].mean(0)


def _back(attention):
    """[T, T]: t - s."""
    position = jnp.arange(attention.shape[-1])
    return position[:, None] - position
