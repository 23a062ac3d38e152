"""Credit that is computed from other credit: A' = f(A, data of the tokens)."""

import jax
from jaxtyping import Array, Float

from jaxcredit.credit.lift import Credit, columns, method_of
from jaxcredit.rollout import Rollout


def advantage_of(base: Credit, group: Rollout) -> Float[Array, "R T"]:
    """Advantage [R, T] of another estimator for one prompt.

    Args:
        base: an estimator, or a partial of one, whose credit ignores other prompts.
        group: one prompt's group, as `per_group` passes it to a function.

    Returns:
        The base's column "advantage".

    Raises:
        ValueError: `base` takes statistics over the batch.
    """
    method = method_of(base)
    if method.scope == "batch":
        raise ValueError(
            f"{method.name} takes statistics over the batch, but a base is computed for "
            "one prompt: choose a base without them, such as grpo"
        )
    batch = jax.tree.map(lambda x: x[None], group)
    return columns(base(batch), batch)["advantage"][0]
