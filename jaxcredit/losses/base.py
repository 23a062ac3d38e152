"""The batch that losses read, the types of objectives and aggregates, and masked arithmetic."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

PerToken = Float[Array, "N R S"]
# (logp, batch, *, knobs) -> loss of each token
Objective = Callable[..., PerToken]
# (loss, batch) -> numerator, denominator
Aggregate = Callable[..., tuple[Float[Array, ""], Float[Array, ""]]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Response columns of N prompts with R rows of S tokens: all that a loss reads besides `logp`.

    Attributes:
        action_mask: [N, R, S] True on tokens that the policy sampled.
        logp: [N, R, S] log-probability under the policy before the first update on this rollout
            (the old or proximal policy).
        advantage: [N, R, S] advantage of each token.
        weight: [N, R, S] weight of each token, >= 0. Tokens of weight 0 count in neither numerator
            nor denominator.
        clip: [N, R, S] factor on the objective's clip range, >= 0; 1 leaves it unchanged.
        segment: [N, R, S] segment of each token, -1 outside any.
        ref_logp: [N, R, S] log-probability under the reference policy or the teacher. None: absent.
        sampler_logp: [N, R, S] log-probability as the sampler computed it. None: absent.
        target: [N, R, S] regression target of a value model. None: absent.
    """

    action_mask: Bool[Array, "*N R S"]
    logp: Float[Array, "*N R S"]
    advantage: Float[Array, "*N R S"]
    weight: Float[Array, "*N R S"]
    clip: Float[Array, "*N R S"]
    segment: Int[Array, "*N R S"]
    ref_logp: Float[Array, "*N R S"] | None = None
    sampler_logp: Float[Array, "*N R S"] | None = None
    target: Float[Array, "*N R S"] | None = None


def divide(numerator: Float[Array, "*n"], denominator: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Division that gives 0, value and gradient, where the denominator is not positive.

    Args:
        numerator: [...] sums.
        denominator: [...] counts or weights, >= 0.

    Returns:
        [...] quotients.

    >>> divide(jnp.array([1.0, 5.0]), jnp.array([2.0, 0.0])).tolist()
    [0.5, 0.0]
    """
    some = denominator > 0
    return jnp.where(some, numerator / jnp.where(some, denominator, 1), 0)


def on_mask(batch, x):
    """x in float32 or wider, exactly 0 off the action mask.

    The mask is applied before any exp, so padding makes no NaN, in gradients neither.
    """
    return jnp.where(batch.action_mask, x.astype(jnp.promote_types(x.dtype, jnp.float32)), 0)


def loss_weight(batch):
    """Weight of each token, 0 off the action mask."""
    return on_mask(batch, batch.weight)
