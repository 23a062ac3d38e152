"""Aggregates of a per-token loss. Each returns a numerator and a denominator, which add up over micro-batches, shards and hosts."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcredit.losses.base import Aggregate, Batch, PerToken, divide, loss_weight, on_mask


def token_mean(loss: PerToken, batch: Batch) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """sum_it w l / sum_it w: every token counts alike (DAPO, arXiv 2503.14476)."""
    w = loss_weight(batch)
    return jnp.sum(w * on_mask(batch, loss)), jnp.sum(w)


def sequence_mean(loss: PerToken, batch: Batch) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """mean_i (sum_t w l / sum_t w): every row counts alike (GRPO, arXiv 2402.03300). Rows without weight do not count."""
    w = loss_weight(batch)
    total = jnp.sum(w, -1)
    return jnp.sum(divide(jnp.sum(w * on_mask(batch, loss), -1), total)), jnp.sum(
        total > 0, dtype=total.dtype
    )


def sequence_sum(loss: PerToken, batch: Batch) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """mean_i sum_t w l: the gradient of expected return. Rows without weight do not count."""
    w = loss_weight(batch)
    return jnp.sum(w * on_mask(batch, loss)), jnp.sum(jnp.any(w > 0, -1), dtype=w.dtype)


def constant(length: int) -> Aggregate:
    """mean_i sum_t w l / length: sequence_sum in units of a fixed length, so that no answer's length enters (Dr.GRPO, arXiv 2503.20783)."""

    def aggregate(loss: PerToken, batch: Batch) -> tuple[Float[Array, ""], Float[Array, ""]]:
        numerator, rows = sequence_sum(loss, batch)
        return numerator, rows * length

    return aggregate
