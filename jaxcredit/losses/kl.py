"""Estimators of the KL divergence from the reference policy, one number per token.

They are estimates for tokens that the policy itself sampled. Names as in Schulman, "Approximating
KL divergence" (2020).
"""

import functools

import jax
import jax.numpy as jnp

from jaxcredit.losses.base import Batch, Objective, PerToken, on_mask


def k1(logp: PerToken, batch: Batch) -> PerToken:
    """KL estimator log p - log p_ref: unbiased, with high variance.

    As a loss its expected gradient is 0; use `straight_through(k1)` there.

    Args:
        logp: [N, R, S] log-probability under the policy.
        batch: batch with `ref_logp`.

    Returns:
        [N, R, S] estimates, of either sign.
    """
    return -log_ratio_to_reference(logp, batch)


def k2(logp: PerToken, batch: Batch) -> PerToken:
    """KL estimator (log p - log p_ref)^2 / 2: biased, but on-policy with the gradient of the KL.

    Args:
        logp: [N, R, S] log-probability under the policy.
        batch: batch with `ref_logp`.

    Returns:
        [N, R, S] estimates, >= 0.
    """
    return 0.5 * jnp.square(log_ratio_to_reference(logp, batch))


def k3(logp: PerToken, batch: Batch) -> PerToken:
    """KL estimator exp(d) - d - 1 with d = log p_ref - log p: unbiased and never negative.

    The value is limited to 10, as in released code.

    Args:
        logp: [N, R, S] log-probability under the policy.
        batch: batch with `ref_logp`.

    Returns:
        [N, R, S] estimates in [0, 10].
    """
    d = jnp.clip(log_ratio_to_reference(logp, batch), -20.0, 20.0)
    return jnp.minimum(jnp.expm1(d) - d, 10.0)


def straight_through(kl: Objective) -> Objective:
    """KL estimator with the value of `kl` and the gradient of `k2`.

        sg(kl) + k2 - sg(k2),   sg = stop_gradient

    Args:
        kl: a KL estimator.

    Returns:
        A KL estimator.
    """

    def estimator(logp: PerToken, batch: Batch) -> PerToken:
        gradient_of_k2 = k2(logp, batch)
        return jax.lax.stop_gradient(kl(logp, batch) - gradient_of_k2) + gradient_of_k2

    return functools.update_wrapper(estimator, kl)


def log_ratio_to_reference(logp, batch):
    """log p_ref - log p of each token, 0 off the action mask.

    Raises:
        ValueError: the batch has no `ref_logp`.
    """
    if batch.ref_logp is None:
        raise ValueError(
            "a KL penalty (or a teacher) needs that policy's log-probabilities: "
            "add signals.reference, or set beta to 0"
        )
    return on_mask(batch, batch.ref_logp) - on_mask(batch, logp)
