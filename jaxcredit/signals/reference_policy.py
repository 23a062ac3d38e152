"""What a forward pass of some policy says about the tokens: the reference policy's log-probabilities, the policy's own entropy."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxcredit.policy import lora
from jaxcredit.rollout import Rollout
from jaxcredit.signals.base import Learned


def reference() -> Callable:
    """`ref_logp`: log-probabilities under a frozen copy of the parameters that training began with: of those of them that are trained."""

    def make(cfg, logprob) -> Learned:
        @jax.jit
        def measure(frozen, rollout: Rollout):
            return at_response(logprob(frozen, rollout)["logp"], rollout)

        return Learned(
            init=lambda key, params: jax.tree.map(jnp.copy, lora.split(params)[1]),
            annotate=lambda aux, state, rollout, metas: rollout.with_signals(
                ref_logp=measure(lora.join(lora.split(state.params)[0], aux), rollout.filled())
            ),
        )

    make.provides = ("ref_logp",)
    return make


def entropy() -> Callable:
    """`entropy`: of the distribution each token was drawn from, in nats, by the policy before its step."""

    def make(cfg, logprob) -> Learned:
        @jax.jit
        def measure(params, rollout: Rollout):
            return at_response(logprob(params, rollout)["entropy"], rollout)

        return Learned(
            init=lambda key, params: {},
            annotate=lambda aux, state, rollout, metas: rollout.with_signals(
                entropy=measure(state.params, rollout.filled())
            ),
        )

    make.provides = ("entropy",)
    return make


def at_response(x: jax.Array, rollout: Rollout) -> jax.Array:
    """Numbers [N, R, S] of the last S columns as a signal [N, R, T]: 0 wherever the policy chose nothing."""
    T, S = rollout.action_mask.shape[-1], x.shape[-1]
    return jnp.where(rollout.action_mask, jnp.pad(x, ((0, 0), (0, 0), (T - S, 0))), 0)
