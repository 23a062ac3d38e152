"""KL divergence estimators against the reference policy, one number per token, for samples of the policy itself."""

import functools

import jax
import jax.numpy as jnp

from jaxcredit.losses.base import Batch, Objective, PerToken, on_mask


def k1(logp: PerToken, batch: Batch) -> PerToken:
    """log p - log p_ref. Unbiased; as a loss its gradient is zero in expectation, so take `straight_through(k1)` there."""
    return -log_ratio_to_reference(logp, batch)


def k2(logp: PerToken, batch: Batch) -> PerToken:
    """(log p - log p_ref)^2 / 2. Biased, but on-policy its gradient is that of KL(p || p_ref)."""
    return 0.5 * jnp.square(log_ratio_to_reference(logp, batch))


def k3(logp: PerToken, batch: Batch) -> PerToken:
    """exp(d) - d - 1, d = log p_ref - log p. Unbiased and never negative; at most 10, as in released code."""
    d = jnp.clip(log_ratio_to_reference(logp, batch), -20.0, 20.0)
    return jnp.minimum(jnp.expm1(d) - d, 10.0)


def straight_through(kl: Objective) -> Objective:
    """The value of `kl` with the gradient of k2: sg(kl) + k2 - sg(k2)."""

    def mixed(logp: PerToken, batch: Batch) -> PerToken:
        moving = k2(logp, batch)
        return jax.lax.stop_gradient(kl(logp, batch) - moving) + moving

    return functools.update_wrapper(mixed, kl)


def log_ratio_to_reference(logp, batch):
    if batch.ref_logp is None:
        raise ValueError(
            "a KL penalty (or a teacher) needs that policy's log-probabilities: add signals.reference, or set beta to 0"
        )
    return on_mask(batch, batch.ref_logp) - on_mask(batch, logp)
