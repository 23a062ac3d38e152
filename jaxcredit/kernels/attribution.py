"""How an episode's score is shared out among its utterances by a judge's marks."""

from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxcredit.kernels.choices import check_choice
from jaxcredit.kernels.returns import to_go

UtteranceForm = Literal["scaled", "normalised", "progress", "discount", "uniform", "key"]


def utterance_rewards(
    mark: Float[Array, "G K D"],
    score: Float[Array, "G D"],
    where: Bool[Array, "G K"],
    *,
    form: UtteranceForm = "scaled",
    decay: float = 0.9,
) -> Float[Array, "G K D"]:
    """What utterance k of n earns of the score S in each dimension (Sotopia-RL, arXiv 2508.03905, released code).

        scaled      a_k / 3 S for marks 0 to 3, and -1 where a_k < 0        progress   a_k / 10 S, marks 0 to 10
        normalised  a_k / sum a S, marks below 0 counting 0; S / n where all do      discount   decay^(n - 1 - k) S
        uniform     S                                                       key        S for the utterance of the highest mark

    Of equal marks the first is `key`. The `normalised` rewards sum to S, the others do not.
    """
    check_choice("utterance_rewards", "form", form, get_args(UtteranceForm))
    real = where[..., None]
    S = jnp.broadcast_to(score[:, None], mark.shape)
    a = jnp.where(real, jnp.maximum(mark, 0), 0)
    total, n = a.sum(1, keepdims=True), jnp.maximum(real.sum(1, keepdims=True), 1)
    left = to_go(jnp.ones(where.shape, score.dtype), where=where)[..., None] - 1
    top = real & (mark == jnp.max(mark, 1, where=real, initial=-jnp.inf, keepdims=True))
    forms = {
        "scaled": lambda: jnp.where(mark < 0, -1, mark / 3 * S),
        "normalised": lambda: jnp.where(total > 0, a / jnp.where(total > 0, total, 1), 1 / n) * S,
        "progress": lambda: mark / 10 * S,
        "discount": lambda: decay**left * S,
        "uniform": lambda: S,
        "key": lambda: jnp.where(top & (jnp.cumsum(top, 1) == 1), S, 0),
    }
    return jnp.where(real, forms[form](), 0)
