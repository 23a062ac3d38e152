from typing import Literal

import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import rounding_bound, standardize, to_tokens
from jaxcredit.rollout import Rollout, outcome, return_rounding, trajectory_mask


@per_group(
    needs=("density",),
    paper="2602.03647",
    fidelity="ours",
    family="baselines",
    cost="a judgment of each retrieved passage",
    reduces_to="grpo with weight=0, or where density is equal and form is gated",
)
def search_r2(
    group: Rollout,
    *,
    weight: float = 0.5,
    form: Literal["gated", "weighted", "product"] = "gated",
    ddof: int = 0,
    eps: float = 1e-6,
):
    """GRPO on the outcome joined with the density of useful passages (our design).

        A_i = (H_i - mean H) / (std H + eps)

        form="gated":     H_i = R_i (1 + weight d_i)
        form="weighted":  H_i = R_i + weight d_i
        form="product":   H_i = R_i d_i

    Signals: density [N, G], the share d_i of retrieved passages that are useful; 0
    where nothing was retrieved.

    Args:
        weight: float >= 0, weight of the density; unused with form="product".
        form: "gated" (density counts only with a right answer), "weighted" or
            "product".
        ddof: int, 0 or 1. The variance divides by n - ddof.
        eps: float >= 0, added to the standard deviation.

    Returns:
        Advantage [N, R, T], the same for all tokens of a trajectory.

    Raises:
        ValueError: `form` is not one of its values.

    Departs from the paper: it names both parts of the reward but not how they are
    joined, so all three forms are ours. Rows of the paper's refiner are rows of the
    same trajectory and share its advantage.

    Source: Search-R2, arXiv 2602.03647 (the parts of the reward).
    """
    R, d = outcome(group), group["density"]
    H = {"gated": R * (1 + weight * d), "weighted": R + weight * d, "product": R * d}[form]
    # Only a sum can cancel: products need no tolerance.
    error = (
        return_rounding(group) + rounding_bound(jnp.abs(weight * d)) if form == "weighted" else None
    )
    return to_tokens(
        standardize(H, where=trajectory_mask(group), ddof=ddof, eps=eps, slack=error), group
    )
