"""Aggregates of a per-token loss: numerators and denominators that add up over micro-batches."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcredit.losses.base import Aggregate, Batch, PerToken, divide, loss_weight, on_mask


def token_mean(loss: PerToken, batch: Batch) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean over all tokens, each with its weight.

        sum_it w l / sum_it w

    Source: DAPO, arXiv 2503.14476.

    Args:
        loss: [N, R, S] loss l of each token.
        batch: batch with the weights w.

    Returns:
        Numerator and denominator.
    """
    w = loss_weight(batch)
    return jnp.sum(w * on_mask(batch, loss)), jnp.sum(w)


def sequence_mean(loss: PerToken, batch: Batch) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean over rows of the mean over their tokens.

        mean_i (sum_t w l / sum_t w)   over rows with any weight

    Source: GRPO, arXiv 2402.03300.

    Args:
        loss: [N, R, S] loss l of each token.
        batch: batch with the weights w.

    Returns:
        Numerator and denominator.
    """
    w = loss_weight(batch)
    total = jnp.sum(w, -1)
    return jnp.sum(divide(jnp.sum(w * on_mask(batch, loss), -1), total)), jnp.sum(
        total > 0, dtype=total.dtype
    )


def sequence_sum(loss: PerToken, batch: Batch) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean over rows of the sum over their tokens, whose gradient is that of the expected return.

        mean_i sum_t w l   over rows with any weight

    Args:
        loss: [N, R, S] loss l of each token.
        batch: batch with the weights w.

    Returns:
        Numerator and denominator.
    """
    w = loss_weight(batch)
    return jnp.sum(w * on_mask(batch, loss)), jnp.sum(jnp.any(w > 0, -1), dtype=w.dtype)


def constant(length: int) -> Aggregate:
    """Aggregate `sequence_sum` divided by a constant length, independent of the answers' lengths.

        mean_i sum_t w l / length

    Source: Dr.GRPO, arXiv 2503.20783.

    Args:
        length: the constant, such as the largest number of sampled tokens.

    Returns:
        An aggregate: aggregate(loss, batch) -> numerator, denominator.
    """

    def aggregate(loss: PerToken, batch: Batch) -> tuple[Float[Array, ""], Float[Array, ""]]:
        numerator, rows = sequence_sum(loss, batch)
        return numerator, rows * length

    return aggregate
