"""The batch that losses read, the types of objectives and aggregates, and masked arithmetic."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

PerToken = Float[Array, "N R S"]
Objective = Callable[..., PerToken]  # (logp, batch, *, knobs)
Aggregate = Callable[
    ..., tuple[Float[Array, ""], Float[Array, ""]]
]  # (loss, batch) -> numerator, denominator


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """The response columns of whole prompts: all that a loss may look at besides the log-probabilities it moves."""

    action_mask: Bool[Array, "*N R S"]  # tokens the policy chose
    logp: Float[
        Array, "*N R S"
    ]  # under the policy before this rollout's first step (old, proximal)
    advantage: Float[Array, "*N R S"]
    weight: Float[Array, "*N R S"]  # >= 0; 0 leaves the loss and its denominator
    clip: Float[Array, "*N R S"]  # scales how far a token may move; 1 is the objective's own width
    segment: Int[Array, "*N R S"]  # -1 outside any
    ref_logp: Float[Array, "*N R S"] | None = None  # under the reference policy
    sampler_logp: Float[Array, "*N R S"] | None = None  # as the sampler computed it
    target: Float[Array, "*N R S"] | None = None  # what a critic should regress to


def divide(numerator: Float[Array, "*n"], denominator: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """numerator / denominator, and 0 where nothing was counted, in value and in gradient."""
    some = denominator > 0
    return jnp.where(some, numerator / jnp.where(some, denominator, 1), 0)


def on_mask(batch, x):
    """At least float32, and exactly 0 off the mask: `where` comes before any exp, so that padding makes no NaN, not even in a gradient."""
    return jnp.where(batch.action_mask, x.astype(jnp.promote_types(x.dtype, jnp.float32)), 0)


def loss_weight(batch):
    return on_mask(batch, batch.weight)
