"""Several judges, one verdict."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def vote(marks: Bool[Array, "C *s"], share: float | Float[Array, ""] = 0.5) -> Bool[Array, "*s"]:
    """1[sum_c marks_c >= max(1, share C)]: share=1 is the intersection of the judges, 0.5 their majority (a tie counts), 0 the union."""
    return marks.sum(0) >= jnp.maximum(1, share * marks.shape[0])
