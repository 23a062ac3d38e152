"""Losses on pairs: of two answers one is better. Rewards are implicit, beta log p / p_ref, so there is no reward model."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxcredit.kernels.value_learning import bradley_terry_loss


def implicit_reward(
    logp: Float[Array, "*b T"],
    ref_logp: Float[Array, "*b T"],
    mask: Bool[Array, "*b T"],
    *,
    beta: float = 0.1,
) -> Float[Array, "*b"]:
    """beta sum_t (log p_t - log p_ref,t) over the answer's own tokens."""
    return beta * jnp.where(mask, jnp.where(mask, logp, 0) - jnp.where(mask, ref_logp, 0), 0).sum(
        -1
    )


def dpo(
    better: Float[Array, "*b"],
    worse: Float[Array, "*b"],
    ref_better: Float[Array, "*b"],
    ref_worse: Float[Array, "*b"],
    *,
    beta: float = 0.1,
) -> Float[Array, "*b"]:
    """-log sigmoid(beta [(log p(y+) - log p_ref(y+)) - (log p(y-) - log p_ref(y-))]), from whole answers' log-probabilities.

    Direct preference optimisation, arXiv 2305.18290. Where the two answers share a beginning, as the sibling calls of iTool
    (arXiv 2501.09766) do, its log-probabilities cancel: what comes after the divergence moves alone.
    """
    return bradley_terry_loss(beta * (better - ref_better), beta * (worse - ref_worse))


def mode_loss(
    logits: Float[Array, "*b V"],
    preference: Float[Array, "*b"],
    *,
    long: int,
    short: int,
    temperature: float = 1.0,
) -> Float[Array, "*b"]:
    """softplus(-s (z_long - z_short) / temperature), s = 1 where long thinking is preferred, -1 short, 0 neither (and no gradient).

    On the logits of an answer's first token, which says how long it will think, under a prompt that does not. Our design: Adaptive deep
    reasoning, arXiv 2505.20101, is known to us without its formula.
    """
    return jax.nn.softplus(-preference * (logits[..., long] - logits[..., short]) / temperature)
