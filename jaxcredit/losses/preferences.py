"""Losses on preferences between answers, with implicit rewards beta log p / p_ref."""

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
    """Implicit reward of an answer: beta sum_t (log p_t - log p_ref,t).

    Args:
        logp: [..., T] log-probability under the policy.
        ref_logp: [..., T] log-probability under the reference policy.
        mask: [..., T] tokens of the answer.
        beta: scale of the reward, > 0.

    Returns:
        [...] rewards.

    >>> logp, ref_logp = jnp.array([-1.0, -2.0]), jnp.array([-2.0, -2.0])
    >>> float(implicit_reward(logp, ref_logp, jnp.ones(2, bool), beta=0.5))
    0.5
    """
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
    """Direct preference optimization, from log-probabilities of whole answers.

        -log sigmoid(beta [(log p(y+) - log p_ref(y+)) - (log p(y-) - log p_ref(y-))])

    If the two answers share a prefix, as sibling calls of iTool (arXiv 2501.09766) do, its
    log-probabilities cancel. Source: arXiv 2305.18290.

    Args:
        better: [...] log-probability of the preferred answer y+ under the policy.
        worse: [...] log-probability of the other answer y- under the policy.
        ref_better: [...] log-probability of y+ under the reference policy.
        ref_worse: [...] log-probability of y- under the reference policy.
        beta: scale of the implicit rewards, > 0.

    Returns:
        [...] losses.
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
    """Preference between long and short thinking, on the logits of an answer's first token.

        softplus(-s (z_long - z_short) / temperature)

    The first token selects the length of the thinking. Our design after Adaptive deep reasoning,
    arXiv 2505.20101, whose formula is not known to us.

    Args:
        logits: [..., V] logits z of the first token.
        preference: [...] s: 1 prefers long, -1 short, 0 neither (no gradient).
        long: token id that begins long thinking.
        short: token id that begins short thinking.
        temperature: > 0.

    Returns:
        [...] losses.
    """
    return jax.nn.softplus(-preference * (logits[..., long] - logits[..., short]) / temperature)
