"""Intrinsic rewards for messages from a judge: ONI, arXiv 2410.23022 and its released code.

The three reward functions `by_table`, `by_classifier` and `by_ranking` make the signal `verdict` of
the estimator `oni`. `preference_loss` trains the model behind `by_ranking`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxcredit.kernels.masked import root
from jaxcredit.kernels.value_learning import bradley_terry_loss

UNKNOWN = -1  # label of a message that the judge has not seen


def by_table(
    label: Int[Array, "M"], message: Int[Array, "*s"]
) -> tuple[Float[Array, "*s"], Bool[Array, "*s"]]:
    """Reward of messages from a table of the judge's labels.

    Args:
        label: [M], label of each known message: 0, 1, or UNKNOWN.
        message: index of each message, in 0..M-1.

    Returns:
        The labels as float32 with 0 for UNKNOWN, and whether a message is UNKNOWN and should be
        sent to the judge. Both have the shape of `message`.
    """
    labels = label[message]
    return jnp.where(labels == UNKNOWN, 0, labels).astype(jnp.float32), labels == UNKNOWN


def by_classifier(probability: Float[Array, "*s"], *, threshold: float = 0.5) -> Float[Array, "*s"]:
    """Reward of messages from a classifier of the judge's labels: 1[p > threshold].

    Args:
        probability: predicted probability of label 1, in [0, 1].
        threshold: probability above which the reward is 1.
    """
    return (probability > threshold).astype(probability.dtype)


def by_ranking(
    score: Float[Array, "*s"],
    mean: Float[Array, ""] | float,
    variance: Float[Array, ""] | float,
    *,
    threshold: float = -0.5,
) -> Float[Array, "*s"]:
    """Reward of messages from a preference model: z 1[z > threshold], z = (score - mean) / std.

    Args:
        score: scores of the preference model.
        mean: running mean of all scores.
        variance: running variance of all scores; z is 0 while it is 0.
        threshold: least standardized score with a reward.
    """
    std = root(jnp.asarray(variance, score.dtype))
    z = jnp.where(std > 0, (score - mean) / jnp.where(std > 0, std, 1), 0)
    return jnp.where(z > threshold, z, 0)


def preference(a: Float[Array, "*s"], b: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Probability that a is preferred to b (Bradley-Terry): sigmoid(a - b).

    Args:
        a: scores of the first messages.
        b: scores of the second messages.
    """
    return jax.nn.sigmoid(a - b)


def preference_loss(
    a: Float[Array, "*s"], b: Float[Array, "*s"], first: Float[Array, "*s"] | float = 1.0
) -> Float[Array, "*s"]:
    """Bradley-Terry loss: -first log P(a over b) - (1 - first) log P(b over a).

    Args:
        a: scores of the first messages.
        b: scores of the second messages.
        first: 1 if the judge prefers a, 0 if it prefers b, 1/2 for a tie.
    """
    return first * bradley_terry_loss(a, b) + (1 - first) * bradley_terry_loss(b, a)
