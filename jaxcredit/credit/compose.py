"""Credit that is made of other credit: A' = f(A, token data)."""

import jax

from jaxcredit.credit.lift import Credit, columns, method_of
from jaxcredit.rollout import Rollout


def advantage_of(base: Credit, group: Rollout):
    """[R, T]: what a base credit gives to this one prompt."""
    if method_of(base).scope == "batch":
        raise ValueError(
            f"{method_of(base).name} takes statistics over the batch: as the base of a credit of one prompt, take another (grpo)"
        )
    alone = jax.tree.map(lambda x: x[None], group)
    return columns(base(alone), alone)["advantage"][0]
