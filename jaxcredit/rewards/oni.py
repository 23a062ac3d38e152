"""What a message is worth to an explorer, learned from a judge (ONI, arXiv 2410.23022, and its released code): three reward functions.

They give the signal `verdict` of the credit `oni`; its `seen` is the message's count in the episode.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxcredit.kernels.masked import root

UNKNOWN = -1


def by_table(
    label: Int[Array, "M"], message: Int[Array, "*s"]
) -> tuple[Float[Array, "*s"], Bool[Array, "*s"]]:
    """The judge's label (0 or 1) of each message, and whether it has none yet: then it is worth 0 and queues for the judge."""
    found = label[message]
    return jnp.where(found == UNKNOWN, 0, found).astype(jnp.float32), found == UNKNOWN


def by_classifier(probability: Float[Array, "*s"], *, threshold: float = 0.5) -> Float[Array, "*s"]:
    """1[p > threshold]"""
    return (probability > threshold).astype(probability.dtype)


def by_ranking(
    score: Float[Array, "*s"],
    mean: Float[Array, ""] | float,
    variance: Float[Array, ""] | float,
    *,
    threshold: float = -0.5,
) -> Float[Array, "*s"]:
    """z 1[z > threshold], z = (score - mean) / std with the running moments of the scores so far; 0 while they do not vary."""
    std = root(jnp.asarray(variance, score.dtype))
    z = jnp.where(std > 0, (score - mean) / jnp.where(std > 0, std, 1), 0)
    return jnp.where(z > threshold, z, 0)


def preference(a: Float[Array, "*s"], b: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """P(a is preferred to b) = sigmoid(a - b) (Bradley and Terry)."""
    return jax.nn.sigmoid(a - b)


def preference_loss(
    a: Float[Array, "*s"], b: Float[Array, "*s"], first: Float[Array, "*s"] | float = 1.0
) -> Float[Array, "*s"]:
    """-first log P(a over b) - (1 - first) log P(b over a); `first` is 1, 0, or 1/2 for a tie."""
    return -first * jax.nn.log_sigmoid(a - b) - (1 - first) * jax.nn.log_sigmoid(b - a)
