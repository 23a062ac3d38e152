"""Signals from a forward pass of a policy: reference log-probabilities and the policy's entropy."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxcredit.policy import lora
from jaxcredit.rollout import FilledRollout, Rollout
from jaxcredit.signals.base import Learned


def reference() -> Callable:
    """Annotator of the signal `ref_logp` [N, R, T]: log-probabilities under the initial policy.

    A copy of the trainable parameters (with LoRA: of the adapters) is kept from the start of
    training. Frozen parameters are shared with the policy. The signal costs one forward pass a
    step.

    Returns:
        An entry for `signals` of an experiment.
    """

    def make(cfg, logprob) -> Learned:
        measure = _response_output(logprob, "logp")

        def annotate(aux, state, rollout, metas):
            params = lora.join(lora.split(state.params)[0], aux)
            return rollout.with_signals(ref_logp=measure(params, rollout.filled()))

        return Learned(
            init=lambda key, params: jax.tree.map(jnp.copy, lora.split(params)[1]),
            annotate=annotate,
        )

    make.provides = ("ref_logp",)
    return make


def entropy() -> Callable:
    """Annotator of the signal `entropy` [N, R, T] of the policy at each token, in nats.

    The policy is the one before the step's update, at the sampling temperature. The signal costs
    one forward pass a step.

    Returns:
        An entry for `signals` of an experiment.
    """

    def make(cfg, logprob) -> Learned:
        measure = _response_output(logprob, "entropy")

        def annotate(aux, state, rollout, metas):
            return rollout.with_signals(entropy=measure(state.params, rollout.filled()))

        return Learned(init=lambda key, params: {}, annotate=annotate)

    make.provides = ("entropy",)
    return make


def at_response(x: jax.Array, rollout: Rollout) -> jax.Array:
    """Signal [N, R, T] from numbers of the last S columns.

    Args:
        x: [N, R, S] one number for each response column.
        rollout: the rollout of T >= S columns.

    Returns:
        [N, R, T], 0 on tokens that the policy did not choose.
    """
    T, S = rollout.action_mask.shape[-1], x.shape[-1]
    return jnp.where(rollout.action_mask, jnp.pad(x, ((0, 0), (0, 0), (T - S, 0))), 0)


def _response_output(logprob, name: str) -> Callable[..., jax.Array]:
    """Compiled function (params, rollout) -> [N, R, T] of one output of a forward pass."""

    @jax.jit
    def measure(params, rollout: FilledRollout):
        return at_response(logprob(params, rollout)[name], rollout)

    return measure
