"""What a language model's attention says about its own text (arXiv 2510.13554). A map's entry [t, s] is how much t looks at s <= t."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def waad(attention: Float[Array, "*b T T"], window: int = 10) -> Float[Array, "*b T"]:
    """Windowed average attention distance: how far back a token looks.  WAAD_t = sum_{s <= t} a_ts min(t - s, window)"""
    return (attention * jnp.clip(_back(attention), 0, window)).sum(-1)


def fai(
    attention: Float[Array, "*b T T"],
    near: int = 10,
    far: int = 100,
    where: Bool[Array, "*b T"] | None = None,
) -> Float[Array, "*b T"]:
    """Future attention influence: how much later tokens look at this one.  FAI_s = mean_t a_ts,  s + near <= t <= s + far

    The mean is over the t that exist, and real by `where`; 0 where none does.
    """
    back = _back(attention)
    seen = jnp.broadcast_to((back >= near) & (back <= far), attention.shape)
    seen = seen if where is None else seen & where[..., :, None]
    return jnp.where(seen, attention, 0).sum(-2) / jnp.maximum(seen.sum(-2), 1)


def mean_attention_distance(
    attention: Float[Array, "*b T T"], where: Bool[Array, "*b T"] | None = None
) -> Float[Array, "*b"]:
    """Mean distance at which a head looks.  d = mean_t sum_{s <= t} a_ts (t - s), over the real t"""
    distance = (attention * jnp.maximum(_back(attention), 0)).sum(-1)
    where = (
        jnp.ones(distance.shape, bool) if where is None else jnp.broadcast_to(where, distance.shape)
    )
    return jnp.where(where, distance, 0).sum(-1) / jnp.maximum(where.sum(-1), 1)


def local_and_global_maps(
    attention: Float[Array, "H T T"], share: float = 0.3, where: Bool[Array, "T"] | None = None
) -> tuple[Float[Array, "T T"], Float[Array, "T T"]]:
    """The mean map of the `share` of heads that look least far back, and of those that look farthest (at least one of each)."""
    count = max(1, int(share * attention.shape[0] + 1e-9))
    order = jnp.argsort(mean_attention_distance(attention, where))
    return attention[order[:count]].mean(0), attention[order[-count:]].mean(0)


def _back(attention):
    """[T, T]: t - s."""
    place = jnp.arange(attention.shape[-1])
    return place[:, None] - place
